"""Energy of a layer by level: multiply-accumulates, register files, links between elements, global buffer, DRAM.

Which words move between the levels depends on how the loops over input maps, output maps and folds are blocked.
`blocked` tries every blocking in two levels (buffer and register files) and every innermost loop, and takes the one
that costs least, as nn-dataflow does (Gao et al., ASPLOS 2017). A mapper that minimises energy, nn-dataflow's default
goal, may take a mapping with *more* passes than the fastest: `cheapest` does that.

Costs are per word of 16 bits, in units of one multiply-accumulate unless said otherwise.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.accelerator.layers import Layer
from common.accelerator.row_stationary import Array, Mapping, Run, splits


@dataclass(frozen=True)
class Costs:
    """Energy of one multiply-accumulate, and of one word read or written at a level."""

    mac: float
    dram: float
    buffer: float
    link: float
    register: float


# Normalised to a multiply-accumulate, 65 nm (Chen, Emer, Sze, ISCA 2016, Table IV); also the costs of DRACO's script.
EYERISS = Costs(mac=1.0, dram=200.0, buffer=6.0, link=2.0, register=1.0)
# pJ, as DRACO's script gives them for its power table (shreyas1998/nn_dataflow, test_draco.py, test_eyeriss_isscc16).
PICOJOULES = Costs(mac=2.0, dram=460.0, buffer=15.0, link=4.0, register=1.0)


@dataclass(frozen=True)
class Memory:
    """Words that fit into the global buffer, and into the register file of one element."""

    buffer_words: int = 2 << 20  # 4 MB: on 64 x 64 elements several layers find no blocking in 256 KB
    register_words: int = 256  # 512 bytes, as in DRACO's script


@dataclass(frozen=True)
class Energy:
    """What a layer or network costs, by level; `total` is their sum."""

    mac: float
    register: float
    link: float
    buffer: float
    dram: float

    @property
    def total(self) -> float:
        return self.mac + self.register + self.link + self.buffer + self.dram

    def __add__(self, other: "Energy") -> "Energy":
        return Energy(
            self.mac + other.mac,
            self.register + other.register,
            self.link + other.link,
            self.buffer + other.buffer,
            self.dram + other.dram,
        )


# Three loops drive a layer: over input maps (0), output maps (1), and folds of a map (2). Filters, input maps and
# output maps each depend on two of them; the third is the one over which the data can be kept.
LOOPS = {"filter": ((0, 1), 2), "input": ((0, 2), 1), "output": ((1, 2), 0)}


def blocked(
    mapping: Mapping, costs: Costs = EYERISS, memory: Memory | None = None, multicast: bool = False
) -> Energy | None:
    """The least energy of a mapping over all blockings of its loops; None where nothing fits into the memories.

    Words that a level holds: every tile of the data below it. Words that it fetches: all its data once, times the loop
    that does not index the data, as far as that loop lies outside the innermost loop that does. Partial sums are
    fetched and written back each time but the first. Replicas share what a pass holds in the buffer.

    multicast: count a word that goes to several replicas once on its way, as nn-dataflow 2.1; by default once for each
    replica, as 2.0 and DRACO's simulator. ValueError for groups side by side, whose data this does not follow.
    """
    if mapping.groups > 1:
        raise ValueError(f"layer {mapping.layer.name}: energy is modelled for one group at a time")
    memory = memory or Memory()
    passes, words = _passes(mapping), _words(mapping, multicast)
    splits = [
        np.array(_triples(count)) for count in passes
    ]  # each (n, 3): outside the buffer, outside registers, inside
    grid = np.array(list(itertools.product(*(range(len(split)) for split in splits))))
    t = np.stack(
        [split[grid[:, loop]] for loop, split in enumerate(splits)], axis=1
    )  # (blockings, 3 loops, 3 levels)
    held = np.zeros((2, len(t)))
    for data, (indexed, _) in LOOPS.items():
        inside = t[:, indexed, 2].prod(axis=1)
        held[1] += inside * words[data].register
        held[0] += inside * t[:, indexed, 1].prod(axis=1) * words[data].buffer_held
    fits = (held[0] <= memory.buffer_words) & (held[1] <= memory.register_words)
    if not fits.any():
        return None
    t = t[fits]
    best, least = None, np.inf
    for outer, inner in itertools.product(range(3), repeat=2):  # the innermost loop of each level
        moved = {level: np.zeros(len(t)) for level in ("link", "buffer", "dram")}
        for data, (indexed, kept) in LOOPS.items():
            whole = np.prod([passes[loop] for loop in indexed])
            again = np.where(t[:, indexed, 0].prod(axis=1) > 1, 1 if outer == kept else t[:, kept, 0], 1)
            within = t[:, kept, 0] * (1 if inner == kept else t[:, kept, 1])
            closer = np.where(t[:, indexed, 1].prod(axis=1) > 1, within, again)
            if data == "output":
                again, closer = 2 * again - 1, 2 * closer - 1
            moved["dram"] = moved["dram"] + whole * words[data].dram * again
            moved["buffer"] = moved["buffer"] + whole * words[data].buffer * closer
            moved["link"] = moved["link"] + whole * words[data].link * closer
        cost = costs.dram * moved["dram"] + costs.buffer * moved["buffer"] + costs.link * moved["link"]
        at = int(np.argmin(cost))
        if cost[at] < least:
            least = float(cost[at])
            best = {level: float(amount[at]) for level, amount in moved.items()}
    assert best is not None
    macs = mapping.layer.macs
    return Energy(
        costs.mac * macs,
        costs.register * 4 * macs,  # weight, input, and the partial sum read and written
        costs.link * best["link"],
        costs.buffer * best["buffer"],
        costs.dram * best["dram"],
    )


@lru_cache(maxsize=65536)
def cheapest(
    layer: Layer,
    array: Array,
    costs: Costs = EYERISS,
    memory: Memory | None = None,
    multicast: bool = False,
) -> Mapping:
    """The mapping of least energy, as nn-dataflow's default goal finds it; of equal ones the fastest.

    Of the splits of `splits` it sees those that need no more passes than any before them (nn-dataflow's order).
    ValueError where no blocking of any of them fits into the memories. See `blocked`.
    """
    seen: list[tuple[float, int, int, Mapping]] = []
    fewest = None
    for place, mapping in enumerate(splits(layer, array)):
        if fewest is not None and mapping.passes > fewest:
            continue
        fewest = mapping.passes
        energy = blocked(mapping, costs, memory, multicast)
        if energy is not None:  # rounded, so that sums in another order are still equal
            seen.append((float(f"{energy.total:.10g}"), mapping.cycles, place, mapping))
    if not seen:
        raise ValueError(f"layer {layer.name}: no blocking of its loops fits into {memory or Memory()}")
    return min(seen)[3]


def cheapest_run(
    layers: Sequence[Layer], array: Array, costs: Costs = EYERISS, memory: Memory | None = None
) -> Run:
    """Every layer by its cheapest mapping. ValueError for no layers, or where one fits nowhere."""
    if not layers:
        raise ValueError("a network has at least one layer")
    return Run(tuple(cheapest(layer, array, costs, memory) for layer in layers))


@dataclass(frozen=True)
class _Words:
    """Words of one step of the loops: moved at each level, and held in the buffer and in one element's registers."""

    dram: float
    buffer: float
    link: float
    buffer_held: float
    register: float


def _passes(mapping: Mapping) -> tuple[int, int, int]:
    """Steps of the loops over input maps, output maps, and folds of a map."""
    return (mapping.input_steps, mapping.output_steps, mapping.folding.fold_columns)


def _words(mapping: Mapping, multicast: bool) -> dict[str, _Words]:
    """What one step moves and holds; of the last, partly empty steps only their share (nn-dataflow's occupancy)."""
    layer, folding = mapping.layer, mapping.folding
    inputs, outputs, folds = _passes(mapping)
    full = {
        "input": layer.group_size / (mapping.inputs * inputs),
        "output": layer.outputs / (mapping.outputs * outputs),
    }
    rows = layer.out_rows / folding.fold_columns  # output rows of a fold, a mean
    most = -(-layer.out_rows // folding.fold_columns)
    elements = -(-layer.filter_rows // folding.fold_rows) * most
    replicas = mapping.inputs * mapping.outputs
    held = {"filter": replicas, "input": mapping.inputs, "output": mapping.outputs}
    shares = {"filter": full["input"] * full["output"], "input": full["input"], "output": full["output"]}
    copies = {data: held[data] * shares[data] for data in LOOPS}

    def in_words(out_rows: float) -> float:
        return (layer.filter_rows + (out_rows - 1) * layer.stride) * layer.in_columns

    once = {
        "filter": float(layer.filter_rows * layer.filter_columns),
        "input": in_words(rows) * layer.groups,
        "output": rows * layer.out_columns,
    }
    largest = {
        "filter": float(layer.filter_rows * layer.filter_columns),
        "input": in_words(most),
        "output": most * layer.out_columns,
    }
    row = {"filter": layer.filter_columns, "input": layer.in_columns, "output": layer.out_columns}
    register = {"filter": layer.filter_columns, "input": layer.filter_columns, "output": 1}
    return {
        data: _Words(
            dram=once[data] * copies[data],
            buffer=once[data] * copies[data] * (1 if data == "filter" else folding.fold_rows),
            link=row[data]
            * elements
            * folding.fold_rows
            * (copies[data] if multicast else replicas * shares[data]),
            buffer_held=largest[data] * held[data],
            register=register[data],
        )
        for data in LOOPS
    }


@lru_cache(maxsize=4096)
def _triples(count: int) -> tuple[tuple[int, int, int], ...]:
    """All ways to write a count as a product of three."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return tuple((a, b, count // a // b) for a in divisors for b in divisors if count % (a * b) == 0)
