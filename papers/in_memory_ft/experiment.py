"""What the claims of in-memory fault tolerance read: processes, kills, throttled devices, simulations."""

from functools import partial

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.in_memory_ft import measurements, survival
from papers.in_memory_ft.config import Config
from papers.in_memory_ft.saving_cost import (
    ENGINES,
    Protection,
    Rates,
    copied_bytes,
    loading_seconds,
    saving_seconds,
    simulated,
)
from papers.in_memory_ft.survival import Fleet as NodeFleet

STEP, RESTART = 5.0, 300.0  # seconds of a step and a restart at scale, inferred: the restart is in no claim
PARAMETERS, BYTES = 175e9, 16  # of the model whose redone work is simulated; bytes of its state, a parameter


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if lab.wants("lasting_gain"):
        survive(config, lab, seen)
    if lab.wants("redone_gain"):
        redo(config, lab, seen)
    measurements.run(config, lab, seen)
    return seen


def survive(config: Config, lab: Runtime, seen: Observations) -> None:
    """Simulated histories: hours until one in ten has lost its state, over those of state in the trainers' memory."""
    group = min(config.groups)
    for seed in lab.seeds:
        for members in config.groups if lab.wants("histories_hours") else [group]:
            fleet = NodeFleet(config.nodes, members, rack=config.rack)
            draw = partial(survival.histories, fleet, config.histories)
            random = lab.rng(seed, f"placement {members}") if config.placement == "random" else None
            sets = survival.node_sets(fleet, random)
            lives, others = (lab.rng(seed, f"{name} {members}") for name in ("lives", "other lives"))
            ours = float(np.quantile(draw(lives, config.parity, not config.inside, sets), 0.1))
            plain = float(np.quantile(draw(others, parity=False, apart=False), 0.1))
            seen.add("histories_hours", ours, seed, kept="ours", group=members)
            seen.add("histories_hours", plain, seed, kept="trainer", group=members)
            if members == group:
                seen.add("lasting_gain", ours / plain, seed)
    seen.add("histories", config.histories)


def redo(config: Config, lab: Runtime, seen: Observations) -> None:
    """Work redone after a failure, and the share of time that trains, for 3,072 GPUs with Young's intervals."""
    fleet = NodeFleet(config.nodes, config.peers)
    state = PARAMETERS * BYTES / fleet.sets
    one = Rates(config.copy, config.network, config.disk)
    mean = 3600 / ((fleet.hardware + fleet.software) * fleet.nodes)
    for seed in lab.seeds:
        redone = {}
        for engine in ENGINES:
            saving = saving_seconds(engine, state, config.peers, one, config.persist)
            copying = copied_bytes(engine, state, config.peers) / one.copy
            stall = saving if engine == "torch.save" else max(0.0, copying - STEP)
            disk = "sharded disk" if engine == "TorchSnapshot" else "whole disk"
            load = loading_seconds("memory" if engine == "REFT" else disk, state, config.peers, one)
            protection = Protection(stall, saving, RESTART + load)
            rng = lab.rng(seed, "failures")
            found = simulated(protection, mean, STEP, config.train_hours, rng)
            redone[engine] = float(found.redone.mean())
            seen.add("redone_seconds", redone[engine], seed, engine=engine)
            seen.add("effective_share", found.share, seed, engine=engine)
        seen.add("redone_gain", redone["TorchSnapshot"] / redone["REFT"], seed)
