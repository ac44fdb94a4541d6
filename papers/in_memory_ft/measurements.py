"""What real processes show: bytes counted, blows struck, seconds on throttled devices, what updates wait for."""

import multiprocessing
import sys
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

from common.data import DataError, fetch
from common.distributed.fleet import Fleet
from common.distributed.scratch import scratch
from common.lab.runtime import Observations, Runtime
from common.training.sharded.job import Job
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from papers.in_memory_ft.config import JUDGED, Config
from papers.in_memory_ft.engines import Seconds, Work, measure
from papers.in_memory_ft.fault_matrix import run_scenario, scenarios, steps_needed
from papers.in_memory_ft.saving_cost import Rates, saves_per_hour
from papers.in_memory_ft.snapshot import Saving
from papers.in_memory_ft.snapshot_process import Switches
from papers.in_memory_ft.training_job import SavedJob, run_job
from papers.in_memory_ft.waiting import Condition, interval_that_fits, plain_step, waits

# metrics of exactness: the share of these scenarios' runs that ended as they must
EXACT = {
    "exact_software": ("trainer", "mid-snapshot"),
    "exact_node": ("node",),
    "exact_torn_version": ("torn version",),
    "exact_damaged_parity": ("damaged parity",),
}
RIVALS = {"saving_gain": "TorchSnapshot", "snapshot_rate_gain": "CheckFreq"}
LOADS = {"loading_gain": "whole disk", "loading_gain_sharded": "sharded disk"}
FLOOR = 0.01  # of the copies' seconds: less waiting than this is not told from none
AHEAD = ["torch", "torch.distributed", "torch._dynamo"]
AHEAD += ["papers.in_memory_ft.engines", "papers.in_memory_ft.waiting"]


def run(config: Config, lab: Runtime, seen: Observations) -> None:
    """Everything that needs processes."""
    load_ahead()
    with scratch("in-memory-ft-") as folder, Fleet() as fleet:
        if lab.wants("largest_copied_share"):
            count_bytes(config, lab, seen, fleet)
        if lab.wants(*EXACT):
            strike(config, lab, seen, fleet, folder)
        if lab.wants(*RIVALS, *LOADS):
            save_and_load(config, lab, seen, fleet, folder)
        if lab.wants("waiting_gain"):
            wait(config, lab, seen, fleet, folder)


def load_ahead() -> None:
    """Have the fork server load the modules of all processes before their first, so that a restart takes a moment."""
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(AHEAD)
        forkserver.ensure_running()


def text_of(lab: Runtime) -> str | None:
    """The file of Tiny Shakespeare; None where it can't be had, and a drawn chain of letters stands in for it."""
    try:
        fetch("tiny-shakespeare")
    except DataError:
        return None
    return str(lab.data("tiny-shakespeare"))


def job_of(config: Config, lab: Runtime, hidden: int, layout: Layout, seed: int = 0) -> Job:
    """A job of the configured decoder; a seed is other first weights, other rows, other dropout."""
    shape = Shape(
        vocab=128, hidden=hidden, layers=config.layers, heads=4, kv_heads=2, mlp=2 * hidden, context=config.context
    )  # fmt: skip
    return Job(shape, layout, Recipe(seed=seed, dropout=config.dropout), config.rows, text_of(lab))


def count_bytes(config: Config, lab: Runtime, seen: Observations, fleet: Fleet) -> None:
    """Bytes that each rank copies for a snapshot, and what snapshot processes hold and send for it."""
    largest = []
    for data, stages in [*((data, 1) for data in config.counted), (min(config.counted), 2)]:
        saving = Saving(1, 1 << 16, shards=data if config.sharding else 1)
        job = job_of(config, lab, config.hidden, Layout(data=data, pipeline=stages))
        found = run_job(fleet, SavedJob(job, 2, saving))
        largest += [copied * data / one.state_bytes for one in found.reports for copied in one.copied]
        own, account = found.reports[0], found.account[0, 0]
        held = own.state_bytes / saving.shards
        where = {"data": data, "stages": stages}
        seen.add("memory_over_shard", account["memory"] / held, **where)
        seen.add("sent_over_shard", account["sent"] / len(own.copied) / held, **where)
    seen.add("largest_copied_share", max(largest))


def strike(config: Config, lab: Runtime, seen: Observations, fleet: Fleet, folder: Path) -> None:
    """The fault matrix: every scenario beside an undisturbed run.

    Recovery is exact or not: a few seeds hold it, and with a part of the method off one that fails is enough.
    """
    switches = Switches(config.parity, config.double, config.sums, config.consistent, config.inside)
    wanted = {name for metric, names in EXACT.items() if lab.wants(metric) for name in names}
    if lab.wants("redone_steps"):  # of the table alone
        wanted |= set(config.scenarios)
    whole = switches == Switches() and config.sharding
    struck = lab.seeds[: config.struck if whole else 1]
    exact: dict[tuple[int, str], bool] = {}
    work = [
        (seed, one)
        for seed in struck
        for one in scenarios(config.group)
        if one.name in wanted & set(config.scenarios) and (one.name in JUDGED or seed == lab.seeds[0])
    ]
    for seed, one in lab.progress(work, "blows"):
        job = job_of(config, lab, config.hidden, one.layout, seed)
        plain = SavedJob(job, steps_needed(config.every), digests=config.every)
        calm = lab.once(("in_memory_ft: undisturbed", plain), partial(run_job, fleet, plain))
        saving = Saving(config.every, 1 << 15, shards=one.layout.data if config.sharding else 1)
        saved = replace(plain, saving=saving, persist=2 * config.every, folder=folder / "disk")
        row = run_scenario(fleet, one, saved, calm, switches)
        exact[seed, one.name] = row.as_planned
        seen.add(
            "redone_steps", row.redone, seed, scenario=one.name, lost=one.lost, when=one.when,
            layout=f"{one.layout.data} data x {one.layout.pipeline} stages", source=row.start.source,
            version=row.start.version, report="; ".join(row.start.reports),
        )  # fmt: skip
        seen.add("same_losses", sum(row.same_losses), seed, of=len(row.same_losses), scenario=one.name)
        seen.add("same_states", sum(row.same_states), seed, of=len(row.same_states), scenario=one.name)
        if seed == lab.seeds[0]:
            for name, losses in (("undisturbed", calm.reports[0].losses), ("recovered", row.losses)):
                for step, loss in losses.items():
                    seen.add("loss", loss, seed, scenario=one.name, run=name, step=step)
    for metric, names in EXACT.items():
        blows = [(seed, name) for seed in struck for name in names]
        if lab.wants(metric) and exact.keys() >= set(blows):  # the profile strikes all of its blows
            seen.add(metric, sum(exact[blow] for blow in blows) / len(blows))


def save_and_load(config: Config, lab: Runtime, seen: Observations, fleet: Fleet, folder: Path) -> None:
    """One state through the engines, in turn, and back again."""
    rates = Rates(config.copy, config.network, config.disk).slower(config.slower)
    if config.devices == "unlimited":
        rates = Rates(1e15, 1e15, 1e15)
    step = config.step_share * config.state_bytes * config.slower / config.disk

    def per_hour(found: Seconds, engine: str) -> float:
        stall = max(0.0, found["stall", engine] - step)
        return saves_per_hour(found["save", engine], stall, step, config.budget)

    seen.add("stated_bytes", config.state_bytes * config.slower)  # that take as long at the stated rates
    engines = [engine for metric, engine in RIVALS.items() if lab.wants(metric)]
    shown = ["torch.save"] if engines and lab.wants("saving_seconds") else []  # of the figure alone
    sources = [source for metric, source in LOADS.items() if lab.wants(metric)]
    work = Work(
        (*shown, *engines, "REFT"), tuple(sources), config.state_bytes, config.peers, rates, tuple(lab.seeds),
        config.sharding, config.persist, config.cleared,
    )  # fmt: skip
    table = lab.once(("in_memory_ft: saved and loaded", work), partial(measure, fleet, work, folder / "save"))
    for seed, found in zip(lab.seeds, table, strict=True):
        for engine in work.engines:
            seen.add("saving_seconds", found["save", engine], seed, engine=engine)
        for metric, source in LOADS.items():
            if source in sources:
                seen.add(metric, found["disk", source] / found["memory", source], seed)
        if "TorchSnapshot" in engines:
            seen.add("saving_gain", found["save", "TorchSnapshot"] / found["save", "REFT"], seed)
        if "CheckFreq" in engines:
            seen.add("snapshot_rate_gain", per_hour(found, "REFT") / per_hour(found, "CheckFreq"), seed)


def wait(config: Config, lab: Runtime, seen: Observations, fleet: Fleet, folder: Path) -> None:
    """Seconds that training waits for snapshots, beside the seconds that their copies take."""
    rates = Rates(config.copy, config.network, config.disk)
    every = interval_that_fits(rates)
    judged = Condition("synchronous" if config.synchronous else "bucketed", every)
    shown: tuple[Condition, ...] = ()
    if lab.wants("waited_percent"):  # of the figure alone
        others = [Condition("bucketed", one) for one in config.intervals if one != every]
        shown = (*others, Condition("whole", every), Condition("synchronous", every))
    job = job_of(config, lab, config.step_hidden, Layout(data=config.peers))
    plain = lab.once(("in_memory_ft: a plain step", job), partial(plain_step, fleet, job))
    conditions = {seed: (judged, *(shown if seed == lab.seeds[0] else ())) for seed in lab.seeds}
    tables = waits(fleet, job, plain, conditions, 2 * every, rates, folder / "wait")
    for seed, table in zip(lab.seeds, tables, strict=True):
        for one, found in table.items():
            percent = 100 * found.waited / (found.seconds - found.waited)
            seen.add("waited_percent", percent, seed, mode=one.mode, every=one.every)
        ours = table[judged]
        least = FLOOR * ours.copied
        capped = {"capped": True} if ours.waited < least else {}
        seen.add("waiting_gain", ours.copied / max(ours.waited, least), seed, **capped)
        step = (ours.seconds - ours.waited) / (4 * every)
        seen.add("copy_over_step", ours.copied / ours.snapshots / step, seed)
        seen.add("snapshots_waited_for", ours.snapshots, seed)
