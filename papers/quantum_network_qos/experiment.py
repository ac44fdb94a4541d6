"""What the claims read: protocols, admitted demands and verified schedules, on the paper's networks."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.lab.runtime import Observation, Observations, Runtime
from common.scheduling.periodic import Task, admit
from papers.quantum_network_qos import links, topologies
from papers.quantum_network_qos.config import Config
from papers.quantum_network_qos.demands import EXPONENTS, Demand, draw_demands, tasks_of
from papers.quantum_network_qos.esss import find_protocol
from papers.quantum_network_qos.mapping import Timing
from papers.quantum_network_qos.measures import (
    ALL,
    BUDGETED,
    NP_EDF,
    OTHERS,
    Place,
    carried,
    gain,
    mean,
    measure,
    on_one_set,
)
from papers.quantum_network_qos.replay import delivered_rate
from papers.quantum_network_qos.topologies import Network, Qubits

TOP_LOAD = 40.0  # ebit/s: far beyond what the small networks can carry
CLAIMED_PROTOCOLS = (0.55, 0.75, 0.85)
SAME = ("star", "H", "line", "symm")


@dataclass(frozen=True)
class Cell:
    """Task sets of one topology, fidelity and load under some schedulers, or another part of the experiment on them."""

    part: str
    topology: str
    fidelity: float
    load: float
    schedulers: tuple[str, ...] = ()
    feeds: tuple[str, ...] = ()  # metrics of claims, beside `violations`


@dataclass(frozen=True)
class Group:
    """Cells of one topology and fidelity, which share their protocols, with a generator for each cell and seed."""

    cells: tuple[Cell, ...]
    network: Network
    config: Config
    rngs: tuple[tuple[int, np.random.Generator], ...]  # for each cell in turn its (seed, generator)s


def run(config: Config, lab: Runtime) -> Observations:
    """Observe what the card's claims read, one row a seed; protocols have no seed."""
    networks = networks_of(config, lab)
    seen = Observations()
    protocols(config, lab, networks, seen)
    wanted = [cell for cell in cells(config, "surfnet" in networks) if lab.wants("violations", *cell.feeds)]
    for rows in lab.map(run_group, groups(wanted, config, lab, networks), "schedules"):
        seen.extend(rows)
    if wanted:
        derive(config, lab, seen)
    return seen


def networks_of(config: Config, lab: Runtime) -> dict[str, Network]:
    """The small networks with the authors' link table (or the embedded one), and SURFnet where its file can be had."""
    qubits = Qubits(config.communication, config.storage)
    path = fetched("nv-link-capabilities", lab)
    small = links.read_capabilities(path) if path else links.NV_5KM
    names = dict.fromkeys([*config.topologies, *config.compared, *config.others, *SAME])
    networks = {
        name: topologies.topology(name, links.PERFECT if config.perfect_links else small, qubits)
        for name in names
    }
    if config.surfnet_fidelities and lab.wants("violations", "gain_surfnet"):
        path = fetched("surfnet-topology", lab)
        if path:
            networks["surfnet"] = topologies.surfnet(path, links.FUTURE, qubits)
    return networks


def fetched(name: str, lab: Runtime) -> Path | None:
    """A data set where it can be had; its digest goes into the record."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)


def protocols(config: Config, lab: Runtime, networks: dict[str, Network], seen: Observations) -> None:
    """The fastest protocol between two users of the star (2 links) and the symmetric network (3 links)."""
    for name in ("star", "symm"):
        if not lab.wants(*(f"fastest_{name}_{fidelity}" for fidelity in CLAIMED_PROTOCOLS)):
            continue
        for fidelity in config.protocol_fidelities:
            found = find_protocol(networks[name], "0", "1", fidelity, Timing())
            rate = 0.0 if found is None else 1 / (found.duration * links.SLOT)
            seen.add("fastest_rate", rate, topology=name, fidelity=fidelity)
            if found is not None:
                seen.add("fastest_stored_slots", found.stored(), topology=name, fidelity=fidelity)
            if fidelity in CLAIMED_PROTOCOLS:
                seen.add(f"fastest_{name}_{fidelity}", rate)


def cells(config: Config, surfnet: bool) -> list[Cell]:
    """All that is scheduled, each (part, topology, fidelity, load) once."""
    found = []
    low, high = min(config.loads, default=0.0), max(config.loads, default=0.0)
    for name in config.topologies:
        for fidelity in config.fidelities:
            for load in config.loads:
                feeds: tuple[str, ...] = ("share_kept",) if load == high else ()
                feeds += ("saturation",) if load in (low, high) else ()
                names = tuple(NP_EDF) + (tuple(OTHERS) if name in config.others else ())
                found.append(Cell("grid", name, fidelity, load, names, feeds))
    for fidelity in config.star_fidelities:
        feeds = (f"saturated_star_{fidelity}", "tradeoff")
        found.append(Cell("saturated", "star", fidelity, TOP_LOAD, tuple(NP_EDF), feeds))
    for name in config.compared:
        where = "star" if config.one_centre else name
        feeds = (f"gain_{name}_block", f"gain_{name}_non-block")
        found.append(Cell(f"compared {name}", where, 0.6, 20.0, tuple(NP_EDF), feeds))
    if config.jitter_load:
        feeds = ("jitter_cut",)
        found.append(Cell("jitter", "symm", 0.7, config.jitter_load, tuple(NP_EDF), feeds))
    for fidelity in config.budget_fidelities:
        feeds = ("budget_throughput", "budget_response")
        found.append(Cell("budget", "line", fidelity, TOP_LOAD, tuple(BUDGETED), feeds))
    if config.optimum_load:
        found.append(Cell("optimum", "symm", 0.6, config.optimum_load, tuple(NP_EDF)))
    for fidelity in config.replay_fidelities:
        found.append(Cell("replay", "star", fidelity, TOP_LOAD, ("non-block",)))
    if surfnet:
        for fidelity in config.surfnet_fidelities:
            for load in config.surfnet_loads:
                feeds = ("gain_surfnet",) if load == max(config.surfnet_loads) else ()
                where = "star" if config.one_centre else "surfnet"
                found.append(
                    Cell("surfnet", where, 0.6 if config.one_centre else fidelity, load, tuple(NP_EDF), feeds)
                )
    return found


def groups(wanted: Iterable[Cell], config: Config, lab: Runtime, networks: dict[str, Network]) -> list[Group]:
    """Cells by topology and fidelity, the long ones first. The same users come whatever the fidelity is."""
    together: dict[tuple[str, float], list[Cell]] = {}
    for cell in wanted:
        together.setdefault((cell.topology, cell.fidelity), []).append(cell)
    ordered = sorted(together.items(), key=lambda item: -sum(c.load * len(c.schedulers) for c in item[1]))
    made = []
    for (name, _), own in ordered:
        rngs = [(seed, lab.rng(seed, cell.part, name, str(cell.load))) for cell in own for seed in lab.seeds]
        made.append(Group(tuple(own), networks[name], config, tuple(rngs)))
    return made


def run_group(group: Group) -> list[Observation]:
    """Every cell of a group, every seed."""
    rows: list[Observation] = []
    seeds = len(group.rngs) // len(group.cells)
    for i, cell in enumerate(group.cells):
        for seed, rng in group.rngs[i * seeds : (i + 1) * seeds]:
            rows += run_cell(cell, group.network, group.config, seed, rng)
    return rows


def run_cell(
    cell: Cell, network: Network, config: Config, seed: int, rng: np.random.Generator
) -> list[Observation]:
    """The rows of one task set."""
    if cell.part == "replay":
        return replay(cell, network, config, seed, rng)
    exponents = (7,) if config.equal_periods else EXPONENTS
    demands = draw_demands(network, cell.fidelity, cell.load, rng, Timing(), exponents)
    if cell.part == "optimum":
        demands = demands[:6]
    tasks = made(demands, network, config)
    seen = Observations()
    place: Place = {
        "part": cell.part,
        "topology": cell.topology,
        "fidelity": cell.fidelity,
        "load": cell.load,
    }
    seen.add("offered", sum(demand.rate for demand in demands), seed, **place)
    if cell.part == "jitter":
        for name, schedule in on_one_set(tasks, cell.schedulers).items():
            measure(schedule, seen, seed, scheduler=name, **place)
    elif cell.part == "budget":
        for budget in config.budgets:
            tasks = made(demands, network, config, budget)
            for name in cell.schedulers:
                schedule = admit(tasks, ALL[name])
                measure(schedule, seen, seed, scheduler=name, budget=budget, **place)
    else:
        for name in cell.schedulers:
            measure(admit(tasks, ALL[name]), seen, seed, scheduler=name, **place)
    if cell.part == "optimum":
        from common.scheduling.periodic_optimum import optimum

        for name, block in (("optimum, block", True), ("optimum", False)):
            best = optimum(tasks, block)
            measure(best.schedule, seen, seed, scheduler=name, **place)
            seen.add("proven", best.proven, seed, scheduler=name, **place)
    return list(seen)


def made(demands: list[Demand], network: Network, config: Config, budget: int = 0) -> list[Task]:
    """The tasks of demands, with this configuration's switches."""
    return tasks_of(demands, network, Timing(), budget, config.locks, config.private_qubits)


def replay(
    cell: Cell, network: Network, config: Config, seed: int, rng: np.random.Generator
) -> list[Observation]:
    """The same offered load with link generations that are reserved for longer, and what then comes out."""
    seen = Observations()
    state = rng.bit_generator.state
    for covers in config.covers:
        rng.bit_generator.state = state  # the same stream of users for each
        timing = Timing(covers=covers)
        demands = draw_demands(network, cell.fidelity, cell.load, rng, timing)
        tasks = tasks_of(demands, network, timing, 0, config.locks, config.private_qubits)
        schedule = admit(tasks, ALL[cell.schedulers[0]])
        place: Place = {
            "part": cell.part,
            "topology": cell.topology,
            "fidelity": cell.fidelity,
            "covers": covers,
        }
        measure(schedule, seen, seed, scheduler=cell.schedulers[0], **place)
        by_name = {task.name: demand for task, demand in zip(tasks, demands, strict=True)}
        after = rng.bit_generator.state
        for distilling in (False, True):
            rng.bit_generator.state = after  # the same attempts, so that only distillation makes a difference
            rate = delivered_rate(schedule, by_name, timing, config.turns, rng, distilling)
            seen.add("delivered", rate, seed, distilling=int(distilling), **place)
    return list(seen)


def derive(config: Config, lab: Runtime, seen: Observations) -> None:
    """The one value a seed that each claim reads, from the rows of the schedules."""
    low, high = min(config.loads, default=0.0), max(config.loads, default=0.0)
    for seed in lab.seeds:
        if lab.wants("violations"):
            seen.add("violations", sum(seen.values("schedule_violations", seed=seed)), seed)
        if config.star_fidelities and lab.wants("tradeoff", *saturated(config)):
            at: Place = {"seed": seed, "part": "saturated", "scheduler": "non-block"}
            rates = [mean(seen, "throughput", fidelity=f, **at) for f in config.star_fidelities]
            for metric, rate in zip(saturated(config), rates, strict=True):
                seen.add(metric, rate, seed)
            if len(rates) > 1:
                drops = [1 - b / a if a else 0.0 for a, b in pairwise(rates)]
                seen.add("tradeoff", min(drops), seed)
        if lab.wants("share_kept") and len(config.fidelities) > 1:
            ends = config.fidelities[0], config.fidelities[-1]
            shares = []
            for name in config.topologies:
                at = {"seed": seed, "part": "grid", "topology": name, "load": high, "scheduler": "non-block"}
                most, least = (mean(seen, "throughput", fidelity=f, **at) for f in ends)
                shares.append(least / most if most else 1.0)
            seen.add("share_kept", float(np.mean(shares)), seed)
        if lab.wants("saturation") and config.topologies and config.fidelities:
            seen.add("saturation", carried(seen, seed, low) - carried(seen, seed, high), seed)
        for name in config.compared:
            for scheduler in ("block", "non-block"):
                if lab.wants(f"gain_{name}_{scheduler}"):
                    part = f"compared {name}"
                    seen.add(f"gain_{name}_{scheduler}", gain(seen, seed, scheduler, part=part), seed)
        if lab.wants("gain_surfnet") and seen.rows("throughput", part="surfnet"):
            load = max(config.surfnet_loads)
            seen.add("gain_surfnet", gain(seen, seed, "block", part="surfnet", load=load), seed)
        if lab.wants("jitter_cut") and config.jitter_load:
            at = {"seed": seed, "part": "jitter"}
            uni, fine = (mean(seen, "jitter", scheduler=name, **at) for name in ("uni", "non-block"))
            seen.add("jitter_cut", uni - fine, seed)
        if config.budget_fidelities:
            at = {"seed": seed, "part": "budget", "scheduler": "budget, segment"}
            for metric in ("throughput", "response"):
                if lab.wants(f"budget_{metric}"):
                    least, most = (
                        mean(seen, metric, budget=k, **at) for k in (min(config.budgets), max(config.budgets))
                    )
                    seen.add(f"budget_{metric}", most / least, seed)


def saturated(config: Config) -> list[str]:
    return [f"saturated_star_{fidelity}" for fidelity in config.star_fidelities]
