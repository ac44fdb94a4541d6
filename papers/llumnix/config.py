"""What the experiment can be told: sizes and switches. A control changes one switch, a profile the sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

TRACES = ("128-128", "256-256", "512-512", "128-512", "512-128")  # mean tokens of prompt and answer
METHODS = ("live", "blocking", "recompute", "live on the decoding thread")  # of the real migration


@dataclass(frozen=True)
class Config:
    """What is served, on what, and which part of the method is switched off."""

    traces: Annotated[list[str], Length(1), Choice(*TRACES)] = field(
        default_factory=lambda: ["512-512", "256-256", "128-512"]
    )
    # Share of the memory that is held, or asked for by queued requests, under INFaaS++.
    levels: Annotated[list[float], Length(1), At(0.3, 1.0)] = field(default_factory=lambda: [0.85, 0.95])
    # Of a run of 512-512; the other traces have as many as arrive in the same time at the authors' rates.
    requests: Annotated[int, At(50, 20_000)] = 2000
    instances: Annotated[int, At(2, 64)] = 16
    knee_draws: Annotated[int, At(1, 10)] = 2  # workloads over which a rate is searched
    priority_cvs: Annotated[list[float], Length(1), At(0.5, 10)] = field(
        default_factory=lambda: [2.0, 4.0, 8.0]
    )
    priority_requests: Annotated[int, At(100, 20_000)] = 4000
    high_share: Annotated[float, At(0.01, 0.5)] = 0.1  # priority_ratio of the artifact
    priority_load: Annotated[float, At(0.1, 4)] = 1.0  # times the rate as far below the knee as the authors'
    scaling_cvs: Annotated[list[float], Length(), At(0.5, 10)] = field(default_factory=lambda: [4.0])
    scaling_thresholds: Annotated[list[float], Length(1), At(0, 200)] = field(
        default_factory=lambda: [5.0, 10.0, 25.0, 45.0, 85.0]
    )
    scaling_requests: Annotated[int, At(50, 20_000)] = 2000
    start_seconds: Annotated[float, Inferred(0, 120, "loading 13.5 GB of weights takes 20 to 60 s")] = 40.0
    bytes_per_s: Annotated[
        float, Inferred(1e6, 1e11, "64 Gbit/s carry 8 GB/s; gloo through the CPU's buffers 1 to 2")
    ] = 1.5e9
    memory_share: Annotated[
        float, Inferred(0.2, 1.0, "of the A10's bandwidth that decoding reaches; no table is published")
    ] = 0.75
    # Tokens of the requests that move between two processes; a client's stall is compared at both ends.
    migration_lengths: Annotated[list[int], Length(2), At(64, 3072)] = field(
        default_factory=lambda: [64, 256, 512, 1024, 2048]
    )
    migration_repeats: Annotated[int, At(1, 20)] = 2  # the quickest counts: others were kept from their core

    # The method, and what of it is switched off.
    migration: bool = True
    move_running: bool = True  # False: only queued requests move, which have no cache to copy
    queued_demand: bool = True  # False: queued requests have no virtual usage
    pairing: Annotated[str, Choice("freeness", "random")] = "freeness"  # who gives to whom
    drain_by_migration: bool = True  # False: a draining instance waits until its requests end
    prioritises: bool = True  # False: priorities are ignored
    headroom: bool = True  # False: high-priority requests use what they hold, no more
    told: Annotated[str, Choice("true", "random")] = "true"  # which requests the system is told are important
    homogeneous: bool = False  # True: every request has the trace's mean lengths
    move: Annotated[str, Choice(*METHODS)] = "live"  # how the real migration moves a request
    append_only: bool = True  # False: the real KV cache is rewritten at every step


def check(config: Config) -> None:
    """ValueError in one line for what cannot be judged, or a switch that a run would ignore."""
    usual = Config()
    if max(config.migration_lengths) < 8 * min(config.migration_lengths):
        raise ValueError("migration_lengths: the longest must have 8 times the tokens of the shortest")
    if config.high_share * config.priority_requests < 10:
        raise ValueError("high_share: leaves fewer than ten high-priority requests; raise priority_requests")
    if not config.migration:
        for name in ("bytes_per_s", "pairing", "drain_by_migration", "move_running"):
            if getattr(config, name) != getattr(usual, name):
                raise ValueError(f"{name}: means nothing with migration=false; leave it")
    if not config.prioritises:
        for name in ("headroom", "told"):
            if getattr(config, name) != getattr(usual, name):
                raise ValueError(f"{name}: means nothing with prioritises=false; leave it")
    if config.move == "recompute" and not config.append_only:
        raise ValueError("append_only: means nothing with move=recompute, which copies no cache")
