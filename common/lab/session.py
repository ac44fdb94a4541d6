"""The lab's face in a notebook.

    from common.lab import Lab
    lab = Lab("distserve", profile=profile, overrides=overrides)
    seen = lab.run()          # observations: what figures and claims read
    lab.say("It gains {gain:.2f} times.", gain=...)
    lab.save(figure, "rates") # figures/rates.png
    lab.judge()               # the table of claims, controls run

Opened by hand with profile = "recorded" a notebook shows the committed record in a second; under another profile it
runs, and writes under outputs/by_hand/<slug>/. Under `make reproduce` the runner says through the environment where its
outputs go (OUTPUT) and where progress is shown (progress.PROGRESS).
"""

import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from common.lab.arms import CONTROLS, OURS, load_arms, run_arms, save_arms
from common.lab.card import Card
from common.lab.config import Composed, compose, from_tree, split_overrides
from common.lab.errors import LabError
from common.lab.evaluate import Measurement, assess, make_record, measure
from common.lab.exercises import answered
from common.lab.files import write_atomically
from common.lab.progress import in_notebook, show_progress
from common.lab.project import Project
from common.lab.record import Record
from common.lab.recording import recorded, standing_record
from common.lab.report import Report, stand_ins
from common.lab.reuse import keep, kept_run
from common.lab.runtime import Observations
from common.lab.surroundings import neutral

OUTPUT = "PAPERLAB_OUTPUT"  # environment variable by which the runner tells the notebook where its outputs go
RESOLUTION = 150  # dots per inch of saved figures
AS_RECORDED = "recorded"  # the profile under which a notebook shows the committed record
KEY = "key.json"  # among the outputs: which figure is the paper's key figure


class Lab:
    """One paper under one profile: its config, its run, its verdicts, its figures."""

    def __init__(
        self,
        slug: str,
        profile: str = AS_RECORDED,
        overrides: str | Sequence[str] = (),
        project: Project | None = None,
    ) -> None:
        self.project = project or Project.current()
        if in_notebook() and (line := neutral()):
            print(line)
        chosen = split_overrides(overrides) if isinstance(overrides, str) else list(overrides)
        self.card = Card.load(self.project.card(self.project.check_slug(slug)))
        self._record = self._standing(slug, chosen) if profile == AS_RECORDED else None
        self.composed = _composed(self.project, slug, profile, chosen, self._record)
        self.output = Path(os.environ.get(OUTPUT) or self.project.outputs / "by_hand" / slug)
        self._measurement: Measurement | None = None
        self._seen: Observations | None = None
        self._kept: dict[Hashable, Any] = {}

    def _standing(self, slug: str, overrides: Sequence[str]) -> Record:
        if overrides:
            raise LabError(
                'overrides change a run, and profile = "recorded" shows one; choose smoke or default'
            )
        if not recorded(self.project, slug):
            raise LabError(f'{slug} has no record yet; choose profile = "smoke" or make record PAPER={slug}')
        return Record.load(self.project.record(slug, recorded(self.project, slug)[0]))

    @property
    def config(self) -> Any:
        """The paper's Config, as composed."""
        return self.composed.config

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.composed.seeds

    def run(self) -> Observations:
        """Run the experiment over all seeds, once; a second call returns what the first saw.

        What an earlier run of the same code, config, seeds and data saw is used again, and a line says so; FRESH=1
        computes. As recorded: the committed rows.
        """
        if self._seen is None:
            self._seen = self._recorded_rows() if self._record else self._measured()
        return self._seen

    def _recorded_rows(self) -> Observations:
        assert self._record is not None
        return load_arms(self.project.observations(self._record.paper, self._record.profile))[OURS]

    def _measured(self) -> Observations:
        found = kept_run(self.project, self.card, self.composed)
        if found is not None:
            print(f"observed {found.known['started']}, same code, config, seeds and data (FRESH=1 computes)")
        self._measurement = found or measure(self.project, self.composed, show_progress, self._kept)
        if found is None:
            keep(self.project, self.card, self.composed, self._measurement)
        config = {"seeds": len(self.seeds), "paper": dict(self.composed.tree)}
        write_atomically(self.output / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.output / "observations.json", self._measurement.seen.to_json())
        return self._measurement.seen

    def judge(self, controls: Literal["run", "skip"] = "run") -> Report:
        """Judge every claim, by default with its negative control run too; the table of claims."""
        if controls not in ("run", "skip"):
            raise LabError(f"controls: {controls!r} is neither 'run' nor 'skip'")
        if self._record is not None:
            standing = standing_record(self.project, self._record.paper)
            assert standing is not None
            return Report(standing, self.card)
        arms = {OURS: self.run()}
        assert self._measurement is not None
        if controls == "run":
            arms |= run_arms(
                self.project, self.card, self.composed, self.run(), CONTROLS, show_progress, self._kept
            )
        save_arms(self.output / "arms.json.gz", arms)
        claims = assess(self.card, self.composed, arms)
        record = make_record(self.project, self.card, self.composed, claims, self._measurement.known)
        record.save(self.output / "results.json")
        return Report(record, self.card, stand_ins(self.card))

    def say(self, text: str, **numbers: Any) -> Any:
        """A sentence with its numbers computed, as Markdown: lab.say("gains {gain:.2f} times", gain=gain)."""
        return say(text, **numbers)

    def check(self, exercise: str, value: Any) -> str:
        """What a reader's answer to an exercise is worth: 'right', or 'not yet' and a hint."""
        return answered(self.project, self.composed.slug, exercise, value, self)

    def paper(self, claim_id: str) -> float | list[float] | None:
        """The paper's number for a claim, to annotate figures with; [low, high] of a range, None of a direction."""
        return self.card.claim(claim_id).paper.number

    def paper_figure(self, name: str) -> dict[str, float]:
        """The points of a figure of the paper that the card quotes, by their names, to show beside ours."""
        return self.card.figure(name)

    def save(self, figure: Any, name: str, key: bool = False) -> Path:
        """Save a matplotlib figure as figures/<name>.png among the outputs; `key`: the figure people see first."""
        path = save_figure(figure, self.output, name)
        if key:
            write_atomically(self.output / KEY, json.dumps({"figure": name}) + "\n")
        return path


def _composed(
    project: Project, slug: str, profile: str, overrides: Sequence[str], record: Record | None
) -> Composed:
    if record is None:
        return compose(project, slug, profile, overrides)
    tree = {"seeds": len(record.provenance.seeds), "paper": record.provenance.config}
    return from_tree(project, slug, record.profile, tree)


def say(text: str, **numbers: Any) -> Any:
    """A sentence with its numbers filled in: shown as Markdown in a notebook, elsewhere returned."""
    try:
        said = text.format(**numbers)
    except (KeyError, IndexError) as error:
        raise LabError(f"{text!r} names {error}, which is not given") from error
    if not in_notebook():
        return said
    from IPython.display import Markdown, display

    display(Markdown(said))
    return None


def save_figure(figure: Any, output: Path, name: str) -> Path:
    """Save a matplotlib figure as <output>/figures/<name>.png."""
    path = output / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=RESOLUTION, bbox_inches="tight")
    return path
