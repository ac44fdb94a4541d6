"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

# of the authors' grid (cutlass_grid.py)
SIZES_M = (512, 1024, 2048, 128256)
SIZES_N = SIZES_K = (512, 1024, 2048)
TILES = (4, 8, 12, 16, 20, 24, 32)  # of the H100's table


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # Switches of the mechanism.
    one_tile: Annotated[int, Choice(0, 4, 8, 16, 32)] = (
        0  # every tile runs the code path of this one; 0: its own
    )
    shuffled_tiles: bool = False  # True: each size's measurements are dealt out to the tiles at random
    labels_only: bool = False  # True: the forest sees block-size (or dtype) labels alone
    permute: bool = False  # True: every size gets another size's features
    # What is run.
    tables: bool = True  # re-analyse the measured sweeps, model the RTX 4070's
    forests: bool = True
    # The tile sweep.
    baseline_tile: Annotated[
        int,
        Inferred(
            4, 8, "the abstract does not name the baseline tile; 4 and 8 are the smaller ones of 12 sizes"
        ),
    ] = 8
    h100_tiles: Annotated[list[int], Length(3), Choice(*TILES)] = field(default_factory=lambda: list(TILES))
    # The forest, on the modelled grid.
    ms: Annotated[list[int], Length(2), At(16, 1_000_000)] = field(default_factory=lambda: list(SIZES_M))
    ns: Annotated[list[int], Length(2), At(16, 1_000_000)] = field(default_factory=lambda: list(SIZES_N))
    ks: Annotated[list[int], Length(2), At(16, 1_000_000)] = field(default_factory=lambda: list(SIZES_K))
    repeats: Annotated[int, At(2, 64)] = 64  # runs of a size and block-size label
    noise: Annotated[float, Inferred(0.005, 0.2, "the authors publish no repeats; the brief takes 2%")] = (
        0.02  # relative, of a time and of a power reading
    )
    # Which sizes are read while the board is still busy: "figure": those of the authors' prediction figure; "random":
    # as many, drawn; "during": all, as a sound protocol would.
    power: Annotated[str, Choice("figure", "random", "during")] = "figure"
    trees: Annotated[int, At(1, 1000)] = 100
    depth: Annotated[int, At(1, 50)] = 6
    power_repeats: Annotated[int, At(1, 100)] = 5  # random splits a seed of the small energy table
    leave_one_m_out: bool = True  # of the grid: four forests a seed and recipe
    h100_leave_one_m_out: bool = False  # of the H100 times: twenty
    depths: Annotated[list[int], At(1, 50)] = field(default_factory=list)  # of a sweep
    shares: Annotated[list[float], At(0.001, 1)] = field(
        default_factory=list
    )  # of the training rows, a learning curve
    boosting: bool = False  # gradient boosting beside the forest
    # A GPU of the user's own.
    gpu_sides: Annotated[list[int], Length(1), At(32, 16384)] = field(
        default_factory=lambda: [512, 1024, 2048, 4096, 8192]
    )
    gpu_tiles: Annotated[list[int], Length(3), Choice(1, 2, 4, 8, 16, 32)] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32]
    )
    gpu_seconds: Annotated[float, At(0.2, 60)] = 1.0  # of sustained execution, at least


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if config.baseline_tile not in (4, 8):
        raise ValueError(f"baseline_tile: {config.baseline_tile} was not swept on the RTX 4070; 4 or 8")
    for name in ("h100_tiles", "gpu_tiles"):
        if missing := [tile for tile in (config.baseline_tile, 16) if tile not in getattr(config, name)]:
            raise ValueError(f"{name}: lacks {', '.join(map(str, missing))}, which 16 is compared with")
    if config.one_tile and config.shuffled_tiles:
        raise ValueError(
            "shuffled_tiles: means nothing with one_tile, under which all tiles are equal; leave one"
        )
    if config.one_tile and config.tables and config.one_tile not in config.h100_tiles:
        raise ValueError(f"one_tile: {config.one_tile} is not among h100_tiles")
    if config.labels_only and config.permute:
        raise ValueError("permute: means nothing with labels_only, which hides all sizes; leave one")
