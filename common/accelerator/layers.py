"""Layers as an accelerator sees them: a convolution's shape, and what it computes, stores and moves.

Letters as in Eyeriss (Chen, Emer, Sze, ISCA 2016, Table I): C input maps, M output maps, R x S filter, E x F output
map, H x W input map with its padding. A group convolution has g groups of G = C/g input maps; depthwise is G = 1, a
standard convolution G = C. A fully connected layer is a 1 x 1 convolution on a 1 x 1 map. Counts are in words and for
a batch of one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution: standard, grouped, depthwise, 1 x 1 or fully connected. ValueError where the shape is none."""

    name: str
    inputs: int  # C
    outputs: int  # M
    out_rows: int  # E
    out_columns: int  # F
    filter_rows: int = 1  # R
    filter_columns: int = 1  # S
    stride: int = 1
    groups: int = 1  # g

    def __post_init__(self) -> None:
        sizes = [self.inputs, self.outputs, self.out_rows, self.out_columns]
        sizes += [self.filter_rows, self.filter_columns, self.stride, self.groups]
        if any(size < 1 for size in sizes):
            raise ValueError(f"layer {self.name}: every size is at least 1, not {sizes}")
        if self.inputs % self.groups or self.outputs % self.groups:
            raise ValueError(
                f"layer {self.name}: {self.groups} groups divide neither or only one of "
                f"{self.inputs} inputs and {self.outputs} outputs"
            )

    @property
    def group_size(self) -> int:
        """Input maps that a filter sees, G."""
        return self.inputs // self.groups

    @property
    def group_outputs(self) -> int:
        """Output maps that share their inputs, M/g."""
        return self.outputs // self.groups

    @property
    def spatial(self) -> bool:
        """Whether the filter is larger than a pixel."""
        return self.filter_rows * self.filter_columns > 1

    @property
    def grouped(self) -> bool:
        """Whether outputs see only some of the inputs."""
        return self.groups > 1

    @property
    def in_rows(self) -> int:
        """Rows of an input map with its padding, H."""
        return self.filter_rows + (self.out_rows - 1) * self.stride

    @property
    def in_columns(self) -> int:
        """Columns of an input map with its padding, W."""
        return self.filter_columns + (self.out_columns - 1) * self.stride

    @property
    def macs(self) -> int:
        """Multiply-accumulates: G M R S E F."""
        return self.weights * self.out_rows * self.out_columns

    @property
    def weights(self) -> int:
        """Words of weights: G M R S."""
        return self.group_size * self.outputs * self.filter_rows * self.filter_columns

    @property
    def in_words(self) -> int:
        """Words of all input maps with padding."""
        return self.inputs * self.in_rows * self.in_columns

    @property
    def out_words(self) -> int:
        """Words of all output maps."""
        return self.outputs * self.out_rows * self.out_columns

    @property
    def reuse(self) -> float:
        """Data reuse, or arithmetic intensity: multiply-accumulates per word that must be moved at least once."""
        return self.macs / (self.weights + self.in_words + self.out_words)


def convolution(
    name: str, inputs: int, outputs: int, size: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Layer:
    """A square convolution with an output map of size x size."""
    return Layer(name, inputs, outputs, size, size, kernel, kernel, stride, groups)


def fully_connected(name: str, inputs: int, outputs: int) -> Layer:
    """A dense layer of a batch of one."""
    return Layer(name, inputs, outputs, 1, 1)
