"""What the claims of in-memory fault tolerance read: real processes and kills, throttled devices, closed forms."""

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.in_memory_ft import checkpoint_interval, survival
from papers.in_memory_ft.config import Config
from papers.in_memory_ft.saving_cost import (
    ENGINES,
    H100,
    Rates,
    copied_bytes,
    loading_seconds,
    saving_seconds,
)
from papers.in_memory_ft.survival import Fleet as NodeFleet


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
    if config.processes or config.gpu_shard_bytes:
        from papers.in_memory_ft import measurements  # brings torch, which the simulations do without

        measurements.run(config, lab, seen)
    return seen


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
