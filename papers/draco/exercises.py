"""The notebook's exercises and their solutions."""

from common.accelerator.energy import cheapest_run
from common.accelerator.networks import convolutions, mobilenet_v1
from common.accelerator.row_stationary import Array, run_network
from common.lab.exercises import Exercise
from papers.draco.array_study import energy_of
from papers.draco.config import GROUPS

LARGE = Array(64, 64)


def best_group(size: int) -> int:
    """The group size at which MobileNetV1 takes the fewest cycles on a square array, mapped for time."""
    square = Array(size, size)
    cycles = {group: run_network(convolutions(mobilenet_v1(group)), square).cycles for group in GROUPS}
    return min(cycles, key=lambda group: (cycles[group], group))


def energy_delay(group: int, width: float = 1.0) -> float:
    """Energy times cycles of MobileNetV1 on 64 x 64, each layer mapped for the least energy."""
    found = cheapest_run(convolutions(mobilenet_v1(group, width)), LARGE)
    return energy_of(found).total * found.cycles


def cycles_per_layer(group: int) -> list[int]:
    """Cycles of each layer of MobileNetV1 on 64 x 64 at a group size, mapped for time."""
    return [mapping.cycles for mapping in run_network(convolutions(mobilenet_v1(group)), LARGE).mappings]


def layer_by_layer() -> float:
    """The network's cycles with the best of G = 1, 2, 4, 8 in each layer, over those with the best G for all."""
    table = [cycles_per_layer(group) for group in (1, 2, 4, 8)]
    return sum(map(min, zip(*table, strict=True))) / min(map(sum, table))


EXERCISES = {
    "exercise-1": Exercise(
        question="Which group size is the fastest on 32 x 32 PEs, mapped for time?",
        hint="`best_group` takes the array's side. A small array is full earlier.",
        answer=lambda lab: best_group(32),
        tolerance=0.0,
    ),
    "exercise-2": Exercise(
        question=(
            "Designers often minimise energy times delay. By what factor does that product of G = 8 differ from "
            "depthwise, both mapped for the least energy?"
        ),
        hint="`energy_delay(8) / energy_delay(1)`: the time does not change there, so what is left is energy.",
        answer=lambda lab: energy_delay(8) / energy_delay(1),
        tolerance=0.01,
    ),
    "exercise-3": Exercise(
        question=(
            "The paper keeps G the same in all layers. With the best of G = 1, 2, 4 and 8 for each layer, how many "
            "cycles does the network take, over those with the best constant G?"
        ),
        hint="`cycles_per_layer` gives a list for each G; take the least of each layer, and sum.",
        answer=lambda lab: layer_by_layer(),
        tolerance=0.01,
    ),
}
