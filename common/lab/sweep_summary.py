"""What a sweep found: one table (CSV, and for the terminal) and one plot, made from the folders of its points."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.record import ClaimRecord, Record
from common.lab.report import COLOURS, ours_text

PANELS = 3  # of the plot side by side


@dataclass(frozen=True)
class Outcome:
    """One point: the values of its axes as text, and its record, or why there is none."""

    at: Mapping[str, str]
    record: Record | None
    error: str = ""
    not_tracked: str = ""  # why the store does not know it

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.at.items())


def collect(
    folder: Path, points: Sequence[Mapping[str, str]], otherwise: str = "did not finish"
) -> list[Outcome]:
    """Read what each point left in its folder; one that left nothing has the error `otherwise`."""
    return [_outcome(folder / str(number), at, otherwise) for number, at in enumerate(points)]


def _outcome(folder: Path, at: Mapping[str, str], otherwise: str) -> Outcome:
    if (folder / "results.json").is_file():
        try:
            outage = folder / "not_tracked.txt"
            told = outage.read_text().strip() if outage.is_file() else ""
            return Outcome(at, Record.load(folder / "results.json"), not_tracked=told)
        except LabError as error:
            return Outcome(at, None, str(error))
    try:
        return Outcome(at, None, json.loads((folder / "error.json").read_text())["error"])
    except (OSError, ValueError, KeyError):
        return Outcome(at, None, otherwise)


def observed(outcomes: Sequence[Outcome]) -> dict[str, list[tuple[Outcome, ClaimRecord]]]:
    """The claims that some point observed, by id, each with its points in order."""
    found: dict[str, list[tuple[Outcome, ClaimRecord]]] = {}
    for outcome in outcomes:
        for claim in outcome.record.claims if outcome.record else []:
            if claim.mean is not None:
                found.setdefault(claim.id, []).append((outcome, claim))
    return found


def write_summary(folder: Path, slug: str, outcomes: Sequence[Outcome]) -> None:
    """summary.csv (one row a point and claim) and summary.png (one panel a claim)."""
    write_atomically(folder / "summary.csv", summary_csv(outcomes))
    if observed(outcomes):
        _plot(folder / "summary.png", slug, outcomes)


def summary_csv(outcomes: Sequence[Outcome]) -> str:
    """Tidy rows: the axes, claim, metric, mean, low, high, verdict; a failed point has one row with its error."""
    axes = list(outcomes[0].at)
    target = io.StringIO()
    columns = [*axes, "claim", "metric", "mean", "low", "high", "verdict", "error"]
    table = csv.DictWriter(target, columns, restval="", lineterminator="\n")
    table.writeheader()
    for outcome in outcomes:
        if outcome.record is None:
            table.writerow({**outcome.at, "error": outcome.error})
            continue
        for claim in outcome.record.claims:
            low, high = claim.interval or ("", "")
            mean = "" if claim.mean is None else claim.mean
            row = {"claim": claim.id, "metric": claim.metric, "mean": mean, "low": low, "high": high}
            table.writerow({**outcome.at, **row, "verdict": claim.verdict})
    return target.getvalue()


def summary_table(slug: str, outcomes: Sequence[Outcome]) -> Table:
    """A section a claim, a row a point."""
    table = Table(title=f"{slug}, sweep of {len(outcomes)} points")
    axes = list(outcomes[0].at)
    for heading in ("claim", *axes, "ours [95% interval]", "verdict"):
        table.add_column(heading, overflow="fold")
    for claim_id, points in observed(outcomes).items():
        table.add_section()
        for place, (outcome, claim) in enumerate(points):
            ours = ours_text(claim.mean, claim.interval, claim.note).replace("[", r"\[")
            verdict = f"[{COLOURS[claim.verdict]}]{claim.verdict}[/]"
            table.add_row("" if place else claim_id, *outcome.at.values(), ours, verdict)
    failed = sum(outcome.record is None for outcome in outcomes)
    table.caption = f"{failed} of {len(outcomes)} points failed" if failed else None
    return table


def _plot(path: Path, slug: str, outcomes: Sequence[Outcome]) -> None:
    """Each claim over the first axis, with its interval; a line for each combination of the other axes."""
    import matplotlib

    from common import viz

    claims = observed(outcomes)
    first, *others = list(outcomes[0].at)
    places = _places([outcome.at[first] for outcome in outcomes])
    columns = min(PANELS, len(claims))
    rows = -(-len(claims) // columns)
    with matplotlib.rc_context():
        matplotlib.use("agg")
        viz.use_style()
        drawn, axes = viz.figure(columns, rows, height=3.4)
        panels = [axes] if len(claims) == 1 else list(axes.flat)
        for panel, (claim_id, points) in zip(panels, claims.items(), strict=False):
            lines: dict[str, list[tuple[float, ClaimRecord]]] = {}
            for outcome, claim in points:
                label = ", ".join(f"{key.removeprefix('paper.')}={outcome.at[key]}" for key in others)
                lines.setdefault(label, []).append((places[outcome.at[first]], claim))
            for label, line in lines.items():
                _line(panel, sorted(line, key=lambda pair: pair[0]), label)
            unit = points[0][1].unit
            panel.set(title=claim_id, xlabel=first.removeprefix("paper."), ylabel=unit or points[0][1].metric)
            if list(places.values()) == list(range(len(places))):
                panel.set_xticks(list(places.values()), list(places))
            if others:
                panel.legend()
        for panel in panels[len(claims) :]:
            panel.set_visible(False)
        drawn.suptitle(slug)
        viz.save(drawn, path)
        matplotlib.pyplot.close(drawn)


def _line(panel: Any, line: Sequence[tuple[float, ClaimRecord]], label: str) -> None:
    from common import viz

    x = [place for place, _ in line]
    intervals = [claim.interval or (claim.mean, claim.mean) for _, claim in line]
    low, high = zip(*intervals, strict=True)
    viz.curve(panel, x, [claim.mean for _, claim in line], low, high, label=label)  # type: ignore[misc]


def _places(values: Sequence[str]) -> dict[str, float]:
    """Where each value of an axis stands: at itself if all are numbers, else at 0, 1, 2, ..."""
    different = list(dict.fromkeys(values))
    try:
        return {value: float(value) for value in different}
    except ValueError:
        return {value: float(place) for place, value in enumerate(different)}
