"""What the claims of DRACO read: cycles and use of an array, by group size and width, and accuracies really trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from common.lab.runtime import Observations, Runtime
from papers.draco.array_study import (
    Goal,
    energy_efficiency,
    group_size_of,
    speed,
    starvation,
    sweep,
    work_rate,
)
from papers.draco.config import Config
from papers.draco.cooptimization import BASELINE, Point, Speed, choose, held_out, loses_at_most

CIFAR = ("cifar10-train-a", "cifar10-train-b", "cifar10-test")
FILES = {"mnist-5k": ("mnist-5k",), "cifar10": CIFAR, "digits": ()}
CLASSES = 10  # of each of these data sets; ImageNet has a thousand
CHOSEN = ("latency_gain", "utilization_gain", "accuracy_change", "latency_gain_over_narrowing")
CHOSEN_ALONE = ("latency_gain_alone", "utilization_gain_alone")
Gains = Mapping[Point, Mapping[int, float]]  # accuracy over the baseline's, points, by seed


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed (none where chance plays no part)."""
    seen = Observations()
    seen.add("processing_elements", config.array**2)
    if lab.wants("work_rate_gain"):
        work_rate(config, seen)
    if lab.wants("starved_share"):
        starvation(config, seen)
    if lab.wants("macs_per_energy") and config.sharing != "parallel":
        energy_efficiency(config, seen)
    if lab.wants("cycles"):
        sweep(config, seen)
    if lab.wants(*CHOSEN, *CHOSEN_ALONE, "accuracy_gain"):
        trained(config, lab, seen)
    if lab.device.startswith("cuda") and lab.wants("gpu_time_over_macs"):
        on_gpu(config, lab, seen)
    return seen


def trained(config: Config, lab: Runtime, seen: Observations) -> None:
    """Accuracies of the candidates that somebody asks for, and the choices that follow from them."""
    grid = [Point(group, width) for width in config.widths for group in config.group_sizes]
    widest = [point for point in grid if point.width == 1.0]
    larger = Point(config.compared, 1.0)
    asked = [BASELINE, *(grid if lab.wants(*CHOSEN) else widest if lab.wants(*CHOSEN_ALONE) else [larger])]
    gains = learn(config, lab, list(dict.fromkeys(asked)), seen)
    if lab.wants(*CHOSEN):
        chosen(config, lab, seen, grid, gains, "energy", "")
        narrowing(config, lab, seen, grid, gains)
    if lab.wants(*CHOSEN_ALONE):
        chosen(config, lab, seen, [point for point in widest if point != BASELINE], gains, "time", "_alone")
    if lab.wants("accuracy_gain"):
        for seed in lab.seeds:
            seen.add("accuracy_gain", gains[larger][seed], seed)


def chosen(
    config: Config,
    lab: Runtime,
    seen: Observations,
    candidates: Sequence[Point],
    gains: Gains,
    goal: Goal,
    suffix: str,
) -> None:
    """What each seed's choice among the candidates does to latency, utilisation and accuracy on its own images."""
    speeds = {point: speed(config, point, goal) for point in (BASELINE, *candidates)}
    was = speeds[BASELINE]
    for seed in lab.seeds:
        best = pick(config, lab, seed, speeds, gains, candidates)
        now = speeds[best]
        seen.add("latency_gain" + suffix, was.cycles / now.cycles, seed)
        seen.add("utilization_gain" + suffix, now.utilization / was.utilization, seed)
        seen.add("utilization_points" + suffix, 100 * (now.utilization - was.utilization), seed)
        seen.add("accuracy_change" + suffix, gains[best][seed], seed)
        seen.add("chosen_group" + suffix, best.group_size, seed)
        seen.add("chosen_width" + suffix, best.width, seed)


def pick(
    config: Config,
    lab: Runtime,
    seed: int,
    speeds: Mapping[Point, Speed],
    gains: Gains,
    candidates: Iterable[Point],
) -> Point:
    """One seed's choice: the fastest that surely keeps its accuracy on other seeds' images; at random, any."""
    if config.choice == "random":
        among = sorted(candidates)
        return among[int(lab.rng(seed, "choice").integers(len(among)))]
    kept = [p for p in candidates if loses_at_most(held_out(gains[p], seed), config.allowed_loss)]
    return choose(speeds, kept)


def narrowing(config: Config, lab: Runtime, seen: Observations, grid: Sequence[Point], gains: Gains) -> None:
    """The same choice beside the best depthwise one, and both on hardware that runs groups side by side."""
    depthwise = [point for point in grid if point.group_size == 1]
    for suffix, hardware in (("", config), ("_side_by_side", replace(config, sharing="parallel"))):
        speeds = {point: speed(hardware, point, "energy") for point in grid}
        for seed in lab.seeds:
            both, narrow = (pick(config, lab, seed, speeds, gains, among) for among in (grid, depthwise))
            cycles = {point: speeds[point].cycles for point in (BASELINE, both, narrow)}
            seen.add("latency_gain_by_narrowing" + suffix, cycles[BASELINE] / cycles[narrow], seed)
            seen.add("latency_gain_over_narrowing" + suffix, cycles[narrow] / cycles[both], seed)


def learn(
    config: Config, lab: Runtime, points: Sequence[Point], seen: Observations
) -> dict[Point, dict[int, float]]:
    """Train every point with every seed; accuracy minus the baseline's, in points, by point and seed."""
    from papers.draco.accuracy import Training, accuracy  # brings torch, which mappings do without

    data, paths = images(config, lab)
    tasks = {
        (point, seed): Training(
            group_size_of(config, point),
            point.width,
            seed,
            data,
            config.epochs,
            config.batch,
            config.learning_rate,
            config.frozen and point.group_size > 1,
            lab.device,
        )
        for point in points
        for seed in lab.seeds
    }
    known = lab.map_once(
        f"draco: accuracies on {paths}", partial(accuracy, paths=paths), tasks.values(), "networks"
    )
    found = {key: known[task] for key, task in tasks.items()}
    for (point, seed), percent in found.items():
        seen.add("accuracy", percent, seed, group=point.group_size, width=point.width)
        if point == BASELINE:
            seen.add("baseline_accuracy", percent, seed)
    seen.add("trained_epochs", config.epochs)
    seen.add("real_images", float(data != "digits"))
    seen.add("classes", CLASSES)
    return {
        point: {seed: found[point, seed] - found[BASELINE, seed] for seed in lab.seeds} for point in points
    }


def images(config: Config, lab: Runtime) -> tuple[str, tuple[Path, ...]]:
    """The data to train on and its files; digits where the wanted files can't be had."""
    registry = import_module("common.data")
    names = FILES[config.data]
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

    channels = config.timed_channels
    for seed in lab.seeds:
        times = {}
        for group in dict.fromkeys((1, config.compared, *config.swept_groups)):
            used = channels if config.standard else group if config.grouped else 1
            times[group] = seconds(channels, config.timed_size, used, config.timed_batch, lab.device)
            seen.add("gpu_us", 1e6 * times[group], seed, group=group)
        macs = 1.0 if config.standard or not config.grouped else float(config.compared)
        seen.add("gpu_time_over_macs", times[config.compared] / times[1] / macs, seed)
