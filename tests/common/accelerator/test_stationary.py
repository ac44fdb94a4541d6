"""Systolic arrays against the cycles that SCALE-Sim schedules."""

import pytest

from common.accelerator.layers import Layer, convolution
from common.accelerator.row_stationary import Array
from common.accelerator.stationary import product, systolic

# scalesim 3.0.0 (PyPI wheel): rows of the demand matrices of systolic_compute_os and systolic_compute_ws, and the share
# of cells that work, for a product of (rows x depth) and (depth x columns) on an array.
SCALE_SIM = [
    ((49, 27, 64), (8, 8), (2296, 0.5762195121951226), (2272, None)),
    ((196, 9, 1), (16, 16), (507, 0.013590976331360947), (242, None)),
    ((196, 48, 32), (16, 16), (2028, 0.5798816568047335), (1452, None)),
    ((30, 100, 20), (8, 16), (976, 0.48027663934426235), (1560, None)),
    ((7, 3, 5), (8, 8), (17, 0.09650735294117647), (29, None)),
]


@pytest.mark.parametrize(("sizes", "cells", "outputs", "weights"), SCALE_SIM)
def test_a_product_takes_the_cycles_of_scale_sim(
    sizes: tuple[int, int, int],
    cells: tuple[int, int],
    outputs: tuple[int, float],
    weights: tuple[int, None],
) -> None:
    rows, depth, columns = sizes
    layer = Layer("product", depth, columns, rows, 1)  # a 1 x 1 convolution is this product
    kept = systolic(layer, Array(*cells), "outputs")
    assert kept.cycles == outputs[0]
    assert kept.utilization == pytest.approx(outputs[1])
    assert systolic(layer, Array(*cells), "weights").cycles == weights[0]


def test_a_group_is_a_product_of_its_own() -> None:
    grouped = convolution("l", 32, 64, 14, 3, groups=4)
    one = convolution("l", 8, 16, 14, 3)
    assert product(grouped) == product(one)
    for keeps in ("outputs", "weights"):
        assert systolic(grouped, Array(8, 8), keeps).cycles == 4 * systolic(one, Array(8, 8), keeps).cycles  # type: ignore[arg-type]


def test_an_array_keeps_outputs_or_weights() -> None:
    with pytest.raises(ValueError, match="outputs or weights"):
        systolic(convolution("l", 4, 4, 4), Array(2, 2), "inputs")  # type: ignore[arg-type]
