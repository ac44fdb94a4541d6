"""What is drawn is what was given; nothing global changes until it is asked for."""

import subprocess
import sys

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from common import viz
from common.viz.charts import _ink


@pytest.fixture(autouse=True)
def styled():
    with matplotlib.rc_context():
        viz.use_style()
        yield
    matplotlib.pyplot.close("all")


def test_a_curve_passes_through_its_points_and_its_band_through_its_bounds():
    _, ax = viz.figure()
    line = viz.curve(ax, [1, 2, 3], [5, 6, 4], [4, 5, 3], [7, 8, 9], label="ours", colour="green")
    assert line.get_xydata().tolist() == [[1, 5], [2, 6], [3, 4]]
    assert to_hex(line.get_color()) == viz.PALETTE["green"].lower()
    corners = ax.collections[0].get_paths()[0].vertices.tolist()
    assert all(point in corners for point in ([1, 4], [2, 5], [3, 3], [1, 7], [2, 8], [3, 9]))


def test_lines_without_a_colour_differ_in_colour_and_dash():
    _, ax = viz.figure()
    lines = [viz.curve(ax, [0, 1], [i, i]) for i in range(5)]
    assert len({line.get_color() for line in lines}) == 5
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 5


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_threshold_stands_at_its_value(axis):
    _, ax = viz.figure()
    viz.threshold(ax, 0.9, "90%", axis=axis)
    data = ax.lines[0].get_xdata() if axis == "x" else ax.lines[0].get_ydata()
    assert set(data) == {0.9}
    assert [text.get_text() for text in ax.texts] == ["90%"]


def test_a_claims_bar_reaches_from_no_effect_to_its_mean_and_marks_the_papers_number():
    _, ax = viz.figure()
    bars = [viz.ClaimBar("a", 2.0, 1.5, 2.5, 3.4), viz.ClaimBar("b", 0.8, 0.7, 0.9, (2.0, 3.0))]
    viz.claim_bars(ax, bars, no_effect=1.0)
    one, other = ax.patches
    assert (one.get_x(), one.get_x() + one.get_width()) == (1.0, 2.0)
    assert other.get_x() + other.get_width() == pytest.approx(0.8)
    points = [tuple(map(float, point)) for line in ax.lines for point in line.get_xydata()]
    assert {(1.5, 0), (2.5, 0), (3.4, 0), (0.7, 1), (0.9, 1)} <= set(points)
    assert {x for x, y in points if y == pytest.approx(1.36)} == {2.0, 3.0}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]


def test_a_timeline_draws_each_span_on_its_row():
    _, ax = viz.figure()
    spans = [viz.Span("r0", 0, 1, "prefill"), viz.Span("r1", 1, 4, "prefill"), viz.Span("r0", 1, 2, "decode")]
    viz.timeline(ax, spans, {"decode": "orange"})
    drawn = set()
    for collection in ax.collections:
        for path in collection.get_paths():
            (left, bottom), (right, top) = path.get_extents().get_points()
            drawn.add((left, right, round((bottom + top) / 2), to_hex(collection.get_facecolor()[0])))
    blue, orange = viz.PALETTE["blue"].lower(), viz.PALETTE["orange"].lower()
    assert drawn == {(0, 1, 0, blue), (1, 4, 1, blue), (1, 2, 0, orange)}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["r0", "r1"]


@pytest.mark.parametrize(("mark", "best"), [("max", (1, 0)), ("min", (0, 1))])
def test_a_heat_map_writes_each_number_in_its_cell_and_frames_the_best(mark, best):
    _, ax = viz.figure()
    viz.heatmap(ax, [[2.0, 1.0], [4.0, np.nan]], ["a", "b"], [1, 2], form="{:.0f}", mark=mark)
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "2", (0, 1): "1", (1, 0): "4", (1, 1): "–"}
    (frame,) = ax.patches
    assert (
        round(frame.get_y() + frame.get_height() / 2),
        round(frame.get_x() + frame.get_width() / 2),
    ) == best


def test_a_heat_map_with_the_wrong_names_is_refused():
    _, ax = viz.figure()
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        viz.heatmap(ax, [[1.0, 2.0]], ["a", "b"], [1])


def test_a_decomposition_ends_at_the_product_of_its_parts():
    _, ax = viz.figure()
    viz.decomposition(ax, ["a", "b"], {"engine": [2.0, 1.5], "method": [1.5, 3.0]})
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([2.0, 1.5, 3.0, 4.5])


def contrast(one, other):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_numbers_in_cells_are_legible_on_every_colour_of_the_map():
    for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, 50)):
        assert contrast(_ink(colour), colour) >= 4.5  # WCAG 2.1, level AA for text


def test_every_line_colour_stands_out_from_white():
    assert min(contrast(colour, "white") for colour in viz.PALETTE.values()) > 2


def test_saving_makes_the_folder(tmp_path):
    drawn, ax = viz.figure(columns=2, rows=2)
    assert ax.shape == (2, 2)
    path = viz.save(drawn, tmp_path / "figures" / "a.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_importing_the_charts_changes_no_setting_and_chooses_no_backend():
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "import common.viz\n"
        "assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
