"""Every paper under a tiny profile, in parallel processes: one progress bar, one table."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.lab.cores import workers
from common.lab.project import Project
from common.lab.record import Record
from common.lab.runner import ENDS_WITH


@dataclass(frozen=True)
class Outcome:
    """How one paper fared; `error` is empty where it ran through."""

    slug: str
    seconds: float
    verdicts: str
    controls: str
    error: str


def smoke(project: Project, slugs: Sequence[str], profile: str = "smoke") -> list[Outcome]:
    """Reproduce papers side by side into outputs/smoke/<slug>, with progress; outcomes in the order of the slugs."""
    outcomes = {}
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        ThreadPoolExecutor(workers()) as pool,
    ):
        task = bar.add_task("papers", total=len(slugs))
        jobs = [pool.submit(_one, project, slug, profile) for slug in slugs]
        for job in as_completed(jobs):
            outcome = job.result()
            outcomes[outcome.slug] = outcome
            bar.update(task, advance=1, description=f"papers, last {outcome.slug}")
    return [outcomes[slug] for slug in slugs]


def _one(project: Project, slug: str, profile: str) -> Outcome:
    target = project.outputs / "smoke" / slug
    command = [sys.executable, "-m", "common.lab", "reproduce", slug, "--profile", profile, "--quiet"]
    surroundings = {**os.environ, "PAPERLAB_ROOT": str(project.root), "PAPERLAB_WORKERS": "1"}
    surroundings[ENDS_WITH] = str(os.getpid())
    clock = time.perf_counter()
    ended = subprocess.run(
        [*command, "--target", str(target)],
        cwd=project.root,
        env=surroundings,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - clock
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return Outcome(slug, seconds, "", "", lines[-1].removeprefix("error: "))
    claims = Record.load(target / "results.json").claims
    counted = Counter(claim.verdict for claim in claims)
    upheld = [claim for claim in claims if claim.upheld]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())
    broken = sum(bool(claim.broken_by) for claim in upheld)
    return Outcome(slug, seconds, verdicts, f"break {broken} of {len(upheld)} upheld", "")


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """One row a paper."""
    table = Table(title="every paper, smoke")
    for heading in ("paper", "seconds", "claims", "controls", "error"):
        table.add_column(heading, overflow="fold")
    for each in outcomes:
        error = each.error.replace("[", r"\[")
        table.add_row(
            each.slug, f"{each.seconds:.0f}", each.verdicts, each.controls, error and f"[red]{error}[/]"
        )
    return table
