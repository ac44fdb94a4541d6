"""Row-stationary mapping of a layer onto an array of processing elements: folds, replicas, cycles, active elements.

One 2D convolution of an input map with a filter is a *set* of R x E logical processing elements (Chen, Emer, Sze, ISCA
2016, Section V): element (r, e) slides filter row r along an input row towards output row e, S F multiply-accumulates
in as many cycles. A set that is larger than the array is folded over several passes; one that is smaller is replicated,
and a replica computes another pair of input and output map. Folding and replication are nn-dataflow's (Gao et al.,
ASPLOS 2017; `MapStrategyEyeriss`), and for group layers those of the authors of DRACO (arXiv 2006.15103).

What may run side by side in a group layer is the question on which DRACO rests; see `Sharing`. Memory is not modelled:
a pass takes what its elements compute, as in nn-dataflow with unlimited bandwidth. Batch of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.accelerator.layers import Layer

# Replicas of a pass in a group layer.
# "shared": up to G inputs times M/g outputs, as DRACO's simulator counts them: never more replicas than one group has
#     pairs, whatever room is left. It rounds up over all M outputs, so that a pass may hold outputs of two groups.
# "aligned": the same, but a pass holds maps of one group alone.
# "parallel": several groups side by side, each with inputs of its own: hardware that can bring distinct inputs to all
#     replicas. For depthwise layers nn-dataflow's rule for layers without shared inputs.
Sharing = Literal["shared", "aligned", "parallel"]
SHARINGS: tuple[Sharing, ...] = ("shared", "aligned", "parallel")


@dataclass(frozen=True)
class Array:
    """Processing elements in rows and columns. ValueError where there are none."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"an array has at least one row and column, not {self.rows} x {self.columns}")

    @property
    def size(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Folding:
    """How one set lies on the array: folds are passes of one set, replicas are sets in one pass."""

    fold_rows: int
    fold_columns: int
    stacked: int  # folds of columns that lie below one another in the same pass
    replicas_rows: int
    replicas_columns: int


@dataclass(frozen=True)
class Mapping:
    """A layer on an array: passes of the same length, one after another, each with inputs x outputs x groups sets."""

    layer: Layer
    array: Array
    folding: Folding
    inputs: int  # input maps of a group in one pass
    outputs: int  # output maps of a group in one pass
    groups: int  # groups in one pass
    input_steps: int  # rounds over the inputs of a group
    output_steps: int  # rounds over the outputs of all groups

    @property
    def passes(self) -> int:
        """Rounds over inputs, outputs and folds of columns."""
        return self.input_steps * self.output_steps * self.folding.fold_columns

    @property
    def cycles(self) -> int:
        """The layer's time: an element does S F multiply-accumulates a pass, once for each fold of rows."""
        return self.passes * self.folding.fold_rows * self.layer.filter_columns * self.layer.out_columns

    @property
    def active(self) -> float:
        """Elements that work in the mean cycle: multiply-accumulates over cycles."""
        return self.layer.macs / self.cycles

    @property
    def utilization(self) -> float:
        """Active elements over all elements."""
        return self.active / self.array.size


def fold(layer: Layer, array: Array) -> Folding:
    """Fold a set of R x E onto the array, or find how many replicas fit; folds of columns first fill idle rows."""
    fold_columns = -(-layer.out_rows // array.columns)
    replicas_rows = max(1, array.rows // layer.filter_rows)
    stacked = min(replicas_rows, fold_columns)
    return Folding(
        fold_rows=-(-layer.filter_rows // array.rows),
        fold_columns=-(-fold_columns // stacked),
        stacked=stacked,
        replicas_rows=replicas_rows // stacked,
        replicas_columns=max(1, array.columns // layer.out_rows),
    )


def splits(layer: Layer, array: Array, sharing: Sharing = "shared") -> list[Mapping]:
    """The mapping of every way to share the replicas down the rows between inputs and outputs.

    Replicas along a row serve outputs alone. From few inputs to many, as nn-dataflow lists them. ValueError for
    another sharing than `SHARINGS`.
    """
    if sharing not in SHARINGS:
        raise ValueError(f"sharing is one of {', '.join(SHARINGS)}, not {sharing!r}")
    folding = fold(layer, array)
    room = folding.replicas_rows * folding.replicas_columns
    found = []
    for down in range(1, folding.replicas_rows + 1):
        if folding.replicas_rows % down:
            continue
        inputs = min(down, layer.group_size)
        outputs = min(room // down, layer.group_outputs)
        groups = min(layer.groups, room // (inputs * outputs)) if sharing == "parallel" else 1
        if sharing == "shared":
            output_steps = -(-layer.outputs // outputs)
        else:
            output_steps = -(-layer.group_outputs // outputs) * -(-layer.groups // groups)
        input_steps = -(-layer.group_size // inputs)
        found.append(Mapping(layer, array, folding, inputs, outputs, groups, input_steps, output_steps))
    return found


def map_layer(layer: Layer, array: Array, sharing: Sharing = "shared") -> Mapping:
    """The mapping with the fewest passes, the first of equals."""
    return min(splits(layer, array, sharing), key=lambda mapping: mapping.passes)


@dataclass(frozen=True)
class Run:
    """A network on an array, layer by layer."""

    mappings: tuple[Mapping, ...]

    @property
    def cycles(self) -> int:
        return sum(mapping.cycles for mapping in self.mappings)

    @property
    def macs(self) -> int:
        return sum(mapping.layer.macs for mapping in self.mappings)

    @property
    def mean_utilization(self) -> float:
        """The mean over layers, each counting the same: what DRACO averages."""
        return sum(mapping.utilization for mapping in self.mappings) / len(self.mappings)

    @property
    def time_utilization(self) -> float:
        """All multiply-accumulates over all elements and cycles: each layer counts by its time."""
        return self.macs / (self.cycles * self.mappings[0].array.size)

    def only(self, *, spatial: bool) -> "Run":
        """The layers whose filter is larger than a pixel, or the others. ValueError where there are none."""
        return Run(tuple(mapping for mapping in self.mappings if mapping.layer.spatial is spatial))


def run_network(layers: Sequence[Layer], array: Array, sharing: Sharing = "shared") -> Run:
    """Map every layer. ValueError for no layers."""
    if not layers:
        raise ValueError("a network has at least one layer")
    return Run(tuple(map_layer(layer, array, sharing) for layer in layers))
