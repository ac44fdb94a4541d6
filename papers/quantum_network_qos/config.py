"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Length

SMALL = ("star", "H", "line", "symm")


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change sizes."""

    # Switches.
    locks: bool = True  # False: schedulers don't reserve qubits that only store a half
    # Of equal qubits a task gets the most loaded ones (the authors' code) or the least loaded ones.
    assignment: Annotated[str, Choice("most", "least")] = "most"
    perfect_links: bool = False  # True: every link makes a perfect pair in one slot
    # "asked": a demand's own; "random": star_fidelities are dealt out to the saturated cells anew for each seed.
    fidelity: Annotated[str, Choice("asked", "random")] = "asked"
    order: Annotated[str, Choice("deadline", "random")] = "deadline"  # of ready instances, on many resources
    storage: Annotated[int, At(0, 16)] = 3  # storage qubits a node
    communication: Annotated[int, At(1, 16)] = 1  # communication qubits a node
    one_centre: bool = False  # True: schedulers are compared on the star, whose users share the centre
    equal_periods: bool = False  # True: all demands have a period of 128 slots
    private_qubits: bool = False  # True: every demand has qubits of its own
    budgets: Annotated[list[int], Length(1), At(0, 10_000)] = field(
        default_factory=lambda: [0, 1, 10, 100]
    )  # slots of pause in a run
    # Sizes: the grid.
    topologies: Annotated[list[str], Length(1), Choice(*SMALL)] = field(default_factory=lambda: list(SMALL))
    fidelities: Annotated[list[float], Length(2), At(0.5, 0.95)] = field(
        default_factory=lambda: [0.55, 0.65, 0.75, 0.85]
    )
    loads: Annotated[list[float], Length(2), At(0.2, 200)] = field(
        default_factory=lambda: [1.0, 5.0, 10.0, 20.0, 40.0]
    )  # ebit/s
    others: Annotated[list[str], Choice(*SMALL)] = field(
        default_factory=lambda: ["star", "symm"]
    )  # where CEDF and FCFS run as well
    # Sizes: the parts that single claims read.
    protocol_fidelities: Annotated[list[float], Length(2), At(0.5, 0.95)] = field(
        default_factory=lambda: [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85]
    )
    star_fidelities: Annotated[list[float], Length(2), At(0.5, 0.95)] = field(
        default_factory=lambda: [0.6, 0.7, 0.75, 0.8]
    )
    compared: Annotated[list[str], Length(1), Choice("symm", "line", "star")] = field(
        default_factory=lambda: ["symm", "line", "star"]
    )  # schedulers at F 0.6, load 20
    jitter_load: Annotated[float, At(0, 100)] = 2.0  # at F 0.7; 0 leaves it out
    budget_fidelities: Annotated[list[float], At(0.5, 0.95)] = field(
        default_factory=lambda: [0.55, 0.75]
    )  # on the line
    optimum_load: Annotated[float, At(0, 100)] = 10.0  # symm, F 0.6, the first six demands; 0 leaves it out
    replay_fidelities: Annotated[list[float], At(0.5, 0.95)] = field(
        default_factory=lambda: [0.75, 0.8]
    )  # on the star
    covers: Annotated[list[float], Length(1), At(0, 0.9999)] = field(
        default_factory=lambda: [0.0, 0.8, 0.9, 0.95, 0.99]
    )  # of the replay
    turns: Annotated[int, At(1, 100_000)] = 50  # hyperperiods of the replay
    surfnet_fidelities: Annotated[list[float], At(0.5, 0.998)] = field(default_factory=lambda: [0.98, 0.99])
    surfnet_loads: Annotated[list[float], Length(1), At(1, 1000)] = field(
        default_factory=lambda: [20.0, 100.0]
    )


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    for name in ("fidelities", "loads", "star_fidelities", "protocol_fidelities", "budgets"):
        values = getattr(config, name)
        if list(values) != sorted(values):
            raise ValueError(f"{name}: {values} do not ascend")
