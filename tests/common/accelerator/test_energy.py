"""Words moved between memories against nn-dataflow and the authors' simulator, and against what must hold for any."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accelerator.energy import EYERISS, PICOJOULES, Memory, blocked, cheapest, cheapest_run
from common.accelerator.layers import Layer, convolution
from common.accelerator.row_stationary import Array, map_layer, splits

LARGE = Array(64, 64)

# nn-dataflow 2.1 (PyPI wheel), ConvLayer(inputs, outputs, size, kernel, stride) with a second layer behind it (a single
# one has its filters pinned), opt_goal 'e', Cost(1, (200, 6, 2, 1)), batch 1, 256 words of registers: array, words of
# the buffer, cycles, and words at DRAM, buffer, array and registers.
NN_DATAFLOW = [
    ((3, 32, 112, 3, 2), (64, 64), 2 << 20, 4032, (554147, 554147, 1527792, 43352064)),
    ((3, 32, 112, 3, 2), (16, 16), 64 << 10, 64512, (1623536, 1623536, 3115392, 43352064)),
    ((3, 32, 112, 3, 2), (12, 14), 2 << 20, 64512, (554822, 554822, 1479408, 43352064)),
    ((512, 512, 14, 1, 1), (64, 64), 2 << 20, 14336, (462848, 462848, 3870720, 205520896)),
    ((512, 512, 14, 1, 1), (16, 16), 64 << 10, 229376, (563200, 563200, 3971072, 205520896)),
    ((512, 512, 14, 1, 1), (12, 14), 2 << 20, 308224, (462848, 462848, 3870720, 205520896)),
    ((1024, 1024, 7, 1, 1), (64, 64), 2 << 20, 12768, (1148928, 1148928, 7440384, 205520896)),
    ((64, 64, 56, 3, 1), (64, 64), 2 << 20, 36960, (452864, 452864, 3290112, 462422016)),
    ((64, 64, 56, 3, 1), (16, 16), 64 << 10, 688128, (1098752, 1098752, 5160960, 462422016)),
    ((64, 64, 56, 3, 1), (12, 14), 2 << 20, 688128, (452864, 668160, 3913728, 462422016)),
    ((3, 64, 112, 7, 2), (16, 16), 64 << 10, 602112, (1008076, 1008076, 7212016, 472055808)),
    ((96, 256, 27, 5, 1), (64, 64), 2 << 20, 138240, (893280, 893280, 17923680, 1791590400)),
    ((96, 256, 27, 5, 1), (16, 16), 64 << 10, 3317760, (1266528, 4126464, 32244480, 1791590400)),
    ((512, 512, 7, 3, 1), (64, 64), 2 << 20, 29526, (2425856, 2425856, 16687104, 462422016)),
    ((512, 512, 7, 3, 1), (12, 14), 2 << 20, 688128, (2425856, 2467328, 16783872, 462422016)),
]


def words(energy: object) -> tuple[float, float, float, float]:
    return tuple(
        getattr(energy, level) / getattr(EYERISS, level) for level in ("dram", "buffer", "link", "register")
    )  # type: ignore[return-value]


# Words of the simulator of DRACO's authors (shreyas1998/nn_dataflow, branch update, d6badf6), G = 8 on 64 x 64, buffer
# of 4 MB, opt_goal 'e': DRAM, buffer, array, registers.
AUTHORS = [
    (convolution("conv1", 3, 32, 112, 3, 2), 4032, (554147, 554147, 3568992, 43352064)),
    (convolution("conv2", 32, 32, 112, 3, groups=4), 10752, (819584, 819584, 3913728, 115605504)),
    (convolution("conv8", 512, 512, 14, 3, groups=64), 21504, (268288, 268288, 860160, 28901376)),
    (convolution("pointwise", 512, 512, 14), 14336, (462848, 462848, 6881280, 205520896)),
]


@pytest.mark.parametrize(("shape", "size", "buffer", "cycles", "expected"), NN_DATAFLOW)
def test_convolutions_move_the_words_of_nn_dataflow(
    shape: tuple[int, int, int, int, int],
    size: tuple[int, int],
    buffer: int,
    cycles: int,
    expected: tuple[int, int, int, int],
) -> None:
    memory = Memory(buffer, 256)
    mapping = cheapest(convolution("layer", *shape), Array(*size), EYERISS, memory, multicast=True)
    energy = blocked(mapping, EYERISS, memory, multicast=True)
    assert mapping.cycles == cycles
    assert words(energy) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("layer", "cycles", "expected"), AUTHORS)
def test_group_layers_move_the_words_of_the_authors_simulator(
    layer: Layer, cycles: int, expected: tuple[int, int, int, int]
) -> None:
    mapping = cheapest(layer, LARGE)
    assert mapping.cycles == cycles
    assert words(blocked(mapping)) == pytest.approx(expected, rel=1e-6)


def test_energy_is_the_sum_of_its_levels_in_any_unit() -> None:
    mapping = map_layer(convolution("a", 16, 16, 8, 3), Array(16, 16))
    energy = blocked(mapping, PICOJOULES)
    assert energy is not None
    assert energy.total == energy.mac + energy.register + energy.link + energy.buffer + energy.dram
    assert energy.mac == 2 * mapping.layer.macs
    assert (energy + energy).total == pytest.approx(2 * energy.total)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 12), st.sampled_from([1, 3]))
def test_nothing_moves_fewer_words_than_there_are(
    group: int, groups: int, wide: int, size: int, kernel: int
) -> None:
    layer = convolution("l", group * groups, wide * groups, size, kernel, groups=groups)
    for mapping in splits(layer, Array(8, 8)):
        energy = blocked(mapping, EYERISS, Memory(1 << 30, 1 << 20))
        assert energy is not None
        dram = energy.dram / EYERISS.dram
        assert dram >= (layer.weights + layer.out_words) * (1 - 1e-9)
        # a kernel as wide as its stride reads every input once; folds read their common rows again
        assert dram >= (layer.weights + layer.out_words + layer.in_words) * (1 - 1e-9)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 8]), st.sampled_from([1 << 12, 1 << 14, 1 << 18]))
def test_more_memory_never_costs_more(groups: int, buffer: int) -> None:
    layer = convolution("l", 32, 32, 14, 3, groups=groups)
    mapping = map_layer(layer, Array(16, 16))
    little, much = (blocked(mapping, EYERISS, Memory(words, 64)) for words in (buffer, 4 * buffer))
    assert much is not None
    assert little is None or much.total <= little.total * (1 + 1e-12)


def test_the_cheapest_mapping_may_be_slower_than_the_fastest() -> None:
    layer = convolution("conv8", 512, 512, 14, 3, groups=64)
    cheap, fast = cheapest(layer, LARGE), map_layer(layer, LARGE)
    assert cheap.cycles > 2 * fast.cycles
    spent, more = blocked(cheap), blocked(fast)
    assert spent is not None
    assert more is not None
    assert spent.total < more.total


def test_what_fits_nowhere_gets_a_clear_error() -> None:
    layer = convolution("l", 64, 64, 56, 3)
    assert blocked(map_layer(layer, LARGE), EYERISS, Memory(100, 256)) is None
    with pytest.raises(ValueError, match="no blocking of its loops fits"):
        cheapest(layer, LARGE, EYERISS, Memory(100, 256))
    with pytest.raises(ValueError, match="one group at a time"):
        blocked(map_layer(convolution("l", 8, 8, 8, 3, groups=8), LARGE, "parallel"))
    with pytest.raises(ValueError, match="at least one layer"):
        cheapest_run([], LARGE)
