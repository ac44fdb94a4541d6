"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

JUDGED = ("trainer", "node", "mid-snapshot", "torn version", "damaged parity")  # scenarios that claims read
OTHERS = ("two nodes", "damaged block", "snapshot process", "two groups")  # of the fault matrix alone


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    sharding: bool = True  # False: every data rank copies the whole state
    parity: bool = True  # False: no erasure coding
    double: bool = True  # False: one buffer, overwritten by the next snapshot
    sums: bool = True  # False: stored bytes are trusted
    consistent: bool = True  # False: every group goes on from its own last version
    inside: bool = False  # True: snapshot processes are threads of the trainers
    persist: bool = False  # True: a snapshot counts when it is on disk too
    free_copies: bool = False  # True: devices without limit
    cleared: bool = False  # True: snapshot processes have lost their memory before it is loaded
    synchronous: bool = False  # True: training waits for every snapshot
    rack: int = 1  # nodes of one group that fail together
    # the trained decoder
    hidden: int = 64
    layers: int = 2
    context: int = 32
    rows: int = 12  # of a batch, over all data ranks
    dropout: float = 0.1
    # snapshots whose bytes are counted: data degree, pipeline stages
    counted: list[list[int]] = field(default_factory=lambda: [[3, 1], [4, 1], [2, 2]])
    # the fault matrix
    scenarios: list[str] = field(
        default_factory=lambda: [*JUDGED, *OTHERS]
    )  # the others with the first seed alone
    group: int = 4  # data ranks of the scenarios with one stage
    every: int = 2  # steps between snapshots
    # saving and loading one state on devices
    state_bytes: int = 32 << 20
    peers: int = 4
    copy: float = 12e9  # bytes/s of a node's copy engine, network card and storage: the brief's
    network: float = 3e9
    disk: float = 0.3e9
    slower: float = 40.0  # all of them, so that this machine's own work does not show
    step_seconds: float = 0.5  # of training beside which copies go, on such devices
    budget: float = 0.02  # share of the time that stalls may take
    # overhead of snapshots
    step_hidden: int = 128  # of its decoder, whose steps last longer
    intervals: list[int] = field(default_factory=lambda: [1, 2, 5, 10])
    judged_interval: int = 5
    stretch: int = 10  # steps between two looks at the clock
    rounds: int = 1
    # survival and interval
    nodes: int = 384  # 3,072 GPUs
    groups: list[int] = field(default_factory=lambda: [4, 8, 16])
    histories: int = 20000
    simulate: bool = True
    processes: bool = True
    train_hours: float = 26000.0  # simulated, for work redone
    # on a GPU; 0 bytes: nothing
    gpu_shard_bytes: int = 0
    gpu_size: int = 8192
    gpu_products: int = 130
    gpu_bucket: int = 32 << 20
    gpu_rounds: int = 20
