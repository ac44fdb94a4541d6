"""Counts of layers against torch's own shapes and published totals of networks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.accelerator.layers import Layer, convolution, fully_connected
from common.accelerator.networks import convolutions, group_count, mobilenet_v1, resnet50, squeezenext

SMALL = st.integers(1, 4)


@given(SMALL, SMALL, SMALL, st.integers(2, 9), st.sampled_from([1, 3]), st.integers(1, 2))
def test_a_group_convolution_counts_as_torch_builds_it(
    group: int, groups: int, wide: int, size: int, kernel: int, stride: int
) -> None:
    layer = convolution("l", group * groups, wide * groups, size, kernel, stride, groups)
    real = nn.Conv2d(layer.inputs, layer.outputs, kernel, stride, groups=groups, bias=False)
    made = real(torch.zeros(1, layer.inputs, layer.in_rows, layer.in_columns))
    assert made.shape[1:] == (layer.outputs, size, size)
    assert layer.weights == real.weight.numel()
    assert layer.out_words == made.numel()
    assert layer.macs == made.numel() * real.weight[0].numel()


def test_mobilenet_has_its_published_size() -> None:
    # Howard et al., Table 8: 569 million multiply-adds and 4.2 million weights (batch normalisation and biases apart)
    network = mobilenet_v1()
    assert sum(layer.macs for layer in network) == pytest.approx(569e6, rel=0.005)
    assert sum(layer.weights for layer in network) == pytest.approx(4.2e6, rel=0.01)
    assert len(network) == 28
    # Table 6 and 4: width 0.75 has 325 million, width 0.5 149 million
    assert sum(layer.macs for layer in mobilenet_v1(width=0.75)) == pytest.approx(325e6, rel=0.005)
    assert sum(layer.macs for layer in mobilenet_v1(width=0.5)) == pytest.approx(149e6, rel=0.005)


def test_mobilenet_with_all_channels_in_a_group_has_standard_convolutions() -> None:
    standard = mobilenet_v1(1 << 20)
    assert all(layer.groups == 1 for layer in standard)
    assert sum(layer.macs for layer in standard) > 8 * sum(layer.macs for layer in mobilenet_v1())


def test_resnet50_and_squeezenext_have_their_published_sizes() -> None:
    assert sum(layer.macs for layer in resnet50()) == pytest.approx(
        3.86e9, rel=0.01
    )  # He et al.: 3.8 billion
    assert sum(layer.weights for layer in resnet50()) == pytest.approx(25.5e6, rel=0.01)
    assert sum(layer.macs for layer in squeezenext()) == pytest.approx(
        282e6, rel=0.02
    )  # Gholami et al., Table 2
    assert sum(layer.weights for layer in squeezenext()) == pytest.approx(0.72e6, rel=0.03)


def test_reuse_of_a_depthwise_layer_grows_about_linearly_with_g() -> None:
    reuse = [convolution("l", 512, 512, 14, 3, groups=512 // g).reuse for g in (1, 2, 4)]
    assert reuse[1] / reuse[0] == pytest.approx(2, rel=0.05)
    assert reuse[2] / reuse[0] == pytest.approx(4, rel=0.1)


def test_groups_never_hold_more_channels_than_asked_for() -> None:
    assert group_count(64, 8) == 8
    assert group_count(24, 16) == 2  # 12 is the largest divisor up to 16
    assert group_count(16, 64) == 1
    assert group_count(7, 1) == 7


def test_convolutions_leave_out_only_the_dense_layer() -> None:
    network = mobilenet_v1()
    assert [layer.name for layer in network if layer not in convolutions(network)] == ["fc"]


def test_bad_shapes_get_a_clear_error() -> None:
    with pytest.raises(ValueError, match="groups divide neither"):
        convolution("l", 6, 6, 4, groups=4)
    with pytest.raises(ValueError, match="at least 1"):
        Layer("l", 0, 1, 1, 1)
    with pytest.raises(ValueError, match="without channels"):
        mobilenet_v1(width=0.001)
    with pytest.raises(ValueError, match="at least one channel"):
        group_count(8, 0)
    assert fully_connected("fc", 10, 5).macs == 50
