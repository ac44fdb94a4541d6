"""What holds for every paper of this repository: card, configs, notebook, record, and what its experiment imports."""

import json
import subprocess
import sys
import tomllib

import pytest

from common.lab.card import Card
from common.lab.project import Project
from common.lab.recording import problems
from tests.lab.test_commands import BLOCK
from tests.lab.toy import REPOSITORY

PROJECT = Project(REPOSITORY)
SLUGS = PROJECT.slugs


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
