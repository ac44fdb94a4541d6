"""papers/<slug>/figure.png: the figure that the notebook marked as its key figure, else a forest plot of the claims.

The forest plot has one scale for all published numbers, 0 for nothing gained and 1 for the paper's number: the band in
which a number counts as reproduced, ours with its 95% interval, and hollow the means under control and placebo. A
filled diamond says that the paper's number lies within our 95% prediction interval: one more run of ours might have
given it. Directions stand below, where 1 is our own effect, so that the width of an interval and what a control leaves
can be compared; costs, counts, parities and what was not run are listed.
"""

import hashlib
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.lab.card import GAINS, Claim
from common.lab.effect import Scale, scale_of
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.project import Project
from common.lab.record import ArmRecord, ClaimRecord
from common.lab.report import HTML_COLOURS, ours_text, paper_text
from common.lab.standing import Standing, standing
from common.lab.verdict import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY = "key.json"  # among a run's outputs: {"figure": name}, written by lab.save(figure, name, key=True)
LARGEST = 100_000  # bytes of a figure.png
WIDEST = 1200  # pixels of a figure that has to be made smaller
MOST = 30  # claims in one picture
LEFT, RIGHT = -0.5, 2.0  # of the effect: what lies beyond is drawn as an arrow at the edge
CAPTION = (
    "0 is nothing gained, 1 the paper's number (of a direction: our own effect). Dots are ours with 95% intervals, "
    "the shaded band is what counts as reproduced; hollow marks are what a control and a placebo leave. A filled "
    "diamond: the paper's number lies within our 95% prediction interval."
)
PLOT, LIST = "plot", "list"


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


def figure_path(project: Project, slug: str) -> Path:
    """Where a paper's picture is."""
    return project.card(slug).with_name("figure.png")


def key_figure(folder: Path) -> Path | None:
    """The figure that a run marked as its key figure, among its outputs. LabError where key.json is malformed."""
    place = folder / KEY
    if not place.is_file():
        return None
    try:
        name = json.loads(place.read_text(encoding="utf-8"))["figure"]
        path = folder / "figures" / f"{name}.png"
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f'{place}: is not {{"figure": name}}: {error!r}') from error
    if not path.is_file():
        raise LabError(f"{place}: figures/{name}.png is missing")
    return path


def write_figure(project: Project, slug: str, folder: Path) -> Path | None:
    """Write papers/<slug>/figure.png: the key figure among the outputs in `folder`, else the forest plot.

    None where there is neither, for the paper is not recorded. `make record` calls this once the record is written.
    """
    key = key_figure(folder)
    path = figure_path(project, slug)
    if key is not None:
        write_atomically(path, small(key.read_bytes()))
        return path
    paper = standing(project, slug)
    if paper is None:
        return None
    write_atomically(path, forest(paper))
    return path


def refresh_figure(project: Project, paper: Standing) -> Path | None:
    """Draw the forest plot where a paper has no picture, or a forest plot of another record; its path if it was drawn."""
    path = figure_path(project, paper.slug)
    if path.is_file() and _text(path).get("Source", digest(paper)) == digest(paper):
        return None
    write_atomically(path, forest(paper))
    return path


def caption(path: Path) -> str:
    """What a picture says of itself: the caption of a forest plot, "" of a key figure."""
    return _text(path).get("Description", "")


def _text(path: Path) -> dict[str, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
    except (OSError, UnidentifiedImageError) as error:
        raise LabError(f"{path}: is no picture: {error}") from error


def digest(paper: Standing) -> str:
    """What a forest plot is drawn from, as sha256: another digest asks for another plot."""
    drawn = [[repr(row) for row in rows] for rows in rows_of(paper)]
    return hashlib.sha256(json.dumps([CAPTION, drawn]).encode()).hexdigest()


def small(png: bytes) -> bytes:
    """The same picture in at most LARGEST bytes: fewer colours, then fewer pixels. LabError where that is not enough."""
    from PIL import Image

    if len(png) <= LARGEST:
        return png
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for width in (image.width, WIDEST, 1000, 800):
        if width > image.width:
            continue
        sized = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        for colours in (128, 48):
            made = io.BytesIO()
            sized.quantize(colours, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
            if made.tell() <= LARGEST:
                return made.getvalue()
    raise LabError(f"the key figure takes more than {LARGEST:,} bytes even at 800 pixels: draw less into it")


def rows_of(paper: Standing) -> tuple[list[Row], list[Row], list[Row]]:
    """The rows of the three panels: published numbers, directions, and what is listed; headlines first."""
    numbers, directions, listed = [], [], []
    for known, claim in paper.claims()[:MOST]:
        label = paper.statement(claim)
        if known is None or claim.effect is None or claim.mean is None:
            listed.append(_listed(label, claim))
        elif claim.kind in GAINS and claim.judged_as == claim.kind:
            numbers.append(_number(label, known, claim))
        elif abs(claim.effect) > 1e-12:
            directions.append(_direction(label, known, claim))
        else:
            listed.append(_listed(label, claim))
    return numbers, directions, listed


def _listed(label: str, claim: ClaimRecord) -> Row:
    ours = claim.reason if claim.mean is None else ours_text(claim.mean, claim.interval, claim.note)
    paper = "" if claim.paper_value is None and claim.kind != "parity" else f"{paper_text(claim)}; ours "
    return Row(label, claim.headline, claim.verdict, text=ours if claim.mean is None else f"{paper}{ours}")


def _number(label: str, known: Claim, claim: ClaimRecord) -> Row:
    scale = scale_of(known)
    return Row(
        label,
        claim.headline,
        claim.verdict,
        claim.effect,
        claim.effect_interval,
        band(known),
        _under(scale, claim.control),
        _under(scale, claim.placebo),
        _predicted(known, scale, claim),
    )


def _direction(label: str, known: Claim, claim: ClaimRecord) -> Row:
    """On our own effect: 1 is our mean where it lies on the claimed side, -1 where it does not."""
    scale, unit = scale_of(known), abs(claim.effect or 1.0)
    own = claim.effect_interval
    under = [_under(scale, arm) for arm in (claim.control, claim.placebo)]
    control, placebo = (None if x is None else x / unit for x in under)
    interval = None if own is None else (own[0] / unit, own[1] / unit)
    return Row(
        label,
        claim.headline,
        claim.verdict,
        math.copysign(1.0, claim.effect or 1.0),
        interval,
        None,
        control,
        placebo,
    )


def _under(scale: Scale, arm: ArmRecord | None) -> float | None:
    """The effect that is left under a control or placebo."""
    if arm is None or arm.mean is None:
        return None
    try:
        return scale.effect(scale.coordinate(arm.mean))
    except ValueError:
        return None


def _predicted(known: Claim, scale: Scale, claim: ClaimRecord) -> bool:
    """Whether the paper's number (any of its range) lies where 95% of further values of ours would."""
    from common.stats.student import quantile

    n = len(claim.values)
    if n < 2 or claim.note == "deterministic":
        return False
    at = [scale.coordinate(value) for value in claim.values]
    mean = math.fsum(at) / n
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in at) / (n - 1))
    half = quantile(n) * spread * math.sqrt(1 + 1 / n)
    low, high = sorted((scale.effect(mean - half), scale.effect(mean + half)))
    least, most = band(known) if known.paper.kind == "range" else (1.0, 1.0)
    return low <= most and least <= high


# --- drawing ------------------------------------------------------------------------------------------------

INCHES, LINE, WRAP = 8.0, 0.17, 54  # width of the picture, height of a line of text, letters in a line
GAP = 0.16  # inches between two claims
TEXTS, VERDICTS = 0.455, 0.865  # of the width: where the labels end, where the verdicts begin
HEAD, FOOT = 0.3, 0.32  # inches above and below the claims of a panel


def forest(paper: Standing) -> bytes:
    """The forest plot of a paper's claims as PNG, with its caption and the digest of what it is drawn from."""
    import matplotlib

    from common import viz

    with matplotlib.rc_context():
        viz.use_style()
        made = io.BytesIO()
        about = {"Software": None, "Description": CAPTION, "Source": digest(paper)}
        _draw(paper).savefig(made, format="png", dpi=150, bbox_inches=None, metadata=about)
    return _palette(made.getvalue(), about)


def _palette(png: bytes, about: dict[str, str | None]) -> bytes:
    """The same with a palette, which a plot of few colours loses nothing by. LabError over LARGEST bytes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for key, text in about.items():
        if text is not None:
            texts.add_text(key, text)
    made = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(made, "PNG", optimize=True, pnginfo=texts)
    if made.tell() > LARGEST:
        raise LabError(f"a forest plot of {made.tell():,} bytes is over {LARGEST:,}")
    return made.getvalue()


def _draw(paper: Standing) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, Callable[..., None], list[Row]]] = []
    titles = (
        ("Published numbers: 0 nothing gained, 1 the paper's", _plot),
        ("Directions: 0 nothing gained, 1 our own effect", _plot),
        ("Costs, counts, parities, and what was not run", _list),
    )
    for (title, draw), rows in zip(titles, rows_of(paper), strict=True):
        if rows:
            panels.append((title, draw, rows))
    heights = [HEAD + FOOT * (draw is _plot) + sum(map(_height, rows)) for _, draw, rows in panels]
    legend = 0.62 if any(draw is _plot for _, draw, _ in panels) else 0.0
    left_out = len(paper.record.claims) - MOST
    whole = sum(heights) + legend + 0.1 + 0.2 * (left_out > 0)
    figure = Figure(figsize=(INCHES, whole), facecolor="white", layout="none")
    FigureCanvasAgg(figure)
    top = whole - 0.05
    for (title, draw, rows), height in zip(panels, heights, strict=True):
        foot = FOOT * (draw is _plot)
        inside = height - HEAD - foot
        bottom = top - HEAD - inside
        ax = figure.add_axes((TEXTS, bottom / whole, VERDICTS - TEXTS - 0.01, inside / whole))
        figure.text(0.01, (top - 0.08) / whole, title, fontsize=9.5, fontweight="bold", va="top")
        draw(ax, rows)
        top -= height
    if left_out > 0:
        figure.text(0.01, (legend + 0.08) / whole, f"and {left_out} claims more", fontsize=8.5)
    if legend:
        _legend(figure, [rows for _, draw, rows in panels if draw is _plot], whole)
    return figure


def _height(row: Row) -> float:
    return GAP + LINE * len(_wrapped(row.label))


def _wrapped(label: str) -> list[str]:
    found = textwrap.wrap(label, WRAP, max_lines=3, placeholder=" …")
    return found or [label]


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
            -0.03,
            centre,
            "\n".join(_wrapped(row.label)).replace("$", r"\$"),
            ha="right",
            transform=inside,
            fontweight=weight,
            **texts,
        )
        colour = HTML_COLOURS[row.verdict]
        ax.text(1.04, centre, row.verdict, transform=inside, color=colour, fontweight="bold", **texts)
    return centres


def _plot(ax: "Axes", rows: Sequence[Row]) -> None:
    from common import viz

    centres = _frame(ax, rows)
    low, high = _span(rows)
    ax.set_xlim(low, high)
    ax.axvline(0.0, color=viz.GREY, linewidth=1.0, zorder=1)
    ax.axvline(1.0, color=viz.GREY, linewidth=1.0, linestyle="--", zorder=1)
    ax.tick_params(axis="x", labelsize=8.5, length=3)
    for centre, row in zip(centres, rows, strict=True):
        if row.band is not None:
            left, right = max(row.band[0], low), min(row.band[1], high)
            if right > left:
                ax.fill_between([left, right], centre - 0.13, centre + 0.13, color="#E3ECF4", linewidth=0)
            else:
                ax.plot([left, left], [centre - 0.13, centre + 0.13], color="#B8CCE0", linewidth=2)
            filled = viz.PALETTE["vermillion"] if row.predicted else "white"
            ax.plot(
                1.0,
                centre,
                marker="D",
                markersize=5,
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
            ax.plot(row.ours, centre, marker="o", markersize=5.5, color=viz.PALETTE["blue"], zorder=5)
        else:
            _arrow(ax, row.ours, centre, low, high)


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """From LEFT to RIGHT, or as much less as the rows need."""
    seen = [x for row in rows for x in (row.ours, row.control, row.placebo, *(row.interval or ())) if x is not None]
    return max(LEFT, min([*seen, 0.0]) - 0.08), min(RIGHT, max([*seen, 1.2]) + 0.08)


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
        edge, centre, marker=">" if right else "<", markersize=7, color=viz.PALETTE["blue"], zorder=5, clip_on=False
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


def _legend(figure: Any, panels: Sequence[Sequence[Row]], whole: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from common import viz

    rows = [row for panel in panels for row in panel]
    blue, red = viz.PALETTE["blue"], viz.PALETTE["vermillion"]
    sign: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markersize": 6}
    shown: list[Any] = [Line2D([], [], color=blue, marker="o", linestyle="-", label="ours, 95% interval")]
    if any(row.band for row in rows):
        shown.append(Patch(color="#E3ECF4", label="counts as reproduced"))
        shown.append(Line2D([], [], marker="D", color=red, label="the paper's number", **sign))
    if any(row.predicted for row in rows):
        filled = {**sign, "markerfacecolor": red}
        shown.append(Line2D([], [], marker="D", color=red, label="… in our prediction interval", **filled))
    if any(row.control is not None for row in rows):
        shown.append(Line2D([], [], marker="o", color="black", label="under the control", **sign))
    if any(row.placebo is not None for row in rows):
        shown.append(Line2D([], [], marker="s", color=viz.PALETTE["purple"], label="under the placebo", **sign))
    figure.legend(
        handles=shown,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / whole),
        ncols=3,
        fontsize=8.5,
        handletextpad=0.5,
        columnspacing=1.4,
    )
