"""Minutes of saving, conversion and loading at 7B to 1T: bytes over rates, and the worker that ends last.

A process that moves bytes needs its share of the node's storage for them and its own core to pack or unpack them:

    seconds = bytes of the busiest node / rate of a node + bytes of the busiest process / rate of a process

The conversion is the authors' (ds_to_universal.py): Extract reads all and writes fragments, Union reads those and
writes whole parameters. Parameters go to processes as `nested` gives them out, so that one large tensor shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from papers.universal_checkpointing.conversion import NESTED, Sharing, nested

GPUS = 8  # of a node, each with a process that saves and loads
SAVED = 14  # bytes of a parameter: fp32 and two moments, and the working copy in 16 bits beside them
ATOMIC = 12  # of these the conversion keeps fp32 and the moments


@dataclass(frozen=True)
class Hosts:
    """What nodes can do: bytes/s of a node's storage and of torch.save or torch.load on one core; processes of a node.

    ValueError for what is not positive.
    """

    node: float = 5e9
    process: float = 1e9
    extracting: int = 4  # the defaults of ds_to_universal.py
    merging: int = 2

    def __post_init__(self) -> None:
        if not all(each > 0 for each in (self.node, self.process, self.extracting, self.merging)):
            raise ValueError(f"rates and processes are above 0, not {self}")


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


def evenly(nbytes: float, nodes: int, processes: int, hosts: Hosts) -> float:
    """Minutes in which so many bytes pass, the same number on every process of every node."""
    return (nbytes / nodes / hosts.node + nbytes / nodes / processes / hosts.process) / 60


def merged(work: Mapping[str, int], shares: Sequence[Sequence[Sequence[str]]], hosts: Hosts) -> float:
    """Minutes in which each core of each node reads and writes its parameters, the busiest node and core last."""
    cores = [[2 * ATOMIC * sum(work[name] for name in core) for core in node] for node in shares]
    busiest_node = max(sum(node) for node in cores)
    return (busiest_node / hosts.node + max(max(node) for node in cores) / hosts.process) / 60


def transform(model: Model, hosts: Hosts, sharing: Sharing = NESTED) -> float:
    """Minutes of a conversion on the model's nodes."""
    work = model.parameters()
    nodes = model.nodes if sharing.parallel in ("nested", "nodes") else 1
    extracting = hosts.extracting if sharing.parallel in ("nested", "cores") else 1
    extract = evenly(2 * ATOMIC * sum(work.values()), nodes, extracting, hosts)
    return extract + merged(work, nested(work, model.nodes, hosts.merging, sharing), hosts)


def sequential(model: Model, hosts: Hosts) -> float:
    """Minutes of a conversion by one process on one node."""
    return transform(model, hosts, Sharing(parallel="none"))


def minutes(model: Model, hosts: Hosts, sharing: Sharing = NESTED) -> dict[str, float]:
    """The phases of a reconfiguration (save, transform, load), and their total."""
    elements = sum(model.parameters().values())
    save, load = (evenly(each * elements, model.nodes, GPUS, hosts) for each in (SAVED, ATOMIC))
    found = {"save": save, "transform": transform(model, hosts, sharing), "load": load}
    return {**found, "total": sum(found.values())}
