"""Runs for the record: every arm of a paper, what moved since it was recorded, and the commands refresh and confirm.

make record PAPER=distserve    run and record
make refresh                   record every stale paper again; a simulated or scaled value that moved is an error
make confirm PAPER=distserve   run beside the record on this machine, and keep what came out
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.lab.arms import OURS, Arms, Kind, load_arms, run_arms
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.confirmations import agreement_line, append, close
from common.lab.errors import LabError
from common.lab.evaluate import assess, make_record, measure
from common.lab.progress import show_progress
from common.lab.project import Project
from common.lab.readme import write_page
from common.lab.record import Record
from common.lab.recording import (
    check_recordable,
    judge_again,
    other_lock,
    recorded,
    standing_record,
    state,
)
from common.lab.reuse import FRESH
from common.lab.runner import ENDS_WITH, NotTracked, Request, fetch_data, reproduce, terminable
from common.lab.staging import staging
from common.lab.workers import environment

BEYOND: tuple[Kind, ...] = ("placebo", "setting", "free")  # arms that `make reproduce` does not run
KNOWN = ("sources", "machine", "python", "data", "started", "seconds", "peak_rss_bytes")
MINUTES, CORES = 120, 2  # that a cluster gives a paper
HERE = ("joblib", "")  # launchers that mean this machine, one paper after the other


@dataclass(frozen=True)
class Whole:
    """All that one run of a paper saw, ours and every arm."""

    composed: Composed
    arms: Arms
    known: dict[str, Any]
    untracked: str = ""  # why the tracking store could not be told

    def record(self, project: Project) -> Record:
        """The record of this run alone, without earlier recordings."""
        card = Card.load(project.card(self.composed.slug))
        return make_record(project, card, self.composed, assess(card, self.composed, self.arms), self.known)


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """Nothing of an earlier run is used again."""
    with environment({FRESH: "1"}):
        yield


def reproduced(project: Project, slug: str, profile: str, quiet: bool = False) -> Whole:
    """Reproduce through the notebook, then run the arms that only a record has."""
    composed = compose(project, slug, profile)
    card = Card.load(project.card(slug))
    with fresh():
        record, untracked = whatever_tracked(project, Request(slug, profile, quiet=quiet))
        arms = load_arms(project.outputs / slug / "arms.json.gz")
        with terminable(), staging(project, slug):
            arms |= run_arms(project, card, composed, arms[OURS], BEYOND, show_progress)
    known = {name: getattr(record.provenance, name) for name in KNOWN}
    return Whole(composed, arms, known, untracked)


def whatever_tracked(project: Project, request: Request) -> tuple[Record, str]:
    """Reproduce; the record, and why it could not be tracked where the store was lost on the way."""
    try:
        return reproduce(project, request), ""
    except NotTracked as outage:
        return outage.results, str(outage)


def falsified(project: Project, slug: str, profile: str, overrides: Sequence[str]) -> Whole:
    """Run ours and every arm in this process, without a notebook."""
    composed = compose(project, slug, profile, overrides)
    card = Card.load(project.card(slug))
    kept: dict[Any, Any] = {}
    fetch_data(card)
    with fresh(), terminable(), staging(project, slug):
        ours = measure(project, composed, show_progress, kept)
        arms = run_arms(project, card, composed, ours.seen, ("control", *BEYOND), show_progress, kept)
    return Whole(composed, {OURS: ours.seen, **arms}, dict(ours.known))


def stopped_breaking(project: Project, record: Record) -> list[str]:
    """One line for each control or placebo that broke its claim when it was recorded and does not now.

    Under another profile than the recorded one, smaller, an open outcome is no failure.
    """
    path = project.record(record.paper, record.profile)
    same = path.is_file()
    standing = Record.load(path) if same else standing_record(project, record.paper)
    if standing is None:
        return []
    lost = ("does not break it", "identity", "could not tell") if same else ("does not break it",)
    return [
        f"{claim.id}: {arm.name} broke it when it was recorded and now: {arm.outcome}"
        for claim in record.claims
        for kept in standing.claims
        if kept.id == claim.id
        for arm in claim.controls
        if arm.name in kept.broken_by and arm.outcome in lost and not (claim.clock and arm.outcome != lost[0])
    ]


def moved(standing: Record, record: Record) -> list[str]:
    """What came out otherwise than recorded, of claims that read no clock: one line each."""
    kept = {claim.id: claim for claim in standing.claims}
    lines = []
    for claim in record.claims:
        before = kept.get(claim.id)
        if (
            claim.clock
            or before is None
            or before.metric != claim.metric
            or close(claim.values, before.values)
        ):
            continue
        means = [f"{c.mean:.6g}" if c.mean is not None else c.verdict for c in (before, claim)]
        lines.append(f"{claim.id}: {means[0]} -> {means[1]}")
    return lines


def check_unmoved(project: Project, whole: Whole) -> None:
    """LabError that says what moved, where a simulated or scaled value is not as recorded."""
    slug, profile = whole.composed.slug, whole.composed.profile
    path = project.record(slug, profile)
    changed = moved(Record.load(path), whole.record(project)) if path.is_file() else []
    if changed:
        raise LabError(f"not recorded, for values moved: {'; '.join(changed)} (ACCEPT=1 records them)")


def refresh(project: Project, slugs: Sequence[str], launcher: str, accept: bool) -> list[str]:
    """Judge or record again what is stale, with progress; one line for each paper that could not be.

    Resumable: what is up to date is left alone.
    """
    todo = [(slug, profile) for slug in slugs for profile in recorded(project, slug)]
    runs, failed = [], []
    for slug, profile in todo:
        what, why = state(project, slug, profile)
        if what == "judge":
            judge_again(project, slug, profile)
            write_page(project, slug)
            print(f"{slug} ({profile}): judged again: {why}")
        elif what == "run":
            check_recordable(profile, [])
            runs.append((slug, profile))
            print(f"{slug} ({profile}): to be run: {why}")
    if lock := other_lock(project, slugs):
        print(lock)
    if not runs:
        print(f"{len(todo)} records hold" if todo else "nothing is recorded")
    commands = [_command(slug, profile, accept) for slug, profile in runs]
    outcomes = _here(project, commands) if launcher in HERE else _submitted(project, commands, launcher)
    for (slug, profile), error in zip(runs, show_progress(outcomes, "papers", len(runs)), strict=True):
        if error:
            failed.append(f"{slug} ({profile}): {error}")
    return failed


def _command(slug: str, profile: str, accept: bool) -> list[str]:
    command = [sys.executable, "-m", "common.lab", "record", slug, "--profile", profile]
    return command if accept else [*command, "--unmoved"]


def _here(project: Project, commands: list[list[str]]) -> Iterator[str]:
    for command in commands:
        yield _ended(str(project.root), command)


def _ended(root: str, command: list[str]) -> str:
    """Run a command; the last line of its error, or nothing."""
    surroundings = {**os.environ, "PAPERLAB_ROOT": root, ENDS_WITH: str(os.getpid())}
    ended = subprocess.run(
        command, cwd=root, env=surroundings, stderr=subprocess.PIPE, text=True, check=False
    )
    lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    return lines[-1].removeprefix("error: ") if ended.returncode else ""


def _submitted(project: Project, commands: list[list[str]], launcher: str) -> Iterator[str]:
    """Each paper as a job of a cluster, alone on its node: timed claims need a quiet machine."""
    import submitit

    folder = project.outputs / "refresh"
    executor = submitit.AutoExecutor(folder, cluster=launcher)
    executor.update_parameters(timeout_min=MINUTES, cpus_per_task=CORES)
    if launcher == "slurm":
        executor.update_parameters(slurm_exclusive=True)
    jobs = [executor.submit(_ended, str(project.root), command) for command in commands]
    for job in jobs:
        try:
            yield job.result()
        except Exception as error:
            yield " ".join(str(error).split())[:300]


def confirm(project: Project, slug: str) -> tuple[str, str]:
    """Run a paper beside its record on this machine and keep what came out.

    How it agrees, in one line, and why it could not be tracked where the store was lost.
    """
    if not recorded(project, slug):
        raise LabError(f"{slug} has no record to confirm; make record PAPER={slug}")
    profile = recorded(project, slug)[0]
    what, why = state(project, slug, profile)
    if what == "run":
        raise LabError(f"{slug}: {why}, so there is nothing to confirm; make refresh PAPER={slug}")
    standing = Record.load(project.record(slug, profile))
    with fresh():
        record, untracked = whatever_tracked(project, Request(slug, profile))
    append(project, record, "confirmed", standing)
    judge_again(project, slug, profile)
    write_page(project, slug)
    return agreement_line(record, standing), untracked


def beside_the_record(project: Project, record: Record) -> str:
    """How a reproduction agrees with the committed record of its profile; empty where there is none to compare."""
    path = project.record(record.paper, record.profile)
    if record.overrides or not path.is_file():
        return ""
    return agreement_line(record, Record.load(path))
