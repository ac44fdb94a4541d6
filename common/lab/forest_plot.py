"""How a forest plot is drawn: labels to the left, a common scale in the middle, verdicts to the right."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.lab.report import HTML_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT = -1.25, 2.25  # of the effect: what lies beyond is drawn as an arrow at the edge
INCHES, LINE, WRAP, BOLD = 8.0, 0.17, 52, 44  # width of the picture, height of a line, letters in a line
GAP = 0.16  # inches between two claims
TEXTS, VERDICTS = 0.455, 0.865  # of the width: where the labels end, where the verdicts begin
HEAD, FOOT = 0.3, 0.32  # inches above and below the claims of a panel
LEGEND, MORE = 0.62, 0.2  # inches of the legend, and of the line that says what is left out


@dataclass(frozen=True)
class Row:
    """One claim in the picture. Positions are effects; of a direction over our own mean."""

    label: str
    headline: bool
    verdict: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    band: tuple[float, float] | None = None
    control: float | None = None
    placebo: float | None = None
    predicted: bool = False  # the paper's number lies within our prediction interval
    text: str = ""  # where it is listed


FILLS = BAND, EDGE = "#E3ECF4", "#B8CCE0"  # of the band in which a number counts as reproduced
Rows = tuple[list[Row], list[Row], list[Row]]  # published numbers, directions, what is listed


def colours() -> list[tuple[int, int, int]]:
    """The colours of lines and letters, which fade to white at their edges: red, green and blue from 0 to 255."""
    from matplotlib.colors import to_rgb

    from common import viz

    names = ["black", viz.GREY, *HTML_COLOURS.values()]
    names += [viz.PALETTE[name] for name in ("blue", "vermillion", "purple")]
    found = [tuple(round(255 * part) for part in to_rgb(name)) for name in dict.fromkeys(names)]
    return [(red, green, blue) for red, green, blue in found]


def plot(rows: Rows, left_out: int = 0) -> Any:
    """The figure of these rows: a panel for each kind that has any. `left_out`: how many claims are not among them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, draw, group) for (title, draw), group in zip(PANELS, rows, strict=True) if group]
    scaled = [group for _, draw, group in panels if draw is _plot]
    heights = [HEAD + FOOT * (draw is _plot) + sum(map(_height, group)) for _, draw, group in panels]
    legend, more = LEGEND * bool(scaled), MORE * (left_out > 0)
    whole = sum(heights) + legend + more + 0.1
    figure = Figure(figsize=(INCHES, whole), facecolor="white")
    FigureCanvasAgg(figure)
    top = whole - 0.05
    for (title, draw, group), height in zip(panels, heights, strict=True):
        inside = sum(map(_height, group))
        bottom = top - HEAD - inside
        ax = figure.add_axes((TEXTS, bottom / whole, VERDICTS - TEXTS - 0.01, inside / whole))
        figure.text(0.01, (top - 0.08) / whole, title, fontsize=9.5, fontweight="bold", va="top")
        draw(ax, group)
        top -= height
    if left_out > 0:
        figure.text(0.01, (legend + 0.08) / whole, f"and {left_out} more in the table", fontsize=8.5)
    if scaled:
        _legend(figure, scaled, whole)
    return figure


def _height(row: Row) -> float:
    return GAP + LINE * len(_wrapped(row))


def _wrapped(row: Row) -> list[str]:
    width = BOLD if row.headline else WRAP
    return textwrap.wrap(row.label, width, max_lines=3, placeholder=" …") or [row.label]


def _centres(rows: Sequence[Row]) -> list[float]:
    """Inches from the top of a panel to the middle of each row."""
    centres, at = [], 0.0
    for row in rows:
        centres.append(at + _height(row) / 2)
        at += _height(row)
    return centres


def _frame(ax: "Axes", rows: Sequence[Row]) -> list[float]:
    """Labels to the left and verdicts to the right of a panel; the places of its rows."""
    centres = _centres(rows)
    ax.set_ylim(sum(map(_height, rows)), 0)
    ax.set_yticks([])
    ax.grid(visible=False)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    for centre, row in zip(centres, rows, strict=True):
        weight = "bold" if row.headline else "normal"
        texts: dict[str, Any] = {"va": "center", "fontsize": 8.5, "linespacing": 1.15}
        inside = ax.get_yaxis_transform()
        ax.text(
            -0.045,
            centre,
            "\n".join(_wrapped(row)).replace("$", r"\$"),
            ha="right",
            transform=inside,
            fontweight=weight,
            **texts,
        )
        colour = HTML_COLOURS[row.verdict]
        ax.text(1.04, centre, row.verdict, transform=inside, color=colour, fontweight="bold", **texts)
    return centres


def _plot(ax: "Axes", rows: Sequence[Row]) -> None:
    from matplotlib.ticker import MultipleLocator

    from common import viz

    centres = _frame(ax, rows)
    low, high = _span(rows)
    ax.set_xlim(low, high)
    ax.axvline(0.0, color=viz.GREY, linewidth=1.0, zorder=1)
    ax.axvline(1.0, color=viz.GREY, linewidth=1.0, linestyle="--", zorder=1)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.tick_params(axis="x", labelsize=8.5, length=3)
    for centre, row in zip(centres, rows, strict=True):
        if row.band is not None:
            left, right = max(row.band[0], low), min(row.band[1], high)
            if right > left:
                ax.fill_between([left, right], centre - 0.13, centre + 0.13, color=BAND, linewidth=0)
            else:
                ax.plot([left, left], [centre - 0.13, centre + 0.13], color=EDGE, linewidth=2)
            filled = viz.PALETTE["vermillion"] if row.predicted else "white"
            ax.plot(
                1.0,
                centre,
                marker="D",
                markersize=8.5,
                color=filled,
                markeredgecolor=viz.PALETTE["vermillion"],
                zorder=3,
            )
        for x, marker, colour in ((row.control, "o", "black"), (row.placebo, "s", viz.PALETTE["purple"])):
            if x is not None:
                _mark(ax, x, centre, low, high, marker, colour)
        if row.interval is not None:
            ends = [min(max(x, low), high) for x in row.interval]
            ax.plot(ends, [centre] * 2, color=viz.PALETTE["blue"], linewidth=1.8, linestyle="-", zorder=4)
        assert row.ours is not None
        if low <= row.ours <= high:
            ax.plot(row.ours, centre, marker="o", markersize=5, color=viz.PALETTE["blue"], zorder=5)
        else:
            _arrow(ax, row.ours, centre, low, high)


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """From LEFT to RIGHT, or as much less as the rows need; what a control leaves moves an end by half at most."""
    ours = [x for row in rows for x in (row.ours, *(row.interval or ())) if x is not None]
    arms = [x for row in rows for x in (row.control, row.placebo) if x is not None]
    low = min([*ours, 0.0, *(max(x, LEFT / 2) for x in arms)])
    high = max([*ours, 1.2, *(min(x, 1 + RIGHT / 4) for x in arms)])
    return max(LEFT, low - 0.08), min(RIGHT, high + 0.08)


def _mark(ax: "Axes", x: float, centre: float, low: float, high: float, marker: str, colour: str) -> None:
    """A hollow mark; beyond the edge it stands on it."""
    inside = min(max(x, low), high)
    shown = marker if inside == x else ("<" if x < low else ">")
    ax.plot(
        inside,
        centre,
        marker=shown,
        markersize=6,
        markerfacecolor="none",
        markeredgecolor=colour,
        linestyle="",
        zorder=4,
        clip_on=False,
    )


def _arrow(ax: "Axes", x: float, centre: float, low: float, high: float) -> None:
    """Ours beyond the edge: an arrow there, with its value."""
    from common import viz

    right = x > high
    edge = high if right else low
    ax.plot(
        edge,
        centre,
        marker=">" if right else "<",
        markersize=7,
        color=viz.PALETTE["blue"],
        zorder=5,
        clip_on=False,
    )
    ax.annotate(
        f"{x:.3g}",
        (edge, centre),
        xytext=(-7 if right else 7, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=8.5,
        color=viz.PALETTE["blue"],
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        zorder=6,
    )


def _list(ax: "Axes", rows: Sequence[Row]) -> None:
    centres = _frame(ax, rows)
    ax.set_xticks([])
    ax.set_xlim(0, 1)
    ax.spines["bottom"].set_visible(False)
    for centre, row in zip(centres, rows, strict=True):
        text = textwrap.shorten(row.text, 46, placeholder=" …").replace("$", r"\$")
        ax.text(0.0, centre, text, va="center", fontsize=8.5)


PANELS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("Published numbers: 0 nothing gained, 1 the paper's", _plot),
    ("Directions: 0 nothing gained, 1 our own effect", _plot),
    ("Costs, counts, parities, and what was not run", _list),
)


def _legend(figure: Any, panels: Sequence[Sequence[Row]], whole: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from common import viz

    rows = [row for panel in panels for row in panel]
    blue, red = viz.PALETTE["blue"], viz.PALETTE["vermillion"]
    sign: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markersize": 6}
    shown: list[Any] = [Line2D([], [], color=blue, marker="o", linestyle="-", label="ours, 95% interval")]
    if any(row.band for row in rows):
        shown.append(Patch(color=BAND, label="counts as reproduced"))
        shown.append(Line2D([], [], marker="D", color=red, label="the paper's number", **sign))
    if any(row.predicted for row in rows):
        filled = {**sign, "markerfacecolor": red}
        shown.append(Line2D([], [], marker="D", color=red, label="… in our prediction interval", **filled))
    if any(row.control is not None for row in rows):
        shown.append(Line2D([], [], marker="o", color="black", label="under the control", **sign))
    if any(row.placebo is not None for row in rows):
        shown.append(
            Line2D([], [], marker="s", color=viz.PALETTE["purple"], label="under the placebo", **sign)
        )
    figure.legend(
        handles=shown,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / whole),
        ncols=3,
        fontsize=8.5,
        handletextpad=0.5,
        columnspacing=1.4,
    )
