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
from dataclasses import astuple
from pathlib import Path
from typing import Any

from common.lab.card import GAINS, Claim
from common.lab.effect import Scale, scale_of
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.forest_plot import FILLS, Row, Rows, colours, plot
from common.lab.project import Project
from common.lab.record import ArmRecord, ClaimRecord
from common.lab.report import paper_text, value_text
from common.lab.standing import Standing, standing
from common.lab.verdict import band

KEY = "key.json"  # among a run's outputs: {"figure": name}, written by lab.save(figure, name, key=True)
DRAWN_FROM = "Drawn from"  # a text in the PNG of a forest plot: the digest of its rows
LARGEST = 100_000  # bytes of a figure.png
RESOLUTIONS = (150, 125, 100)  # dots per inch
SHADES = 5
WIDEST = 1200  # pixels of a figure that has to be made smaller
MOST = 30  # claims in one picture
CAPTION = (
    "0 is nothing gained, 1 the paper's number (of a direction: our own effect). Dots are ours with 95% intervals, "
    "the shaded band is what counts as reproduced; hollow marks are what a control and a placebo leave. A filled "
    "diamond: the paper's number lies within our 95% prediction interval."
)


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
    """Draw the forest plot where a paper has no picture, or one of another record; its path if it was drawn."""
    path = figure_path(project, paper.slug)
    if path.is_file() and _text(path).get(DRAWN_FROM, digest(paper)) == digest(paper):
        return None
    write_atomically(path, forest(paper))
    return path


def caption(path: Path) -> str:
    """What a picture says of itself: the caption of a forest plot, "" of a key figure."""
    texts = _text(path)
    return texts.get("Description", "") if DRAWN_FROM in texts else ""


def _text(path: Path) -> dict[str, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
    except (OSError, UnidentifiedImageError) as error:
        raise LabError(f"{path}: is no picture: {error}") from error


def digest(paper: Standing) -> str:
    """What a forest plot is drawn from, as sha256 (numbers to four digits): another digest asks for another plot."""
    drawn = [[_rounded(astuple(row)) for row in rows] for rows in rows_of(paper)]
    return hashlib.sha256(json.dumps([CAPTION, drawn]).encode()).hexdigest()


def _rounded(values: tuple[Any, ...]) -> list[Any]:
    return [
        _rounded(x) if isinstance(x, tuple) else f"{x:.4g}" if isinstance(x, float) else x for x in values
    ]


def small(png: bytes) -> bytes:
    """The same picture in at most LARGEST bytes, with fewer colours, then fewer pixels. LabError where it can't be."""
    from PIL import Image

    if len(png) <= LARGEST:
        return png
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for width in (image.width, WIDEST, 1000, 800):
        if width > image.width:
            continue
        sized = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        for most in (128, 48):
            made = io.BytesIO()
            sized.quantize(most, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
            if made.tell() <= LARGEST:
                return made.getvalue()
    raise LabError(f"the key figure takes more than {LARGEST:,} bytes even at 800 pixels: draw less into it")


def forest(paper: Standing) -> bytes:
    """The forest plot of a paper's claims as PNG, with its caption and the digest of what it is drawn from.

    In as many pixels as fit into LARGEST bytes. LabError where none of RESOLUTIONS does.
    """
    import matplotlib

    from common import viz

    texts = {"Description": CAPTION, DRAWN_FROM: digest(paper)}
    with matplotlib.rc_context():
        viz.use_style()
        # its panels have places of their own
        matplotlib.rcParams.update({"figure.constrained_layout.use": False, "savefig.bbox": "standard"})
        figure = plot(rows_of(paper), len(paper.record.claims) - MOST)
        for resolution in RESOLUTIONS:
            made = io.BytesIO()
            figure.savefig(made, format="png", dpi=resolution)
            drawn = _few_colours(made.getvalue(), texts)
            if len(drawn) <= LARGEST:
                return drawn
    raise LabError(f"{paper.slug}: its forest plot takes {len(drawn):,} bytes, over {LARGEST:,}")


def _few_colours(png: bytes, texts: dict[str, str]) -> bytes:
    """The same in the colours of the plot and SHADES of each towards white, which is all that it is drawn with."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    shades = [
        round(255 - (255 - part) * shade / SHADES)
        for colour in colours()
        for shade in range(1, SHADES + 1)
        for part in colour
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [255, 255, 255, *(part for colour in FILLS for part in bytes.fromhex(colour[1:])), *shades]
    )
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    made = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    image.save(made, "PNG", optimize=True, pnginfo=info)
    return made.getvalue()


def rows_of(paper: Standing) -> Rows:
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
    if claim.mean is None:
        return Row(label, claim.headline, claim.verdict, text=claim.reason)
    paper = f", paper {paper_text(claim)}" if claim.paper_value is not None else ""
    ours = value_text(claim)
    return Row(label, claim.headline, claim.verdict, text=f"{ours}{paper}")


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
