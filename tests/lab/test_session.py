"""The lab's face in a notebook, and the table that it shows."""

import os
from pathlib import Path

import pytest

from common.lab import Lab
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.record import Record
from common.lab.report import number, ours_text
from common.lab.runtime import Observations


@pytest.fixture
def lab(toy: Project) -> Lab:
    return Lab("toy", project=toy)


def test_opened_by_hand_it_runs_smoke_and_writes_under_outputs(lab: Lab) -> None:
    assert lab.composed.profile == "smoke" and lab.config.requests == 10 and lab.seeds == (0, 1)
    seen = lab.run()
    assert lab.run() is seen
    kept = (lab.project.outputs / "toy" / "observations.json").read_text()
    assert Observations.from_json(kept).to_json() == seen.to_json()


def test_the_same_config_and_seeds_give_the_same_observations(toy: Project) -> None:
    first, again = (Lab("toy", project=toy).run().to_json() for _ in range(2))
    assert first == again
    assert Lab("toy", overrides="paper.requests=11", project=toy).run().to_json() != first


def test_judging_runs_the_controls_or_skips_them(lab: Lab) -> None:
    assert all(claim.control is None for claim in lab.judge(controls="skip").record.claims)
    report = lab.judge()
    assert [claim.control and claim.control.holds for claim in report.record.claims] == [True, True, None]
    assert Record.load(lab.output / "results.json") == report.record
    with pytest.raises(LabError, match="neither 'run' nor 'skip'"):
        lab.judge(controls="no")  # type: ignore[arg-type]


def test_the_table_shows_paper_ours_verdict_and_control_as_text_and_html(lab: Lab) -> None:
    report = lab.judge()
    for shown in (str(report), report._repr_html_()):
        for text in (
            "up to 3 ratio",
            "reproduced",
            "without holds",
            "1 [1, 1]: inconclusive",
            "not run, needs a GPU: kernel",
        ):
            assert text in shown
        assert "smoke, 2 seeds" in shown


def test_one_seed_is_said_in_place_of_an_interval(toy: Project) -> None:
    assert "(one seed)" in str(Lab("toy", overrides=["seeds=1"], project=toy).judge("skip"))
    assert ours_text(2.0, (2.0, 2.0), "deterministic") == "2 (deterministic)"


def test_a_notebook_may_read_the_papers_number_by_claim(lab: Lab) -> None:
    assert (lab.paper("gain"), lab.paper("kernel")) == (2.0, None)
    with pytest.raises(LabError, match="it has gain, peak, kernel"):
        lab.paper("goodput")


def test_figures_are_saved_among_the_outputs(lab: Lab) -> None:
    from matplotlib.figure import Figure

    assert lab.save(Figure(), "rates") == lab.output / "figures" / "rates.png"
    assert (lab.output / "figures" / "rates.png").stat().st_size > 0


def test_the_runner_says_where_outputs_go(
    toy: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLAB_OUTPUT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PAPERLAB_PROGRESS", str(tmp_path / "progress"))
    Lab("toy", project=toy).run()
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["config.yaml", "observations.json"]
    assert '"label": "seeds"' in (tmp_path / "progress").read_text()
    assert not toy.outputs.exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2, "2"), (1.2345, "1.23"), (0.001234, "0.00123"), (1234.5, "1,234"), (98765, "98,765"), (-2.5, "-2.5"),
     (1e-5, "1.00e-05"), (2.5e7, "2.50e+07"), (999.6, "1,000")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_needless_exponent(value: float, text: str) -> None:
    assert number(value) == text
