"""What the claims read: protocols, admitted demands and verified schedules, on the paper's networks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.lab.runtime import Observation, Observations, Runtime
from common.scheduling.periodic import Task, admit
from papers.quantum_network_qos import links, topologies
from papers.quantum_network_qos.cells import Cell, cells
from papers.quantum_network_qos.claimed import derive
from papers.quantum_network_qos.config import SMALL, Config
from papers.quantum_network_qos.demands import EXPONENTS, Demand, draw_demands, tasks_of
from papers.quantum_network_qos.esss import find_protocol
from papers.quantum_network_qos.mapping import Timing
from papers.quantum_network_qos.measures import ALL, Place, measure, on_one_set, scheduler_of
from papers.quantum_network_qos.replay import delivered_rate
from papers.quantum_network_qos.topologies import Network, Qubits

# Fidelities whose fastest protocols a claim compares: the ends of the authors' load simulations.
EASY, HARD = 0.55, 0.85


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
    networks = {
        name: topologies.topology(name, links.PERFECT if config.perfect_links else small, qubits)
        for name in SMALL
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
        if not lab.wants(f"fidelity_cost_{name}"):
            continue
        rates = {}
        for fidelity in dict.fromkeys((*config.protocol_fidelities, EASY, HARD)):
            found = find_protocol(networks[name], "0", "1", fidelity, Timing())
            rates[fidelity] = 0.0 if found is None else 1 / (found.duration * links.SLOT)
            seen.add("fastest_rate", rates[fidelity], topology=name, fidelity=fidelity)
            if found is not None:
                seen.add("fastest_stored_slots", found.stored(), topology=name, fidelity=fidelity)
        if rates[HARD]:
            seen.add(f"fidelity_cost_{name}", rates[EASY] / rates[HARD])


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
    asked = cell.fidelity
    if (
        config.fidelity == "random" and cell.part == "saturated"
    ):  # dealt out anew, the same deal for a seed's cells
        asked = float(rng.permutation(config.star_fidelities)[config.star_fidelities.index(cell.fidelity)])
    demands = draw_demands(network, asked, cell.load, rng, Timing(), exponents)
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
            measure(admit(tasks, scheduler_of(name, config.order, seed)), seen, seed, scheduler=name, **place)
    if cell.part == "optimum":
        from common.scheduling.periodic_optimum import optimum

        for name, block in (("optimum, block", True), ("optimum", False)):
            best = optimum(tasks, block)
            measure(best.schedule, seen, seed, scheduler=name, **place)
            seen.add("proven", best.proven, seed, scheduler=name, **place)
    return list(seen)


def made(demands: list[Demand], network: Network, config: Config, budget: int = 0) -> list[Task]:
    """The tasks of demands, with this configuration's switches."""
    return tasks_of(
        demands, network, Timing(), budget, config.locks, config.private_qubits, config.assignment
    )


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
        tasks = tasks_of(demands, network, timing, 0, config.locks, config.private_qubits, config.assignment)
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
