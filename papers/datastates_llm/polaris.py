"""The paper's machine and models: what the simulation takes from the paper, and what from measurements.

From the paper: nodes, bytes and phases of each model (Table 1, Figures 3 and 4), copies and memory of Polaris (Section
6.1, 6.3). Measured for this project on an H100's host (h100_checkpoint.csv, the copy table of common/hardware):
torch.save, pinning, pageable copies. What a node gets of the file system is not known; it is swept.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.hardware.copies import COPIES
from common.hardware.operators import read_table
from papers.datastates_llm.cluster import Phases, Rank

GPUS = 4  # a node
COPY = 25e9  # bytes/s of a pinned copy to the host, each GPU (Section 6.1)
FILE_SYSTEM = 650e9  # bytes/s of all nodes together (Section 6.1)
HOST_MEMORY = 64e9 / GPUS  # bytes for checkpoints a GPU (Section 6.3)
WEIGHTS = 2 / 14  # of a checkpoint that ZeRO-1 does not split over replicas
H100 = Path(__file__).parent / "h100_checkpoint.csv"


@dataclass(frozen=True)
class Model:
    """A model of Table 1: its nodes at one replica, bytes of a checkpoint, and the phases of an iteration."""

    nodes: int
    checkpoint_bytes: float
    phases: Phases
    layers: int

    @property
    def tensors(self) -> int:
        """That a GPU enqueues: twelve a layer of its stage, and the optimiser's three flat ones."""
        return 12 * -(-self.layers // self.nodes) + 3


MODELS = {
    "3B": Model(1, 45e9, Phases(0.81 + 0.79, 0.10), 30),
    "7B": Model(2, 83e9, Phases(1.26 + 1.82, 0.12), 32),
    "13B": Model(4, 166e9, Phases(1.85 + 3.56, 0.09), 40),
    "30B": Model(8, 444e9, Phases(3.72 + 8.58, 0.11), 60),
    "70B": Model(20, 1065e9, Phases(6.71 + 16.82, 0.07), 80),
}


def measured_seconds() -> tuple[float, dict[str, float]]:
    """Bytes of the state on one H100 (2026-11-23), and seconds of each step by name."""
    rows = read_table(H100)
    return float(rows[0]["bytes"]), {row["step"]: float(row["seconds"]) for row in rows}


@cache
def host_rates() -> dict[str, float]:
    """Bytes/s of one rank: `serialise` (torch.save without its write, pageable copy included), `pin`, `pageable`."""
    nbytes, seconds = measured_seconds()
    pageable = [row for row in read_table(COPIES) if row["kind"] == "pageable" and row["direction"] == "d2h"]
    largest = max(pageable, key=lambda row: int(row["bytes"]))
    return {
        "serialise": nbytes / (seconds["torch.save_sync"] - seconds["write_fsync"]),
        "pin": nbytes / seconds["pin_alloc"],
        "pageable": float(largest["bytes"]) / float(largest["seconds"]),
    }


def ranks(
    model: Model,
    share: float,
    replicas: int = 1,
    through_rank_zero: bool = False,
    enqueue_seconds: float = 20e-6,
) -> tuple[Rank, ...]:
    """The kinds of rank there are: of the first replica, which writes the weights, and of the others.

    share: bytes/s that a node gets of the file system, at most its part of the whole. ValueError for no replica.
    through_rank_zero: one rank writes everything, with its node's share for itself.
    """
    if replicas < 1 or not 0 < share < float("inf"):
        raise ValueError(f"a replica and a rate at least, not {replicas} and {share} bytes/s")
    nodes = model.nodes * replicas
    node_rate = min(share, FILE_SYSTEM / nodes)
    rates = host_rates()

    def rank(nbytes: float, storage: float) -> Rank:
        return Rank(
            nbytes=nbytes, copy=COPY, pageable=min(COPY, rates["pageable"]), pin=rates["pin"],
            serialise=rates["serialise"], storage=storage, buffer=HOST_MEMORY, enqueue=enqueue_seconds * model.tensors,
        )  # fmt: skip

    if through_rank_zero:
        return (rank(model.checkpoint_bytes, min(share, FILE_SYSTEM)),)
    each = model.checkpoint_bytes / (model.nodes * GPUS)
    split = (1 - WEIGHTS) * each / replicas
    first = rank(WEIGHTS * each + split, node_rate / GPUS)
    return (first,) if replicas == 1 else (first, rank(split, node_rate / GPUS))
