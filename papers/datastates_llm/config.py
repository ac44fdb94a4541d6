"""Sizes and switches of a run. A control changes one switch; the profiles change the sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from papers.datastates_llm.polaris import MODELS

STATE_BYTES = 14  # a parameter
# Ours in one training with its rival, and the switches of the engine for each side.
SIDES = {
    "datastates": {"lazy": True, "stream": True},
    "eager": {"lazy": False, "stream": True},
    "whole": {"lazy": True, "stream": False},
}
MOST_SECONDS = 60.0  # that one run's copies and writes may take by their rates


@dataclass(frozen=True)
class Config:
    """What is compared, on how much, and which part of the method is switched off."""

    # The method, and what of it is switched off.
    lazy: bool = True  # False: wait for the copies right after they are enqueued
    stream: bool = True  # False: write nothing before the last tensor is copied
    wait: bool = True  # False: update beside unfinished copies
    commit: bool = True  # False: each rank restarts from its own newest file
    pool: bool = True  # False: allocate and pin host memory for each checkpoint
    background: bool = True  # False: a checkpoint is on the storage before training goes on
    never: bool = False  # True: no checkpoint is ever taken
    through_rank_zero: bool = False  # True: one rank writes the file of all

    # Engines on real training steps. A state of 14 bytes a parameter.
    hidden: Annotated[int, At(64, 4096)] = 768  # of the decoder, in heads of 64
    layers: Annotated[int, At(1, 48)] = 5
    context: Annotated[int, At(8, 2048)] = 64
    # Forward and backward get as many rows as make them take so long.
    compute_seconds: Annotated[float, At(0.01, 10)] = 0.4
    copy_rate: Annotated[float, At(0, 1e12)] = 2.0e9  # bytes/s of the copy engine; 0: a GPU's own
    storage_rate: Annotated[float, At(0, 1e12)] = 0.4e9  # bytes/s of the storage; 0: the disk's own
    steps: Annotated[int, At(3, 200)] = 10  # of each engine
    # Updates from one checkpoint to the next; claims read the last, at which storage keeps up.
    intervals: Annotated[list[int], Length(1, 6), At(1, 100)] = field(default_factory=lambda: [1, 2, 3])

    # Read back, kill and restart.
    versions: Annotated[int, At(2, 50)] = 6
    crash_steps: Annotated[int, At(3, 100)] = 8
    killed_at: Annotated[int, At(2, 99)] = 4  # version
    data: Annotated[int, Choice(2, 4)] = 2  # ranks, and how the state is split over them
    tensor: Annotated[int, Choice(1, 2)] = 1

    # Polaris, simulated.
    iterations: Annotated[int, At(3, 10_000)] = 50  # of a run
    models: Annotated[list[str], Length(1), Choice(*MODELS)] = field(default_factory=lambda: list(MODELS))
    # Updates from one checkpoint to the next, and replicas that share one: claims read both ends, figures all.
    gaps: Annotated[list[int], Length(2), At(1, 1000)] = field(default_factory=lambda: [1, 2, 5, 10, 20])
    replicas: Annotated[list[int], Length(2), At(1, 64)] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    share: Annotated[
        float,
        Inferred(
            0.5e9,
            32e9,
            "what a job gets of Lustre is not published; 0.5 to 4 GB/s is swept, in its middle by ratio; the whole "
            "over 20 nodes is 32",
        ),
    ] = 1.4e9  # bytes/s of storage that a node gets
    shares: Annotated[list[float], Length(2), At(0.1e9, 25e9)] = field(
        default_factory=lambda: [0.5e9, 1e9, 2e9, 4e9, 8e9, 16e9]
    )  # that the figures show
    # The same at the sweep's ends: two regimes, two claims.
    fast: Annotated[float, At(0.1e9, 25e9)] = 4e9
    slow: Annotated[float, At(0.1e9, 25e9)] = 0.5e9
    rival_share: Annotated[float, At(0.05, 1)] = 1.0  # of that storage which the asynchronous rivals reach
    enqueue_seconds: Annotated[
        float,
        Inferred(5e-6, 100e-6, "a tensor; this engine took 3.9 ms for 200 of them on one core of a server"),
    ] = 20e-6


def order_of(steps: int, interval: int, backwards: bool = False) -> tuple[str, ...]:
    """Whose turn each checkpoint is: there and back (A B B A) until a side has its steps, at last once unstreamed.

    A turn lasts `interval` steps.
    """
    there = ("datastates", "async", "eager")[:: -1 if backwards else 1]
    return (*(there + there[::-1]) * -(-steps // (2 * interval)), "whole")


def side_of(config: Config) -> str:
    """The side that this config's own engine is."""
    return next(side for side, how in SIDES.items() if how == {"lazy": config.lazy, "stream": config.stream})


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if config.hidden % 64:
        raise ValueError(f"hidden: {config.hidden} is no multiple of 64, the size of a head")
    for name in ("intervals", "gaps", "replicas", "shares"):
        if (found := getattr(config, name)) != sorted(found):
            raise ValueError(f"{name}: {found} do not rise; name the smallest first")
    for name, end in (("intervals", config.steps), ("gaps", config.iterations)):
        if (rarest := getattr(config, name)[-1]) >= end:
            raise ValueError(f"{name}: every {rarest} updates is never within {end} steps")
    nbytes = STATE_BYTES * config.layers * 12 * config.hidden**2
    checkpoints = len(order_of(config.steps, config.intervals[-1]))
    for name in ("copy_rate", "storage_rate"):
        rate = getattr(config, name)
        if rate and checkpoints * nbytes / rate > MOST_SECONDS:
            raise ValueError(
                f"{name}: {rate:g} bytes/s are too few for {checkpoints} checkpoints of {nbytes / 1e6:.0f} MB in "
                f"{MOST_SECONDS:.0f} s; raise it, or make the state smaller"
            )
    if not (config.lazy or config.stream):
        raise ValueError("lazy, stream: one of them can be switched off, not both")
    if config.killed_at >= config.crash_steps:
        raise ValueError(
            f"killed_at: version {config.killed_at} has no step after it; crash_steps is {config.crash_steps}"
        )
    if config.slow >= config.fast:
        raise ValueError(f"slow: {config.slow:g} is not below fast ({config.fast:g})")
