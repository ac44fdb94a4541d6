"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes switches; profiles change sizes."""

    # switches
    locks: bool = True  # False: schedulers don't reserve qubits that only store a half
    perfect_links: bool = False  # True: every link makes a perfect pair in one slot
    storage: int = 3  # storage qubits a node
    communication: int = 1  # communication qubits a node
    one_centre: bool = (
        False  # True: schedulers are compared on the star, whose users share one communication qubit
    )
    equal_periods: bool = False  # True: all demands have a period of 128 slots
    private_qubits: bool = False  # True: every demand has qubits of its own
    budgets: list[int] = field(default_factory=lambda: [0, 1, 10, 100])  # slots of pause in a run
    # sizes: the grid
    topologies: list[str] = field(default_factory=lambda: ["star", "H", "line", "symm"])
    fidelities: list[float] = field(default_factory=lambda: [0.55, 0.65, 0.75, 0.85])
    loads: list[float] = field(default_factory=lambda: [1.0, 5.0, 10.0, 20.0, 40.0])  # ebit/s
    others: list[str] = field(default_factory=lambda: ["star", "symm"])  # where CEDF and FCFS run as well
    # sizes: the parts that single claims read
    protocol_fidelities: list[float] = field(default_factory=lambda: [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85])
    star_fidelities: list[float] = field(default_factory=lambda: [0.6, 0.7, 0.75, 0.8])
    compared: list[str] = field(
        default_factory=lambda: ["symm", "line", "star"]
    )  # schedulers at F 0.6, load 20
    jitter_load: float = 2.0  # at F 0.7; 0 leaves it out
    budget_fidelities: list[float] = field(default_factory=lambda: [0.55, 0.75])  # on the line
    optimum_load: float = 10.0  # symm, F 0.6, the first six demands; 0 leaves it out
    replay_fidelities: list[float] = field(default_factory=lambda: [0.75, 0.8])  # on the star
    covers: list[float] = field(default_factory=lambda: [0.0, 0.8, 0.9, 0.95, 0.99])  # of the replay
    turns: int = 50  # hyperperiods of the replay
    surfnet_fidelities: list[float] = field(default_factory=lambda: [0.98, 0.99])
    surfnet_loads: list[float] = field(default_factory=lambda: [20.0, 100.0])
