"""What the array makes of MobileNetV1 at a group size and width: cycles, elements in use, energy. No chance here."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from common.accelerator.energy import Energy, blocked, cheapest_run
from common.accelerator.layers import Layer
from common.accelerator.networks import convolutions, mobilenet_v1, resnet50, squeezenext
from common.accelerator.row_stationary import Array, Run, Sharing, run_network
from common.accelerator.stationary import systolic
from common.lab.runtime import Observations
from papers.draco.config import Config
from papers.draco.cooptimization import BASELINE, Point, Speed

STANDARD = 1 << 20  # channels per group beyond any layer's: a standard convolution
# How a mapping is picked. "energy": the least energy, what the authors' published script asks for. "time": the fewest
# cycles, what the same simulator finds when it is asked for latency.
Goal = Literal["energy", "time"]
GOALS: tuple[Goal, ...] = ("energy", "time")
SMALL, LARGE = 16, 64  # arrays between which a network starves
LEVELS = ("mac", "register", "link", "buffer", "dram")


def group_size_of(config: Config, point: Point) -> int:
    """Channels per group of a point under this config's switches."""
    if config.standard:
        return STANDARD
    return point.group_size if config.grouped else 1


def layers_of(config: Config, point: Point) -> list[Layer]:
    """The convolutions of MobileNetV1 at a point, as the paper's averages take them: without the dense layer."""
    return convolutions(mobilenet_v1(group_size_of(config, point), point.width))


def mapped(config: Config, layers: Sequence[Layer], goal: Goal, array: int | None = None) -> Run:
    """A network on the array. The energy goal is that of the published simulator, which knows shared inputs alone."""
    square = Array(array or config.array, array or config.array)
    sharing: Sharing = config.sharing  # type: ignore[assignment]
    if goal == "energy" and sharing == "shared":
        return cheapest_run(layers, square)
    return run_network(layers, square, sharing)


def speed(config: Config, point: Point, goal: Goal) -> Speed:
    """Cycles and mean utilisation of MobileNetV1 at a point."""
    found = mapped(config, layers_of(config, point), goal)
    return Speed(found.cycles, found.mean_utilization)


def work_rate(config: Config, seen: Observations) -> None:
    """Multiply-accumulates a cycle with larger groups over depthwise, at full width: what idle elements can take on."""
    for goal in GOALS:
        before, after = (
            mapped(config, layers_of(config, Point(group, 1.0)), goal) for group in (1, config.compared)
        )
        seen.add("added_macs", after.macs / before.macs, goal=goal)
        seen.add("added_time", after.cycles / before.cycles, goal=goal)
        if goal == "energy":
            seen.add("work_rate_gain", after.macs / before.macs * before.cycles / after.cycles)


def starvation(config: Config, seen: Observations) -> None:
    """The share of its use that MobileNetV1 loses from 16 x 16 to 64 x 64, beyond what ResNet-50 does."""
    lost = {}
    for name, layers in (
        ("mobilenet", layers_of(config, BASELINE)),
        ("resnet", convolutions(resnet50())),
    ):
        small, large = (mapped(config, layers, "time", size).time_utilization for size in (SMALL, LARGE))
        lost[name] = 1.0 - large / small
    seen.add("starved_share", lost["mobilenet"] - lost["resnet"])


def energy_efficiency(config: Config, seen: Observations) -> None:
    """Multiply-accumulates per unit of energy with larger groups over depthwise, whole network."""
    efficiency = {}
    for group in (1, config.compared):
        found = mapped(config, layers_of(config, Point(group, 1.0)), "energy")
        spent = energy_of(found)
        efficiency[group] = found.macs / spent.total
        for level in LEVELS:
            seen.add("energy", getattr(spent, level), level=level, group=group)
    seen.add("macs_per_energy", efficiency[config.compared] / efficiency[1])


def energy_of(found: Run) -> Energy:
    """The least energy of these mappings, summed over layers. ValueError where a layer fits nowhere."""
    whole = Energy(0.0, 0.0, 0.0, 0.0, 0.0)
    for mapping in found.mappings:
        spent = blocked(mapping)
        if spent is None:
            raise ValueError(f"layer {mapping.layer.name}: no blocking fits into the memories")
        whole += spent
    return whole


def sweep(config: Config, seen: Observations) -> None:
    """Every group size and width on every array: total and 3 x 3 time, both utilisations. No claim reads these."""
    for width in config.widths:
        for group in config.swept_groups:
            layers = layers_of(config, Point(group, width))
            for goal in GOALS:
                at_point(seen, mapped(config, layers, goal), group=group, width=width, goal=goal)
            if width == 1.0:
                for size in config.swept_arrays:
                    found = run_network(layers, Array(size, size))
                    seen.add("array_cycles", found.cycles, array=size, group=group)
                for keeps in ("outputs", "weights"):
                    square = Array(config.array, config.array)
                    cycles = sum(systolic(layer, square, keeps).cycles for layer in layers)  # type: ignore[arg-type]
                    seen.add("systolic_cycles", cycles, group=group, keeps=keeps)
    nets = {"MobileNetV1": mobilenet_v1(), "ResNet-50": resnet50(), "SqueezeNext": squeezenext()}
    for name, network in nets.items():
        for size in config.swept_arrays:
            found = run_network(convolutions(network), Array(size, size))
            seen.add("mean_utilization_by_array", found.mean_utilization, network=name, array=size)
            seen.add("time_utilization_by_array", found.time_utilization, network=name, array=size)


def at_point(seen: Observations, found: Run, **at: str | float) -> None:
    """Rows of one network under one mapping."""
    spatial = sum(m.cycles for m in found.mappings if m.layer.spatial and m.layer.name != "conv1")
    for metric, value in (
        ("cycles", found.cycles),
        ("spatial_cycles", spatial),
        ("mean_utilization", found.mean_utilization),
        ("time_utilization", found.time_utilization),
    ):
        seen.add(metric, value, None, **at)


def reuse_of(layers: Sequence[Layer]) -> float:
    """Multiply-accumulates per word of the 3 x 3 layers, the mean over them."""
    return float(np.mean([layer.reuse for layer in layers if layer.spatial and layer.inputs > 3]))
