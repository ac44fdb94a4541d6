"""What the experiment can be told: switches of the method, and sizes. A control changes one switch."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

JUDGED = ("trainer", "node", "mid-snapshot", "torn version", "damaged parity")  # scenarios that claims read
OTHERS = ("two nodes", "snapshot process")  # of the fault matrix alone


@dataclass(frozen=True)
class Config:
    """Sizes and switches; the profiles change the sizes."""

    # The method, and what of it is switched off.
    sharding: bool = True  # False: every data rank copies the whole state
    parity: bool = True  # False: no erasure coding
    double: bool = True  # False: one buffer, overwritten by the next snapshot
    sums: bool = True  # False: stored bytes are trusted
    consistent: bool = True  # False: every group goes on from its own last version
    inside: bool = False  # True: snapshot processes end with the trainers
    persist: bool = False  # True: a snapshot counts when it is on disk too
    cleared: bool = False  # True: snapshot processes have lost their memory before it is loaded
    synchronous: bool = False  # True: training waits for every copy
    # Which GPUs make a sharding group in simulated histories: of the same m nodes, or any (`random`, a draw a seed).
    placement: Annotated[str, Choice("nodes", "random")] = "nodes"

    # The trained decoder.
    hidden: Annotated[int, Choice(32, 64, 128, 256)] = 64
    layers: Annotated[int, Choice(2, 4, 8)] = 2  # over at most two pipeline stages
    context: Annotated[int, At(8, 256)] = 32
    rows: Annotated[int, Choice(12, 24, 48)] = 12  # of a batch, over all data ranks
    dropout: Annotated[float, At(0, 0.5)] = 0.1
    # Data ranks of jobs whose copied bytes are counted; the largest also with two stages.
    counted: Annotated[list[int], Length(1), Choice(2, 3, 4, 6, 8)] = field(default_factory=lambda: [2, 3, 4])

    # The fault matrix; scenarios that no claim reads run with the first seed alone.
    scenarios: Annotated[list[str], Length(0), Choice(*JUDGED, *OTHERS)] = field(
        default_factory=lambda: [*JUDGED, *OTHERS]
    )
    struck: Annotated[int, At(1, 20)] = 3  # seeds with which blows fall: recovery is exact or it is not
    group: Annotated[int, Choice(2, 3, 4, 6, 8)] = 4  # data ranks of the scenarios with one stage
    every: Annotated[int, At(1, 10)] = 2  # steps between snapshots

    # Saving and loading one state; nodes have a copy engine, a network card and storage of stated rates (bytes/s).
    # `state_bytes` really pass, through devices `slower` times below these rates: this machine's own work then hardly
    # shows, and the seconds are those of state_bytes * slower at the rates themselves.
    state_bytes: Annotated[int, At(1 << 20, 4 << 30)] = 4 << 20
    peers: Annotated[int, Choice(2, 3, 4, 6, 8)] = 4
    devices: Annotated[str, Choice("throttled", "unlimited")] = "throttled"
    copy: Annotated[float, Inferred(6e9, 55e9, "PCIe 3 x16, to the H100 host's PCIe 5")] = 12e9
    network: Annotated[float, Inferred(1.25e9, 25e9, "10 Gbit Ethernet to HDR InfiniBand")] = 3e9
    disk: Annotated[float, Inferred(0.2e9, 1.25e9, "shared storage, to the H100 host's own disk")] = 0.3e9
    slower: Annotated[float, At(1, 1000)] = 50.0
    # A step's share of the time in which one disk takes a whole state: 29 GB of 175 billion parameters on 384 nodes in
    # 97 s, beside steps of 5 to 40 s.
    step_share: Annotated[float, Inferred(0.05, 0.4, "steps of 5 to 40 s at scale")] = 0.1
    budget: Annotated[float, At(0.001, 0.5)] = 0.02  # share of the time that stalls may take

    # What updates wait for.
    step_hidden: Annotated[int, Choice(32, 64, 128, 256, 512)] = 128  # of its decoder: longer steps
    # Steps between snapshots that the figure shows beside the judged one, in which a snapshot just fits.
    intervals: Annotated[list[int], Length(0), At(1, 20)] = field(default_factory=lambda: [1, 2, 10])

    # Survival, and work redone.
    nodes: Annotated[int, Choice(96, 192, 384, 768)] = 384  # 3,072 GPUs
    groups: Annotated[list[int], Length(1), Choice(2, 4, 8, 16)] = field(default_factory=lambda: [4, 8, 16])
    rack: Annotated[int, Choice(1, 2)] = 1  # nodes of one group that fail together
    histories: Annotated[int, At(100, 200_000)] = 20_000
    train_hours: Annotated[float, At(500, 1e6)] = 26_000.0  # simulated


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if config.placement == "random" and config.rack > 1:
        raise ValueError("rack: means nothing with placement=random, where GPUs are anywhere; leave it at 1")
    for name, ranks in (("group", [config.group]), ("peers", [config.peers]), ("counted", config.counted)):
        if bad := [one for one in ranks if config.rows % one]:
            raise ValueError(
                f"rows: {config.rows} can't be shared by {bad[0]} data ranks ({name}); take 24 or 48"
            )
