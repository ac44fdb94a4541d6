"""Nano-batches: an operator is duplicated over ranges of the batch, and copies depend where their ranges intersect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from papers.nanoflow.cost_model import COMPUTE, MEMORY, NETWORK, Operator

STREAMS = (COMPUTE, MEMORY, NETWORK)
UNIT = 128  # tokens: sizes are multiples of it (Section 4.1.2)


@dataclass(frozen=True)
class NanoOp:
    """An operator on the tokens low <= t < high of the batch; work in microseconds at the whole GPU's speed."""

    operator: str
    stream: str
    low: int
    high: int
    work: float

    @property
    def name(self) -> str:
        return f"{self.operator}[{self.low}:{self.high}]"


@dataclass(frozen=True)
class Dependency:
    """`after` of layer n + lag may start when `before` of layer n has ended; both are places in Layer.ops."""

    before: int
    after: int
    lag: int


@dataclass(frozen=True)
class Layer:
    """The nano-operations of one layer, which repeats for ever, and what they wait for."""

    ops: tuple[NanoOp, ...]
    dependencies: tuple[Dependency, ...]

    @cached_property
    def work(self) -> dict[str, float]:
        """Microseconds of each stream."""
        return {s: sum(op.work for op in self.ops if op.stream == s) for s in STREAMS}

    @property
    def sequential(self) -> float:
        """The period when nothing overlaps: nano-batch-only where the batch is split, else non-overlap."""
        return sum(op.work for op in self.ops)


def split_layer(
    operators: Mapping[str, Operator],
    batch: int,
    cuts: Mapping[str, Sequence[int]],
    *,
    dependent: bool = True,
    multiples: bool = True,
) -> Layer:
    """Duplicate each operator over the ranges between its cuts (tokens inside the batch; none: one range).

    operators: in the order in which they feed one another; the last feeds the first of the next layer. dependent:
    False forgets all dependencies. multiples: whether cuts must be multiples of 128, as in the paper's search; a batch
    that is not full is cut in proportion, and one below two units anywhere. ValueError for other cuts, and for any
    that do not increase inside the batch.
    """
    ops: list[NanoOp] = []
    places: list[list[int]] = []
    for name, operator in operators.items():
        inside = list(cuts.get(name, ()))
        edges = [0, *inside, batch]
        rule = not multiples or batch < 2 * UNIT or all(cut % UNIT == 0 for cut in inside)
        if not rule or any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"cuts {inside} of {name} are no increasing multiples of {UNIT} below {batch}")
        places.append(list(range(len(ops), len(ops) + len(edges) - 1)))
        ops += [
            NanoOp(name, operator.stream, low, high, operator.work(high - low))
            for low, high in zip(edges, edges[1:], strict=False)
        ]
    found = []
    for index, feeders in enumerate(places):
        eaters, lag = (places[index + 1], 0) if index + 1 < len(places) else (places[0], 1)
        for i in feeders:
            for j in eaters:
                if ops[i].low < ops[j].high and ops[j].low < ops[i].high:
                    found.append(Dependency(i, j, lag))
    return Layer(tuple(ops), tuple(found) if dependent else ())


def even_cuts(batch: int, pieces: int) -> tuple[int, ...]:
    """Cuts into nearly equal pieces, in multiples of 128 where the batch has room for that."""
    if not 1 <= pieces <= batch:
        raise ValueError(f"{batch} tokens cannot be cut into {pieces} pieces")
    unit = UNIT if batch >= pieces * UNIT else 1
    return tuple(dict.fromkeys(round(batch * k / pieces / unit) * unit for k in range(1, pieces)))
