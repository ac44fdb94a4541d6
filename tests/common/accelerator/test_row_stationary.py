"""Folding and replication against counts by hand, and against two simulators that were run beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.accelerator.energy import cheapest_run
from common.accelerator.layers import Layer, convolution
from common.accelerator.networks import convolutions, mobilenet_v1
from common.accelerator.row_stationary import SHARINGS, Array, Run, fold, map_layer, run_network, splits

LARGE = Array(64, 64)

# MobileNetV1 without pooling and dense layer on 64 x 64: G, width, cycles, those of its 3 x 3 group layers and the mean
# utilisation of its 27 layers with opt_goal 'e'; cycles and utilisation with 'd'. shreyas1998/nn_dataflow, branch
# update, commit d6badf6, buffer of 4 MB, 256 words of registers, Cost(1, (200, 6, 2, 1)), batch 1, G_convLayer for
# every 3 x 3 layer. DRACO's own script has opt_goal 'e', the default.
AUTHORS = [
    (1, 1.0, 378112, 225792, 0.4632, 378000, 0.4638),
    (2, 1.0, 378112, 225792, 0.4734, 265104, 0.4946),
    (4, 1.0, 378112, 225792, 0.4939, 214200, 0.5805),
    (8, 1.0, 378112, 225792, 0.5350, 220752, 0.6675),
    (16, 1.0, 385504, 233184, 0.5978, 248031, 0.7882),
    (32, 1.0, 420868, 268548, 0.6819, 324723, 0.8401),
    (64, 1.0, 473242, 320922, 0.8189, 459480, 0.8406),
    (8, 0.75, 254520, 168000, 0.5392, 137004, 0.6715),
    (32, 0.75, 274260, 187740, 0.6887, 201474, 0.8496),
    (8, 0.5, 152096, 112896, 0.5331, 74340, 0.6623),
    (16, 0.5, 156464, 117264, 0.5941, 89082, 0.7815),
    (32, 0.5, 163730, 124530, 0.6898, 119847, 0.8246),
]


def spatial_cycles(run: Run) -> int:
    return sum(m.cycles for m in run.mappings if m.layer.spatial and m.layer.inputs > 3)


@pytest.mark.parametrize(("group", "width", "cycles", "spatial", "mean", "fastest", "fastest_mean"), AUTHORS)
def test_mobilenet_takes_the_cycles_of_the_authors_simulator(
    group: int, width: float, cycles: int, spatial: int, mean: float, fastest: int, fastest_mean: float
) -> None:
    layers = convolutions(mobilenet_v1(group, width))
    cheap, quick = cheapest_run(layers, LARGE), run_network(layers, LARGE)
    assert (cheap.cycles, spatial_cycles(cheap)) == (cycles, spatial)
    assert cheap.mean_utilization == pytest.approx(mean, abs=5e-5)
    assert quick.cycles == fastest
    assert quick.mean_utilization == pytest.approx(fastest_mean, abs=5e-5)


@pytest.mark.parametrize(
    ("array", "group", "cycles"),
    [
        (Array(16, 16), 1, 2709504),
        (Array(16, 16), 8, 3254832),
        (Array(12, 14), 8, 4204032),
        (Array(128, 128), 8, 262752),
    ],
)
def test_other_arrays_take_the_cycles_of_the_authors_simulator(array: Array, group: int, cycles: int) -> None:
    assert cheapest_run(convolutions(mobilenet_v1(group)), array).cycles == cycles


# Cycles of nn-dataflow 2.1 (PyPI wheel), ConvLayer(inputs, outputs, size, kernel, stride), opt_goal 'd', batch 1,
# buffer of 4 MB (16 x 16: 128 KB), 256 words of registers: on 64 x 64, 16 x 16 and 12 x 14.
NN_DATAFLOW = [
    ((3, 32, 112, 3, 2), (4032, 64512, 64512)),
    ((32, 64, 112, 1, 1), (7168, 114688, 229376)),
    ((512, 512, 14, 1, 1), (14336, 229376, 306432)),
    ((1024, 1024, 7, 1, 1), (12768, 229376, 306432)),
    ((64, 64, 56, 3, 1), (36960, 688128, 688128)),
    ((3, 64, 112, 7, 2), (37632, None, 1204224)),
    ((96, 256, 27, 5, 1), (138240, 3317760, 3317760)),
    ((512, 512, 7, 3, 1), (29526, 553728, 688128)),
]


@pytest.mark.parametrize(("shape", "cycles"), NN_DATAFLOW)
def test_convolutions_take_the_cycles_of_nn_dataflow(
    shape: tuple[int, int, int, int, int], cycles: tuple[int | None, ...]
) -> None:
    layer = convolution("layer", *shape)
    for array, expected in zip((LARGE, Array(16, 16), Array(12, 14)), cycles, strict=True):
        assert expected in (None, map_layer(layer, array).cycles)


def test_a_depthwise_layer_of_14_x_14_lights_three_rows_of_fourteen_elements() -> None:
    layer = convolution("dw", 512, 512, 14, 3, groups=512)
    mapping = map_layer(layer, LARGE)
    assert (mapping.inputs, mapping.outputs, mapping.passes) == (1, 1, 512)
    assert mapping.cycles == 512 * 3 * 14
    assert mapping.active == pytest.approx(3 * 14)


def test_time_stays_and_use_grows_with_g_when_replicas_share_one_input() -> None:
    # one input broadcast to G outputs: C passes of S F cycles whatever G, as long as G sets fit (84 here)
    for group in (1, 2, 4, 8):
        layer = convolution("group", 512, 512, 14, 3, groups=512 // group)
        shared_input = splits(layer, LARGE)[0]
        assert shared_input.inputs == 1
        assert shared_input.cycles == 512 * 3 * 14
        assert shared_input.active == pytest.approx(group * 3 * 14)


def test_groups_side_by_side_fill_the_array_with_depthwise_channels() -> None:
    layer = convolution("dw", 512, 512, 14, 3, groups=512)
    mapping = map_layer(layer, LARGE, "parallel")
    assert (mapping.groups, mapping.passes) == (
        21 * 4,
        7,
    )  # 64 // 3 rows and 64 // 14 columns of sets; 512 / 84
    assert map_layer(layer, LARGE).cycles == pytest.approx(mapping.cycles * 512 / 7)


def test_groups_side_by_side_use_what_the_authors_depthwise_layer_type_uses() -> None:
    # Dw_convLayer of the authors' simulator, which replicates over channels, uses 66 to 88% of 64 x 64 elements
    run = run_network(convolutions(mobilenet_v1()), LARGE, "parallel")
    used = [round(mapping.utilization, 2) for mapping in run.mappings if mapping.layer.grouped]
    assert (min(used), max(used)) == (0.66, 0.88)


def test_folds_of_columns_first_fill_idle_rows() -> None:
    found = fold(convolution("conv1", 3, 32, 112, 3, 2), LARGE)
    assert (found.stacked, found.fold_columns, found.replicas_rows, found.replicas_columns) == (2, 1, 10, 1)
    tall = fold(Layer("tall", 1, 1, 100, 100, 11, 11), Array(4, 32))
    assert (tall.fold_rows, tall.fold_columns, tall.replicas_rows) == (3, 4, 1)


shapes = st.builds(
    lambda group, groups, wide, size, kernel: convolution(
        "drawn", group * groups, wide * groups, size, kernel, groups=groups
    ),
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 3, 5, 7]),
)  # fmt: skip
arrays = st.builds(Array, st.integers(1, 40), st.integers(1, 40))


@given(shapes, arrays, st.sampled_from(SHARINGS))
def test_no_mapping_uses_more_than_the_array_or_loses_work(layer: Layer, array: Array, sharing: str) -> None:
    for mapping in splits(layer, array, sharing):  # type: ignore[arg-type]
        assert 0 < mapping.utilization <= 1 + 1e-12
        assert mapping.cycles * array.size >= layer.macs
        sets = mapping.inputs * mapping.outputs * mapping.groups
        assert sets * mapping.passes >= layer.group_size * layer.outputs
        used = sets * layer.filter_rows * layer.out_rows  # elements, spread over the folds
        assert used <= array.size * mapping.folding.fold_rows * mapping.folding.fold_columns


@given(shapes, arrays)
def test_groups_side_by_side_are_never_slower_than_one_at_a_time(layer: Layer, array: Array) -> None:
    aligned = map_layer(layer, array, "aligned").cycles
    assert map_layer(layer, array, "parallel").cycles <= aligned
    assert map_layer(layer, array, "shared").cycles <= aligned


@given(shapes, arrays)
def test_without_groups_all_rules_are_the_same(layer: Layer, array: Array) -> None:
    plain = Layer(
        "plain",
        layer.inputs,
        layer.outputs,
        layer.out_rows,
        layer.out_columns,
        layer.filter_rows,
        layer.filter_columns,
    )
    assert len({map_layer(plain, array, sharing).cycles for sharing in SHARINGS}) == 1


def test_both_utilisations_agree_where_all_layers_are_the_same() -> None:
    run = run_network([convolution("a", 8, 8, 8, 3)] * 3, Array(16, 16))
    assert run.mean_utilization == pytest.approx(run.time_utilization)
    assert run.cycles == 3 * run.mappings[0].cycles


def test_bad_input_gets_a_clear_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Array(0, 4)
    with pytest.raises(ValueError, match="sharing is one of"):
        map_layer(convolution("a", 4, 4, 4), LARGE, "none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one layer"):
        run_network([], LARGE)
