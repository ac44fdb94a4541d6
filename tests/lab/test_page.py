"""The page of a notebook: formulas, widgets and what cannot be drawn (test_execution.py has an executed one)."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from common.lab.page import STATE, VIEW, mathml, still, write_page
from tests.lab.toy import REPOSITORY

PICTURE = {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}, "metadata": {}}


def widget(name: str, **state: Any) -> dict[str, Any]:
    return {"model_name": f"{name}Model", "state": state}


def interact(*controls: dict[str, Any], outputs: list[Any]) -> dict[str, Any]:
    """The saved state of an `interact` with these controls, its top called `top`."""
    named = {f"control{i}": control for i, control in enumerate(controls)}
    children = [f"IPY_MODEL_{name}" for name in (*named, "output")]
    return {**named, "output": widget("Output", outputs=outputs), "top": widget("VBox", children=children)}


def notebook(kept: dict[str, Any], *outputs: Any, markdown: str = "") -> Any:
    cells = [nbformat.v4.new_markdown_cell(markdown), nbformat.v4.new_code_cell("x", outputs=list(outputs))]
    metadata = {"widgets": {STATE: {"version_major": 2, "version_minor": 0, "state": kept}}}
    return nbformat.from_dict(nbformat.v4.new_notebook(cells=cells, metadata=metadata))


def view(model: str) -> Any:
    data = {"text/plain": "interactive(children=())", VIEW: {"model_id": model, "version_major": 2}}
    return nbformat.v4.new_output("display_data", data)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (widget("FloatSlider", description="rate", value=2.5), "rate 2.5"),
        (widget("IntSlider", description="slots:", value=4), "slots 4"),
        (widget("Checkbox", description="paged", value=False), "paged False"),
        (widget("Dropdown", description="policy", _options_labels=["first", "longest"], index=1), "policy longest"),
        (widget("SelectionSlider", description="size", _options_labels=["1 MB", "1 GB"], index=0), "size 1 MB"),
        (widget("SelectMultiple", description="of", _options_labels=["a", "b"], index=[0, 1]), "of a, b"),
        (widget("Dropdown", description="policy", _options_labels=["first"], index=None), "policy none"),
        (widget("IntRangeSlider", description="between", value=[2, 8]), "between 2 to 8"),
        (widget("Text", description="<b>", value="a & b"), "&lt;b&gt; a &amp; b"),
    ],
)  # fmt: skip
def test_a_control_is_its_value_in_words_and_its_outputs_follow(control: dict[str, Any], said: str) -> None:
    shown = notebook(interact(control, outputs=[PICTURE]), view("top"))
    still(shown)
    words, picture = shown.cells[1].outputs
    assert f"As it stood when the notebook ran: {said}. Run" in words.data["text/html"]
    assert picture.data["image/png"] == PICTURE["data"]["image/png"]  # type: ignore[index]
    assert "widgets" not in shown.metadata


def test_bars_of_finished_work_and_widgets_without_a_state_are_left_out() -> None:
    bar = {
        "bar": widget("FloatProgress", value=3.0, description="seeds"),
        "label": widget("HTML", value="0it"),
    }
    row = {"row": widget("HBox", children=["IPY_MODEL_bar", "IPY_MODEL_label", "IPY_MODEL_gone"])}
    shown = notebook({**bar, **row}, view("row"), view("gone"), nbformat.from_dict(PICTURE))
    still(shown)
    assert [list(output.data) for output in shown.cells[1].outputs] == [["image/png"]]


def test_widgets_that_stand_in_themselves_end() -> None:
    shown = notebook({"top": widget("VBox", children=["IPY_MODEL_top"])}, view("top"))
    still(shown)
    assert shown.cells[1].outputs == []


def test_a_formula_that_is_none_stays_readable() -> None:
    assert mathml(r"\frac{a}{b}").startswith("<math")
    for unknown in (r"\left( <a>", r"\nosuch{<a>}"):
        assert mathml(unknown).startswith("<code>") and "&lt;a&gt;" in mathml(unknown)


def test_the_page_of_any_notebook_is_whole(tmp_path: Path) -> None:
    markdown = "See [the paper](https://arxiv.org/abs/2401.09670), $a_1$.\n\n"
    markdown += r"\begin{align} a &= b \\ c &= d \end{align}"
    nbformat.write(notebook({}, view("gone"), markdown=markdown), tmp_path / "notebook.ipynb")
    write_page(tmp_path)
    page = (tmp_path / "notebook.html").read_text()
    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page) == []
    assert "https://arxiv.org/abs/2401.09670" in page and page.count("<math") == 2


def test_every_formula_of_our_notebooks_is_one() -> None:
    pattern = re.compile(r"\$\$(.+?)\$\$|(?<![$\\\w])\$([^$\n]+?)(?<!\\)\$", re.S)
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                for found in pattern.finditer("".join(cell["source"])):
                    drawn = mathml(found[1] or found[2])
                    assert drawn.startswith("<math") and "\\" not in drawn, (path.name, found[0])
