"""The HTML page of an executed notebook, whole in itself: it is read where there is no network too.

nbconvert's page loads five scripts from elsewhere. Here formulas are MathML, which browsers draw by themselves, and a
knob (ipywidgets' interact) is what it showed when the notebook ran: its setting in words, and its figure.
"""

import html
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from common.lab.surroundings import CODE, around

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
NESTED = 10  # how deep widgets may stand within each other
# nbconvert's own template without what it loads from elsewhere
TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def write_page(folder: Path) -> None:
    """notebook.html beside notebook.ipynb."""
    with (
        warnings.catch_warnings(),
        around(CODE, {"JUPYTER_DATA_DIR": str(folder)}),
    ):  # no templates of the user's
        warnings.simplefilter("ignore")
        notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
        still(notebook)
        page, _ = _Exporter(raw_template=TEMPLATE).from_notebook_node(
            notebook, {"metadata": {"name": folder.name, "path": str(folder)}}
        )
    (folder / "notebook.html").write_text(page, encoding="utf-8")


def mathml(latex: str, display: bool = False) -> str:
    """A formula as MathML; its source, as code, where the converter does not know all of it."""
    try:
        drawn = str(convert(latex.strip(), display="block" if display else "inline"))
    except Exception:  # of whatever kind: the page goes on
        drawn = "\\unknown"
    return f"<code>{html.escape(latex)}</code>" if re.search(r"\\[a-zA-Z]", drawn) else drawn


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are MathML."""

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """nbconvert's filter of the same name, with the renderer above."""
        renderer = _Renderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=self.embed_images,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            anchor_link_text=self.anchor_link_text,
            exclude_anchor_links=self.exclude_anchor_links,
            **self.lexer_options,
        )
        return str(MarkdownWithMath(renderer=renderer).render(source))


# --- widgets, standing still --------------------------------------------------------------------------------


def still(notebook: Any) -> None:
    """Put what each widget last showed into the place of the widget."""
    kept = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in _still(output, kept)]


def _still(output: Any, kept: Mapping[str, Any]) -> Iterator[Any]:
    data = output.get("data", {})
    if "text/latex" in data and "text/html" not in data:
        output.data["text/html"] = mathml(data["text/latex"].strip().strip("$"), display=True)
    if VIEW not in data:
        yield output
        return
    settings: list[str] = []
    shown: list[Any] = []
    _walk(data[VIEW]["model_id"], kept, settings, shown, NESTED)
    if settings:
        text = html.escape(", ".join(settings))
        yield _html(
            f"<p><em>As it stood when the notebook ran: {text}. Run the notebook to change it.</em></p>"
        )
    yield from shown


def _walk(model: str, kept: Mapping[str, Any], settings: list[str], shown: list[Any], depth: int) -> None:
    """Collect the settings of all controls in a widget, in words, and what its outputs hold."""
    known = kept.get(model)
    if known is None or depth == 0 or "Progress" in known["model_name"]:  # a bar of work that is done
        return
    state = known["state"]
    shown += [nbformat.from_dict(output) for output in state.get("outputs", ())]
    setting = _setting(known["model_name"], state)
    if setting is not None:
        settings.append(f"{(state.get('description') or 'setting').rstrip(' :')} {setting}")
    for child in state.get("children", ()):
        _walk(str(child).removeprefix("IPY_MODEL_"), kept, settings, shown, depth - 1)


def _setting(model: str, state: Mapping[str, Any]) -> str | None:
    """The value of a control as its reader sees it; None of what is no control."""
    if model in ("HTMLModel", "LabelModel", "HTMLMathModel"):
        return None
    value, labels = state.get("value"), state.get("_options_labels")
    if labels is not None:
        index: Any = state.get("index")
        chosen = index if isinstance(index, (list, tuple)) else [] if index is None else [index]
        value = [labels[i] for i in chosen]
    if isinstance(value, (list, tuple)):
        return (" to " if "Range" in model else ", ").join(map(str, value)) or "none"
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _html(text: str) -> Any:
    return nbformat.v4.new_output("display_data", {"text/html": text})
