"""The scoreboard says what the committed records say, and README shows it."""

import re

import pytest

from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.recording import commit_record
from common.lab.scoreboard import END, START, board, refreshed
from tests.lab.test_commands import edit, recorded
from tests.lab.test_reproduce import error_line
from tests.lab.toy import REPOSITORY, lab, write

TEXT = f"# A project\n\nbefore\n{START}\nold\n{END}\nafter\n"


def test_readme_shows_the_scoreboard_of_the_committed_records() -> None:
    readme = REPOSITORY / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README yet")
    text = readme.read_text()
    assert refreshed(Project(REPOSITORY), text) == text, "make scoreboard"


def test_each_claim_of_a_record_has_a_row_with_its_numbers_verdict_and_control(toy: Project) -> None:
    record = recorded(toy)
    commit_record(toy, record)
    table = [line.split(" | ") for line in board(toy).splitlines() if line.startswith("| ")]
    gain, peak, kernel = table[2:]
    mean, (low, high) = record.claims[0].mean, record.claims[0].interval or (0, 0)
    assert gain == [
        "| [toy](papers/toy/)",
        "The mechanism doubles the rate",
        "simulated",
        "2 ratio",
        f"{mean:.3g} [{low:.3g}, {high:.3g}]",
        "**reproduced**",
        "1 [1, 1]: inconclusive; without holds |",
    ]
    assert peak[3] == "up to 3 ratio"
    assert kernel[3:6] == ["direction only", "–", "**not run**: needs a GPU"]
    assert "3 claims of 1 paper: 2 reproduced, 1 not run. 2 of 2 negative controls hold." in board(toy)


def test_a_record_that_its_code_has_outlived_is_marked(toy: Project) -> None:
    commit_record(toy, recorded(toy))
    assert "(stale)" not in board(toy)
    edit(toy.root / "papers" / "toy" / "doubling.py", "2 * x", "x + x")
    assert board(toy).count("**reproduced** (stale)") == 2


def test_a_paper_without_a_record_has_no_row(toy: Project) -> None:
    assert "No paper is recorded yet" in board(toy)


def test_bars_and_line_breaks_in_a_statement_stay_in_their_cell(toy: Project) -> None:
    edit(toy.card("toy"), "The mechanism doubles the rate", '"a | b\\nc"')
    commit_record(toy, recorded(toy))
    assert r"| a \| b c |" in board(toy)


def test_only_what_is_between_the_markers_changes(toy: Project) -> None:
    commit_record(toy, recorded(toy))
    fresh = refreshed(toy, TEXT)
    assert fresh == f"# A project\n\nbefore\n{START}\n{board(toy)}{END}\nafter\n"
    assert refreshed(toy, fresh) == fresh


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{TEXT}{TEXT}"])
def test_a_readme_without_the_markers_is_refused(toy: Project, text: str) -> None:
    with pytest.raises(LabError, match=re.escape(START)):
        refreshed(toy, text)


def test_the_command_rewrites_readme(toy: Project) -> None:
    assert "README.md: No such file" in error_line(lab(toy.root, "scoreboard"))
    commit_record(toy, recorded(toy))
    write(toy.root / "README.md", TEXT)
    assert lab(toy.root, "scoreboard").stdout == "README.md: scoreboard rewritten\n"
    assert "**reproduced**" in (toy.root / "README.md").read_text()
    assert lab(toy.root, "scoreboard").stdout == "README.md: the scoreboard is up to date\n"
