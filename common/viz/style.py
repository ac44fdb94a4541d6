"""Fonts, colours, sizes and grid of every figure."""

from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every common colour blindness (Wong, Nature Methods 8, 441, 2011);
# without their yellow, which is too pale for a line on white.
PALETTE = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}
GREY = "#6E6E6E"  # what is not ours: thresholds, the paper's numbers, waiting
LIGHT = "#D9D9D9"
COLOUR_MAP = "cividis"  # made to look the same to colour-blind readers, and grows in brightness
WIDTH = 6.4  # inches of one panel: as wide as a notebook's text
HEIGHT = 3.9
RESOLUTION = 150  # dots per inch of saved figures

_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))

STYLE: Any = {  # names of matplotlib's settings
    "figure.figsize": (WIDTH, HEIGHT),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": RESOLUTION,
    "savefig.bbox": "tight",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "axes.prop_cycle": cycler(color=list(PALETTE.values())) + cycler(linestyle=_LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "image.cmap": COLOUR_MAP,
}


def use_style() -> None:
    """Make this the look of all figures of this process from here on."""
    matplotlib.rcdefaults()  # not what a matplotlibrc in the reader's home says
    matplotlib.rcParams.update(STYLE)


def figure(
    columns: int = 1, rows: int = 1, width: float | None = None, height: float = HEIGHT
) -> tuple[Figure, Any]:
    """A figure and its axes: one `Axes`, a row or column of them, or an array of shape (rows, columns).

    width: inches of the whole figure, by default one text width for one panel and less than two for more of them;
    height: inches of one row. In a notebook it shows itself at the end of its cell.
    """
    import matplotlib.pyplot as plt  # here: pyplot chooses a backend when it is imported

    whole = width or WIDTH * (1 if columns == 1 else 0.82 * columns)
    made, axes = plt.subplots(rows, columns, figsize=(whole, height * rows), layout="constrained")
    return made, axes


def save(drawn: Figure, path: Path) -> Path:
    """Write a figure (format by the suffix: png, svg, pdf), making its folder; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=RESOLUTION, bbox_inches="tight")
    return path
