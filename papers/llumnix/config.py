"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    traces: list[str] = field(default_factory=lambda: ["512-512", "256-256", "128-512"])
    levels: list[float] = field(default_factory=lambda: [0.85, 0.95])  # memory held or asked for, INFaaS++
    requests: int = 4000  # of each run whose outputs have a mean of 512 tokens; more where they are shorter
    instances: int = 16
    priority_cvs: list[float] = field(default_factory=lambda: [2.0, 4.0, 8.0])
    priority_requests: int = 6000
    scaling_cvs: list[float] = field(default_factory=lambda: [1.0, 4.0])  # besides the sweep's 2
    scaling_thresholds: list[float] = field(default_factory=lambda: [5.0, 25.0, 45.0, 85.0])
    scaling_requests: int = 2000
    start_seconds: float = 40.0  # until an ordered instance serves (inferred: 20 to 60)
    bytes_per_s: float = 1.5e9  # of migration in the simulation (inferred: gloo between machines)
    migration_lengths: list[int] = field(default_factory=lambda: [64, 256, 512, 1024, 2048])  # tokens
    migration_repeats: int = 3  # of live migrations; their median counts
    migration: bool = True  # False: Llumnix without migration
    queued_demand: bool = True  # False: queued requests have no virtual usage
    homogeneous: bool = False  # True: every request has the trace's mean lengths
    headroom: bool = True  # False: high-priority requests use what they hold, no more
    prioritises: bool = True  # False: priorities are ignored
    drain_by_migration: bool = True  # False: a draining instance waits until its requests end
    high_share: float = 0.1  # of high-priority requests; priority_ratio of the artifact
    move: str = "live"  # how the real migration moves a request; see two_instances.METHODS
    append_only: bool = True  # False: the real KV cache is rewritten at every step
