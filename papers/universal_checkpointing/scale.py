"""Seconds of saving, conversion and loading at 7B to 1T: bytes over rates, and the worker that ends last.

A process that moves bytes needs its share of the node's storage for them and its own core to pack or unpack them:

    seconds = bytes of the node / rate of the node + bytes of the slowest process / rate of a process

The conversion is the authors' (ds_to_universal.py): Extract reads all and writes fragments, Union reads those and
writes whole parameters. Parameters go to processes as `nested` gives them out, so that one large tensor shows.
"""

from dataclasses import dataclass

from papers.universal_checkpointing.conversion import Assignment, nested, straggler

NODE = 5e9  # bytes/s of a node's storage (the paper's NVIDIA systems, Section 6; its AMD systems have 3e9)
PROCESS = 1.0e9  # bytes/s of torch.save, and of torch.load, on one core: 0.9 to 1.1 measured (/dev/shm, 64 MB tensors)
EXTRACTING, MERGING = 4, 2  # processes of a node: the defaults of ds_to_universal.py
GPUS = 8  # of a node, each with a process that saves and loads
SAVED, ATOMIC = (
    14,
    12,
)  # bytes of a parameter: fp32 and two moments, and the working copy in 16 bits beside them


@dataclass(frozen=True)
class Model:
    """A decoder's sizes, and the nodes it trains on. experts: of each block's MLP, fused into one matrix."""

    name: str
    nodes: int
    layers: int
    hidden: int
    mlp: int
    vocab: int
    kv: int = 0  # channels of keys, and of values; 0: as of queries
    gated: bool = False
    experts: int = 1

    def parameters(self) -> dict[str, int]:
        """Elements of each; norms and biases, which are some thousandth, left out."""
        h, kv = self.hidden, self.kv or self.hidden
        found = {"embedding": self.vocab * h}
        for i in range(self.layers):
            found[f"{i}.qkv"] = (h + 2 * kv) * h
            found[f"{i}.out"] = h * h
            found[f"{i}.up"] = self.experts * (2 if self.gated else 1) * self.mlp * h
            found[f"{i}.down"] = self.experts * self.mlp * h
        return found


MODELS = (  # nodes: the paper's, Table 3; sizes as published of models with as many parameters
    Model("7b", 4, 32, 4096, 4 * 4096, 50_304),
    Model("13b", 8, 40, 5120, 4 * 5120, 50_304),
    Model("moe_42b", 8, 32, 4096, 6400, 32_064, kv=1024, gated=True, experts=16),  # Phi-3.5-MoE
    Model("176b", 48, 70, 14_336, 4 * 14_336, 250_880),  # BLOOM
    Model("1t", 128, 128, 25_600, 4 * 25_600, 51_200),  # Narayanan et al. 2021, Table 1
)


@dataclass(frozen=True)
class Times:
    """Seconds of each phase."""

    save: float
    transform: float
    load: float

    @property
    def total(self) -> float:
        return self.save + self.transform + self.load


def moved(total: float, nodes: int, processes: int, uneven: float = 1.0, node: float = NODE) -> float:
    """Seconds in which so many bytes pass; uneven: the slowest process's share over the mean share."""
    return total / nodes / node + uneven * total / nodes / processes / PROCESS


def transform(
    model: Model,
    nodes: int,
    extracting: int,
    merging: int,
    assignment: Assignment = "balanced",
    node: float = NODE,
) -> float:
    """Seconds of a conversion by so many processes on each of so many nodes."""
    work = model.parameters()
    state = ATOMIC * sum(work.values())
    shares = [share for one in nested(work, nodes, merging, assignment) for share in one]
    extract = moved(2 * state, nodes, extracting, node=node)
    return extract + moved(2 * state, nodes, merging, straggler(work, shares), node)


def sequential(model: Model, node: float = NODE) -> float:
    """Seconds of a conversion by one process on one node."""
    return transform(model, 1, 1, 1, node=node)


def times(model: Model, parallel: bool = True, node: float = NODE) -> Times:
    """All three phases; parallel False: one process converts."""
    elements = sum(model.parameters().values())
    converted = (
        transform(model, model.nodes, EXTRACTING, MERGING, node=node) if parallel else sequential(model, node)
    )
    return Times(
        moved(SAVED * elements, model.nodes, GPUS, node=node),
        converted,
        moved(ATOMIC * elements, model.nodes, GPUS, node=node),
    )
