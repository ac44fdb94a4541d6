"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    trained: bool = True  # False: the network as it begins
    shuffled: bool = False  # True: the features of a graph are permuted among its operations
    messages: bool = True  # False: also the graph policy reads its candidates' own features alone
    swap: bool = True  # False: jobs that hold each other's next machines wait for ever
    blocking: bool = True  # False: unlimited buffers
    failures: bool = True  # False: no machine ever shuts down
    replanning: bool = False  # True: decisions are made by solving the rest anew
    # training
    carried: bool = False  # the weights that come with the package, in place of training
    updates: int = 150
    environments: int = 40
    steps: int = 16  # of each environment an update
    rate: float = 2e-3
    jobs: list[int] = field(default_factory=lambda: [6, 10])  # least and most of a random shop
    machines: list[int] = field(default_factory=lambda: [5, 7])
    reward: str = "makespan"
    layers: int = 2
    width: int = 16
    hidden: int = 32
    ablation: bool = True  # also train the policy without messages
    # evaluation
    benchmarks: list[str] = field(
        default_factory=lambda: [
            *("ft06", "ft10", *(f"la{i:02}" for i in range(1, 21))),
            *(f"orb{i:02}" for i in range(1, 6)),
            *("abz5", "abz6"),
        ]
    )
    larger: list[str] = field(
        default_factory=lambda: [f"la{i}" for i in range(26, 31)] + [f"ta{i:02}" for i in range(1, 11)]
    )
    probabilities: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.2])  # of a shutdown
    mode: str = "on take"  # or "any time": a shutdown may come at any tick and pauses what runs
    failure_seeds: int = 3  # for each training seed and probability
    solved: list[str] = field(
        default_factory=lambda: ["ft06", *(f"random-6x6-{i}" for i in range(5)), "la01", "la05"]
    )
    solver_work: float = 10.0  # CP-SAT's deterministic seconds for each of these
    replanned: list[str] = field(default_factory=lambda: ["ft06", "la01", "la02"])
    replanning_work: float = 0.1  # for each of their decisions
    timed: str = "la26"  # 20 jobs on 10 machines
    timed_plans: int = 3  # how often its rest is solved anew, for `plan_seconds` each at most
    plan_seconds: float = 1.0
    library_steps: int = 0  # to train MaskablePPO on a fixed-size view of the same shops; 0 leaves it out
