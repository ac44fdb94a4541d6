"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

# of the authors' grid (cutlass_grid.py)
SIZES_M = (512, 1024, 2048, 128256)
SIZES_N = SIZES_K = (512, 1024, 2048)


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    one_tile: int = 0  # every tile runs the code path of this one; 0: its own
    labels_only: bool = False  # the forest sees block-size (or dtype) labels alone
    permute: bool = False  # every size gets another size's features
    # what is run
    tables: bool = True  # re-analyse the measured sweeps, model the RTX 4070's
    forests: bool = True
    # the tile sweep
    h100_tiles: list[int] = field(default_factory=lambda: [4, 8, 12, 16, 20, 24, 32])
    # the forest
    ms: list[int] = field(default_factory=lambda: list(SIZES_M))
    ns: list[int] = field(default_factory=lambda: list(SIZES_N))
    ks: list[int] = field(default_factory=lambda: list(SIZES_K))
    repeats: int = 64  # runs of a size and block-size label
    trees: int = 100
    depth: int = 6
    power_repeats: int = 5  # random splits a seed of the small energy table
    leave_one_m_out: bool = True  # of the grid: four forests a seed and recipe
    h100_leave_one_m_out: bool = False  # of the H100 times: twenty
    depths: list[int] = field(default_factory=list)  # of a sweep
    shares: list[float] = field(default_factory=list)  # of the training rows, of a learning curve
    boosting: bool = False  # gradient boosting beside the forest
    # a GPU of the user's own
    gpu_sides: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192])
    gpu_tiles: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    gpu_seconds: float = 1.0  # of sustained execution, at least
