"""The charts that papers share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from common.viz.style import COLOUR_MAP, GREY, LIGHT, PALETTE

_BAND = 0.18  # opacity of an interval band


def curve(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    low: Sequence[float] | np.ndarray | None = None,
    high: Sequence[float] | np.ndarray | None = None,
    *,
    label: str = "",
    colour: str | None = None,
    marker: str = "o",
) -> Line2D:
    """A line through (x, y) of shape (n,), with a band from `low` to `high` where both are given.

    colour: a name in PALETTE or any of matplotlib's; the next of the cycle by default.
    """
    options = {} if colour is None else {"color": PALETTE.get(colour, colour)}
    (line,) = ax.plot(x, y, marker=marker, label=label, **options)  # type: ignore[arg-type]
    if low is not None and high is not None:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=_BAND, linewidth=0)
    return line


def threshold(ax: Axes, value: float, label: str, *, axis: str = "y") -> None:
    """A dashed line at a value of the y axis (or the x axis), named where it meets the frame."""
    if axis == "y":
        ax.axhline(value, color=GREY, linestyle="--", linewidth=1.2, zorder=1)
        place: dict[str, Any] = {
            "xy": (1, value),
            "xycoords": ax.get_yaxis_transform(),
            "ha": "right",
            "va": "bottom",
        }
        offset = (-2, 2)
    else:
        ax.axvline(value, color=GREY, linestyle="--", linewidth=1.2, zorder=1)
        place = {"xy": (value, 1), "xycoords": ax.get_xaxis_transform(), "ha": "left", "va": "top"}
        offset = (3, -2)
    ax.annotate(label, xytext=offset, textcoords="offset points", color=GREY, fontsize=9, **place)


@dataclass(frozen=True)
class ClaimBar:
    """One claim: our mean and interval, and the paper's number, [low, high] of a range, or None."""

    label: str
    ours: float
    low: float
    high: float
    paper: float | Sequence[float] | None = None


def claim_bars(ax: Axes, claims: Sequence[ClaimBar], no_effect: float | None = 1.0, unit: str = "") -> None:
    """A horizontal bar a claim, from `no_effect` to our mean with its interval; the paper's number as a diamond.

    A range of the paper is a thick grey line. All claims must have the same unit.
    """
    start = 0.0 if no_effect is None else no_effect
    for row, claim in enumerate(claims):
        ax.barh(row, claim.ours - start, left=start, height=0.5, color=PALETTE["sky"], zorder=2)
        ax.plot([claim.low, claim.high], [row, row], color="black", linewidth=1.6, linestyle="-", zorder=3)
        for end in (claim.low, claim.high):
            ax.plot([end, end], [row - 0.1, row + 0.1], color="black", linewidth=1.6, linestyle="-", zorder=3)
        if isinstance(claim.paper, Sequence):
            left, right = claim.paper
            line: dict[str, Any] = {"color": PALETTE["vermillion"], "linewidth": 3, "linestyle": "-"}
            ax.plot([left, right], [row + 0.36, row + 0.36], solid_capstyle="butt", zorder=4, **line)
        elif claim.paper is not None:
            ax.plot(
                claim.paper, row, marker="D", markersize=8, color=PALETTE["vermillion"], zorder=4, mec="white"
            )
    if no_effect is not None:
        ax.axvline(no_effect, color=GREY, linestyle="--", linewidth=1.2, zorder=1)
        ax.annotate(
            "no effect",
            xy=(no_effect, 1),
            xycoords=ax.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            color=GREY,
            fontsize=9,
            ha="center",
        )
    ax.set_yticks(range(len(claims)), [claim.label for claim in claims])
    ax.set_ylim(len(claims) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(unit)
    shown: list[Artist] = [Patch(color=PALETTE["sky"], label="ours, with 95% interval")]
    numbers = [claim.paper for claim in claims if claim.paper is not None]
    if any(not isinstance(number, Sequence) for number in numbers):
        shown.append(_sign("the paper's value", marker="D", linestyle="", markersize=8))
    if any(isinstance(number, Sequence) for number in numbers):
        shown.append(_sign("the paper's range", linewidth=3, linestyle="-"))
    ax.legend(handles=shown, loc="best", frameon=True, edgecolor="white")


def _sign(label: str, **look: Any) -> Line2D:
    return Line2D([], [], color=PALETTE["vermillion"], label=label, **look)


@dataclass(frozen=True)
class Span:
    """Something that lasts from `start` to `end` (seconds) on a row, such as a request's prefill."""

    row: str
    start: float
    end: float
    kind: str


def timeline(ax: Axes, spans: Iterable[Span], colours: Mapping[str, str] | None = None) -> None:
    """A Gantt chart: time to the right in seconds, a row for each name, a colour for each kind of span.

    Rows stand in the order of their first span, the first at the top. colours: kind -> name in PALETTE or any of
    matplotlib's; a kind without one gets the next of the palette, and "waiting" is light grey.
    """
    drawn = list(spans)
    rows = {name: place for place, name in enumerate(dict.fromkeys(span.row for span in drawn))}
    kinds = list(dict.fromkeys(span.kind for span in drawn))
    chosen = {kind: PALETTE.get(name, name) for kind, name in (colours or {}).items()}
    free = (colour for colour in PALETTE.values() if colour not in chosen.values())
    for kind in kinds:
        if kind not in chosen:
            chosen[kind] = LIGHT if kind == "waiting" else next(free)
    for kind in kinds:
        for name, place in rows.items():
            pieces = [(s.start, s.end - s.start) for s in drawn if s.kind == kind and s.row == name]
            ax.broken_barh(pieces, (place - 0.36, 0.72), color=chosen[kind], edgecolor="white", linewidth=0.4)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    handles = [Patch(color=chosen[kind], label=kind) for kind in kinds]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(kinds), borderaxespad=0.2)


def heatmap(
    ax: Axes,
    values: Sequence[Sequence[float]] | np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    *,
    label: str = "",
    form: str = "{:.2f}",
    mark: str | None = "max",
) -> None:
    """A heat map of values of shape (rows, columns), each cell with its number.

    label: of the colour bar. form: how a number is written. mark: "max" or "min" frames the best cell. NaN is a setting
    that does not exist or does not fit; its cell stays white with a dash.
    """
    grid = np.array(values, dtype=float)
    if grid.shape != (len(rows), len(columns)):
        raise ValueError(
            f"{len(rows)} rows and {len(columns)} columns don't name an array of shape {grid.shape}"
        )
    image = ax.imshow(np.ma.masked_invalid(grid), cmap=COLOUR_MAP, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        text, ink = ("–", GREY) if np.isnan(value) else (form.format(value), _ink(image.to_rgba(value)))
        ax.text(column, row, text, ha="center", va="center", color=ink)
    if mark and not np.all(np.isnan(grid)):
        best = np.nanargmax(grid) if mark == "max" else np.nanargmin(grid)
        row, column = np.unravel_index(best, grid.shape)
        frame = Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, linewidth=3, zorder=3)
        frame.set_edgecolor(PALETTE["vermillion"])
        ax.add_patch(frame)
    ax.set_xticks(range(len(columns)), [str(name) for name in columns])
    ax.set_yticks(range(len(rows)), [str(name) for name in rows])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, label=label)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _ink(colour: Any) -> str:
    """Black or white, whichever reads better on a colour of three or four shares (relative luminance, WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"  # where the contrast with both is the same


def decomposition(
    ax: Axes,
    labels: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    no_effect: float = 1.0,
    unit: str = "x",
) -> None:
    """A gain as the product of parts, a bar for each label: each part's segment reaches to the product so far.

    parts: name -> factors of shape (labels,), in the order in which they are multiplied. The axis is logarithmic, so
    that equal factors are equally long.
    """
    colours = list(PALETTE.values())
    left = np.full(len(labels), no_effect)
    for i, (name, factors) in enumerate(parts.items()):
        right = left * np.asarray(factors, dtype=float)
        ax.barh(range(len(labels)), right - left, left=left, height=0.55, color=colours[i], label=name)
        for row, (a, b, factor) in enumerate(zip(left, right, factors, strict=True)):
            ink = _ink(to_rgb(colours[i]))
            ax.text(np.sqrt(a * b), row, f"{factor:.2f}{unit}", ha="center", va="center", color=ink)
        left = right
    ax.set_xscale("log")
    least, most = min(no_effect, left.min()), left.max()
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(least, most)
    ax.set_xticks([tick for tick in ticks if tick > 0], [f"{tick:g}{unit}" for tick in ticks if tick > 0])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(least * 0.97, most * 1.05)
    ax.axvline(no_effect, color=GREY, linestyle="--", linewidth=1.2, zorder=1)
    ax.set_yticks(range(len(labels)), list(labels))
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(parts), borderaxespad=0.2)
