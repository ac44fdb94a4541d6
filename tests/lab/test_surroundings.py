"""What a user has set up for themselves does not reach into runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lab import surroundings
from common.lab.surroundings import CODE, around, clean, forgive_streams, neutral, personal
from tests.lab.toy import REPOSITORY, environment, lab, write_project

MINE = {
    "PYTHONOPTIMIZE": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONHASHSEED": "7",
    "PYTHONSTARTUP": "/home/me/start.py",
    "PYTHONPATH": "/home/me/lib",
    "PYTHONUSERBASE": "/home/me/base",
    "IPYTHONDIR": "/home/me/ipython",
    "JUPYTER_CONFIG_DIR": "/home/me/jupyter",
    "JUPYTER_PATH": "/home/me/share",
    "MATPLOTLIBRC": "/home/me/rc",
    "MPLBACKEND": "TkAgg",
    "TZ": "Asia/Tokyo",
    "LC_ALL": "de_DE.UTF-8",
    "LC_NUMERIC": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "ATEN_CPU_CAPABILITY": "default",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "NUMBA_DISABLE_JIT": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "OPENBLAS_MAIN_FREE": "1",
    "PANDAS_COPY_ON_WRITE": "0",
    "ACCELERATE_USE_FSDP": "1",
    "RANK": "3",
    "SPARK_CONF_DIR": "/home/me/spark",
    "TQDM_DISABLE": "1",
}
MACHINES = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/me",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_CORETYPE": "Haswell",  # on processors that OpenBLAS takes for others
    "CUDA_VISIBLE_DEVICES": "1",
    "https_proxy": "http://proxy:1",
    "PIP_INDEX_URL": "http://index",
    "MPLCONFIGDIR": "/scratch/mpl",  # where its font cache lies; its rc file is not read
    "NUMBA_CACHE_DIR": "/scratch/numba",
    "SPARK_MASTER": "spark://host",
    "JAVA_HOME": "/opt/java",
    "PAPERLAB_WORKERS": "2",
    "MLFLOW_TRACKING_URI": "http://team",
    "SLURM_JOB_ID": "1",
}
Text = st.text(st.characters(codec="ascii", exclude_characters="\0="), min_size=1)


def test_a_users_settings_go_and_the_machines_stay() -> None:
    seen = clean({**MINE, **MACHINES}, Path("/project"))
    assert MACHINES.items() <= seen.items()
    for name, mine in MINE.items():
        assert seen.get(name) != mine, name
    assert seen["PYTHONPATH"] == os.pathsep.join(["/project", str(CODE)]) and seen["PYTHONNOUSERSITE"] == "1"
    assert Path(seen["MATPLOTLIBRC"]).is_relative_to(sys.prefix)


def test_on_a_bare_machine_torch_may_lie_where_the_user_says() -> None:
    seen = clean({**MINE, "PYTHONNOUSERSITE": ""})
    assert seen["PYTHONPATH"] == MINE["PYTHONPATH"] and seen["PYTHONNOUSERSITE"] == ""
    assert "PYTHONNOUSERSITE" not in clean({}) and "PYTHONOPTIMIZE" not in seen


@given(st.dictionaries(st.sampled_from([*MINE, *MACHINES, "FOO"]), Text))
def test_a_clean_environment_is_left_as_it_is(given: dict[str, str]) -> None:
    for root in (Path("/project"), None):
        once = clean(given, root)
        assert clean(once, root) == once


PROBE = """
import os, sys
from pathlib import Path
from common.lab.surroundings import settle
started = os.getpid()
settle(Path("/project"))
import json
print(json.dumps({
    "optimize": sys.flags.optimize, "warnings": sys.warnoptions, "utf8": sys.flags.utf8_mode, "pid": started,
    "path": "/home/me/lib" in sys.path, "hash": hash("x"), "argv": sys.argv[1:],
    "marked": "PAPERLAB_SETTLED" in os.environ,
}))
"""


def probe(**settings: str) -> tuple[dict[str, object], int]:
    """What a process that settles sees of itself, and the number that it was started under."""
    given = {**environment(REPOSITORY), "PYTHONPATH": str(REPOSITORY), **settings}
    command = [sys.executable, "-c", PROBE, "an argument"]
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as process:
        told, _ = process.communicate(timeout=60)
    return json.loads(told), process.pid


def test_a_command_begins_again_in_clean_surroundings_under_the_same_number() -> None:
    path = f"/home/me/lib{os.pathsep}{REPOSITORY}"
    seen, pid = probe(**{**MINE, "PYTHONPATH": path, "PYTHONWARNINGS": "default"})
    quiet, _ = probe()
    assert seen["pid"] == pid and seen["argv"] == ["an argument"]
    assert seen["optimize"] == 0 and seen["warnings"] == [] and seen["utf8"] == 1 and not seen["path"]
    assert seen["hash"] == quiet["hash"] and not seen["marked"]


def test_every_command_of_the_lab_begins_so(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    experiment = root / "papers" / "toy" / "experiment.py"
    experiment.write_text(experiment.read_text().replace("if config.fail:", "if __debug__:"))
    for arguments in (("falsify", "toy", "--profile", "smoke"), ("bare", "toy", "config.json", "seen.json")):
        if arguments[0] == "bare":
            assert lab(root, "config", "toy", "--to", str(root / "config.json")).returncode == 0
        ended = lab(root, *arguments, PYTHONOPTIMIZE="1")
        assert ended.returncode == 1 and "the experiment broke" in ended.stderr, ended.stderr


def test_what_is_started_in_a_block_is_clean_and_what_comes_after_it_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, mine in MINE.items():
        monkeypatch.setenv(name, mine)
    before = dict(os.environ)
    with around(Path("/project"), {"IPYTHONDIR": "/empty"}):
        assert os.environ["IPYTHONDIR"] == "/empty" and "PYTHONSTARTUP" not in os.environ
        assert os.environ["TZ"] == "UTC" and "LC_ALL" not in os.environ
    assert dict(os.environ) == before


SHOW = r"""
from rich.console import Console
from common.lab.surroundings import forgive_streams
forgive_streams()
Console(width=40).print("\u2265 2 \u2502 \u00b1 \udcff")
print("\u2265", "\udcff")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_that_cannot_show_a_character_shows_another(encoding: str) -> None:
    given = {**environment(REPOSITORY), "PYTHONIOENCODING": encoding}
    ended = subprocess.run([sys.executable, "-c", SHOW], env=given, capture_output=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1].endswith(b" ?"), ended.stderr


def test_the_table_of_claims_is_printed_to_any_stream(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    ended = lab(root, "falsify", "toy", "--profile", "smoke", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and "up to 3 ratio" in ended.stdout, ended.stderr


def test_streams_without_an_encoding_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    forgive_streams()


# --- a kernel that somebody else started ----------------------------------------------------------------------------

BY_HAND = """
import json, os, time, warnings
import numpy, pandas, matplotlib, torch
numpy.seterr(all="raise")
numpy.set_printoptions(precision=2)
matplotlib.rcParams["lines.linewidth"] = 9
pandas.set_option("display.precision", 2)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
warnings.simplefilter("error")
from common.lab.surroundings import neutral
said = neutral()
from common import viz
viz.use_style()
right = {
    "numpy": numpy.geterr() == {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
    "numpy's digits": repr(numpy.array([1 / 3])) == "array([0.33333333])",
    "matplotlib": matplotlib.rcParams["lines.linewidth"] != 9,
    "pandas": pandas.get_option("display.precision") == 6,
    "torch": (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float32, "cpu"),
    "warnings": not any(kept[0] == "error" and kept[2].__module__ == "builtins" for kept in warnings.filters),
    "clock": time.tzname == ("UTC", "UTC"),
    "backend": os.environ["MPLBACKEND"] == "agg",
}
print(json.dumps([said, right]))
"""


def test_a_notebook_opened_by_hand_sets_back_what_it_can_and_says_in_a_line_what_it_cannot() -> None:
    mine = {
        "PYTHONOPTIMIZE": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "TZ": "Asia/Tokyo",
        "OMP_NUM_THREADS": "1",
    }
    given = {**environment(REPOSITORY), "MPLBACKEND": "agg", **mine}
    command = [sys.executable, "-c", BY_HAND]
    ended = subprocess.run(command, cwd=REPOSITORY, env=given, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    said, right = json.loads(ended.stdout)
    assert all(right.values()), right
    named = "PYTHONOPTIMIZE leaves out checks; ATEN_CPU_CAPABILITY is set (`make lab` starts a clean one)"
    assert said == f"this kernel may give other numbers than the record's: {named}"


def test_the_code_of_another_checkout_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "common" / "lab").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert f"it runs the code of {CODE}, not of {tmp_path}" in "; ".join(surroundings._left())


def test_what_a_user_may_set_is_told_from_what_the_machine_says() -> None:
    assert all(personal(name) for name in MINE) and not any(personal(name) for name in MACHINES)


def test_in_a_clean_process_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if personal(name) and name not in ("PYTHONPATH", "MPLBACKEND")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(REPOSITORY)
    assert neutral() == ""
