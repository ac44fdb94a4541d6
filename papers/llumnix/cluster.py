"""One run of the simulated cluster: requests of a trace on 16 instances of LLaMA-7B, under one of the policies.

round-robin    each instance in turn
infaas++       the freest instance; the same load metric as Llumnix, and no migration
llumnix-base   migration, priorities ignored
llumnix        migration and priorities
"""

from dataclasses import dataclass

import numpy as np

from common.serving.cluster import Fleet, Replicas, RoundRobin
from common.serving.engine import Instance, simulate
from common.serving.link import Link
from common.serving.loop import COPY, EventLoop
from common.serving.memory import PagedMemory
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.llumnix.freeness import PRIORITY_TARGET
from papers.llumnix.global_scheduler import Llumnix, Setup
from papers.llumnix.llama_on_a10 import BLOCK_TOKENS, KV_BLOCKS, MEMORY_SHARE, LlamaOnA10
from papers.llumnix.local_scheduler import PreemptionLoss, PromptsFirst
from papers.llumnix.migration import LiveMigration, Migrated, Stages
from papers.llumnix.samples import Sample

LIVE = Stages()
POLICIES = ("round-robin", "infaas++", "llumnix-base", "llumnix")


@dataclass(frozen=True)
class Outcome:
    """What a run left: the trace, the cluster's samples, migrations, preemption loss in seconds over all requests.

    changes: seconds, and the instances paid for since then.
    """

    trace: Trace
    samples: list[Sample]
    migrations: list[Migrated]
    queued_moves: int
    migrating_seconds: float
    preemption_loss: float
    average_instances: float
    changes: list[tuple[float, int]]

    def mean_of(self, name: str) -> float:
        """Mean of a sampled quantity while requests arrive, less the first fifth of that time (it fills up)."""
        first, last = float(self.trace.arrival[0]), float(self.trace.arrival[-1])
        start = first + 0.2 * (last - first)
        values = [float(getattr(one, name)) for one in self.samples if start <= one.time <= last]
        return float(np.mean(values)) if values else 0.0


def serve(workload: Workload, setup: Setup, priority: np.ndarray | None = None) -> Outcome:
    """Serve a workload. priority: of each request, 1 for high, shape (requests,); None: all normal.

    Raises ValueError for an unknown policy.
    """
    if setup.policy not in POLICIES:
        raise ValueError(f"unknown policy {setup.policy!r}; one of {', '.join(POLICIES)}")
    for name in ("bytes_per_s", "memory_share", "instances"):
        if not 0 < getattr(setup, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(setup, name)!r}; it is a number above 0")
    if not 0 <= setup.start_seconds < float("inf"):
        raise ValueError(f"start_seconds is {setup.start_seconds!r}; it is a number from 0")
    if priority is not None and np.shape(priority) != (len(workload),):
        raise ValueError(f"priority has the shape {np.shape(priority)}; it is ({len(workload)},)")
    loss = PreemptionLoss()
    kept: list[Llumnix] = []
    levels = priority if setup.prioritises and setup.policy != "llumnix-base" else None
    spared = setup.headroom and setup.policy == "llumnix" and levels is not None and levels.any()

    def build(loop: EventLoop) -> Llumnix:
        fleet = Fleet(
            loop, lambda: instance(loop, loss, setup.memory_share), setup.instances, setup.start_seconds
        )
        kept.append(Llumnix(loop, fleet, setup, levels, PRIORITY_TARGET if spared else None))
        return kept[0]

    trace = simulate(workload, build)
    cluster = kept[0]
    return Outcome(
        trace,
        cluster.samples,
        cluster.migrations,
        cluster.queued_moves,
        cluster.migrating_seconds,
        loss.seconds,
        cluster.fleet.average(float(trace.finish.max())),
        cluster.fleet.changes,
    )


def instance(loop: EventLoop, loss: PreemptionLoss, memory_share: float = MEMORY_SHARE) -> Instance:
    """One LLaMA-7B on one A10."""
    return Instance(
        loop,
        LlamaOnA10(memory_share),
        PagedMemory(KV_BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS),
        PromptsFirst(loss),
    )


def migrate_alone(tokens: int, stages: Stages = LIVE) -> tuple[LiveMigration, Migrated]:
    """Two instances and one request with a prompt of `tokens`, which migrates in the middle of its answer.

    Raises ValueError for a length that an instance cannot hold.
    """
    if not 1 <= tokens <= 8192:
        raise ValueError(f"tokens is {tokens}; it is 1 to 8,192")
    usual = Setup()
    ended: list[tuple[LiveMigration, Migrated]] = []

    def build(loop: EventLoop) -> Replicas:
        source, target = (instance(loop, PreemptionLoss()) for _ in range(2))

        def begin() -> None:
            (one,) = source.slots[0].group.members
            link = Link(usual.bytes_per_s, usual.message_seconds)
            LiveMigration(
                source, target, one, link, usual.block_bytes, stages, lambda *how: ended.append(how)
            ).stage()

        loop.at(4.0, COPY, lambda _: source.at_boundary(begin))
        return Replicas([source], RoundRobin())

    simulate(Workload(np.zeros(1), np.array([tokens]), np.array([2000])), build)
    return ended[0]
