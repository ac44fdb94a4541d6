"""The grouped network against the layers that the accelerator counts, and against itself with other groups."""

import pytest
import torch

from common.accelerator.layers import convolution
from common.models.grouped_mobilenet import GroupedMobileNet, new_grouped_mobilenet


@pytest.mark.parametrize("group", [1, 2, 8, 64])
def test_its_group_layers_have_the_weights_that_an_accelerator_would_count(group: int) -> None:
    model = GroupedMobileNet(group)
    for layer in model.spatial:
        counted = convolution("l", layer.in_channels, layer.out_channels, 1, 3, groups=layer.groups)
        assert layer.weight.numel() == counted.weights
        assert counted.group_size <= group


def test_a_larger_group_whose_added_weights_are_zero_is_the_depthwise_network() -> None:
    generator = torch.Generator().manual_seed(0)
    depthwise, grouped = new_grouped_mobilenet(generator, 1), new_grouped_mobilenet(generator, 4)
    state = depthwise.state_dict()
    for name, weight in grouped.state_dict().items():
        if weight.shape != state[name].shape:  # (channels, 4, 3, 3) instead of (channels, 1, 3, 3)
            widened = torch.zeros_like(weight)
            for channel in range(len(weight)):
                widened[channel, channel % 4] = state[name][channel, 0]
            state[name] = widened
    grouped.load_state_dict(state)
    images = torch.randn(3, 1, 28, 28, generator=generator)
    torch.testing.assert_close(grouped.eval()(images), depthwise.eval()(images), rtol=1e-5, atol=1e-5)


def test_width_scales_every_layer_but_the_classes() -> None:
    model = GroupedMobileNet(1, 0.5)
    assert [layer.in_channels for layer in model.spatial] == [8, 8, 16, 16, 32]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second = (new_grouped_mobilenet(torch.Generator().manual_seed(3), 2) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_width_without_channels_gets_a_clear_error() -> None:
    with pytest.raises(ValueError, match="without channels"):
        GroupedMobileNet(1, 0.01)
    with pytest.raises(ValueError, match="at least one channel"):
        GroupedMobileNet(0)
