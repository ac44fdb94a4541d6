"""Networks as lists of layers: MobileNetV1 with any group size and width, ResNet-50, SqueezeNext.

Pooling and additions are left out: they multiply nothing. Depth and shapes are those of the published networks, for
images of 224 x 224 (SqueezeNext: 227 x 227).
"""

from collections.abc import Sequence

from common.accelerator.layers import Layer, convolution, fully_connected

# MobileNetV1 (Howard et al., arXiv 1704.04861, Table 1): outputs and output size of the 13 separable blocks.
MOBILENET_BLOCKS = (
    (64, 112), (128, 56), (128, 56), (256, 28), (256, 28), (512, 14),
    *((512, 14),) * 5, (1024, 7), (1024, 7),
)  # fmt: skip


def group_count(channels: int, size: int) -> int:
    """Groups of a layer whose groups shall have `size` channels: at most channels, and a divisor of them.

    Where `size` does not divide the channels, the next smaller size that does is taken; ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"a group has at least one channel, not {size}")
    fitting = max(g for g in range(1, min(size, channels) + 1) if channels % g == 0)
    return channels // fitting


def mobilenet_v1(group_size: int = 1, width: float = 1.0, classes: int = 1000) -> list[Layer]:
    """MobileNetV1: a 3 x 3 convolution, 13 blocks of a 3 x 3 group convolution and a 1 x 1 convolution, a dense layer.

    group_size: channels per group of the 3 x 3 layers (G; 1: depthwise, as published). width: factor on all channels.
    ValueError where a layer is left without channels.
    """
    wide = [round(channels * width) for channels in (32, *(channels for channels, _ in MOBILENET_BLOCKS))]
    if min(wide) < 1:
        raise ValueError(f"width {width} leaves a layer without channels")
    layers = [convolution("conv1", 3, wide[0], 112, 3, 2)]
    before = 112
    for number, (inputs, outputs, (_, size)) in enumerate(
        zip(wide, wide[1:], MOBILENET_BLOCKS, strict=False), start=2
    ):
        groups = group_count(inputs, group_size)
        layers.append(convolution(f"conv{number}_3x3", inputs, inputs, size, 3, before // size, groups))
        layers.append(convolution(f"conv{number}_1x1", inputs, outputs, size))
        before = size
    return [*layers, fully_connected("fc", wide[-1], classes)]


def resnet50(classes: int = 1000) -> list[Layer]:
    """ResNet-50 (He et al., arXiv 1512.03385, Table 1), strides in the first 1 x 1 layer of a stage."""
    layers = [convolution("conv1", 3, 64, 112, 7, 2)]
    inputs = 64
    for stage, (blocks, middle, size) in enumerate(
        ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)), start=2
    ):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            name = f"conv{stage}_{block}"
            layers.append(convolution(f"{name}_a", inputs, middle, size, 1, stride))
            layers.append(convolution(f"{name}_b", middle, middle, size, 3))
            layers.append(convolution(f"{name}_c", middle, 4 * middle, size))
            if block == 0:
                layers.append(convolution(f"{name}_shortcut", inputs, 4 * middle, size, 1, stride))
            inputs = 4 * middle
    return [*layers, fully_connected("fc", inputs, classes)]


def squeezenext(group_size: int | None = None, classes: int = 1000) -> list[Layer]:
    """1.0-SqNxt-23 (Gholami et al., arXiv 1803.10615, Figure 9 and Table 2): blocks of 1x1, 1x1, 3x1, 1x3, 1x1.

    group_size: channels per group of the 3 x 1 and 1 x 3 layers (None: all of them, as published).
    """
    layers = [convolution("conv1", 3, 64, 111, 7, 2)]
    inputs = 64
    for stage, (blocks, outputs, size) in enumerate(
        ((6, 32, 55), (6, 64, 28), (8, 128, 14), (1, 256, 7)), start=1
    ):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            squeezed = inputs if stride == 2 else inputs // 4 if inputs > outputs else inputs // 2
            name = f"stage{stage}_{block}"
            layers.append(convolution(f"{name}_a", inputs, squeezed, size, 1, stride))
            layers.append(convolution(f"{name}_b", squeezed, squeezed // 2, size))
            for suffix, rows, columns, entering in (("3x1", 3, 1, squeezed // 2), ("1x3", 1, 3, squeezed)):
                groups = 1 if group_size is None else group_count(entering, group_size)
                layers.append(
                    Layer(f"{name}_{suffix}", entering, squeezed, size, size, rows, columns, 1, groups)
                )
            layers.append(convolution(f"{name}_c", squeezed, outputs, size))
            if stride == 2 or inputs != outputs:
                layers.append(convolution(f"{name}_shortcut", inputs, outputs, size, 1, stride))
            inputs = outputs
    return [*layers, convolution("conv2", 256, 128, 7), fully_connected("fc", 128, classes)]


def convolutions(network: Sequence[Layer]) -> list[Layer]:
    """All layers but the fully connected ones."""
    return [layer for layer in network if layer.out_rows * layer.out_columns > 1 or layer.spatial]
