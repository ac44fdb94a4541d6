"""What real processes show: bytes counted, blows struck, seconds on throttled devices, what snapshots add to steps."""

import tempfile
from dataclasses import replace
from pathlib import Path

from common.data import DataError, fetch
from common.distributed.fleet import Fleet
from common.lab.runtime import Observations, Runtime
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from papers.in_memory_ft.config import JUDGED, Config
from papers.in_memory_ft.engines import Saved, measure
from papers.in_memory_ft.fault_matrix import Row, run_scenario, scenarios, steps_needed, undisturbed
from papers.in_memory_ft.fork_server import load_ahead
from papers.in_memory_ft.gpu_overlap import CopiedStep
from papers.in_memory_ft.gpu_overlap import Mode as CopyMode
from papers.in_memory_ft.overhead import Condition, overheads
from papers.in_memory_ft.recovery import Switches
from papers.in_memory_ft.saving_cost import ENGINES, Rates, saves_per_hour, saving_seconds
from papers.in_memory_ft.snapshot import Mode, Saving
from papers.in_memory_ft.training_job import Job, Outcome, run_job


def run(config: Config, lab: Runtime, seen: Observations) -> None:
    """Everything that needs processes, or a GPU."""
    if config.processes:
        load_ahead()
        with tempfile.TemporaryDirectory(prefix="in-memory-ft-") as folder:
            if lab.wants("largest_copied_share"):
                count_bytes(config, lab, seen)
            if lab.wants(*(exact_metric(name) for name in JUDGED)):
                strike(config, lab, seen, Path(folder))
            if lab.wants("saving_gain", "snapshot_rate_gain", "loading_gain", "loading_gain_sharded"):
                save_and_load(config, lab, seen, Path(folder))
            if lab.wants("overhead_percent"):
                overhead(config, lab, seen, Path(folder))
    if config.gpu_shard_bytes and lab.wants("gpu_overhead_percent"):
        on_gpu(config, lab, seen)


def exact_metric(scenario: str) -> str:
    """The metric of a scenario: 1 where it ended as it must, 0 otherwise."""
    return "exact_" + scenario.replace(" ", "_").replace("-", "_")


def rates(config: Config) -> Rates:
    """The devices of a node, slowed down; without limit in the control of the saving budget."""
    if config.free_copies:
        return Rates(1e15, 1e15, 1e15)
    return Rates(config.copy, config.network, config.disk).slower(config.slower)


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
        vocab=128,
        hidden=hidden,
        layers=config.layers,
        heads=4,
        kv_heads=2,
        mlp=2 * hidden,
        context=config.context,
    )
    recipe = Recipe(seed=seed, dropout=config.dropout)
    return Job(shape, Layout(data=data, pipeline=stages), recipe, text_of(lab), steps, config.rows)


def count_bytes(config: Config, lab: Runtime, seen: Observations) -> None:
    """Bytes that each rank copies for a snapshot, and what snapshot processes hold and send for it."""

    largest = []
    with Fleet() as fleet:
        for data, stages in config.counted:
            saving = Saving(1, 1 << 16, shards=data if config.sharding else 1)
            job = replace(job_of(config, lab, 0, data, stages, 2), saving=saving)
            found = run_job(fleet, job, Switches(parity=config.parity))
            shares = [copied * data / one.state_bytes for one in found.reports for copied in one.copied]
            largest.append(max(shares))
            where = {"data": data, "stages": stages}
            own = found.reports[0]
            account = found.account[0, 0]
            shard = own.state_bytes / saving.shards
            seen.add("copied_share", max(shares), **where)
            seen.add("state_bytes", own.state_bytes, **where)
            seen.add("largest_bucket", max(one.largest_bucket for one in found.reports), **where)
            seen.add("memory_over_shard", account["memory"] / shard, **where)
            seen.add("sent_over_shard", account["sent"] / len(own.copied) / shard, **where)
    seen.add("largest_copied_share", max(largest))


UNDISTURBED: dict[
    Job, Outcome
] = {}  # of this process; a control changes nothing of a run that nothing happens to


def strike(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """The fault matrix: every scenario beside an undisturbed run."""
    switches = Switches(config.parity, config.double, config.sums, config.consistent, config.inside)
    work = [
        (seed, one)
        for seed in lab.seeds
        for one in scenarios(config.group)
        if one.name in config.scenarios
        and lab.wants(exact_metric(one.name))
        and (one.name in JUDGED or seed == lab.seeds[0])
    ]
    with Fleet() as fleet:
        for seed, one in lab.progress(work, "blows"):
            data, stages = one.layout.data, one.layout.pipeline
            plain = job_of(config, lab, seed, data, stages, steps_needed(config.every))
            plain = replace(plain, digests=config.every)
            if plain not in UNDISTURBED:
                UNDISTURBED[plain] = undisturbed(fleet, plain)
            calm = UNDISTURBED[plain]
            saving = Saving(config.every, 1 << 15, shards=data if config.sharding else 1)
            job = replace(plain, saving=saving, persist=2 * config.every, folder=folder / "disk")
            row = run_scenario(fleet, one, job, calm, switches)
            note_blow(seen, seed, row)
            if seed == lab.seeds[0]:
                for name, losses in (("undisturbed", calm.reports[0].losses), ("recovered", row.after)):
                    for step, loss in losses.items():
                        seen.add("loss", loss, seed, scenario=one.name, run=name, step=step)


def note_blow(seen: Observations, seed: int, row: Row) -> None:
    """A row of the fault matrix as observations."""
    one, name = row.scenario, row.scenario.name
    good = row.exact and row.source == one.source and (name != "damaged parity" or bool(row.reports))
    seen.add(exact_metric(name), float(good), seed)
    about: dict[str, str | float | int] = {
        "scenario": name,
        "layout": f"{one.layout.data} data, {one.layout.pipeline} stages",
        "lost": one.lost,
        "when": one.when,
        "source": row.source,
        "version": max(row.versions, default=0),
        "report": "; ".join(row.reports),
    }
    seen.add("fault_redone_steps", row.redone, seed, **about)
    seen.add("fault_same_losses", row.same_losses, seed, of=row.losses, scenario=name)
    seen.add("fault_same_states", row.same_states, seed, of=row.states, scenario=name)
    seen.add("fault_seconds", row.restored, seed, scenario=name)
    seen.add("fault_rebuilt_bytes", row.rebuilt_bytes, seed, scenario=name)


def save_and_load(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """Saving seconds of the engines and loading seconds by source, on throttled devices."""
    pairs = {
        "saving_gain": ("REFT", "TorchSnapshot"),
        "snapshot_rate_gain": ("REFT", "CheckFreq"),
    }
    loads = {"loading_gain": "whole disk", "loading_gain_sharded": "sharded disk"}
    engines = [e for e in ENGINES if any(e in pair and lab.wants(metric) for metric, pair in pairs.items())]
    sources = [source for metric, source in loads.items() if lab.wants(metric)]
    if lab.wants("saving_seconds"):  # only in a normal run
        engines.insert(0, "torch.save")
    if sources and "REFT" not in engines:
        engines.append("REFT")
    where = {"bytes": config.state_bytes, "peers": config.peers}
    for seed in lab.progress(lab.seeds, "saving"):
        some = [e for e in engines if e != "torch.save" or seed == lab.seeds[0]]
        with Fleet() as fleet:
            found = measure(
                fleet, some, sources, config.state_bytes, config.peers, rates(config), folder / f"saves-{seed}", seed,
                persist=config.persist, cleared=config.cleared,
            )  # fmt: skip

        def per_hour(one: Saved) -> float:
            stall = max(0.0, one.stall - config.step_seconds)
            return saves_per_hour(one.seconds, stall, config.step_seconds, config.budget)

        for engine, saved in found.saves.items():
            seen.add("saving_seconds", saved.seconds, seed, engine=engine, **where)
            seen.add("stall_seconds", saved.stall, seed, engine=engine, **where)
            seen.add("copied_bytes", saved.copied, seed, engine=engine, **where)
            seen.add("saves_per_hour", per_hour(saved), seed, engine=engine, **where)
            modelled = saving_seconds(
                engine, config.state_bytes, config.peers, rates(config), persist=config.persist
            )
            seen.add("measured_over_modelled", saved.seconds / modelled, seed, engine=engine)
        for metric, source in loads.items():
            if source in found.loads:
                disk, memory = found.loads[source]
                seen.add("loading_seconds", disk, seed, source=source, **where)
                seen.add("loading_seconds", memory, seed, source="memory", beside=source, **where)
                seen.add(metric, disk / memory, seed)
        if "TorchSnapshot" in found.saves:
            gain = found.saves["TorchSnapshot"].seconds / found.saves["REFT"].seconds
            seen.add("saving_gain", gain, seed)
        if "CheckFreq" in found.saves:
            gain = per_hour(found.saves["REFT"]) / per_hour(found.saves["CheckFreq"])
            seen.add("snapshot_rate_gain", gain, seed)


def overhead(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """What snapshots add to steps, by interval and mode."""
    mode: Mode = "synchronous" if config.synchronous else "bucketed"
    judged = Condition(mode, config.judged_interval)
    conditions = [judged] * 3  # the median of three looks
    if not config.synchronous and config.intervals:
        conditions += [Condition("bucketed", k) for k in config.intervals if k != config.judged_interval]
        conditions += [Condition(other, config.judged_interval) for other in ("whole", "synchronous")]
    for seed in lab.progress(lab.seeds, "overhead"):
        wider = replace(config, hidden=config.step_hidden)
        job = job_of(wider, lab, seed, config.peers, 1, 0)
        with Fleet() as fleet:
            found = overheads(
                fleet, job, conditions, config.stretch, config.rounds, folder / f"over-{seed}",
                Rates(config.copy, config.network, config.disk),
            )  # fmt: skip
        for condition, share in found.items():
            seen.add("overhead_by_interval", 100 * share, seed, mode=condition.mode, every=condition.every)
        seen.add("overhead_percent", 100 * found[judged], seed)


def on_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """What copies to pinned memory add to a step of products on this device."""
    size = config.gpu_shard_bytes
    for seed in lab.seeds:
        step = CopiedStep(lab.device, size, config.gpu_size, config.gpu_products, config.gpu_bucket)

        def taken(mode: CopyMode, step: CopiedStep = step) -> float:
            return step.seconds(lambda: step.run(mode), config.gpu_rounds)

        modes: tuple[CopyMode, ...] = ("none", "bucketed", "whole", "synchronous")
        seconds = {mode: taken(mode) for mode in modes}
        for mode in modes:
            seen.add("gpu_step_seconds", seconds[mode], seed, mode=mode, bytes=size)
        chosen: CopyMode = "synchronous" if config.synchronous else "bucketed"
        if lab.device.startswith("cuda"):
            seen.add("gpu_overhead_percent", 100 * (seconds[chosen] / seconds["none"] - 1), seed)
