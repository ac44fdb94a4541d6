"""What the claims of Curator read: five indexes at equal recall, their bytes, and how both grow."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.curator import compiled, growth
from papers.curator.comparison import Comparison, compile_kernels, drawn
from papers.curator.config import Config
from papers.curator.task import Task
from papers.curator.workload import films

if TYPE_CHECKING:
    from papers.curator.workload import Workload

# what the claims compare: the metric's name, above the line, below the line
GAINS = {
    "mf_ivf_gain": ("mf_ivf", "curator"),
    "mf_hnsw_gain": ("mf_hnsw", "curator"),
    "pt_ivf_gain": ("pt_ivf", "curator"),
    "shortlist_gain": ("mf_ivf_bf", "flat"),
    "best_first_gain": ("flat", "curator"),
}
TAILS = {"mf_hnsw_tail": ("mf_hnsw", "curator"), "pt_ivf_tail": ("pt_ivf", "curator")}  # 99th percentiles
WEIGHTS = {
    "memory_over_mf_ivf": ("curator", "mf_ivf"),
    "pt_ivf_memory": ("pt_ivf", "curator"),
    "pt_hnsw_memory": ("pt_hnsw", "curator"),
}
INSERTS = {"pt_ivf_insert": ("pt_ivf", "curator"), "mf_ivf_insert": ("mf_ivf", "curator")}
MEASURES = ("touched", "wall")
SHOWN = ("pt_hnsw", "pt_ivf_equal")  # searched too, beside what claims compare
FILMS = "ml-100k-ratings"


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    if not compiled.kept():  # the first run on a machine: two halves at once
        lab.map(compile_kernels, ["trees", "others"], "compiling")
    metrics = {
        "main": [
            *(f"{name}_{measure}" for name in (*GAINS, *TAILS, *INSERTS) for measure in MEASURES),
            *WEIGHTS,
            "memory_over_mf_ivf_padded",
            "pt_ivf_memory_padded",
        ],
        "growth": list(growth.EXPONENTS),
        "memory": ["memory_growth"],
        "films": ["films_memory", "films_gain_touched"],
        "random": ["random_gain_touched"],
    }
    path = _ratings(lab) if config.films and lab.wants(*metrics["films"]) else None
    everything = lab.wants("")  # true in a run that is no control's
    tasks = []
    for part, names in metrics.items():
        wanted = None if everything else frozenset(name for name in names if lab.wants(name))
        if wanted is not None and not wanted or part == "films" and path is None:
            continue
        seeds = lab.seeds[:1] if part == "random" else lab.seeds
        tasks += [Task(part, config, seed, lab.rng(seed, part), wanted, path) for seed in seeds]
    seen = Observations()
    for rows in lab.map(observe, tasks, "indexes"):
        seen.extend(rows)
    return seen


def _ratings(lab: Runtime) -> Path | None:
    """MovieLens 100K, or None: then nothing is said of films."""
    from common import data

    try:
        data.fetch(FILMS)
    except data.DataError:
        return None
    return lab.data(FILMS)


def observe(task: Task) -> Observations:
    """One part on one seed."""
    compile_kernels()
    seen = Observations()
    parts = {
        "main": _compare,
        "growth": growth.with_vectors,
        "memory": growth.with_tenants,
        "films": _films,
        "random": _random,
    }
    parts[task.part](task, seen)
    return seen


def _compare(task: Task, seen: Observations) -> None:
    """Latency, memory and insertion of all indexes on one workload."""
    config, seed = task.config, task.seed
    load = drawn(config, task.rng, config.vectors, config.tenants, config.sharing)
    compared = {**task.compared(GAINS, MEASURES), **task.compared(TAILS, MEASURES)}
    padded = {f"{name}_padded": pair for name, pair in WEIGHTS.items()}
    weighed, inserted = {**task.compared(WEIGHTS), **task.compared(padded)}, task.compared(INSERTS, MEASURES)
    searched = {name for pair in compared.values() for name in pair}
    if task.wanted is None:
        searched.update(SHOWN)
    names = searched | {name for pairs in (weighed, inserted) for pair in pairs.values() for name in pair}
    indexes = Comparison(config, load, names, seed)
    if searched:
        _searches(task, seen, indexes, sorted(searched))
    for width, suffix in ((None, ""), (config.padded_width, "_padded")):
        weights = indexes.weighed(width)
        for name, (above, below) in WEIGHTS.items():
            if {above, below} <= weights.keys() and task.wants(name + suffix):
                seen.add(name + suffix, weights[above] / weights[below], seed)
        for name, value in weights.items():
            seen.add("bytes" + suffix, value, seed, index=name)
    for name, (above, below) in inserted.items():
        spent = indexes.insert_seconds
        seen.add(f"{name}_wall", spent[above] / spent[below], seed)
        distances = [indexes.insert_distances(index) for index in (above, below)]
        seen.add(f"{name}_touched", distances[0] / distances[1], seed)
    for name, spent_on in indexes.insert_seconds.items():
        seen.add("insert_us", 1e6 * spent_on / len(load.vectors), seed, index=name)
    for name, index in indexes.indexes.items():
        for part, value in index.bytes.items():
            seen.add("part_bytes", value, seed, index=name, part=part)
    seen.add("sharing", load.sharing, seed)


def _searches(task: Task, seen: Observations, indexes: Comparison, names: list[str]) -> None:
    """Entries touched and time of each index at the recall asked for, and their ratios."""
    seed, tuned = task.seed, indexes.tuned(names)
    times = indexes.timed(tuned)
    for name in names:
        setting, spent = tuned[name], times[name]
        found = setting.found
        for metric, value in (
            ("knob", setting.knob),
            ("recall", setting.recall),
            ("touched", setting.touched.mean()),
            ("touched_p99", np.percentile(setting.touched, 99)),
            ("centroids", found.centroids.mean()),
            ("tests", found.tests.mean()),
            ("distances", found.vectors.mean()),
            ("latency_us", 1e6 * spent.mean()),
            ("latency_us_p99", 1e6 * np.percentile(spent, 99)),
        ):
            seen.add(metric, float(value), seed, index=name)
    for pairs, of in ((GAINS, np.mean), (TAILS, lambda values: np.percentile(values, 99))):
        for name, (above, below) in pairs.items():
            if {above, below} <= set(names):
                touched = [float(of(tuned[index].touched)) for index in (above, below)]
                took = [float(of(times[index])) for index in (above, below)]
                seen.add(f"{name}_touched", touched[0] / touched[1], seed)
                seen.add(f"{name}_wall", took[0] / took[1], seed)


def _two(task: Task, seen: Observations, load: "Workload", prefix: str) -> None:
    """Entries and bytes of Curator and of inverted files on another workload."""
    names = ["curator", "mf_ivf"]
    indexes = Comparison(task.config, load, [*names, "pt_ivf"], task.seed)
    if task.wants(f"{prefix}_gain_touched"):
        tuned = indexes.tuned(names)
        touched = {name: tuned[name].touched.mean() for name in names}
        seen.add(f"{prefix}_gain_touched", touched["mf_ivf"] / touched["curator"], task.seed)
        for name in names:
            seen.add(f"{prefix}_touched", touched[name], task.seed, index=name)
            seen.add(f"{prefix}_recall", tuned[name].recall, task.seed, index=name)
    weights = indexes.weighed()
    seen.add(f"{prefix}_memory", weights["pt_ivf"] / weights["curator"], task.seed)
    for name, value in weights.items():
        seen.add(f"{prefix}_bytes", value, task.seed, index=name)
    seen.add(f"{prefix}_sharing", load.sharing, task.seed)


def _films(task: Task, seen: Observations) -> None:
    """MovieLens 100K: real sharing."""
    assert task.path is not None
    _two(task, seen, films(task.rng, task.path, task.config.queries, access=task.config.access), "films")


def _random(task: Task, seen: Observations) -> None:
    """Access at random, as in the authors' synthetic data: a tenant's vectors lie everywhere."""
    config = replace(task.config, access="random", queries=min(300, task.config.queries))
    _two(task, seen, drawn(config, task.rng, config.vectors, config.tenants, config.sharing), "random")
