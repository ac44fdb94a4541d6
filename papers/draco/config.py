"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from papers.draco.cooptimization import BASELINE

GROUPS = (1, 2, 4, 8, 16, 32, 64)  # channels per group that every layer of both networks can have
DATA = ("mnist-5k", "digits", "cifar10")


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # Switches of the mechanism.
    grouped: bool = True  # False: 3 x 3 layers stay depthwise, whatever G says
    frozen: bool = False  # True: 3 x 3 layers with larger groups keep their random weights
    choice: Annotated[str, Choice("accuracy", "random")] = (
        "accuracy"  # "random": any candidate, drawn once a seed
    )
    # "shared": a pass holds sets of one filter group; "aligned": strictly so; "parallel": of several, side by side
    sharing: Annotated[str, Choice("shared", "aligned", "parallel")] = "shared"
    array: Annotated[int, At(2, 1024)] = 64  # rows and columns of processing elements
    standard: bool = False  # True: 3 x 3 layers are standard convolutions, whatever G says
    # The candidates, and the group size of claims that compare one with depthwise.
    group_sizes: Annotated[list[int], Length(2), Choice(*GROUPS)] = field(default_factory=lambda: [1, 4, 8])
    widths: Annotated[list[float], Length(1), Choice(0.25, 0.5, 0.75, 1.0)] = field(
        default_factory=lambda: [1.0, 0.75, 0.5]
    )
    compared: Annotated[int, Choice(*GROUPS)] = 8
    allowed_loss: Annotated[
        float, Inferred(0.25, 1.0, "the abstract says `negligible`; the brief reads half a point")
    ] = 0.5  # points of accuracy
    # Mapped for the figures, not trained.
    swept_groups: Annotated[list[int], Length(1), Choice(*GROUPS)] = field(
        default_factory=lambda: list(GROUPS)
    )
    swept_arrays: Annotated[list[int], Length(1), At(2, 1024)] = field(
        default_factory=lambda: [16, 32, 64, 128]
    )
    # Training.
    data: Annotated[str, Choice(*DATA)] = "mnist-5k"
    epochs: Annotated[int, At(1, 1000)] = 10
    batch: Annotated[int, At(8, 1024)] = 128
    learning_rate: Annotated[float, At(0, 1, above=True)] = 0.02
    # The layer timed on a GPU.
    timed_channels: Annotated[int, Choice(64, 128, 256, 512, 1024)] = 512
    timed_size: Annotated[int, At(3, 224)] = 14
    timed_batch: Annotated[int, At(1, 1024)] = 64


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if BASELINE.group_size not in config.group_sizes or BASELINE.width not in config.widths:
        raise ValueError("group_sizes and widths: both hold the baseline, group size 1 and width 1")
    if config.compared not in config.group_sizes or config.compared == 1:
        raise ValueError(
            f"compared: {config.compared} is a group size above 1 that is tried; group_sizes has {config.group_sizes}"
        )
    if config.standard and not config.grouped:
        raise ValueError("grouped: false and standard: true contradict each other; change one")
    if config.frozen and not config.grouped:
        raise ValueError("frozen: means nothing with grouped: false; leave one")
