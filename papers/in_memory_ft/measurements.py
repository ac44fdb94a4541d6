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
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from papers.in_memory_ft.config import JUDGED, Config
from papers.in_memory_ft.engines import Measured, Work, measure
from papers.in_memory_ft.fault_matrix import Row, run_scenario, scenarios, steps_needed, undisturbed
from papers.in_memory_ft.recovery import Switches
from papers.in_memory_ft.saving_cost import Rates, saves_per_hour
from papers.in_memory_ft.snapshot import Saving
from papers.in_memory_ft.training_job import Job, run_job
from papers.in_memory_ft.waiting import Condition, plain_step, waits

# metrics of exactness: the share of these scenarios' runs that ended as they must
EXACT = {
    "exact_software": ("trainer", "mid-snapshot"),
    "exact_node": ("node",),
    "exact_torn_version": ("torn version",),
    "exact_damaged_parity": ("damaged parity",),
}
LOADS = {"loading_gain": "whole disk", "loading_gain_sharded": "sharded disk"}
FLOOR = 0.01  # of the copies' seconds: less waiting than this is not told from none
AHEAD = [
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "papers.in_memory_ft.engines",
    "papers.in_memory_ft.waiting",
]


def run(config: Config, lab: Runtime, seen: Observations) -> None:
    """Everything that needs processes."""
    load_ahead()
    with scratch("in-memory-ft-") as folder, Fleet() as fleet:
        if lab.wants("largest_copied_share"):
            count_bytes(config, lab, seen, fleet)
        if lab.wants(*EXACT):
            strike(config, lab, seen, fleet, folder)
        if lab.wants("saving_gain", "snapshot_rate_gain", *LOADS):
            save_and_load(config, lab, seen, fleet, folder)
        if lab.wants("waiting_gain"):
            wait(config, lab, seen, fleet, folder)


def load_ahead() -> None:
    """Have the fork server load the modules of all processes before their first, so that a restart takes a moment."""
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(AHEAD)
        forkserver.ensure_running()


def text_of(lab: Runtime) -> bytes:
    """Tiny Shakespeare, or where it can't be had a text of its own making: words of a small grammar."""
    try:
        fetch("tiny-shakespeare")
    except DataError:
        rng = lab.rng(0, "text")
        words = [bytes(rng.integers(97, 123, size).tolist()) for size in rng.integers(2, 8, 200)]
        return b" ".join(words[i] for i in rng.integers(0, 200, 20000))
    path = lab.data("tiny-shakespeare")
    assert path is not None
    return path.read_bytes()[:200_000]


def job_of(config: Config, lab: Runtime, seed: int, data: int, stages: int, steps: int) -> Job:
    """A job of the configured decoder; a seed is other first weights, another order of windows, other dropout."""
    hidden = config.hidden
    shape = Shape(
        vocab=128, hidden=hidden, layers=config.layers, heads=4, kv_heads=2, mlp=2 * hidden, context=config.context
    )  # fmt: skip
    recipe = Recipe(seed=seed, dropout=config.dropout)
    return Job(shape, Layout(data=data, pipeline=stages), recipe, text_of(lab), steps, config.rows)


def count_bytes(config: Config, lab: Runtime, seen: Observations, fleet: Fleet) -> None:
    """Bytes that each rank copies for a snapshot, and what snapshot processes hold and send for it."""
    largest = []
    for data, stages in [*((data, 1) for data in config.counted), (min(config.counted), 2)]:
        saving = Saving(1, 1 << 16, shards=data if config.sharding else 1)
        job = replace(job_of(config, lab, 0, data, stages, 2), saving=saving)
        found = run_job(fleet, job, Switches(parity=config.parity))
        shares = [copied * data / one.state_bytes for one in found.reports for copied in one.copied]
        largest.append(max(shares))
        own, account = found.reports[0], found.account[0, 0]
        held = own.state_bytes / saving.shards
        where = {"data": data, "stages": stages}
        seen.add("largest_bucket", max(one.largest_bucket for one in found.reports), **where)
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
        data, stages = one.layout.data, one.layout.pipeline
        plain = replace(
            job_of(config, lab, seed, data, stages, steps_needed(config.every)), digests=config.every
        )
        calm = lab.once(("in_memory_ft: undisturbed", plain), partial(undisturbed, fleet, plain))
        saving = Saving(config.every, 1 << 15, shards=data if config.sharding else 1)
        job = replace(plain, saving=saving, persist=2 * config.every, folder=folder / "disk")
        row = run_scenario(fleet, one, job, calm, switches)
        exact[seed, one.name] = note_blow(seen, seed, row)
        if seed == lab.seeds[0]:
            for name, losses in (("undisturbed", calm.reports[0].losses), ("recovered", row.after)):
                for step, loss in losses.items():
                    seen.add("loss", loss, seed, scenario=one.name, run=name, step=step)
    for metric, names in EXACT.items():
        runs = [exact[seed, name] for seed in struck for name in names if (seed, name) in exact]
        if lab.wants(metric) and len(runs) == len(struck) * len(
            names
        ):  # the profile strikes all of its blows
            seen.add(metric, sum(runs) / len(runs))


def note_blow(seen: Observations, seed: int, row: Row) -> bool:
    """A row of the fault matrix as observations; whether it is exact, and from where it must come."""
    one = row.scenario
    exact = row.exact and row.source == one.source and bool(row.reports) == one.name.startswith("damaged")
    where = {"scenario": one.name, "source": row.source, "lost": one.lost, "when": one.when}
    told = {
        "layout": f"{one.layout.data} data x {one.layout.pipeline} stages",
        "report": "; ".join(row.reports),
    }
    seen.add("redone_steps", row.redone, seed, version=max(row.versions, default=0), **where, **told)
    seen.add("same_losses", row.same_losses, seed, of=row.losses, scenario=one.name)
    seen.add("same_states", row.same_states, seed, of=row.states, scenario=one.name)
    return exact


def save_and_load(config: Config, lab: Runtime, seen: Observations, fleet: Fleet, folder: Path) -> None:
    """One state through the engines, in turn, and back again."""
    rival = {"saving_gain": "TorchSnapshot", "snapshot_rate_gain": "CheckFreq"}
    if config.devices == "unlimited":
        rates = Rates(1e15, 1e15, 1e15)
    else:
        rates = Rates(config.copy, config.network, config.disk).slower(config.slower)

    def per_hour(found: Measured, engine: str) -> float:
        one = found.saves[engine]
        stall = max(0.0, one.stall - config.step_seconds)
        return saves_per_hour(one.seconds, stall, config.step_seconds, config.budget)

    seen.add("stated_bytes", config.state_bytes * config.slower)  # that take as long at the stated rates
    engines = [engine for metric, engine in rival.items() if lab.wants(metric)]
    shown = ["torch.save"] if engines and lab.wants("saving_seconds") else []  # of the figure alone
    work = Work(
        (*shown, *engines, "REFT"), tuple(source for metric, source in LOADS.items() if lab.wants(metric)),
        config.state_bytes, config.peers, rates, tuple(lab.seeds), config.sharding, config.persist, config.cleared,
    )  # fmt: skip
    for seed, found in zip(lab.seeds, measure(fleet, work, folder / "save"), strict=True):
        for engine, saved in found.saves.items():
            seen.add("saving_seconds", saved.seconds, seed, engine=engine)
            seen.add("stall_seconds", saved.stall, seed, engine=engine)
            seen.add("copied_bytes", saved.copied, seed, engine=engine)
        for metric, source in LOADS.items():
            if source in found.loads:
                disk, memory = found.loads[source]
                seen.add("loading_seconds", disk, seed, source=source)
                seen.add("loading_seconds", memory, seed, source="memory", beside=source)
                seen.add(metric, disk / memory, seed)
        if "TorchSnapshot" in engines:
            seen.add("saving_gain", found.saves["TorchSnapshot"].seconds / found.saves["REFT"].seconds, seed)
        if "CheckFreq" in engines:
            seen.add("snapshot_rate_gain", per_hour(found, "REFT") / per_hour(found, "CheckFreq"), seed)


def wait(config: Config, lab: Runtime, seen: Observations, fleet: Fleet, folder: Path) -> None:
    """Seconds that training waits for snapshots, beside the seconds that their copies take."""
    judged = Condition("synchronous" if config.synchronous else "bucketed", config.judged_interval)
    others = [Condition("bucketed", every) for every in config.intervals]
    others += [Condition(mode, config.judged_interval) for mode in ("whole", "synchronous")]
    job = job_of(replace(config, hidden=config.step_hidden), lab, 0, config.peers, 1, 0)
    rates = Rates(config.copy, config.network, config.disk)
    shown = others if lab.wants("waited_percent") and not config.synchronous else []
    plain = lab.once(("in_memory_ft: a plain step", job), partial(plain_step, fleet, job))
    table = waits(fleet, job, plain, judged, shown, config.stretch, folder / "wait", rates, lab.seeds)
    for seed, found in zip(lab.seeds, table, strict=True):
        for one, waited in found.items():
            trained = waited.seconds - waited.waited
            seen.add("waited_percent", 100 * waited.waited / trained, seed, mode=one.mode, every=one.every)
        ours = found[judged]
        least = FLOOR * ours.copied
        capped = {"capped": True} if ours.waited < least else {}
        seen.add("waiting_gain", ours.copied / max(ours.waited, least), seed, **capped)
        seen.add("snapshots_waited_for", ours.snapshots, seed)
