"""What the claims of in-memory fault tolerance read: real processes and kills, throttled devices, closed forms."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.in_memory_ft import checkpoint_interval, survival
from papers.in_memory_ft.saving_cost import (
    ENGINES,
    H100,
    Rates,
    copied_bytes,
    loading_seconds,
    saves_per_hour,
    saving_seconds,
)
from papers.in_memory_ft.survival import Fleet as NodeFleet

JUDGED = ("trainer", "node", "mid-snapshot", "torn version", "damaged parity")  # scenarios that claims read
OTHERS = ("two nodes", "damaged block", "snapshot process", "two groups")  # of the fault matrix alone


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    sharding: bool = True  # False: every data rank copies the whole state
    parity: bool = True  # False: no erasure coding
    double: bool = True  # False: one buffer, overwritten by the next snapshot
    sums: bool = True  # False: stored bytes are trusted
    consistent: bool = True  # False: every group goes on from its own last version
    inside: bool = False  # True: snapshot processes are threads of the trainers
    persist: bool = False  # True: a snapshot counts when it is on disk too
    free_copies: bool = False  # True: devices without limit
    cleared: bool = False  # True: snapshot processes have lost their memory before it is loaded
    synchronous: bool = False  # True: training waits for every snapshot
    rack: int = 1  # nodes of one group that fail together
    # the trained decoder
    hidden: int = 128
    layers: int = 4
    context: int = 32
    rows: int = 12  # of a batch, over all data ranks
    dropout: float = 0.1
    # snapshots whose bytes are counted: data degree, pipeline stages
    counted: list[list[int]] = field(default_factory=lambda: [[2, 1], [3, 1], [4, 1], [2, 2]])
    # the fault matrix
    scenarios: list[str] = field(
        default_factory=lambda: [*JUDGED, *OTHERS]
    )  # the others with the first seed alone
    group: int = 4  # data ranks of the scenarios with one stage
    every: int = 2  # steps between snapshots
    # saving and loading one state on devices
    state_bytes: int = 48 << 20
    peers: int = 4
    copy: float = 12e9  # bytes/s of a node's copy engine, network card and storage: the brief's
    network: float = 3e9
    disk: float = 0.3e9
    slower: float = 40.0  # all of them, so that this machine's own work does not show
    step_seconds: float = 0.5  # of training beside which copies go, on such devices
    budget: float = 0.02  # share of the time that stalls may take
    # overhead of snapshots
    intervals: list[int] = field(default_factory=lambda: [1, 2, 5, 10])
    judged_interval: int = 5
    stretch: int = 10  # steps between two looks at the clock
    rounds: int = 1
    # survival and interval
    nodes: int = 384  # 3,072 GPUs
    groups: list[int] = field(default_factory=lambda: [4, 8, 16])
    histories: int = 20000
    simulate: bool = True
    processes: bool = True
    train_hours: float = 26000.0  # simulated, for work redone
    # on a GPU; 0 bytes: nothing
    gpu_shard_bytes: int = 0
    gpu_size: int = 8192
    gpu_products: int = 130
    gpu_bucket: int = 32 << 20
    gpu_rounds: int = 20


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if config.simulate:
        if lab.wants("survival_hours_gain", "simulated_survival_gain"):
            survive(config, lab, seen)
        if lab.wants("modelled_saving_gain"):
            cost_surface(config, seen)
        if lab.wants("redone_gain"):
            redo(config, lab, seen)
    if config.processes:
        from papers.in_memory_ft.fork_server import load_ahead

        load_ahead()
        with tempfile.TemporaryDirectory(prefix="in-memory-ft-") as folder:
            if lab.wants("largest_copied_share"):
                count_bytes(config, lab, seen, Path(folder))
            if lab.wants(*(exact_metric(name) for name in JUDGED)):
                strike(config, lab, seen, Path(folder))
            if lab.wants("saving_gain", "snapshot_rate_gain", "loading_gain", "loading_gain_sharded"):
                save_and_load(config, lab, seen, Path(folder))
            if lab.wants("overhead_percent"):
                overhead(config, lab, seen, Path(folder))
    if config.gpu_shard_bytes and lab.wants("gpu_overhead_percent"):
        on_gpu(config, lab, seen)
    return seen


def exact_metric(scenario: str) -> str:
    """The metric of a scenario: 1 where it ended as it must, 0 otherwise."""
    return "exact_" + scenario.replace(" ", "_").replace("-", "_")


def rates(config: Config) -> Rates:
    """The devices of a node, slowed down; without limit in the control of the saving budget."""
    if config.free_copies:
        return Rates(1e15, 1e15, 1e15)
    return Rates(config.copy, config.network, config.disk).slower(config.slower)


# ---- closed forms and simulations


def survive(config: Config, lab: Runtime, seen: Observations) -> None:
    """Survival curves, hours at 90%, and simulated histories beside the formula."""
    gains = []
    curve = survival.erasure_coded if config.parity else survival.snapshot_processes
    for group in config.groups:
        fleet = NodeFleet(config.nodes, group, rack=config.rack)
        alone = survival.hours_at(survival.snapshot_processes, fleet, 0.9)
        coded = survival.hours_at(curve, fleet, 0.9)
        seen.add("hours_at_90", coded, group=group, kept="parity")
        seen.add("hours_at_90", alone, group=group, kept="snapshot process")
        seen.add(
            "hours_at_90", survival.hours_at(survival.plain_memory, fleet, 0.9), group=group, kept="trainer"
        )
        gains.append(coded / alone)
        for hours in np.linspace(0, 168, 29):
            for kept, one in (
                ("parity", curve),
                ("snapshot process", survival.snapshot_processes),
                ("trainer", survival.plain_memory),
            ):
                seen.add("survival", float(one(fleet, hours)), group=group, kept=kept, hours=float(hours))
    seen.add("survival_hours_gain", min(gains))
    if not lab.wants("simulated_survival_gain"):
        return
    for seed in lab.seeds:
        for group in config.groups:
            for shape in (1.0, 0.7) if seed == lab.seeds[0] else (1.0,):
                fleet = NodeFleet(config.nodes, group, shape=shape, rack=config.rack)
                at = survival.hours_at(survival.erasure_coded, NodeFleet(config.nodes, group), 0.9)
                ends = {
                    parity: survival.histories(
                        fleet, parity, config.histories, lab.rng(seed, f"lives {group}")
                    )
                    for parity in (config.parity, False)
                }
                share = {parity: float(survival.surviving_share(one, at)) for parity, one in ends.items()}
                gain = share[config.parity] - share[False]
                where = {"group": group, "shape": shape, "hours": at}
                seen.add("simulated_survival", share[config.parity], seed, kept="parity", **where)
                seen.add("simulated_survival", share[False], seed, kept="snapshot process", **where)
                error = share[config.parity] - float(curve(fleet, at))
                deviation = (0.9 * 0.1 / config.histories) ** 0.5
                seen.add("formula_error_deviations", error / deviation, seed, group=group, shape=shape)
                if group == config.groups[0] and shape == 1.0:
                    seen.add("simulated_survival_gain", gain, seed)


def cost_surface(config: Config, seen: Observations) -> None:
    """Seconds of a save of 64 GB by disk and network rate, and the ratio to TorchSnapshot."""
    size = 64e9
    for name, one in (("stated", Rates(config.copy, config.network, config.disk)), ("H100", H100)):
        for engine in ENGINES:
            seconds = saving_seconds(engine, size, config.peers, one)
            seen.add("modelled_saving_seconds", seconds, engine=engine, machine=name)
            seen.add("modelled_copied", copied_bytes(engine, size, config.peers), engine=engine, machine=name)
    for disk in (0.1e9, 0.2e9, 0.3e9, 0.5e9, 1.25e9, 3e9):
        for network in (1.25e9, 3e9, 6e9, 12.5e9, 25e9):
            one = Rates(config.copy, network, disk)
            ours = saving_seconds("REFT", size, config.peers, one, persist=config.persist)
            theirs = saving_seconds("TorchSnapshot", size, config.peers, one)
            seen.add("modelled_saving_gain", theirs / ours, disk=disk, network=network)


def redo(config: Config, lab: Runtime, seen: Observations) -> None:
    """Work redone after a failure, and the share of time that trains, for 3,072 GPUs with Young's intervals.

    175 billion parameters at 16 bytes over the groups; steps of 5 s; a restart takes 300 s and the loading.
    """
    fleet = NodeFleet(config.nodes, config.peers)
    state = 175e9 * 16 / (config.nodes / config.peers)
    one, step = Rates(config.copy, config.network, config.disk), 5.0
    mean = 3600 / ((fleet.hardware + fleet.software) * config.nodes)
    protections = {}
    for engine in ENGINES:
        saving = saving_seconds(engine, state, config.peers, one, persist=config.persist)
        copying = copied_bytes(engine, state, config.peers) / one.copy
        stall = saving if engine == "torch.save" else max(0.0, copying - step)
        source = "sharded disk" if engine == "TorchSnapshot" else "whole disk"
        load = loading_seconds("memory" if engine == "REFT" else source, state, config.peers, one)
        protections[engine] = checkpoint_interval.Protection(stall, saving, 300 + load)
        seen.add(
            "interval_seconds",
            checkpoint_interval.interval_of(protections[engine], mean, step),
            engine=engine,
        )
    window = 300 / 3600  # hours in which a second node of the group must not fail
    fatal = survival.HARDWARE_SHARE * (1 - np.exp(-(config.peers - 1) * fleet.hardware * window))
    for engine, protection in protections.items():
        if engine == "REFT":
            failures = checkpoint_interval.Failures(mean, float(fatal))
            share = checkpoint_interval.effective_share(
                protection, protections["TorchSnapshot"], failures, step
            )
        else:
            failures = checkpoint_interval.Failures(mean)
            share = checkpoint_interval.effective_share(None, protection, failures, step)
        seen.add("effective_share", share, engine=engine, how="closed form")
    for seed in lab.seeds:
        redone = {}
        for engine, protection in protections.items():
            rng = lab.rng(seed, "failures")
            found = checkpoint_interval.simulated(protection, mean, step, config.train_hours, rng)
            redone[engine] = float(found.redone.mean())
            seen.add("redone_seconds", redone[engine], seed, engine=engine)
            seen.add("effective_share", found.share, seed, engine=engine, how="simulated")
        seen.add("redone_gain", redone["TorchSnapshot"] / redone["REFT"], seed)


# ---- real processes


def text_of(lab: Runtime) -> bytes:
    """Tiny Shakespeare, or where it can't be had a text of its own making: words of a small grammar."""
    from common.data import DataError, fetch

    try:
        fetch("tiny-shakespeare")
    except DataError:
        rng = lab.rng(0, "text")
        words = [bytes(rng.integers(97, 123, size).tolist()) for size in rng.integers(2, 8, 200)]
        return b" ".join(words[i] for i in rng.integers(0, 200, 20000))
    path = lab.data("tiny-shakespeare")
    assert path is not None
    return path.read_bytes()[:200_000]


def job_of(config: Config, lab: Runtime, seed: int, data: int, stages: int, steps: int):  # type: ignore[no-untyped-def]
    """A job of the configured decoder; a seed is other first weights, another order of windows, other dropout."""
    from common.training.sharded.layout import Layout
    from common.training.sharded.parameters import Shape
    from common.training.sharded.trainer import Recipe
    from papers.in_memory_ft.training_job import Job

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


def count_bytes(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """Bytes that each rank copies for a snapshot, and what snapshot processes hold and send for it."""
    from dataclasses import replace

    from common.distributed.fleet import Fleet
    from papers.in_memory_ft.recovery import Switches
    from papers.in_memory_ft.snapshot import Saving
    from papers.in_memory_ft.training_job import run_job

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


def strike(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """The fault matrix: every scenario beside an undisturbed run."""
    from dataclasses import replace

    from common.distributed.fleet import Fleet
    from papers.in_memory_ft import fault_matrix
    from papers.in_memory_ft.recovery import Switches
    from papers.in_memory_ft.snapshot import Saving

    switches = Switches(config.parity, config.double, config.sums, config.consistent, config.inside)
    chosen = [one for one in fault_matrix.scenarios(config.group) if one.name in config.scenarios]
    with Fleet() as fleet:
        for seed in lab.progress(lab.seeds, "blows"):
            calm = {}
            for scenario in chosen:
                metric = exact_metric(scenario.name)
                judged = scenario.name in JUDGED
                if not lab.wants(metric) or not (judged or seed == lab.seeds[0]):
                    continue
                layout = scenario.layout
                steps = fault_matrix.steps_needed(config.every)
                job = job_of(config, lab, seed, layout.data, layout.pipeline, steps)
                saving = Saving(config.every, 1 << 15, shards=layout.data if config.sharding else 1)
                job = replace(
                    job, saving=saving, persist=2 * config.every, digests=config.every, folder=folder / "disk"
                )
                if layout not in calm:
                    calm[layout] = fault_matrix.undisturbed(fleet, job)
                row = fault_matrix.run_scenario(fleet, scenario, job, calm[layout], switches)
                good = row.exact and row.source == scenario.source
                if scenario.name == "damaged parity":
                    good = good and bool(row.reports)
                seen.add(metric, float(good), seed)
                about: dict[str, str | float | int] = {
                    "scenario": scenario.name,
                    "layout": f"{layout.data} data, {layout.pipeline} stages",
                    "lost": scenario.lost,
                    "when": scenario.when,
                    "source": row.source,
                    "version": max(row.versions, default=0),
                    "report": "; ".join(row.reports),
                }
                seen.add("fault_redone_steps", row.redone, seed, **about)
                seen.add("fault_same_losses", row.same_losses, seed, of=row.losses, scenario=scenario.name)
                seen.add("fault_same_states", row.same_states, seed, of=row.states, scenario=scenario.name)
                seen.add("fault_seconds", row.restored, seed, scenario=scenario.name)
                seen.add("fault_rebuilt_bytes", row.rebuilt_bytes, seed, scenario=scenario.name)
                if seed == lab.seeds[0]:
                    for step, loss in calm[layout].reports[0].losses.items():
                        seen.add("loss", loss, seed, scenario=scenario.name, run="undisturbed", step=step)
                    for step, loss in row.after.items():
                        seen.add("loss", loss, seed, scenario=scenario.name, run="recovered", step=step)


def save_and_load(config: Config, lab: Runtime, seen: Observations, folder: Path) -> None:
    """Saving seconds of the engines and loading seconds by source, on throttled devices."""
    from common.distributed.fleet import Fleet
    from papers.in_memory_ft.engines import Saved, measure

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
    from common.distributed.fleet import Fleet
    from papers.in_memory_ft.overhead import Condition, overheads
    from papers.in_memory_ft.snapshot import Mode

    mode: Mode = "synchronous" if config.synchronous else "bucketed"
    judged = Condition(mode, config.judged_interval)
    conditions = [judged]
    if not config.synchronous:
        conditions += [Condition("bucketed", k) for k in config.intervals if k != config.judged_interval]
        conditions += [Condition(other, config.judged_interval) for other in ("whole", "synchronous")]
        conditions += [Condition("synchronous", k) for k in config.intervals if k != config.judged_interval]
    for seed in lab.progress(lab.seeds, "overhead"):
        job = job_of(config, lab, seed, config.peers, 1, 0)
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
    from papers.in_memory_ft.gpu_overlap import CopiedStep, Mode

    size = config.gpu_shard_bytes
    for seed in lab.seeds:
        step = CopiedStep(lab.device, size, config.gpu_size, config.gpu_products, config.gpu_bucket)

        def taken(mode: Mode, step: CopiedStep = step) -> float:
            return step.seconds(lambda: step.run(mode), config.gpu_rounds)

        modes: tuple[Mode, ...] = ("none", "bucketed", "whole", "synchronous")
        seconds = {mode: taken(mode) for mode in modes}
        for mode in modes:
            seen.add("gpu_step_seconds", seconds[mode], seed, mode=mode, bytes=size)
        chosen: Mode = "synchronous" if config.synchronous else "bucketed"
        if lab.device.startswith("cuda"):
            seen.add("gpu_overhead_percent", 100 * (seconds[chosen] / seconds["none"] - 1), seed)
