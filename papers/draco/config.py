"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.draco.cooptimization import Point

BASELINE = Point(1, 1.0)


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    array: list[int] = field(default_factory=lambda: [64, 64])  # rows, columns
    sharing: str = (
        "shared"  # "parallel": hardware that runs groups side by side; "aligned": no pass holds two groups
    )
    standard: bool = False  # True: 3 x 3 layers are standard convolutions, whatever G says
    group_sizes: list[int] = field(default_factory=lambda: [1, 4, 8])  # to choose from; [1]: width alone
    frozen: bool = False  # True: 3 x 3 layers with larger groups keep their random weights
    # what is looked at
    compared: int = 8  # the group size of claims that compare one with depthwise
    widths: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5])
    swept_groups: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])  # mapped, not trained
    swept_arrays: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    allowed_loss: float = 0.5  # points of accuracy that a chosen network may lose: "negligible"
    # training; no epochs: none
    data: str = "mnist-5k"
    epochs: int = 8
    batch: int = 128
    learning_rate: float = 0.02
    # the layer timed on a GPU: channels, map size, batch
    timed: list[int] = field(default_factory=lambda: [512, 14, 64])


def check(config: Config) -> None:
    """ValueError for a config that names no array, no depthwise network, or no width of one to compare with."""
    if len(config.array) != 2:
        raise ValueError(f"array: rows and columns, not {config.array}")
    if BASELINE.group_size not in config.group_sizes or BASELINE.width not in config.widths:
        raise ValueError("group_sizes and widths must hold the baseline: group size 1, width 1")
    if config.sharing not in ("shared", "aligned", "parallel"):
        raise ValueError(f"sharing: shared, aligned or parallel, not {config.sharing!r}")
