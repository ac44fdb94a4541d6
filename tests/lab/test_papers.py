"""What holds for every paper of this repository: card, configs, notebook, record, and what its experiment imports.

A paper whose card says that it awaits its second judging is excused from what that judging asks for, and no more.
"""

import json
import subprocess
import sys
import tomllib

import pytest

from common.lab import Lab
from common.lab.abuse import compose_odd, odd_settings
from common.lab.bounds import unbounded
from common.lab.card import Card
from common.lab.config import compose
from common.lab.exercises import exercises
from common.lab.history import is_shallow, unexcused
from common.lab.project import Project
from common.lab.recording import problems
from tests.lab.test_commands import BLOCK
from tests.lab.toy import REPOSITORY

PROJECT = Project(REPOSITORY)
SLUGS = PROJECT.slugs
WHOLE = [slug for slug in SLUGS if "\nawaiting:" not in PROJECT.card(slug).read_text()]


@pytest.mark.parametrize("slug", SLUGS)
def test_card_configs_notebook_and_record_are_in_order(slug: str) -> None:
    assert problems(PROJECT, slug) == []


@pytest.mark.parametrize("slug", SLUGS)
def test_the_experiment_imports_where_only_torch_and_numpy_exist(slug: str) -> None:
    code = f"{BLOCK}\nimport papers.{slug}.experiment"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("slug", SLUGS)
def test_the_card_names_extras_and_data_sets_that_exist(slug: str) -> None:
    card = Card.load(PROJECT.card(slug))
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(card.extras) <= set(known)
    if card.data:
        from common.data import DATASETS

        assert set(card.data) <= set(DATASETS)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_notebook_is_committed_without_outputs_and_with_a_parameters_cell(slug: str) -> None:
    cells = json.loads(PROJECT.notebook(slug).read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


def test_the_lock_holds_versions_only() -> None:
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name and version and not any(mark in line for mark in (" ", "/", "@", "+")), line


@pytest.mark.parametrize("slug", SLUGS)
def test_an_odd_value_of_any_field_is_composed_or_refused_in_one_line(slug: str) -> None:
    composed = compose(PROJECT, slug, "smoke")
    tried = 0
    for field, value in odd_settings(composed):
        odd = compose_odd(composed, field, value)
        tried += 1
        if isinstance(odd, str):
            assert "\n" not in odd and field.split(".")[0] in odd, (field, value, odd)
    assert tried > 3 * len(composed.tree)


@pytest.mark.parametrize("slug", WHOLE)
def test_every_field_knows_its_bounds(slug: str) -> None:
    assert unbounded(PROJECT.experiment(slug).config) == []


@pytest.mark.parametrize("slug", WHOLE)
def test_notebooks_show_the_record_when_opened_by_hand(slug: str) -> None:
    cells = json.loads(PROJECT.notebook(slug).read_text())["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assert 'profile = "recorded"' in "".join(cell["source"])


@pytest.mark.parametrize("slug", [slug for slug in WHOLE if exercises(PROJECT, slug)])
def test_the_answers_of_all_exercises_are_right(slug: str) -> None:
    lab = Lab(slug, project=PROJECT)
    for name, exercise in exercises(PROJECT, slug).items():
        assert lab.check(name, exercise.answer(lab)) == "right"
        assert lab.check(name, "no answer at all").startswith("not yet. ")


@pytest.mark.skipif(is_shallow(REPOSITORY), reason="a shallow clone has no history to compare with")
@pytest.mark.parametrize("slug", SLUGS)
def test_bounds_stood_before_the_first_record(slug: str) -> None:
    assert unexcused(PROJECT, slug) == []


ARMS = """
import hashlib, sys
from common.lab.arms import ALL, run_arms
from common.lab.card import Card
from common.lab.config import compose
from common.lab.evaluate import measure
from common.lab.project import Project
project, slug = Project.current(), sys.argv[1]
card, composed = Card.load(project.card(slug)), compose(project, slug, "smoke", ["seeds=1"])
clocks = {claim.metric for claim in card.claims if claim.reads_a_clock}
def digest():
    kept = {}
    seen = measure(project, composed, kept=kept).seen
    arms = {"ours": seen, **run_arms(project, card, composed, seen, ("control", "placebo"), kept=kept)}
    rows = [(name, row) for name, rows in sorted(arms.items()) for row in rows if row.metric in metrics]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
metrics = {claim.metric for claim in card.claims} - clocks
for _ in range(int(sys.argv[2])):
    print(digest())
"""


@pytest.mark.parametrize("slug", WHOLE)
def test_arms_give_the_same_bytes_in_a_fresh_process_and_in_a_used_one(slug: str) -> None:
    said = []
    for times in (2, 1):
        command = [sys.executable, "-c", ARMS, slug, str(times)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        said += ended.stdout.split()
    assert len(said) == 3 and len(set(said)) == 1
