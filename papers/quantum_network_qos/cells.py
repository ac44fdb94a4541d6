"""What is scheduled: cells of a topology, a fidelity and an offered load, each under some schedulers."""

from dataclasses import dataclass

from papers.quantum_network_qos.config import Config
from papers.quantum_network_qos.measures import BUDGETED, NP_EDF, OTHERS

TOP_LOAD = 40.0  # ebit/s: far beyond what the small networks can carry


@dataclass(frozen=True)
class Cell:
    """Task sets of one topology, fidelity and load under some schedulers, or another part of the experiment on them."""

    part: str
    topology: str
    fidelity: float
    load: float
    schedulers: tuple[str, ...] = ()
    feeds: tuple[str, ...] = ()  # metrics of claims, beside `violations`


def cells(config: Config, surfnet: bool) -> list[Cell]:
    """All that is scheduled, each (part, topology, fidelity, load) once."""
    found = []
    low, high = min(config.loads), max(config.loads)
    for name in config.topologies:
        for fidelity in config.fidelities:
            for load in config.loads:
                feeds: tuple[str, ...] = ("share_kept",) if load == high else ()
                feeds += ("saturation",) if load in (low, high) else ()
                names = tuple(NP_EDF) + (tuple(OTHERS) if name in config.others else ())
                found.append(Cell("grid", name, fidelity, load, names, feeds))
    for fidelity in config.star_fidelities:
        feeds = ("tradeoff", "fidelity_cost_saturated")
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
