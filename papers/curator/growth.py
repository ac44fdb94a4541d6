"""How latency grows with vectors and memory with tenants."""

from typing import TYPE_CHECKING

import numpy as np

from common.lab.runtime import Observations
from papers.curator.comparison import Comparison, drawn

if TYPE_CHECKING:
    from papers.curator.experiment import Task

EXPONENTS = ("growth_touched", "growth_wall", "growth_gap_touched", "growth_gap_wall")
NAMES = ("curator", "flat", "mf_ivf")


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log(values) over log(sizes) by least squares. ValueError below two sizes."""
    if len(sizes) < 2:
        raise ValueError("an exponent needs at least two sizes")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def with_vectors(task: "Task", seen: Observations) -> None:
    """Entries and time over the number of vectors, at equal recall; the exponent of each index."""
    config, seed = task.config, task.seed
    names = [name for name in NAMES if task.wanted is None or name != "flat"]
    curves: dict[tuple[str, str], list[float]] = {}
    for n in config.sizes:
        load = drawn(config, task.rng, n, config.tenants, config.sharing)
        indexes = Comparison(config, load, names, seed)
        tuned = indexes.tuned(names)
        times = indexes.timed(tuned)
        for name in names:
            for measure, value in (
                ("touched", tuned[name].touched.mean()),
                ("wall", 1e6 * times[name].mean()),
            ):
                curves.setdefault((name, measure), []).append(float(value))
                seen.add(f"curve_{measure}", float(value), seed, index=name, vectors=n)
            seen.add("curve_knob", tuned[name].knob, seed, index=name, vectors=n)
    for measure in ("touched", "wall"):
        slopes = {name: exponent(config.sizes, curves[name, measure]) for name in names}
        seen.add(f"growth_{measure}", slopes["curator"], seed)
        seen.add(f"growth_gap_{measure}", slopes["mf_ivf"] - slopes["curator"], seed)
        for name, slope in slopes.items():
            seen.add(f"exponent_{measure}", slope, seed, index=name)


def with_tenants(task: "Task", seen: Observations) -> None:
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
        seen.add(
            "memory_exponent",
            exponent(config.tenant_counts, [float(w) for w in weights[name]]),
            seed,
            index=name,
        )
