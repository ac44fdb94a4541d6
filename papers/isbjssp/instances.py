"""The instances that an experiment asks for: published ones, or random ones of the same sizes without the data set."""

from functools import cache

import numpy as np

from common.data import DataError
from common.scheduling.job_shop import Instance, benchmark, random_instance

DATA_SET = "job-shop-benchmarks"
SIZES = {  # of the classical series, for runs without the data set: last number of a series -> jobs, machines
    "ft": {6: (6, 6), 10: (10, 10), 20: (20, 5)},
    "la": {5: (10, 5), 10: (15, 5), 15: (20, 5), 20: (10, 10), 25: (15, 10), 30: (20, 10), 40: (15, 15)},
    "orb": {10: (10, 10)},
    "abz": {6: (10, 10), 9: (20, 15)},
    "ta": {10: (15, 15), 20: (20, 15), 30: (20, 20)},
}


@cache
def published() -> bool:
    """Whether the data set can be had."""
    try:
        benchmark("ft06")
    except DataError:
        return False
    return True


@cache
def named(name: str) -> Instance:
    """A published instance, or a random one of its size; "random-6x6-0" is a random one in any case.

    KeyError for a name that is not known.
    """
    if name.startswith("random-"):
        _, size, number = name.split("-")
        jobs, machines = size.split("x")
        rng = np.random.default_rng([int(number), int(jobs), int(machines)])
        return random_instance(rng, int(jobs), int(machines), name=name)
    if published():
        return benchmark(name)
    series = name.rstrip("0123456789")
    place = int(name[len(series) :])
    last = min(end for end in SIZES[series] if place <= end)
    rng = np.random.default_rng([place, *series.encode()])
    return random_instance(rng, *SIZES[series][last], name=f"random, of the size of {name}")
