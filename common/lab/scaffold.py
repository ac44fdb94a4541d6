"""`make new`: the files of a paper that is yet to be written, complete enough to pass every test at once.

Its one claim is `not run` (it needs an implementation), its experiment observes a placeholder, its notebook runs.
"""

import argparse
import datetime
import json
import keyword
import re
import textwrap
from pathlib import Path

from common.lab.errors import LabError
from common.lab.project import Project

RESERVED = ("bakeoff", "smoke", "sweep")  # outputs/<slug> of these names belongs to the commands
LONGEST_TITLE = 300

CARD = """\
slug: {slug}
title: {title_yaml}
year: {year}
arxiv: null  # such as "2401.09670"
code: null  # the authors' repository, owner/name
topic: serving  # serving, training, compression, architecture, hardware, rl, optimization, scheduling or data
summary: Two sentences of our own on what the paper does.
finding: One sentence, what we now know that the paper does not say.
needs: []  # slugs that a student should have read before
extras: []  # of pyproject.toml, installed on first use
data: []  # data sets of common.data that a run uses where they can be had
claims:
  - id: headline
    headline: true  # 2 to 6 a paper, the abstract's numbers first
    statement: What the abstract claims, in one sentence
    paper: {{kind: direction}}  # or {{value: 2.0, kind: value, unit: ratio, source: "arXiv v1, Section 6, Figure 8"}}
    metric: gain  # what run() observes, once a seed; a ratio is written so that more is better
    evidence: simulated  # measured, scaled or simulated
    better: higher
    no_effect: 1.0
    # tolerance: 0.25  # of the effect, where the paper gives a number; over 0.25 it needs a reason
    operating_point:  # what decides the number, in the paper and here; ours is read, never typed
      requests: {{paper: 1000, config: requests}}
    # free: {{alpha: [0.1, 0.5]}}  # Config fields that are inferred and decide, with their range
    control: without
    placebo: shuffled  # where the mechanism chooses; else {{none: why}}
    # because: of every verdict but reproduced, the cause in one sentence
    # revived_by: a setting under which, if the cause is right, the claim comes out
    needs: an implementation  # remove this line when run() observes the metric
controls:
  without: {{set: {{mechanism: false}}, why: with the mechanism switched off nothing of the gain may be left}}
  shuffled: {{set: {{choice: random}}, why: "all machinery, but what it chooses is drawn at random"}}
not_reproduced:
  - Everything, until it is written.
"""

PACKAGE = '''\
"""{title_docstring}

The idea in ten lines: the problem, what others do about it, what this paper does instead, and why that works.
One module a mechanism, named after it; experiment.py says what is measured.
"""
'''

CONFIG = '''\
"""Sizes and switches of a run. Profiles change the sizes, a control changes one switch."""

from dataclasses import dataclass
from typing import Annotated

from common.lab.bounds import At, Choice


@dataclass(frozen=True)
class Config:
    """What is compared, on how much, and which part of the method is switched off."""

    requests: Annotated[int, At(10, 1_000_000)] = 1_000  # of each run
    mechanism: bool = True  # False: the paper's idea is switched off inside its own code
    choice: Annotated[str, Choice("informed", "random")] = "informed"  # random: the placebo


def check(config: Config) -> None:
    """Refuse what no single field can: here a placebo of a mechanism that is switched off."""
    if config.choice == "random" and not config.mechanism:
        raise ValueError("choice: random has nothing to choose where mechanism is false")
'''

EXPERIMENT = '''\
"""What is measured: the mechanism against its baselines, once a seed."""

from common.lab.runtime import Observations, Runtime
from papers.{slug}.config import Config


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    for seed in lab.progress(lab.seeds, "seeds"):
        gaps = lab.rng(seed, "arrivals").exponential(1.0, config.requests)
        # A placeholder, so that notebook and tests have something to show: seen.add("gain", ours / theirs, seed)
        seen.add("mean_gap", gaps.mean(), seed)
    return seen
'''

EXERCISES = '''\
"""The notebook's exercises and their solutions, each computed from what the run observed or from the mechanism."""

from typing import Any

from common.lab.exercises import Exercise


def mean_gap(lab: Any) -> float:
    """The mean over seeds of what was observed."""
    gaps = lab.run().values("mean_gap")
    return float(sum(gaps) / len(gaps))


EXERCISES = {{
    "exercise-1": Exercise(
        question="How long is the mean gap between two arrivals, over all seeds?",
        hint="The figure shows it once a seed.",
        answer=mean_gap,
    ),
}}
'''

PROFILES = {
    "smoke": "# Tiny inputs: at most eight seconds of experiment.\nseeds: 3\npaper:\n  requests: 50\n",
    "default": "# What `make record` runs: at most four minutes on two cores, controls and notebook included.\n"
    "seeds: 5\npaper: {}\n",
    "full": "# As near the paper's scale as one machine gets.\nseeds: 10\npaper:\n  requests: 10000\n",
}

TEST = '''\
"""The mechanism against an analytic case, an independent library or an exhaustive search."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.lab import Lab
from common.lab.exercises import exercises
from common.lab.project import Project
from common.lab.runtime import Runtime
from papers.{slug}.config import Config
from papers.{slug}.experiment import run

ROWS = """
from common.lab.runtime import Runtime
from papers.{slug}.config import Config
from papers.{slug}.experiment import run
print(run(Config(requests=50), Runtime((0, 1))).to_json(), end="")
"""


def test_the_same_config_and_seeds_give_the_same_bytes_in_a_fresh_process() -> None:
    ended = subprocess.run([sys.executable, "-c", ROWS], capture_output=True, text=True, check=True)
    assert ended.stdout == run(Config(requests=50), Runtime((0, 1))).to_json()


def test_the_mean_gap_between_arrivals_is_one_second() -> None:
    # standard deviation of the mean of 10,000 exponential gaps: 0.01
    assert run(Config(requests=10_000), Runtime((0,))).values("mean_gap") == pytest.approx([1.0], abs=0.05)


def test_each_exercise_takes_its_own_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLAB_OUTPUT", str(tmp_path))
    lab = Lab("{slug}", profile="smoke")
    for name, exercise in exercises(Project.current(), "{slug}").items():
        assert lab.check(name, exercise.answer(lab)) == "right"
'''

Cell = tuple[str, str]  # its kind (or "parameters"), its source
NOTEBOOK: tuple[Cell, ...] = (
    ("markdown", "# {title}\n\nThe problem in one paragraph, and what the paper does about it."),
    (
        "parameters",
        '# "recorded" once there is a record: then the notebook opens with the numbers that its text speaks of\n'
        'profile = "smoke"\noverrides = ""',
    ),
    ("code", "from common import viz\nfrom common.lab import Lab\n\nviz.use_style()"),
    (
        "markdown",
        "## 1. The problem made visible\n\nSmall inputs that show what goes wrong without the idea.",
    ),
    (
        "markdown",
        "## 2. The mechanism, step by step\n\nImported from the paper's package, on inputs one can follow.",
    ),
    (
        "markdown",
        "## 3. The experiment\n\nThe paper's key figure, ours beside its numbers (`lab.paper(claim)`).",
    ),
    ("code", 'lab = Lab("{slug}", profile=profile, overrides=overrides)\nseen = lab.run()'),
    (
        "code",
        "figure, ax = viz.figure()\n"
        'viz.curve(ax, lab.seeds, seen.values("mean_gap"))\n'
        'ax.set(xlabel="seed", ylabel="mean gap (s)")\n'
        'lab.save(figure, "mean_gap", key=True)',
    ),
    (
        "code",
        'gaps = seen.values("mean_gap")\n'
        'lab.say("Over {{n}} seeds the mean gap is {{gap:.2f}} s.", n=len(gaps), gap=sum(gaps) / len(gaps))',
    ),
    ("markdown", "## 4. A knob\n\nOne interactive control (ipywidgets) that redraws in under two seconds."),
    (
        "code",
        "import ipywidgets as widgets\n\n\n"
        "def show(seed):\n"
        "    print(f\"{{seen.values('mean_gap', seed=seed)[0]:.3f}} s\")\n\n\n"
        "widgets.interact(show, seed=widgets.IntSlider(0, 0, len(lab.seeds) - 1));",
    ),
    ("markdown", "## 5. The verdicts\n\nWhat did not come out, and why, stands under the table."),
    ("code", "lab.judge()"),
    (
        "markdown",
        "## Exercises\n\n1. How long is the mean gap between two arrivals, over all seeds? Answer for the 0.",
    ),
    ("code", 'lab.check("exercise-1", 0)'),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("slug", nargs="?", default="", help="the new paper's short name")
    parser.add_argument("--title", default="", help="its title")


def run(project: Project, asked: argparse.Namespace) -> int:
    """The command: write the files and say what to do next."""
    written = scaffold(project, asked.slug, asked.title)
    for path in written:
        print(f"wrote {path.relative_to(project.root)}")
    print(
        f"next: the claims in papers/{asked.slug}/paper.yaml, the mechanism, then make reproduce PAPER={asked.slug}"
    )
    return 0


def scaffold(project: Project, slug: str, title: str) -> list[Path]:
    """Write the files of a new paper, all or none. LabError in one line for a bad name or one that is taken."""
    title = " ".join(title.split())
    _check(project, slug, title)
    texts = files(slug, title)
    taken = [
        name for name in ("papers/" + slug, "conf/paper/" + slug, *texts) if (project.root / name).exists()
    ]
    if taken:
        raise LabError(f"{slug} is taken: {taken[0]} exists")
    made: list[Path] = []
    try:
        for name, text in texts.items():
            _write(project.root / name, text, made)
    except BaseException as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            raise LabError(f"{error.filename}: can't be written: {error.strerror}") from error
        raise
    return [path for path in made if path.is_file()]


def _check(project: Project, slug: str, title: str) -> None:
    if not slug:
        raise LabError('no paper is named: make new PAPER=<slug> TITLE="..."')
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug) or keyword.iskeyword(slug):
        raise LabError(
            f"{slug!r} can't be a slug: small letters, digits and _, beginning with a letter, and no word of Python's"
        )
    if slug in RESERVED:
        raise LabError(f"{slug!r} can't be a slug: outputs/{slug}/ belongs to a command")
    if slug in project.slugs:
        raise LabError(f"{slug} is taken: papers/{slug} exists")
    if not title:
        raise LabError(f'{slug} has no title: make new PAPER={slug} TITLE="..."')
    if len(title) > LONGEST_TITLE or not title.isprintable():
        raise LabError(f"a title is one line of at most {LONGEST_TITLE} characters")


def _write(path: Path, text: str, made: list[Path]) -> None:
    """Write a file, noting it and every folder made for it."""
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        made.append(folder)
    made.append(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        if not path.exists():
            made.remove(path)
        raise


def files(slug: str, title: str) -> dict[str, str]:
    """The texts of a new paper's files by their names in the project."""
    words = {
        "slug": slug,
        "title": title,
        "title_yaml": json.dumps(title, ensure_ascii=False),
        "title_docstring": _docstring(title),
        "year": str(datetime.date.today().year),
    }
    made = {
        f"papers/{slug}/paper.yaml": CARD.format(**words),
        f"papers/{slug}/__init__.py": PACKAGE.format(**words),
        f"papers/{slug}/config.py": CONFIG,
        f"papers/{slug}/experiment.py": EXPERIMENT.format(**words),
        f"papers/{slug}/exercises.py": EXERCISES.format(**words),
        f"tests/papers/test_{slug}.py": TEST.format(**words),
        f"notebooks/{slug}.ipynb": _notebook(words),
    }
    for profile, text in PROFILES.items():
        made[f"conf/paper/{slug}/{profile}.yaml"] = f"# @package _global_\n{text}"
    return made


def _docstring(title: str) -> str:
    safe = title.replace("\\", "\\\\").replace('"""', "'''").removeprefix('"')
    return textwrap.fill(safe, 110, break_long_words=False)


def _notebook(words: dict[str, str]) -> str:
    cells = []
    for place, (kind, source) in enumerate(NOTEBOOK):
        cell: dict[str, object] = {
            "cell_type": "markdown" if kind == "markdown" else "code",
            "id": f"cell-{place:02}",
            "metadata": {"tags": ["parameters"]} if kind == "parameters" else {},
            "source": source.format(**words).splitlines(keepends=True),
        }
        if kind != "markdown":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
