"""The picture of a paper: its key figure, else a forest plot of what the record says."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from common.lab.card import Card
from common.lab.errors import LabError
from common.lab.forest import (
    LARGEST,
    caption,
    digest,
    figure_path,
    forest,
    key_figure,
    refresh_figure,
    rows_of,
    small,
    write_figure,
)
from common.lab.project import Project
from common.lab.standing import Standing, standing
from tests.lab.recorded import broken, claim, paper, record_toy
from tests.lab.toy import write


def shown(project: Project, *claims: object) -> Standing:
    """The toy with these claims recorded."""
    record = paper("toy", *claims)  # type: ignore[arg-type]
    return Standing(Card.load(project.card("toy")), record, ("default",), {}, 1)


def picture(path: Path, size: tuple[int, int] = (30, 20), noise: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise(size, 200).convert("RGB") if noise else Image.new("RGB", size, "white")
    image.save(path)
    return path


def test_published_numbers_stand_on_the_effect_with_band_interval_and_control(toy: Project) -> None:
    gain = claim("gain", headline=True, control=broken("without"))
    (row,), directions, listed = rows_of(shown(toy, gain))
    assert (row.ours, row.interval, row.band) == (0.9, (0.78, 1.03), (0.75, 1.25))
    assert row.control == pytest.approx(0.0)
    assert row.headline and not directions and not listed


def test_a_direction_is_drawn_over_our_own_effect(toy: Project) -> None:
    gain = claim(
        "gain",
        judged_as="direction",
        effect=-0.5,
        effect_interval=(-0.6, -0.4),
        verdict="contradicted",
        control=broken("without"),
    )
    numbers, (row,), _ = rows_of(shown(toy, gain))
    assert not numbers
    assert (row.ours, row.interval, row.control) == (-1.0, (-1.2, -0.8), 0.0)


def test_costs_and_what_was_not_run_are_listed_with_their_reason(toy: Project) -> None:
    kernel = claim("kernel", verdict="not run", mean=None, interval=None, effect=None, reason="needs a GPU")
    cost = claim(
        "slow", kind="at_most", paper_value=5.0, unit="s", mean=4.0, interval=(3.9, 4.1), effect=None
    )
    numbers, directions, listed = rows_of(shown(toy, kernel, cost))
    assert not numbers and not directions
    assert [row.text for row in listed] == ["needs a GPU", "4 [3.9, 4.1], paper ≤ 5 s"]


@pytest.mark.parametrize(("values", "inside"), [([1.5, 1.9, 2.3], True), ([1.3, 1.31, 1.32], False)])
def test_the_papers_number_may_lie_within_our_prediction_interval(
    toy: Project, values: list[float], inside: bool
) -> None:
    (row,), _, _ = rows_of(shown(toy, claim("gain", values=values)))
    assert row.predicted is inside


def test_one_value_and_a_deterministic_one_predict_nothing(toy: Project) -> None:
    for fields in ({"values": [2.0]}, {"values": [2.0, 2.0], "note": "deterministic"}):
        (row,), _, _ = rows_of(shown(toy, claim("gain", **fields)))
        assert not row.predicted


def test_a_forest_plot_of_many_claims_is_small(toy: Project) -> None:
    arms = {"control": broken("without"), "placebo": broken("shuffled")}
    drawn = forest(shown(toy, *(claim("gain", effect=x, **arms) for x in range(-10, 30))))
    assert len(drawn) <= LARGEST
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.width == 1200


def test_the_same_record_gives_the_same_bytes(toy: Project) -> None:
    found = shown(toy, claim("gain"), claim("slow", judged_as="direction"))
    assert forest(found) == forest(found)


def test_a_missing_forest_plot_is_drawn_once_and_again_where_the_record_says_something_else(
    toy: Project,
) -> None:
    before, after = shown(toy, claim("gain")), shown(toy, claim("gain", effect=0.8))
    assert refresh_figure(toy, before) == figure_path(toy, "toy")
    assert "0 is nothing gained" in caption(figure_path(toy, "toy"))
    assert refresh_figure(toy, before) is None
    assert digest(before) != digest(after)
    assert refresh_figure(toy, after) == figure_path(toy, "toy")


def test_a_key_figure_stays_whatever_the_record_says(toy: Project) -> None:
    picture(figure_path(toy, "toy"))
    assert refresh_figure(toy, shown(toy, claim("gain"))) is None
    assert caption(figure_path(toy, "toy")) == ""


def test_record_takes_the_key_figure_of_the_run_or_draws_the_claims(toy: Project, tmp_path: Path) -> None:
    assert write_figure(toy, "toy", tmp_path) is None  # neither a key figure nor a record
    record_toy(toy)
    assert write_figure(toy, "toy", tmp_path) == figure_path(toy, "toy")
    assert caption(figure_path(toy, "toy"))
    key = picture(tmp_path / "figures" / "rates.png")
    write(tmp_path / "key.json", json.dumps({"figure": "rates"}))
    write_figure(toy, "toy", tmp_path)
    assert figure_path(toy, "toy").read_bytes() == key.read_bytes()
    assert standing(toy, "toy") is not None


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "is not"), ('{"figure": "gone"}', "figures/gone.png is missing")]
)
def test_a_key_that_names_no_figure_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert key_figure(tmp_path) is None
    write(tmp_path / "key.json", text)
    with pytest.raises(LabError, match=re.escape(message)):
        key_figure(tmp_path)


def test_a_large_key_figure_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.lab.forest.LARGEST", 10_000)
    curve = picture(tmp_path / "a.png", (300, 200)).read_bytes()
    assert small(curve) == curve
    noisy = picture(tmp_path / "b.png", (150, 60), noise=True).read_bytes()
    assert len(noisy) > 10_000 >= len(small(noisy))
    with pytest.raises(LabError, match="draw less into it"):
        small(picture(tmp_path / "c.png", (300, 200), noise=True).read_bytes())
