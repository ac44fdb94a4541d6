"""One look for all figures, and the few charts that papers share. matplotlib is imported only here.

    from common import viz

    viz.use_style()
    figure, axes = viz.figure(columns=2)
    viz.curve(axes[0], rates, attainment, low, high, label="DistServe")
    viz.threshold(axes[0], 0.9, "90%")

Every helper draws on an `Axes` that the caller made, in the data's own units; titles and axis names are the caller's.
"""

from common.viz.charts import (
    ClaimBar,
    Span,
    claim_bars,
    curve,
    decomposition,
    heatmap,
    threshold,
    timeline,
)
from common.viz.style import GREY, PALETTE, figure, save, use_style

__all__ = [
    "GREY",
    "PALETTE",
    "ClaimBar",
    "Span",
    "claim_bars",
    "curve",
    "decomposition",
    "figure",
    "heatmap",
    "save",
    "threshold",
    "timeline",
    "use_style",
]
