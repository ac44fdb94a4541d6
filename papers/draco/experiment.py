"""What the claims of DRACO read: cycles and use of an array, by group size and width, and accuracies really trained."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from common.accelerator.energy import Energy, blocked, cheapest_run
from common.accelerator.layers import Layer
from common.accelerator.networks import convolutions, mobilenet_v1, resnet50, squeezenext
from common.accelerator.row_stationary import Array, Run, Sharing, run_network
from common.accelerator.stationary import systolic
from common.lab.runtime import Observations, Runtime
from papers.draco.config import BASELINE, Config, check
from papers.draco.cooptimization import Point, Speed, choose, held_out

STANDARD = 1 << 20  # channels per group beyond any layer's: a standard convolution
CIFAR = ("cifar10-train-a", "cifar10-train-b", "cifar10-test")
# How a mapping is picked. "energy": the least energy, what the authors' published script asks for. "time": the fewest
# cycles, what the same simulator finds when it is asked for latency.
GOALS = ("energy", "time")


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed (none where chance plays no part)."""
    check(config)
    seen = Observations()
    if lab.wants("time_of_added_macs"):
        added_work(config, seen)
    if lab.wants("starved_share"):
        starvation(config, seen)
    if lab.wants("macs_per_energy") and config.sharing != "parallel":
        energy_efficiency(config, seen)
    if lab.wants("cycles"):
        sweep(config, seen)
    if config.epochs:
        trained(config, lab, seen)
    if lab.device.startswith("cuda") and lab.wants("gpu_time_over_macs"):
        on_gpu(config, lab, seen)
    return seen


def layers_of(config: Config, point: Point) -> list[Layer]:
    """The convolutions of MobileNetV1 at a point, as the paper's averages take them: without the dense layer."""
    group_size = STANDARD if config.standard else point.group_size
    return convolutions(mobilenet_v1(group_size, point.width))


def mapped(config: Config, layers: Sequence[Layer], goal: str, array: Array | None = None) -> Run:
    """A network on the array. The energy goal is that of the published simulator, which knows shared inputs alone."""
    array = array or Array(*config.array)
    sharing: Sharing = config.sharing  # type: ignore[assignment]
    if goal == "energy" and sharing == "shared":
        return cheapest_run(layers, array)
    return run_network(layers, array, sharing)


def speed(config: Config, point: Point, goal: str) -> Speed:
    """Cycles and mean utilisation of MobileNetV1 at a point."""
    found = mapped(config, layers_of(config, point), goal)
    return Speed(found.cycles, found.mean_utilization)


def added_work(config: Config, seen: Observations) -> None:
    """The time of the network with larger groups over that of the depthwise one, at the same width."""
    for goal in GOALS:
        before, after = (mapped(config, layers_of(config, Point(g, 1.0)), goal) for g in (1, config.compared))
        seen.add("added_macs", after.macs / before.macs, goal=goal)
        if goal == "energy":
            seen.add("time_of_added_macs", after.cycles / before.cycles)


def starvation(config: Config, seen: Observations) -> None:
    """The share of its use that MobileNetV1 loses from 16 x 16 to 64 x 64, beyond what ResNet-50 does."""
    lost = {}
    for name, layers in (("mobilenet", layers_of(config, BASELINE)), ("resnet", convolutions(resnet50()))):
        small, large = (mapped(config, layers, "time", Array(n, n)).time_utilization for n in (16, 64))
        lost[name] = 1.0 - large / small
    seen.add("starved_share", lost["mobilenet"] - lost["resnet"])


def energy_efficiency(config: Config, seen: Observations) -> None:
    """Multiply-accumulates per unit of energy with larger groups over depthwise, whole network, 64 x 64."""
    efficiency = {}
    for group_size in (1, config.compared):
        found = mapped(config, layers_of(config, Point(group_size, 1.0)), "energy")
        spent = energy_of(found)
        efficiency[group_size] = found.macs / spent.total
        for level in ("mac", "register", "link", "buffer", "dram"):
            seen.add("energy", getattr(spent, level), level=level, group=group_size)
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
            for sharing in ("aligned", "parallel"):
                found = run_network(layers, Array(*config.array), sharing)  # type: ignore[arg-type]
                at_point(seen, found, group=group, width=width, goal=sharing)
            if width == 1.0:
                for size in config.swept_arrays:
                    found = run_network(layers, Array(size, size))
                    seen.add("array_cycles", found.cycles, array=size, group=group)
                    seen.add("array_utilization", found.mean_utilization, array=size, group=group)
                for keeps in ("outputs", "weights"):
                    cycles = sum(systolic(layer, Array(*config.array), keeps).cycles for layer in layers)  # type: ignore[arg-type]
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


CHOICES = ("latency_cut", "latency_cut_over_narrowing", "utilization_gain")
ALONE = ("latency_cut_alone", "utilization_gain_alone")


def trained(config: Config, lab: Runtime, seen: Observations) -> None:
    """Accuracies of the points that somebody asks for, and the choices that follow from them."""
    sizes = (
        [1] if config.standard else config.group_sizes
    )  # of standard convolutions all are the same network
    grid = [Point(g, w) for w in config.widths for g in sizes]
    widest = [point for point in grid if point.width == 1.0]
    group = config.compared if config.compared in sizes else max(sizes)
    narrow, larger = Point(group, min(config.widths)), Point(group, 1.0)
    asked: list[Point] = [BASELINE]
    for metrics, points in (
        (CHOICES, grid), (ALONE, widest), (("accuracy_change",), [narrow]), (("accuracy_gain",), [larger]),
    ):  # fmt: skip
        asked += points if lab.wants(*metrics) else []
    gains = learn(config, lab, list(dict.fromkeys(asked)), seen)
    for suffix, goal, points, metrics in (("", "energy", grid, CHOICES), ("_alone", "time", widest, ALONE)):
        if lab.wants(*metrics):
            speeds = {point: speed(config, point, goal) for point in points}
            for seed in lab.seeds:
                known = {point: held_out(gains[point], seed) for point in points}
                best = choose(BASELINE, speeds, known, config.allowed_loss)
                was, now = speeds[BASELINE], speeds[best]
                seen.add(f"latency_cut{suffix}", 1.0 - now.cycles / was.cycles, seed)
                seen.add(f"utilization_gain{suffix}", now.utilization / was.utilization - 1.0, seed)
                seen.add(f"utilization_points{suffix}", 100 * (now.utilization - was.utilization), seed)
                seen.add(f"chosen_group{suffix}", best.group_size, seed)
                seen.add(f"chosen_width{suffix}", best.width, seed)
                seen.add(f"chosen_change{suffix}", gains[best][seed], seed)
                if points is grid:
                    depthwise = {p: gain for p, gain in known.items() if p.group_size == 1}
                    narrowed = choose(BASELINE, speeds, depthwise, config.allowed_loss)
                    seen.add("latency_cut_over_narrowing", 1.0 - now.cycles / speeds[narrowed].cycles, seed)
                    seen.add("latency_cut_by_narrowing", 1.0 - speeds[narrowed].cycles / was.cycles, seed)
    if lab.wants("latency_cut_side_by_side"):
        side_by_side(config, lab, grid, gains, seen)
    for metric, point in (("accuracy_change", narrow), ("accuracy_gain", larger)):
        if lab.wants(metric):
            for seed in lab.seeds:
                seen.add(metric, gains[point][seed], seed)


def side_by_side(
    config: Config,
    lab: Runtime,
    grid: Sequence[Point],
    gains: Mapping[Point, Mapping[int, float]],
    seen: Observations,
) -> None:
    """The same choice on hardware that runs groups side by side, against its own depthwise network and narrowing."""
    array = Array(*config.array)
    runs = {point: run_network(layers_of(config, point), array, "parallel") for point in grid}
    speeds = {point: Speed(found.cycles, found.mean_utilization) for point, found in runs.items()}
    for seed in lab.seeds:
        known = {point: held_out(gains[point], seed) for point in grid}
        best = choose(BASELINE, speeds, known, config.allowed_loss)
        depthwise = {point: gain for point, gain in known.items() if point.group_size == 1}
        narrowed = choose(BASELINE, speeds, depthwise, config.allowed_loss)
        seen.add("latency_cut_side_by_side", 1.0 - speeds[best].cycles / speeds[BASELINE].cycles, seed)
        seen.add("narrowing_side_by_side", 1.0 - speeds[narrowed].cycles / speeds[BASELINE].cycles, seed)


def learn(
    config: Config, lab: Runtime, points: Sequence[Point], seen: Observations
) -> dict[Point, dict[int, float]]:
    """Train every point with every seed; accuracy minus the baseline's, in points, by point and seed."""
    from papers.draco.accuracy import Training, accuracies  # brings torch, which mappings do without

    data, paths = images(config, lab)
    seen.add("trained_on_mnist", float(data == "mnist-5k"))
    found = {
        (point, seed): Training(
            STANDARD if config.standard else point.group_size, point.width, seed, data, paths, config.epochs,
            config.batch, config.learning_rate, config.frozen and point.group_size > 1, lab.device,
        )
        for point in points
        for seed in lab.seeds
    }  # fmt: skip
    known = accuracies(list(found.values()), partial(lab.map, label="networks"))
    for (point, seed), training in found.items():
        seen.add("accuracy", known[training], seed, group=point.group_size, width=point.width)
    return {
        point: {seed: known[found[point, seed]] - known[found[BASELINE, seed]] for seed in lab.seeds}
        for point in points
    }


def images(config: Config, lab: Runtime) -> tuple[str, tuple[Path, ...]]:
    """The data to train on and its files; digits where the wanted files can't be had."""
    names = {"mnist-5k": ("mnist-5k",), "cifar10": CIFAR, "digits": ()}.get(config.data)
    if names is None:
        raise ValueError(f"data is mnist-5k, digits or cifar10, not {config.data!r}")
    registry = import_module("common.data")
    for name in names:
        try:
            registry.fetch(name)
        except registry.DataError:
            return "digits", ()
    paths = [lab.data(name) for name in names]
    if any(path is None for path in paths):
        return "digits", ()
    return config.data, tuple(path for path in paths if path is not None)


def on_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """The time that larger groups take on a GPU, over what their multiply-accumulates would."""
    from papers.draco.group_convolution import seconds

    channels, size, batch = config.timed
    for seed in lab.seeds:
        times = {}
        for group in config.swept_groups:
            used = channels if config.standard else group
            times[group] = seconds(channels, size, used, batch, lab.device)
            seen.add("gpu_us", 1e6 * times[group], seed, group=group)
        macs = 1.0 if config.standard else float(config.compared)
        seen.add("gpu_time_over_macs", times[config.compared] / times[1] / macs, seed)


def reuse_of(layers: Sequence[Layer]) -> float:
    """Multiply-accumulates per word of the 3 x 3 layers, the mean over them."""
    return float(np.mean([layer.reuse for layer in layers if layer.spatial and layer.inputs > 3]))
