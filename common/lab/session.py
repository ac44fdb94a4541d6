"""The lab's face in a notebook.

    from common.lab import Lab
    lab = Lab("distserve", profile=profile, overrides=overrides)
    seen = lab.run()          # observations: what figures and claims read
    lab.save(figure, "rates") # figures/rates.png
    lab.judge()               # the table of claims, controls run

Opened by hand a notebook runs the smoke profile and writes under outputs/<slug>/; under `make reproduce` the runner
says through the environment where its outputs go (OUTPUT) and where progress is shown (PROGRESS).
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from common.lab.card import Card
from common.lab.config import compose, split_overrides
from common.lab.errors import LabError
from common.lab.evaluate import Measurement, assess, make_record, measure, run_controls
from common.lab.files import write_atomically
from common.lab.project import Project
from common.lab.report import Report
from common.lab.runtime import Observations

OUTPUT = "PAPERLAB_OUTPUT"  # environment variables by which the runner speaks to the notebook
PROGRESS = "PAPERLAB_PROGRESS"
REFRESH = 0.2  # seconds between two reports of progress
RESOLUTION = 150  # dots per inch of saved figures


class Lab:
    """One paper under one profile: its config, its run, its verdicts, its figures."""

    def __init__(
        self,
        slug: str,
        profile: str = "smoke",
        overrides: str | Sequence[str] = (),
        project: Project | None = None,
    ) -> None:
        self.project = project or Project.current()
        chosen = split_overrides(overrides) if isinstance(overrides, str) else list(overrides)
        self.composed = compose(self.project, slug, profile, chosen)
        self.card = Card.load(self.project.card(slug))
        self.output = Path(os.environ.get(OUTPUT) or self.project.outputs / slug)
        self._measurement: Measurement | None = None

    @property
    def config(self) -> Any:
        """The paper's Config, as composed."""
        return self.composed.config

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.composed.seeds

    def run(self) -> Observations:
        """Run the experiment over all seeds, once; a second call returns what the first saw."""
        if self._measurement is None:
            self._measurement = measure(self.project, self.composed, show_progress)
            config = {"seeds": len(self.seeds), "paper": dict(self.composed.tree)}
            write_atomically(self.output / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            write_atomically(self.output / "observations.json", self._measurement.seen.to_json())
        return self._measurement.seen

    def judge(self, controls: Literal["run", "skip"] = "run") -> Report:
        """Judge every claim, by default with its negative control run too; the table of claims."""
        if controls not in ("run", "skip"):
            raise LabError(f"controls: {controls!r} is neither 'run' nor 'skip'")
        seen = self.run()
        assert self._measurement is not None
        under = {}
        if controls == "run":
            under = run_controls(self.project, self.card, self.composed, seen, show_progress)
        claims = assess(self.card, self.composed, seen, under)
        record = make_record(self.project, self.composed, claims, self._measurement.known)
        record.save(self.output / "results.json")
        return Report(record)

    def paper(self, claim_id: str) -> float | list[float] | None:
        """The paper's number for a claim, to annotate figures with; [low, high] of a range, None of a direction."""
        return self.card.claim(claim_id).paper.number

    def save(self, figure: Any, name: str) -> Path:
        """Save a matplotlib figure as figures/<name>.png among the outputs."""
        return save_figure(figure, self.output, name)


def save_figure(figure: Any, output: Path, name: str) -> Path:
    """Save a matplotlib figure as <output>/figures/<name>.png."""
    path = output / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=RESOLUTION, bbox_inches="tight")
    return path


def show_progress(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    """Progress where it is watched: the runner's terminal, or a bar in the notebook or the terminal at hand."""
    relay = os.environ.get(PROGRESS)
    if relay is not None:
        return _relayed(items, label, total, Path(relay))
    from tqdm.auto import tqdm

    return tqdm(items, desc=label, total=total, leave=False, disable=not _watched())


def _watched() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def _relayed(items: Iterable[Any], label: str, total: int | None, relay: Path) -> Iterable[Any]:
    last = 0.0
    for done, item in enumerate(items):
        if time.monotonic() - last > REFRESH:
            last = time.monotonic()
            relay.write_text(json.dumps({"label": label, "done": done, "total": total}))
        yield item
    relay.write_text(json.dumps({"label": label, "done": total, "total": total}))
