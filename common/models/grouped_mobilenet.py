"""A small MobileNet whose 3 x 3 layers are group convolutions: group size G and width are free.

A stem, blocks of a 3 x 3 group convolution and a 1 x 1 convolution, each with batch normalisation and ReLU, global
pooling, a dense layer: MobileNetV1 (Howard et al., arXiv 1704.04861) in small. G = 1 is depthwise; raising it lets a
3 x 3 filter see G channels, at G times the weights and multiply-accumulates of that layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.accelerator.networks import group_count

# (outputs, stride) of each block for 28 x 28 images: three stages of 14 x 14, 7 x 7 and 4 x 4
SMALL_BLOCKS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1))


class GroupedMobileNet(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(
        self,
        group_size: int = 1,
        width: float = 1.0,
        *,
        stem: int = 16,
        blocks: Sequence[tuple[int, int]] = SMALL_BLOCKS,
        channels: int = 1,
        classes: int = 10,
        stem_stride: int = 2,
    ) -> None:
        """stem, blocks: outputs at width 1. ValueError where a layer is left without channels."""
        super().__init__()
        wide = [round(count * width) for count in (stem, *(outputs for outputs, _ in blocks))]
        if min(wide) < 1:
            raise ValueError(f"width {width} leaves a layer without channels")
        parts = [_normal(nn.Conv2d(channels, wide[0], 3, stem_stride, 1, bias=False))]
        self.spatial: list[nn.Conv2d] = []  # the 3 x 3 group convolutions
        for (_, stride), inputs, outputs in zip(blocks, wide, wide[1:], strict=False):
            groups = group_count(inputs, group_size)
            grouped = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=groups, bias=False)
            self.spatial.append(grouped)
            parts += [_normal(grouped), _normal(nn.Conv2d(inputs, outputs, 1, bias=False))]
        self.features = nn.Sequential(*parts)
        self.classify = nn.Linear(wide[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.classify(self.features(images).mean(dim=(2, 3)))


def _normal(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


def new_grouped_mobilenet(
    generator: torch.Generator, group_size: int = 1, width: float = 1.0, **shape: object
) -> GroupedMobileNet:
    """A network with He-normal weights drawn from the generator, on its device."""
    model = GroupedMobileNet(group_size, width, **shape).to(generator.device)  # type: ignore[arg-type]
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            fan_in = part.weight[0].numel()
            with torch.no_grad():
                part.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
    return model
