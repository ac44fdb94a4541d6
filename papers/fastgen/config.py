"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.fastgen.deployments import DEPLOYMENTS
from papers.fastgen.splitfuse import BUDGET


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    system: str = "fastgen"  # what stands for the paper's method: a name of closed_loop.POLICIES
    budget: int = BUDGET  # tokens of a pass
    split: bool = True  # False: prompts are never split, the budget is infinite
    requests: int = 512  # of each closed loop (Section 4.A)
    clients: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 12, 16, 24, 32])  # Section 4.A: 1 to 32
    ablations: list[str] = field(default_factory=lambda: ["orca", "no-fuse", "no-split"])
    budgets: list[int] = field(default_factory=list)  # also tried, for the effective throughput
    models: int = len(DEPLOYMENTS)  # how many of DEPLOYMENTS to try
    knee: bool = True  # False: the deployments' passes take time for their tokens alone
    replicas: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])  # Section 4.E
    replica_requests: int = 192  # for each replica
    slow_replica: bool = False  # one replica is slower than the others
    gain: float = 2.0  # times as much throughput: the slowdown of the rival that would explain it
    live_requests: int = 24  # of each run of the real engine; 0 leaves it out
    pass_tokens: int = 128  # of the real passes in 1, 4 and 16 sequences; 0 leaves out all that is timed
    turns: int = 3  # of each timing
    wrong: float = 0.0  # share of a pass's tokens that ends up in another pass
    measured: bool = True  # False: a made-up throughput that grows with the square of the tokens
