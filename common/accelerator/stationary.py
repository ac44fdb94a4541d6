"""Output- and weight-stationary systolic arrays: cycles and use of a layer as a matrix product.

A convolution becomes a product of (E F) x (G R S) and (G R S) x (M/g) matrices, one a group (Samajdar et al., ISPASS
2020, SCALE-Sim, Table III and Equations 1 to 4). A grid cell keeps an output (output-stationary) or a weight
(weight-stationary); tiles run one after another, each with the filling and draining of the array. Groups run one after
another too: a systolic array sends one stream of inputs down a row.
"""

from dataclasses import dataclass
from typing import Literal

from common.accelerator.layers import Layer
from common.accelerator.row_stationary import Array

Keeps = Literal["outputs", "weights"]


@dataclass(frozen=True)
class Product:
    """(rows x depth) times (depth x columns)."""

    rows: int
    depth: int
    columns: int


@dataclass(frozen=True)
class Systolic:
    """A layer on a systolic array: `tiles` of `tile_cycles` each."""

    layer: Layer
    array: Array
    tiles: int
    tile_cycles: int

    @property
    def cycles(self) -> int:
        return self.tiles * self.tile_cycles

    @property
    def utilization(self) -> float:
        """Multiply-accumulates over cells and cycles."""
        return self.layer.macs / (self.cycles * self.array.size)


def product(layer: Layer) -> Product:
    """The matrix product of one group."""
    depth = layer.group_size * layer.filter_rows * layer.filter_columns
    return Product(layer.out_rows * layer.out_columns, depth, layer.group_outputs)


def systolic(layer: Layer, array: Array, keeps: Keeps) -> Systolic:
    """Cycles without waiting for memory. ValueError where something else is to be kept."""
    whole = product(layer)
    if keeps == "outputs":
        down, through = whole.rows, whole.depth
        filling = array.rows + array.columns - 2
    elif keeps == "weights":
        down, through = whole.depth, whole.rows
        filling = 2 * array.rows + array.columns - 2  # the weights first run down the rows
    else:
        raise ValueError(f"an array keeps outputs or weights, not {keeps!r}")
    tiles = -(-down // array.rows) * -(-whole.columns // array.columns) * layer.groups
    return Systolic(layer, array, tiles, through + filling)
