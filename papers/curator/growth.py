"""How latency grows with vectors and memory with tenants."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from common.lab.runtime import Observations
from papers.curator.comparison import Comparison, drawn
from papers.curator.task import Task
from papers.curator.tuning import seconds
from papers.curator.workload import nearest, recall

EXPONENTS = (
    "growth_touched",
    "growth_gap_touched",
    "growth_gap_wall",
    "growth_tuned_touched",
    "growth_gap_tuned_touched",
)
NAMES = ("curator", "flat", "mf_ivf")
Curves = dict[str, list[float]]  # of an index: a value a size


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(values) over log(sizes) by least squares. ValueError below two sizes."""
    if len(sizes) < 2:
        raise ValueError("an exponent needs at least two sizes")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def with_vectors(task: Task, seen: Observations) -> None:
    """Entries and time over the number of vectors, in two ways.

    As the authors do it, every setting is the largest size's, the lists of the shared file too, so that recall is at
    least what was asked for there and higher below. Or every size is tuned to the same recall ("tuned").
    """
    config, seed = task.config, task.seed
    sizes = sorted(config.sizes, reverse=True)
    names = [name for name in NAMES if task.wanted is None or name != "flat"]
    kept: dict[str, int] = {}
    fixed: Curves = {}
    spent: Curves = {}
    tuned: Curves = {}
    for n in sizes:
        load = drawn(config, task.rng, n, config.tenants, config.sharing)
        indexes = Comparison(config, load, names, seed)
        found = indexes.tuned(names)
        kept = kept or {name: found[name].knob for name in names}
        for name in names:
            _note(seen, tuned, "curve_touched", seed, name, n, float(found[name].touched.mean()))
            seen.add("curve_knob", found[name].knob, seed, index=name, vectors=n)
        lists = replace(config, lists_over_root=config.lists_over_root * (sizes[0] / n) ** 0.5)
        same = Comparison(lists, load, ["mf_ivf"], seed)
        searches = {
            name: partial((same if name == "mf_ivf" else indexes).search(name)[0], kept[name])
            for name in names
        }
        times, truth = seconds(searches, config.rounds), nearest(load)
        for name in names:
            answer = searches[name]()
            _note(seen, fixed, "fixed_touched", seed, name, n, float(answer.touched.mean()))
            _note(seen, spent, "fixed_us", seed, name, n, 1e6 * float(times[name].mean()))
            seen.add("fixed_recall", recall(answer.ids, truth), seed, index=name, vectors=n)
    for suffix, curves in (("touched", fixed), ("wall", spent), ("tuned_touched", tuned)):
        slopes = {name: exponent(sizes, curves[name]) for name in names}
        seen.add(f"growth_{suffix}", slopes["curator"], seed)
        seen.add(f"growth_gap_{suffix}", slopes["mf_ivf"] - slopes["curator"], seed)
        for name, slope in slopes.items():
            seen.add(f"exponent_{suffix}", slope, seed, index=name)


def _note(
    seen: Observations, curves: Curves, metric: str, seed: int, name: str, n: int, value: float
) -> None:
    """A point of an index's curve."""
    curves.setdefault(name, []).append(value)
    seen.add(metric, value, seed, index=name, vectors=n)


def with_tenants(task: Task, seen: Observations) -> None:
    """Bytes over the number of tenants, who bring their access with them; bytes a tenant of PT-IVF over Curator's."""
    config, seed = task.config, task.seed
    weights: dict[str, list[int]] = {}
    for tenants in config.tenant_counts:
        sharing = max(1.0, config.sharing * tenants / config.tenants)
        load = drawn(config, task.rng, config.vectors, tenants, sharing)
        for name, value in Comparison(config, load, ["curator", "pt_ivf", "mf_ivf"], seed).weighed().items():
            weights.setdefault(name, []).append(value)
            seen.add("tenants_bytes", value, seed, index=name, tenants=tenants)
    slopes = {name: float(np.polyfit(config.tenant_counts, values, 1)[0]) for name, values in weights.items()}
    seen.add("memory_growth", slopes["pt_ivf"] / slopes["curator"], seed)
    for name, slope in slopes.items():
        seen.add("bytes_a_tenant", slope, seed, index=name)
        seen.add("memory_exponent", exponent(config.tenant_counts, weights[name]), seed, index=name)
