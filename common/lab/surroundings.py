"""What a user has set up for themselves, kept out of runs: a recorded run depends on the repository alone.

`clean` says which environment variables a run may see; `settle` begins a command again with these; `around` lends them
to what a command starts, such as a kernel; `neutral` sets back what it can in a kernel that somebody else started.
What belongs to the machine stays: PATH, threads (OMP_NUM_THREADS), GPUs, proxies, where caches and temporary files lie.
Standard library only.
"""

import contextlib
import importlib.util
import locale
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

CODE = Path(__file__).resolve().parents[2]
SETTLED = "PAPERLAB_SETTLED"  # the process that has begun again

# Variables by which the interpreter, the notebook and the libraries of requirements.lock are set up. What they decide
# is a number, a picture, or which code runs at all.
_PERSONAL = re.compile(
    r"""
    (PYTHON | IPYTHON | IPYKERNEL | JUPYTER | JUPYTERLAB | NBCONVERT | TRAITLETS | PYDEVD)\w*
    | (LC | LANG)(_\w+)? | LANGUAGE | TZ | TZDIR
    | (NPY | NUMPY | SCIPY | PANDAS | NUMBA | LLVMLITE | SKLEARN | FAISS | POLARS | ARROW | ORT | OV | OPENVINO)_\w+
    | (NETWORKX | QUTIP | GYM | SB3 | TQDM | HYDRA)_\w+ | (MPL | _MPL)\w* | MATPLOTLIBRC | QT_API
    | (TORCH | TORCHINDUCTOR | TORCHELASTIC | PYTORCH | ATEN | AOT_INDUCTOR | INDUCTOR | DYNAMO)_\w+ | TORCHDYNAMO_\w+
    | (TRANSFORMERS | TOKENIZERS | ACCELERATE | FSDP | PARALLELISM_CONFIG | BNB | PJRT | XLA)_\w+
    | USE_(TF | FLAX | JAX | TORCH | TORCH_XLA | HUB_KERNELS)
    | RANK | LOCAL_RANK | NODE_RANK | WORLD_SIZE | LOCAL_WORLD_SIZE | MASTER_ADDR | MASTER_PORT
    | (CUBLAS | CUBLASLT | CUDNN)_\w+ | CUDA_(LAUNCH_BLOCKING | MODULE_LOADING) | NVIDIA_TF32_OVERRIDE
    | (MKL | ONEDNN | DNNL | OPENBLAS | BLIS)_\w+
    | (SPARK | PYSPARK)_\w+ | JAVA_TOOL_OPTIONS | JDK_JAVA_OPTIONS | _JAVA_OPTIONS
    | PROTOCOL_BUFFERS_\w+
    """,
    re.VERBOSE,
)
# Among them what is the machine's: threads, processors that a library must be told of, places, streams, byte code.
_MACHINES = re.compile(
    r"""
    \w+_NUM_THREADS | OPENBLAS_(CORETYPE | L2_SIZE) | OV_NUM_STREAMS | TORCH_HOME | TORCH_EXTENSIONS_DIR
    | (TORCHINDUCTOR | NUMBA)_CACHE_DIR | MPLCONFIGDIR | SPARK_MASTER
    | PYTHONUNBUFFERED | PYTHONDONTWRITEBYTECODE | PYTHONPYCACHEPREFIX
    """,
    re.VERBOSE,
)
_ALWAYS = {
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",  # kernels and templates of .venv before those in the user's home
}
_PATH = ("PYTHONPATH", "PYTHONNOUSERSITE")  # which code is imported


def personal(name: str) -> bool:
    """Whether an environment variable is a user's own setting of what runs compute with."""
    return _PERSONAL.fullmatch(name) is not None and _MACHINES.fullmatch(name) is None


def clean(environment: Mapping[str, str], root: Path | None = None) -> dict[str, str]:
    """The environment that a run may see; of a clean one, itself.

    root: the project's folder, the only place beside this code and the interpreter's own packages from which modules
    are imported; without one they come from where the user says, as on a bare machine whose torch may lie anywhere.
    """
    kept = {name: value for name, value in environment.items() if not personal(name)}
    kept |= _ALWAYS
    if root is not None:
        kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(root), str(CODE)]))
        kept["PYTHONNOUSERSITE"] = "1"
    else:
        kept |= {name: environment[name] for name in _PATH if name in environment}
    settings = _default_figures()
    if settings is not None:
        kept["MATPLOTLIBRC"] = str(settings)
    return kept


def _default_figures() -> Path | None:
    """matplotlib's own settings, which then come before those in the user's home."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found and found.submodule_search_locations) or ():
        if (settings := Path(folder) / "mpl-data" / "matplotlibrc").is_file():
            return settings
    return None


def settle(root: Path | None = None) -> None:
    """Begin this process again, under the same number, where its environment is not a clean one.

    Some of it has worked before the first line of ours: PYTHONOPTIMIZE, PYTHONWARNINGS, packages in the user's home.
    """
    if os.environ.pop(SETTLED, "") == str(os.getpid()):
        return
    wanted = clean(os.environ, root)
    if wanted == dict(os.environ):
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        wanted["PYTHONIOENCODING"] = f"{encoding}:replace"  # the terminal's, which is not ours to choose
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**wanted, SETTLED: str(os.getpid())})


@contextlib.contextmanager
def around(root: Path, extra: Mapping[str, str]) -> Iterator[None]:
    """A clean environment and these variables, for what is started within the block."""
    before = dict(os.environ)
    _become({**clean(before, root), **extra})
    try:
        yield
    finally:
        _become(before)


def _become(wanted: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update(wanted)


def forgive_streams() -> None:
    """Let stdout and stderr show another character in place of one that they don't have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test or a notebook puts there
            stream.reconfigure(errors="replace")


# --- a kernel that somebody else started ----------------------------------------------------------------------------

# The kernel's own life.
_KERNELS = re.compile(r"(JUPYTER|IPYTHON|IPYKERNEL|PYDEVD)\w*|MPLBACKEND|PYTHONPATH")
# Read by compiled libraries when they are loaded, so that no later word helps.
_SWITCHES = re.compile(
    r"(NPY|MKL|ONEDNN|DNNL|OPENBLAS|ATEN|CUBLAS|NUMBA|FAISS|TORCH|PYTORCH)_\w+|NVIDIA_TF32_OVERRIDE"
)


def neutral() -> str:
    """Set back what a user's own settings changed in this process; one line on what can't be, empty where all is.

    Nothing is imported for it: a library that is yet to come finds a clean environment. Figures are viz.use_style's,
    which begins from matplotlib's own defaults.
    """
    left = _left()
    wanted = clean(os.environ)
    _become(wanted | {name: value for name, value in os.environ.items() if _KERNELS.fullmatch(name)})
    time.tzset()
    for kept in [
        kept for kept in warnings.filters if kept[0] == "error" and kept[2].__module__ == "builtins"
    ]:
        warnings.filters.remove(kept)  # type: ignore[attr-defined]
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_NUMERIC, "C")
    for name, reset in {
        "numpy": _numpy,
        "pandas": _pandas,
        "torch": _torch,
    }.items():
        if name in sys.modules:
            reset(sys.modules[name])
    _notebook(_shell())
    if not left:
        return ""
    return f"this kernel may give other numbers than the record's: {'; '.join(left)} (`make lab` starts a clean one)"


def _left() -> list[str]:
    """What has had its effect already, in words."""
    left = []
    if sys.flags.optimize:
        left.append("PYTHONOPTIMIZE leaves out checks")
    if "usercustomize" in sys.modules:
        left.append("usercustomize has run")
    left += [f"{name} is set" for name in sorted(os.environ) if personal(name) and _SWITCHES.fullmatch(name)]
    left += [f"{name} of your IPython has run" for name in _startup_files()]
    environment = CODE / ".venv"
    if environment.is_dir() and Path(sys.prefix).resolve() != environment.resolve():
        left.append(f"its Python is {sys.executable}, not the one in {environment}")
    for name in ("numpy", "pandas", "matplotlib", "torch"):
        place = getattr(sys.modules.get(name), "__file__", None)
        if place and not any(Path(place).is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix)):
            left.append(f"{name} comes from {Path(place).parent}")
    checkouts = [place for place in (Path.cwd(), *Path.cwd().parents) if (place / "common" / "lab").is_dir()]
    if checkouts and checkouts[0].resolve() != CODE:
        left.append(f"it runs the code of {CODE}, not of {checkouts[0]}")
    return left


def _shell() -> Any:
    """The IPython that runs this process, if one does."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _startup_files() -> list[str]:
    """What IPython has run before the first cell."""
    shell = _shell()
    if shell is None:
        return []
    folder = getattr(getattr(shell, "profile_dir", None), "startup_dir", None)
    files = [path.name for path in sorted(Path(folder).glob("*.*py"))] if folder else []
    return [*files, *(["PYTHONSTARTUP"] if os.environ.get("PYTHONSTARTUP") else [])]


def _numpy(numpy: ModuleType) -> None:
    numpy.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    numpy.seterrcall(None)
    numpy.set_printoptions(
        edgeitems=3, threshold=1000, floatmode="maxprec", precision=8, suppress=False, linewidth=75,
        nanstr="nan", infstr="inf", sign="-", formatter=None, legacy=False,
    )  # fmt: skip


def _pandas(pandas: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that pandas is about to drop
        pandas.reset_option("all")


def _torch(torch: ModuleType) -> None:
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.set_grad_enabled(True)
    torch.set_printoptions(profile="default")


def _notebook(shell: Any) -> None:
    """Only a cell's last expression is shown, and figures are PNGs."""
    if shell is None:
        return
    shell.ast_node_interactivity = "last_expr"
    if "matplotlib_inline.config" in sys.modules:
        inline = sys.modules["matplotlib_inline.config"].InlineBackend.instance(parent=shell)
        inline.rc = {}
        inline.print_figure_kwargs = {"bbox_inches": "tight"}
        inline.figure_formats = {"png"}
