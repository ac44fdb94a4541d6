"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.datastates_llm.polaris import MODELS, SHARES


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    lazy: bool = True  # False: wait for the copies right after they are enqueued
    stream: bool = True  # False: write nothing before the last tensor is copied
    wait: bool = True  # False: update beside unfinished copies
    commit: bool = True  # False: each rank restarts from its own newest file
    pool: bool = True  # False: allocate and pin host memory for each checkpoint
    never: bool = False  # True: no checkpoint is ever taken
    through_rank_zero: bool = False  # True: one rank writes the file of all
    # timed engines
    hidden: int = 384  # of the decoder whose state is saved
    layers: int = 4
    context: int = 64
    rows: int = 0  # of a batch; 0: as many as make forward and backward take compute_seconds
    compute_seconds: float = 0.25
    copy_rate: float = 0.8e9  # bytes/s of the copy engine; 0: as fast as it goes
    storage_rate: float = 0.16e9  # bytes/s of the storage; 0: as fast as it goes
    steps: int = 7
    intervals: list[int] = field(default_factory=lambda: [1, 3, 6])  # the blocking claims read the second
    # read back, kill and restart
    versions: int = 6
    crash_steps: int = 8  # 0 leaves out the ranks
    killed_at: int = 4  # version
    data: int = 2  # ranks, and how the state is split over them
    tensor: int = 1
    # simulated cluster
    iterations: int = 50  # of a run; 0 leaves the cluster out
    models: list[str] = field(default_factory=lambda: list(MODELS))
    gaps: list[int] = field(
        default_factory=lambda: [1, 2, 5, 10, 20]
    )  # updates from one checkpoint to the next
    shares: list[float] = field(default_factory=lambda: list(SHARES))  # bytes/s of storage a node
    more_shares: list[float] = field(default_factory=lambda: [8e9, 16e9])  # shown, judged by no claim
    replicas: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
