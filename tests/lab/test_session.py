"""The lab's face in a notebook, and the table that it shows."""

import os
from pathlib import Path

import pytest

from common.lab import Lab
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.evaluate import measure
from common.lab.project import Project
from common.lab.record import Record
from common.lab.report import number, ours_text
from common.lab.runtime import Observations
from tests.lab.test_commands import edit, recorded
from tests.lab.toy import write


@pytest.fixture
def lab(toy: Project) -> Lab:
    return Lab("toy", "smoke", project=toy)


def test_opened_by_hand_a_run_writes_to_a_folder_of_its_own(lab: Lab) -> None:
    assert lab.composed.profile == "smoke" and lab.config.requests == 60 and lab.seeds == (0, 1, 2)
    seen = lab.run()
    assert lab.run() is seen
    kept = (lab.project.outputs / "by_hand" / "toy" / "observations.json").read_text()
    assert not (lab.project.outputs / "toy").exists()
    assert Observations.from_json(kept).to_json() == seen.to_json()


def test_the_same_config_and_seeds_give_the_same_observations(toy: Project) -> None:
    first, again = (measure(toy, compose(toy, "toy", "smoke")).seen.to_json() for _ in range(2))
    assert first == again
    assert Lab("toy", "smoke", overrides="paper.requests=11", project=toy).run().to_json() != first


def test_what_an_earlier_run_saw_is_used_again_and_said(
    toy: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    first = Lab("toy", "smoke", project=toy).run().to_json()
    assert "FRESH=1 computes" not in capsys.readouterr().out
    assert Lab("toy", "smoke", project=toy).run().to_json() == first
    assert "same code, config, seeds and data (FRESH=1 computes)" in capsys.readouterr().out
    for change in ({"overrides": "paper.requests=61"}, {"overrides": "seeds=4"}):
        Lab("toy", "smoke", project=toy, **change).run()
        assert "FRESH=1" not in capsys.readouterr().out
    Lab("toy", "smoke", project=toy).run()
    capsys.readouterr()
    monkeypatch.setenv("FRESH", "1")
    Lab("toy", "smoke", project=toy).run()
    assert "FRESH=1" not in capsys.readouterr().out
    monkeypatch.delenv("FRESH")
    edit(toy.root / "papers" / "toy" / "doubling.py", "2 * x", "x + x")
    Lab("toy", "smoke", project=toy).run()
    assert "FRESH=1" not in capsys.readouterr().out


def test_what_read_a_clock_is_never_used_again(
    toy: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    edit(
        toy.card("toy"), "metric: seconds\n    evidence: simulated", "metric: seconds\n    evidence: measured"
    )
    for _ in range(2):
        Lab("toy", "smoke", project=toy).run()
    assert "FRESH=1" not in capsys.readouterr().out


def test_judging_runs_the_controls_or_skips_them(lab: Lab) -> None:
    assert all(claim.control is None for claim in lab.judge(controls="skip").record.claims)
    report = lab.judge()
    outcomes = [claim.control and claim.control.outcome for claim in report.record.claims]
    assert outcomes == ["breaks it", "breaks it", "breaks it", None]
    assert Record.load(lab.output / "results.json") == report.record
    with pytest.raises(LabError, match="neither 'run' nor 'skip'"):
        lab.judge(controls="no")  # type: ignore[arg-type]


def test_the_table_shows_paper_ours_verdict_and_control_as_text_and_html(lab: Lab) -> None:
    report = lab.judge()
    for shown in (str(report), report._repr_html_()):
        for text in (
            "up to 3 ratio",
            "reproduced",
            "The mechanism doubles",
            "without: 0% left, breaks it",
            "not run, needs a GPU: kernel",
        ):
            assert text in shown
        assert "smoke, 3 seeds" in shown


def test_one_seed_is_said_in_place_of_an_interval(toy: Project) -> None:
    shown = str(Lab("toy", "smoke", overrides=["seeds=1"], project=toy).judge("skip"))
    assert "(one seed)" in shown and "one seed has no interval" in " ".join(shown.replace("│", " ").split())
    assert ours_text(2.0, (2.0, 2.0), "deterministic") == "2 (deterministic)"


def test_a_notebook_may_read_the_papers_number_by_claim(lab: Lab) -> None:
    assert (lab.paper("gain"), lab.paper("kernel")) == (2.0, None)
    with pytest.raises(LabError, match="it has gain, peak, slow, kernel"):
        lab.paper("goodput")
    with pytest.raises(LabError, match="toy quotes no figure 'figure-9'; it has none"):
        lab.paper_figure("figure-9")


def test_figures_are_saved_among_the_outputs(lab: Lab) -> None:
    from matplotlib.figure import Figure

    assert lab.save(Figure(), "rates") == lab.output / "figures" / "rates.png"
    assert (lab.output / "figures" / "rates.png").stat().st_size > 0


def test_the_runner_says_where_outputs_go(
    toy: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLAB_OUTPUT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PAPERLAB_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setenv("FRESH", "1")
    Lab("toy", "smoke", project=toy).run()
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["config.yaml", "observations.json"]
    assert '"label": "seeds"' in (tmp_path / "progress").read_text()
    assert not (toy.outputs / "by_hand").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2, "2"), (1.2345, "1.23"), (0.001234, "0.00123"), (1234.5, "1,234"), (98765, "98,765"), (-2.5, "-2.5"),
     (1e-5, "1.00e-05"), (2.5e7, "2.50e+07"), (999.6, "1,000")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_needless_exponent(value: float, text: str) -> None:
    assert number(value) == text


# --- as recorded -------------------------------------------------------------------------------------------------


def test_opened_by_hand_it_shows_the_record_in_its_own_config(toy: Project) -> None:
    kept = recorded(toy)
    lab = Lab("toy", project=toy)
    assert (lab.config.requests, lab.seeds) == (100, (0, 1, 2, 3, 4))
    assert lab.run().values("gain") == kept.claim("gain").values
    assert lab.judge().record == kept
    assert not (toy.outputs / "by_hand").exists()


def test_without_a_record_or_with_overrides_it_says_what_to_choose(toy: Project) -> None:
    with pytest.raises(
        LabError, match='toy has no record yet; choose profile = "smoke" or make record PAPER=toy'
    ):
        Lab("toy", project=toy)
    recorded(toy)
    with pytest.raises(LabError, match="overrides change a run"):
        Lab("toy", overrides="seeds=3", project=toy)


def test_a_sentence_has_its_numbers_computed(lab: Lab) -> None:
    assert lab.say("It gains {gain:.2f} times.", gain=2.0) == "It gains 2.00 times."
    with pytest.raises(LabError, match="'gian', which is not given"):
        lab.say("It gains {gian:.2f} times.", gain=2.0)


def test_an_exercise_answers_back(toy: Project) -> None:
    write(
        toy.root / "papers" / "toy" / "exercises.py",
        "from common.lab.exercises import Exercise\n"
        "EXERCISES = {'exercise-1': Exercise('How much?', 'Divide.', lambda lab: float(lab.config.requests))}\n",
    )
    lab = Lab("toy", "smoke", project=toy)
    assert lab.check("exercise-1", 60) == "right"
    for wrong in (70, "many", None, [60]):
        assert lab.check("exercise-1", wrong) == "not yet. Divide."
    with pytest.raises(LabError, match="toy has no 'exercise-2'. Did you mean exercise-1"):
        lab.check("exercise-2", 60)
