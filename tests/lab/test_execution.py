"""A notebook executed for a user who has set up much: none of it is seen, and its page needs no network.

Starting a kernel takes seconds: one execution serves all tests here.
"""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.lab.config import Composed
from common.lab.errors import LabError
from common.lab.execution import execute_notebook, refuse_broken_widgets
from common.lab.page import write_page
from common.lab.project import Project
from common.lab.staging import staging
from tests.lab.toy import notebook, write, write_project

CELLS = [
    ("code", "parameters", 'profile = "smoke"\noverrides = []'),
    ("markdown", "", "# The toy\n\nWith $x_i^2$ and\n\n$$\\frac{a}{b} = \\max_j m_j$$\n\nit costs \\$5."),
    ("code", "", "1 + 1\nimport json, locale, os, sys, time, warnings\nimport numpy, matplotlib.pyplot as plt\n"
     "from common.lab.surroundings import neutral"),
    (
        "code",
        "",
        "print(json.dumps({'numpy': numpy.geterr(), 'width': plt.rcParams['lines.linewidth'],"
        " 'optimize': sys.flags.optimize, 'mine': [name for name in globals() if name.startswith('mine')],"
        " 'zone': time.tzname[0], 'locale': locale.localeconv()['decimal_point'],"
        " 'errors': [kept[2].__name__ for kept in warnings.filters if kept[0] == 'error'"
        " and kept[2].__module__ == 'builtins'],"
        " 'path': [place for place in sys.path if 'mine' in place], 'said': neutral()}))",
    ),
    (
        "code",
        "",
        "import ipywidgets\n"
        "def redraw(rate, policy):\n"
        "    print('redrawn at', rate)\n"
        "    plt.plot([0, rate])\n"
        "    plt.show()\n"
        "ipywidgets.interact(redraw, rate=ipywidgets.FloatSlider(2.5, description='requests/s'),"
        " policy=['first', 'longest']);",
    ),
    (
        "code",
        "",
        "from IPython.display import Latex, Markdown, display\ndisplay(Markdown('gain $g_2$'), Latex('$y^3$'))",
    ),
]  # fmt: skip


def users_home(home: Path) -> dict[str, str]:
    """A home full of settings, and the variables that point at it."""
    startup = "import numpy, warnings\nnumpy.seterr(all='raise')\nwarnings.simplefilter('error')\nmine = 1\n"
    profile = home / "ipython" / "profile_default"
    write(profile / "startup" / "00-mine.py", startup)
    config = "c.InteractiveShell.ast_node_interactivity = 'all'\nc.InteractiveShellApp.exec_lines = ['mine_too = 1']\n"
    write(profile / "ipython_config.py", config + "c.InlineBackend.figure_formats = {'svg'}\n")
    write(profile / "ipython_kernel_config.py", config)
    write(home / "start.py", "mine_three = 1\n")
    write(home / "mpl" / "matplotlibrc", "lines.linewidth: 9\n")
    write(home / "mine" / "usercustomize.py", "")
    write(home / "mine" / "sitecustomize.py", "import builtins\nbuiltins.mine_four = 1\n")
    kernel = {"argv": ["/bin/false"], "display_name": "Mine", "language": "python"}
    write(home / "share" / "kernels" / "python3" / "kernel.json", json.dumps(kernel))
    write(home / "share" / "nbconvert" / "templates" / "lab" / "index.html.j2", "mine")
    write(home / "share" / "nbconvert" / "templates" / "lab" / "conf.json", "{}")
    return {
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "mpl"),
        "PYTHONSTARTUP": str(home / "start.py"),
        "PYTHONPATH": str(home / "mine"),
        "PYTHONOPTIMIZE": "1",
        "PYTHONWARNINGS": "error",
        "JUPYTER_PATH": str(home / "share"),
        "JUPYTER_DATA_DIR": str(home / "share"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter"),
        "TZ": "Asia/Tokyo",
        "LC_ALL": "de_DE.UTF-8",
    }


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a notebook that was executed once, and its page."""
    place = tmp_path_factory.mktemp("executed")
    project = Project(write_project(place / "project"))
    blank: Any = notebook()
    blank["cells"] = [
        {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": [tag] if tag else []}, "source": source}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, tag, source) in enumerate(CELLS)
    ]
    write(project.notebook("toy"), json.dumps(blank))
    with pytest.MonkeyPatch.context() as patch, staging(project, "toy") as workspace:
        folder = workspace / "outputs"
        folder.mkdir()
        for name, mine in users_home(place / "home").items():
            patch.setenv(name, mine)
        execute_notebook(project, Composed("toy", "smoke", None, (0,)), workspace, folder, quiet=True)
        write_page(folder)
        yield folder


@pytest.fixture(scope="module")
def outputs(executed: Path) -> list[list[Any]]:
    """The outputs of each code cell (the first is of the cell that papermill adds)."""
    cells = json.loads((executed / "notebook.ipynb").read_text())["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def test_nothing_that_the_user_has_set_up_is_seen_in_the_kernel(outputs: list[list[Any]]) -> None:
    assert outputs[2] == []  # of `1 + 1` before a cell's last line
    (printed,) = outputs[3]
    seen = json.loads("".join(printed["text"]))
    assert seen == {
        "numpy": {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
        "width": 1.5,
        "optimize": 0,
        "mine": [],
        "zone": "UTC",
        "locale": ".",
        "errors": [],
        "path": [],
        "said": "",
    }


class Parser(HTMLParser):
    """What a page loads, the tags that it has, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.scripts = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "object", "embed") or tag == "link":
            self.loaded += [known[name] or "" for name in ("src", "href", "data") if name in known]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style"):
            self.scripts += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def page(executed: Path) -> Parser:
    parser = Parser()
    parser.feed((executed / "notebook.html").read_text())
    return parser


def test_the_page_loads_nothing_from_elsewhere(page: Parser) -> None:
    assert page.loaded and all(address.startswith("data:") for address in page.loaded)
    for loading in ("cdn", "unpkg", "import(", "require(", "@import", "url(http"):
        assert loading not in page.scripts


def test_formulas_are_drawn_and_money_is_left_alone(page: Parser) -> None:
    assert page.tags.count("math") == 4 and "mfrac" in page.tags and "msup" in page.tags
    assert "\\frac" not in page.text and "$5" in page.text


def test_a_knob_is_the_figure_that_it_last_showed_and_its_setting(page: Parser) -> None:
    assert page.tags.count("img") == 1 and page.loaded[0].startswith("data:image/png")
    assert "redrawn at 2.5" in page.text
    assert "As it stood when the notebook ran: requests/s 2.5, policy first." in page.text
    assert "interactive(children" not in page.text


def test_the_notebook_beside_the_page_keeps_its_widgets(executed: Path) -> None:
    kept = json.loads((executed / "notebook.ipynb").read_text())
    assert "application/vnd.jupyter.widget-state+json" in kept["metadata"]["widgets"]


def test_an_error_inside_a_knob_is_an_error_of_the_run(tmp_path: Path) -> None:
    project = Project(write_project(tmp_path / "project"))
    blank: Any = notebook()
    source = "import ipywidgets\nipywidgets.interact(lambda rate: 1 / rate, rate=(0, 0));"
    blank["cells"].append(
        {
            "cell_type": "code",
            "id": "k",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
    )
    write(project.notebook("toy"), json.dumps(blank))
    with staging(project, "toy") as workspace:
        folder = workspace / "outputs"
        folder.mkdir()
        with pytest.raises(
            LabError, match=r"notebooks/toy\.ipynb, a widget: ZeroDivisionError: division by zero"
        ):
            execute_notebook(project, Composed("toy", "smoke", None, (0,)), workspace, folder, quiet=True)


def test_a_knob_that_draws_is_none(executed: Path) -> None:
    refuse_broken_widgets(json.loads((executed / "notebook.ipynb").read_text()), "toy")
