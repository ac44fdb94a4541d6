"""The forest on three tables (the modelled RTX 4070 grid, H100 times, H100 energy) under splits that differ.

Every task draws its own noise, split and trees from its seed; what a claim reads has one row a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.hardware.float32 import board
from common.hardware.gemm_tables import ENERGY, gemm_energy, gemm_times
from common.lab.runtime import Observation, Observations
from common.stats.splits import Split, group_numbers
from papers.gemm_perf import baselines
from papers.gemm_perf.config import Config
from papers.gemm_perf.cutlass_grid import (
    IDLE_WATT,
    TARGETS,
    Grid,
    active_watts,
    flops,
    grid,
    kernel_seconds,
    measurements,
    noisy,
)  # fmt: skip
from papers.gemm_perf.evaluation import Predictions, Table, evaluate, importance, splits
from papers.gemm_perf.forest import (
    Recipe,
    Score,
    clip,
    grid_features,
    permuted_sizes,
    score,
    table_features,
)  # fmt: skip
from papers.gemm_perf.idle_power import caught_as_in_the_figure, caught_at_random, read_after_the_end

RUNTIME, POWER = TARGETS[:2]
METRICS = {  # kind of task -> what claims read of it
    "grid-random": (
        "runtime_r2", "runtime_mape", "power_r2_replay", "lookup_error_ratio",
    ),
    "grid-grouped": ("runtime_r2_unseen", "power_r2_replay_unseen"),
    "h100-times": ("runtime_r2_h100_unseen",),
    "h100-energy": ("power_error_gain_h100",),
}  # fmt: skip
STREAM = {"grid-random": "grid", "grid-grouped": "grid", "h100-times": "times", "h100-energy": "energy"}


@dataclass(frozen=True, eq=False)
class Task:
    """A kind of METRICS, a seed and its generator."""

    kind: str
    seed: int
    rng: np.random.Generator


def observe(config: Config, task: Task) -> list[Observation]:
    """Run one task."""
    seen = Observations()
    {
        "grid-random": grid_random,
        "grid-grouped": grid_grouped,
        "h100-times": h100_times,
        "h100-energy": h100_energy,
    }[task.kind](config, task, seen)
    return list(seen)


@dataclass(frozen=True, eq=False)
class Profiled:
    """The grid with modelled measurements: what the authors' protocol wrote down, and the power while kernels ran."""

    runs: Grid
    table: Table
    active_watt: np.ndarray  # without noise


def profiled(config: Config, rng: np.random.Generator) -> Profiled:
    """Model every run on the RTX 4070, with noise, and read its power after the end."""
    card = board("rtx-4070")
    runs = grid(tuple(config.ms), tuple(config.ns), tuple(config.ks), config.repeats)
    seconds, flop = kernel_seconds(card, runs.m, runs.n, runs.k), flops(runs.m, runs.n, runs.k)
    active = active_watts(card, flop, seconds)
    read = noisy(
        read_after_the_end(runs.size, active, IDLE_WATT, caught(config, runs, rng)), config.noise, rng
    )
    measured = measurements(flop, noisy(seconds, config.noise, rng), read)
    features = grid_features(runs)
    if config.permute:
        features = permuted_sizes(features, runs.size, rng)
    return Profiled(runs, Table(features, measured.columns(), runs.size), active)


def caught(config: Config, runs: Grid, rng: np.random.Generator) -> np.ndarray:
    """Which sizes are read while the board is busy, boolean (sizes,)."""
    if config.power == "random":
        return caught_at_random(len(runs.sizes), rng)
    if config.power == "during":
        return np.ones(len(runs.sizes), dtype=bool)
    return caught_as_in_the_figure(runs.sizes)


def recipe(config: Config) -> Recipe:
    """The paper's, in the profile's size."""
    return Recipe(config.trees, config.depth, labels_only=config.labels_only)


def sound(config: Config) -> Recipe:
    """Ours, never mixed with the paper's: clipped by the training part, log targets."""
    return replace(recipe(config), clip_before_split=False, log_targets=True)


def grid_random(config: Config, task: Task, seen: Observations) -> None:
    """The paper's own evaluation, and what it measures: baselines, the look-up, correlations."""
    made, seed = profiled(config, task.rng), task.seed
    table = made.table
    parts = splits("random", table, task.rng)
    found = evaluate(table, TARGETS, parts, recipe(config), seed)
    add_scores(seen, found.scores(), seed, data="grid", way="random", model="forest")
    scores = found.scores()
    seen.add("runtime_r2", scores[RUNTIME].r2, seed)
    seen.add("runtime_mape", scores[RUNTIME].mean_ape, seed)
    seen.add("power_r2_replay", scores[POWER].r2, seed)
    seen.add("grid_rows", len(table.size))
    seen.add("grid_features", table.features.matrix().shape[1])
    against_truth(made, found, seen, seed, "random")
    lookups = add_baselines(seen, made, parts, seed, "random")
    seen.add("lookup_error_ratio", lookups[RUNTIME].mean_ape / scores[RUNTIME].mean_ape, seed)
    shuffled = replace(table, features=permuted_sizes(table.features, table.size, task.rng))
    again = evaluate(shuffled, (RUNTIME,), parts, recipe(config), seed).scores()
    add_scores(seen, again, seed, data="grid", way="random", model="forest, sizes permuted")
    if seed == 0:
        figures(config, made, found, parts[0], seen)
    extras(config, made, parts[0], task, seen)


def against_truth(made: Profiled, found: Predictions, seen: Observations, seed: int, way: str) -> None:
    """The same power predictions, scored against the power while the kernels ran."""
    truth = made.active_watt[found.rows]
    seen.add("power_r2_against_truth", score(truth, found.predicted[POWER]).r2, seed, way=way)


def add_scores(seen: Observations, scores: dict[str, Score], seed: int, **at: str) -> None:
    """A row a target and score."""
    for target, value in scores.items():
        for name in ("r2", "mae", "mean_ape", "median_ape"):
            seen.add(f"score_{name}", getattr(value, name), seed, target=target, **at)


def add_baselines(
    seen: Observations, made: Profiled, parts: Sequence[Split], seed: int, way: str
) -> dict[str, Score]:
    """The baselines on the same parts; the look-up's scores."""
    runs, table = made.runs, made.table
    x, size = table.features.matrix(), np.column_stack([runs.m, runs.n, runs.k])
    columns = table.features.columns
    flop, moved, card = columns["total_flops"], columns["bytes"], board("rtx-4070")
    truth: dict[str, list[np.ndarray]] = {}
    guesses: dict[tuple[str, str], list[np.ndarray]] = {}
    for target in (RUNTIME, POWER):
        y = clip(table.targets[target][:, None], table.targets[target][:, None])[:, 0]
        for part in parts:
            a, b = part.train, part.test
            truth.setdefault(target, []).append(y[b])
            guess = {
                "size look-up": baselines.lookup(table.size[a], y[a], table.size[b]),
                "linear": baselines.linear(x[a], y[a], x[b]),
                "nearest sizes": baselines.nearest(size[a], y[a], size[b]),
            }
            if target == RUNTIME:
                seconds = baselines.roofline(card, flop[a], moved[a], y[a] / 1e3, flop[b], moved[b])
                guess["roofline"] = 1e3 * seconds
            for model, values in guess.items():
                guesses.setdefault((model, target), []).append(values)
    lookups = {}
    for (model, target), guessed in guesses.items():
        found = score(np.concatenate(truth[target]), np.concatenate(guessed))
        add_scores(seen, {target: found}, seed, data="grid", way=way, model=model)
        if model == "size look-up":
            lookups[target] = found
    return lookups


def figures(config: Config, made: Profiled, found: Predictions, part: Split, seen: Observations) -> None:
    """Means by size of the first seed, and what each feature is worth."""
    for number, (m, n, k) in enumerate(made.runs.sizes):
        mine = made.runs.size[found.rows] == number
        if not np.any(mine):
            continue
        at: dict[str, int] = {"m": int(m), "n": int(n), "k": int(k)}
        for target in TARGETS:
            seen.add("size_mean", found.truth[target][mine].mean(), 0, target=target, of="actual", **at)
            seen.add("size_mean", found.predicted[target][mine].mean(), 0, target=target, of="forest", **at)
        active = made.active_watt[made.runs.size == number][0]
        seen.add("size_mean", active, 0, target=POWER, of="while running", **at)
    for target in (RUNTIME, POWER):
        for feature, fallen in importance(made.table, target, part, recipe(config), 0).items():
            seen.add("importance", fallen, 0, target=target, feature=feature)


def extras(config: Config, made: Profiled, part: Split, task: Task, seen: Observations) -> None:
    """Profile full: depth, training rows, gradient boosting, each on the runtime."""
    table, base, seed = made.table, recipe(config), task.seed
    for depth in config.depths:
        found = evaluate(table, (RUNTIME,), [part], replace(base, depth=depth), seed).scores()[RUNTIME]
        seen.add("depth_mape", found.mean_ape, seed, depth=depth)
    for share in config.shares:
        rows = task.rng.choice(part.train, max(1, round(share * len(part.train))), replace=False)
        found = evaluate(table, (RUNTIME,), [Split(rows, part.test)], base, seed).scores()[RUNTIME]
        seen.add("learning_mape", found.mean_ape, seed, share=share)
    if config.boosting:
        from sklearn.ensemble import HistGradientBoostingRegressor

        x, y = table.features.matrix(), table.targets[RUNTIME]
        model = HistGradientBoostingRegressor(random_state=seed).fit(x[part.train], y[part.train])
        found = score(y[part.test], model.predict(x[part.test]))
        add_scores(seen, {RUNTIME: found}, seed, data="grid", way="random", model="gradient boosting")


def grid_grouped(config: Config, task: Task, seen: Observations) -> None:
    """The same forest on sizes that it has not seen, and our sound variant beside it."""
    made, seed = profiled(config, task.rng), task.seed
    table = made.table
    whole = not config.permute  # what only figures read is left out of the control
    ways = ["grouped", *(["leave-one-m-out"] if config.leave_one_m_out and whole else [])]
    for way in ways:
        parts = splits(way, table, task.rng)
        found = evaluate(table, (RUNTIME, POWER), parts, recipe(config), seed)
        scores = found.scores()
        add_scores(seen, scores, seed, data="grid", way=way, model="forest")
        against_truth(made, found, seen, seed, way)
        add_baselines(seen, made, parts, seed, way)
        if whole:
            ours = {**table.targets, POWER: noisy(made.active_watt, config.noise, task.rng)}
            mended = evaluate(replace(table, targets=ours), (RUNTIME, POWER), parts, sound(config), seed)
            add_scores(seen, mended.scores(), seed, data="grid", way=way, model="forest, sound")
        if way == "grouped":
            seen.add("runtime_r2_unseen", scores[RUNTIME].r2, seed)
            seen.add("power_r2_replay_unseen", scores[POWER].r2, seed)


def h100_times(config: Config, task: Task, seen: Observations) -> None:
    """cuBLAS products of 1,890 sizes, hardly one of them repeated, so that there is little to leak."""
    rows, seed = gemm_times(), task.seed
    size = group_numbers(np.column_stack([rows.m, rows.n, rows.k]))
    targets = {RUNTIME: 1e3 * rows.seconds, "gflops": flops(rows.m, rows.n, rows.k) / rows.seconds / 1e9}
    features = table_features(rows)
    if config.permute:
        features = permuted_sizes(features, size, task.rng)
    table = Table(features, targets, size)
    for way in ("random", "grouped", *(["leave-one-m-out"] if config.h100_leave_one_m_out else [])):
        parts = splits(way, table, task.rng)
        found = evaluate(table, tuple(targets), parts, recipe(config), seed).scores()
        add_scores(seen, found, seed, data="h100", way=way, model="forest")
        if not config.permute:
            mended = evaluate(table, tuple(targets), parts, sound(config), seed).scores()
            add_scores(seen, mended, seed, data="h100", way=way, model="forest, sound")
        if way == "grouped":
            seen.add("runtime_r2_h100_unseen", found[RUNTIME].r2, seed)


def h100_energy(config: Config, task: Task, seen: Observations) -> None:
    """Power of sustained products, read while they ran. A seed is the mean over several random splits.

    The power of the claim is the mean of the board's readings: the counter over time exceeds the board's limit in many
    short rows. Both are scored.
    """
    rows, seed = gemm_energy(), task.seed
    seen.add("zero_energy_rows", rows.dropped, seed, table=ENERGY)
    for instrument, watts in (("counter", rows.power_watt), ("readings", rows.power_sample_watt)):
        seen.add(
            "rows_above_the_limit",
            int(np.sum(watts > board("h100-sxm").power_limit_watt)),
            seed,
            instrument=instrument,
        )
    size = group_numbers(np.column_stack([rows.m, rows.n, rows.k]))
    made = measurements(flops(rows.m, rows.n, rows.k), rows.seconds, rows.power_sample_watt)
    targets = {**made.columns(), "counted_watt": rows.power_watt}
    features = table_features(rows)
    if config.permute:
        features = permuted_sizes(features, size, task.rng)
    table = Table(features, targets, size)
    found: list[dict[str, Score]] = []
    constant = []
    for part in splits("random", table, task.rng, config.power_repeats):
        found.append(evaluate(table, tuple(targets), [part], recipe(config), seed).scores())
        watts = clip(targets[POWER][:, None], targets[POWER][:, None])[:, 0]
        guess = np.full(len(part.test), np.median(watts[part.train]))
        constant.append(score(watts[part.test], guess).median_ape)
    for target in targets:
        for name in ("r2", "mean_ape", "median_ape"):
            mean = float(np.mean([getattr(one[target], name) for one in found]))
            seen.add(
                f"score_{name}", mean, seed, target=target, data="h100-energy", way="random", model="forest"
            )
    errors = float(np.mean([one[POWER].median_ape for one in found]))
    seen.add("power_medape_h100", errors, seed)
    seen.add("constant_medape_h100", float(np.mean(constant)), seed)
    seen.add("power_error_gain_h100", float(np.mean(constant)) / errors, seed)
    grouped = evaluate(table, tuple(targets), splits("grouped", table, task.rng), recipe(config), seed)
    add_scores(seen, grouped.scores(), seed, data="h100-energy", way="grouped", model="forest")
