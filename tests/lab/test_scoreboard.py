"""The scoreboard and the papers' pages say what the committed records say, and both are up to date."""

import re
from dataclasses import replace

import pytest

from common.lab.card import Card
from common.lab.cli import main
from common.lab.errors import LabError
from common.lab.forest import caption, figure_path, refresh_figure
from common.lab.markdown import plain
from common.lab.project import Project
from common.lab.readme import idea, page, page_path, write_page
from common.lab.record import Record
from common.lab.scoreboard import END, START, board, refreshed
from common.lab.standing import Standing, standing, standings
from tests.lab.recorded import broken, claim, paper, record_toy
from tests.lab.toy import REPOSITORY, write

TEXT = f"# A project\n\nbefore\n{START}\nold\n{END}\nafter\n"
PROJECT = Project(REPOSITORY)


@pytest.fixture(scope="module")
def papers_as_recorded() -> list[Standing]:
    return standings(PROJECT, check=False)  # that every record holds is asserted in test_papers


def edit(project: Project, name: str, old: str, new: str) -> None:
    path = project.root / "papers" / "toy" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def shown(project: Project, *claims: object) -> Standing:
    """The toy with these claims recorded."""
    record = paper("toy", *claims)  # type: ignore[arg-type]
    return Standing(Card.load(project.card("toy")), record, ("default",), {}, 1)


def rows(text: str) -> list[list[str]]:
    """The cells of the tables of a Markdown text, row by row."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [line.strip("| ").split(" | ") for line in lines]


# --- what is committed --------------------------------------------------------------------------------------


def test_readme_shows_the_scoreboard_of_the_committed_records(papers_as_recorded: list[Standing]) -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert refreshed(papers_as_recorded, text) == text, "make scoreboard"


def test_every_recorded_paper_has_a_page_and_a_picture_of_its_record(
    papers_as_recorded: list[Standing],
) -> None:
    for each in papers_as_recorded:
        path = page_path(PROJECT, each.slug)
        assert path.is_file() and path.read_text() == page(PROJECT, each), f"{each.slug}: make scoreboard"
        picture = figure_path(PROJECT, each.slug)
        before = picture.read_bytes()
        assert refresh_figure(PROJECT, each) is None, f"{each.slug}: make scoreboard"
        assert picture.read_bytes() == before and len(before) <= 100_000


# --- the scoreboard -----------------------------------------------------------------------------------------


def test_a_paper_is_a_row_with_what_came_out_and_what_breaks_it(toy: Project) -> None:
    record_toy(toy)
    *_, row = rows(board(standings(toy)))
    assert row == [
        "[Twice as fast by not waiting](papers/toy/)<br>It doubles it.",
        "**2 of 3**",
        "2 reproduced",
        "1 not run",
        "measured, simulated",
        "3 of 3, 1 of 1",
        "0 s<br>1 machine",
    ]


def test_numbers_elsewhere_and_claims_that_nothing_breaks_are_said(toy: Project) -> None:
    kept = broken("without", "does not break it")
    found = shown(toy, claim("gain", judged_as="direction", control=kept), claim("slow", verdict="weaker"))
    *_, row = rows(board([found]))
    assert row[1] == "**0 of 1**<br>1 elsewhere"
    assert row[5] == "0 of 1, –<br>1 not shown to be the method's"


def test_a_record_that_its_code_has_outlived_is_marked(toy: Project) -> None:
    record_toy(toy)
    assert "stale" not in board(standings(toy))
    edit(toy, "doubling.py", "2 * x", "x + x")
    (found,) = standings(toy)
    assert "(papers/toy/) **(stale)**" in board([found])
    assert "> **stale** (PROFILE=default): its code has changed since" in page(toy, found)


def test_a_bound_that_moved_asks_for_another_judging(toy: Project) -> None:
    record_toy(toy)
    edit(toy, "paper.yaml", "tolerance: 0.1", "tolerance: 0.2")
    assert "**(to be judged again)**" in board(standings(toy))


def test_a_paper_that_awaits_its_judging_says_so(toy: Project) -> None:
    found = replace(
        shown(toy, claim("gain")), record=paper("toy", claim("gain"), awaiting="its operating points")
    )
    assert "**(awaiting)**" in board([found])
    assert "> **awaiting**: its operating points" in page(toy, found)


def test_a_paper_without_a_record_has_no_row(toy: Project) -> None:
    assert standing(toy, "toy") is None
    assert "No paper is recorded yet" in board(standings(toy))


def test_only_what_is_between_the_markers_changes(toy: Project) -> None:
    found = [shown(toy, claim("gain"))]
    fresh = refreshed(found, TEXT)
    assert fresh == f"# A project\n\nbefore\n{START}\n{board(found)}{END}\nafter\n"
    assert refreshed(found, fresh) == fresh


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{TEXT}{TEXT}"])
def test_a_readme_without_the_markers_is_refused(text: str) -> None:
    with pytest.raises(LabError, match=re.escape(START)):
        refreshed([], text)


def test_the_command_writes_everything_once(
    toy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLAB_ROOT", str(toy.root))
    assert main(["scoreboard"]) == 1
    assert "README.md: No such file" in capsys.readouterr().err
    record_toy(toy)
    write(toy.root / "README.md", TEXT)
    assert main(["scoreboard"]) == 0
    wrote = ["papers/toy/figure.png", "README.md", "papers/toy/README.md"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in wrote]
    assert "2 of 3" in (toy.root / "README.md").read_text()
    assert caption(figure_path(toy, "toy"))
    assert main(["scoreboard"]) == 0
    assert capsys.readouterr().out == "README.md and the papers' pages are up to date\n"


# --- a paper's page -----------------------------------------------------------------------------------------


def test_a_page_shows_headlines_first_with_numbers_verdict_and_what_is_left(toy: Project) -> None:
    record = record_toy(toy)
    found = standing(toy, "toy")
    assert found is not None
    text = page(toy, found)
    gain = record.claims[0]
    assert gain.interval is not None
    tables = rows(text)
    assert tables[1][0] == "The mechanism doubles the rate"
    assert tables[1][1:5] == [
        "simulated",
        "2 ratio",
        f"{gain.mean:.3g} [{gain.interval[0]:.3g}, {gain.interval[1]:.3g}]",
        "**reproduced**",
    ]
    assert "without: 0% left, breaks it<br>shuffled:" in tables[1][5]
    assert text.index("Up to three times at the best rate") < text.index("### The other claims")
    assert "**not run**<br>needs a GPU" in text


def test_record_writes_the_page_of_what_it_recorded(toy: Project) -> None:
    assert write_page(toy, "toy") is None
    record_toy(toy)
    found = standing(toy, "toy")
    assert found is not None
    assert write_page(toy, "toy") == page_path(toy, "toy")
    assert page_path(toy, "toy").read_text() == page(toy, found)


def test_a_page_says_where_ours_is_not_the_papers_setting(toy: Project) -> None:
    edit(
        toy,
        "paper.yaml",
        "control: without\n    placebo: shuffled",
        "control: without\n    placebo: shuffled\n    setting: on a toy",
    )
    text = page(toy, shown(toy, claim("gain"), claim("slow")))
    assert "- The mechanism doubles the rate: *on a toy*" in text


def test_a_page_says_why_and_what_became_of_it(toy: Project) -> None:
    record_toy(toy)
    found = standing(toy, "toy")
    assert found is not None
    assert (
        "(**weaker**): the toy waits longer than the paper's machine. Put to the test by `quick` (without what the toy "
        "wastes): **revived**, 5 [5, 5], reproduced."
    ) in page(toy, found)


def test_a_verdict_without_a_cause_says_that_it_has_none(toy: Project) -> None:
    found = shown(toy, claim("gain", verdict="absent"))
    assert "(**absent**): not yet explained." in page(toy, found)


def test_a_page_names_the_commands_the_files_and_what_is_not_reproduced(toy: Project) -> None:
    text = page(toy, shown(toy, claim("gain")))
    assert "make reproduce PAPER=toy " in text and "PROFILE=cuda" in text
    assert "[experiment.py](experiment.py) | A number that the mechanism doubles. |" in text
    assert "## What is not reproduced\n\n- The authors' cluster." in text


def test_texts_quote_the_recorded_config(toy: Project) -> None:
    edit(toy, "paper.yaml", "finding: It doubles it.", 'finding: "With {requests} requests it doubles."')
    record = record_toy(toy)
    assert isinstance(record, Record)
    (found,) = standings(toy)
    assert "With 100 requests it doubles." in page(toy, found)
    assert "With 100 requests it doubles." in board([found])


def test_bars_breaks_and_signs_of_a_statement_stay_in_their_cell() -> None:
    assert plain("a | b\nc * $5 <x> snake_case _d_") == r"a \| b c \* \$5 \<x> snake_case \_d\_"


def test_a_docstring_loses_its_list_of_modules_and_keeps_its_formula() -> None:
    text = "The idea.\n\n    x = a / b\n\none.py   the first\n         and more\ntwo.py   the second"
    assert idea(text) == "The idea.\n\n```\n    x = a / b\n```"
