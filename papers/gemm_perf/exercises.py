"""The notebook's exercises and their solutions."""

from typing import Any

import numpy as np

from common.hardware.float32 import board
from common.lab.exercises import Exercise
from papers.gemm_perf.cutlass_grid import IDLE_WATT
from papers.gemm_perf.idle_power import after_the_end, during
from papers.gemm_perf.tile_model import tile_time

SIDE = 8192
CANDIDATES = (4, 8, 12, 16, 20, 24, 32)


def modelled_best(name: str) -> int:
    """The tile that the model finds the fastest for a square product of 8192 on a board."""
    return min(CANDIDATES, key=lambda tile: tile_time(board(name), SIDE, SIDE, SIDE, tile).seconds)


def mean_reading(seconds: float, active: float, sound: bool) -> float:
    """Watts that a protocol writes down: the mean of its readings, taken after the end or (sound) while running."""
    trace = (during if sound else after_the_end)(seconds, active, IDLE_WATT)
    return float(np.mean(trace.readings()))


def best_on_hopper(lab: Any) -> int:
    """The model's best tile on an H100."""
    return modelled_best("h100-sxm")


EXERCISES = {
    "exercise-1": Exercise(
        question="Which tile does the model find the fastest for 8192 x 8192 x 8192 on an H100?",
        hint='`modelled_best` takes the board\'s name; the cell asks for "rtx-4070", this asks for "h100-sxm".',
        answer=best_on_hopper,
        tolerance=0.0,
    ),
    "exercise-2": Exercise(
        question=(
            "A kernel of 0.04 ms draws 140 W. By how many watts is the authors' protocol, which reads after the end, "
            "below one that reads while the kernel is repeated?"
        ),
        hint="`mean_reading(seconds, watts, sound)` with sound=True and sound=False; take the difference.",
        answer=lambda lab: mean_reading(40e-6, 140.0, True) - mean_reading(40e-6, 140.0, False),
        tolerance=0.01,
    ),
}
