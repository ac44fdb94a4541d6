"""The cluster: dispatch by freeness, pairs of sources and destinations, migration, draining and auto-scaling.

`Llumnix` is the paper's system (Sections 4.3 and 4.4). INFaaS++, its strong baseline, is `FreestFirst` behind the same
instances: the same load metric and the same auto-scaling, and no migration.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import partial

import numpy as np

from common.serving.cluster import Dispatcher, Fleet, RoundRobin
from common.serving.engine import Instance
from common.serving.link import Link
from common.serving.loop import COPY, EventLoop
from common.serving.sequence import Sequence
from papers.llumnix.freeness import (
    Load,
    Rules,
    cluster_freeness,
    dispatch_freeness,
    fragmented_blocks,
    load_of,
    migration_freeness,
    pair,
)
from papers.llumnix.llama_on_a10 import BLOCK_TOKENS, KV_BYTES, MEMORY_SHARE
from papers.llumnix.local_scheduler import queue_up, submit, urgency
from papers.llumnix.migration import LiveMigration, Migrated, Stages


class FreestFirst:
    """Dispatch to the freest instance; the first of equals. This and no migration is INFaaS++."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance:
        known = self.rules.target is not None
        priority = known and sequence.priority > 0
        return max(instances, key=lambda one: dispatch_freeness(load_of(one, known), self.rules, priority))


@dataclass(frozen=True)
class Scaling:
    """Freeness of the fleet is kept in [low, low + width], in blocks a request (defaults: the artifact's).

    check_seconds: between two decisions. least, most: instances.
    """

    low: float = 10.0
    width: float = 50.0
    check_seconds: float = 10.0
    least: int = 1
    most: int = 16


@dataclass(frozen=True)
class Setup:
    """A cluster and its policy. The switches are what controls turn off; inferred constants as in Config.

    instances: at the start. lowest: freeness in blocks a request below which an instance gives requests away (3 or 10
    in the artifact). scaling: None keeps the fleet as it is. start_seconds: until an ordered instance serves.
    sample_seconds: between samples of the cluster's state; 0 takes none. block_bytes: of a KV block. round_seconds:
    between two pairings; the artifact's four status updates are about four iterations. message_seconds: around a copy.
    """

    policy: str = "llumnix"
    instances: int = 16
    lowest: float = 3.0
    migration: bool = True
    move_running: bool = True
    queued_demand: bool = True
    headroom: bool = True
    prioritises: bool = True
    drain_by_migration: bool = True
    random_pairs: int = -1  # from 0 on: the seed by which pairs are drawn, as many as freeness would make
    scaling: Scaling | None = None
    start_seconds: float = 40.0
    bytes_per_s: float = 1.5e9  # of a copy
    memory_share: float = MEMORY_SHARE  # of the bandwidth that decoding reaches
    sample_seconds: float = 1.0
    block_bytes: float = float(BLOCK_TOKENS * KV_BYTES)
    round_seconds: float = 0.15
    message_seconds: float = 0.005
    stages: Stages = Stages()

    @property
    def migrates(self) -> bool:
        """Whether anything ever changes instance."""
        return self.migration and self.policy in ("llumnix", "llumnix-base")


@dataclass
class Sample:
    """The cluster at one moment, blocks as shares of its memory.

    demanded: held, or asked for by queued requests. fragmented: free, and enough for queued head requests. queued:
    requests. Of each running instance: freeness, at most 1,000; held; asked for by its queue.
    """

    time: float
    demanded: float
    fragmented: float
    queued: int
    freeness: list[float]
    held: list[float]
    asked: list[float]


class Llumnix:
    """A fleet with a global scheduler, or without one: what `setup` says.

    levels: priority of each request, shape (requests,); None leaves them as they come. target: blocks of load that an
    instance with an important request should carry; None: priorities need no headroom.
    """

    def __init__(
        self,
        loop: EventLoop,
        fleet: Fleet,
        setup: Setup,
        levels: np.ndarray | None = None,
        target: int | None = None,
    ) -> None:
        self.loop, self.fleet, self.setup, self.levels = loop, fleet, setup, levels
        self.rules = Rules(setup.queued_demand, target)
        self.dispatcher: Dispatcher = FreestFirst(Rules(target=target))
        if setup.policy == "round-robin":
            self.dispatcher = RoundRobin()
        self.migrations: list[Migrated] = []
        self.queued_moves = 0  # waiting requests that changed instance, without KV
        self.samples: list[Sample] = []
        self.migrating: dict[Instance, Instance] = {}  # either end of a migration -> the other
        self.migrating_seconds = 0.0  # summed over both ends of all migrations
        self._draws = np.random.default_rng(max(0, setup.random_pairs))
        self._links: dict[Instance, Link] = {}
        self._above: dict[Instance, tuple[float, tuple[int, int, int]]] = {}  # until when it surely stays so
        if setup.migrates:
            loop.every(setup.round_seconds, COPY, self._round)
        if setup.scaling is not None:
            loop.every(setup.scaling.check_seconds, COPY, self._scale)
        if setup.sample_seconds:
            loop.every(setup.sample_seconds, COPY, self._sample)

    def submit(self, sequence: Sequence) -> None:
        """A new request, to the freest serving instance."""
        if self.levels is not None:
            sequence.priority = int(self.levels[sequence.index])
        submit(self.dispatcher.choose(self.fleet.serving, sequence), sequence)

    # Migration

    def _round(self) -> None:
        """Pair sources with destinations; each pair migrates one request now, and another in the next round."""
        self.fleet.settle(self.migrating.__contains__)
        instances = self.fleet.running if self.setup.drain_by_migration else self.fleet.serving
        serving = len(self.fleet.serving)
        if len(instances) == serving and not any(map(self._may_give, instances)):
            return
        freeness, preempted = [], []
        for place, instance in enumerate(instances):
            load = load_of(instance, self.rules.target is not None, place >= serving)
            freeness.append(migration_freeness(load, self.rules))
            preempted.append(load.queued > 0 and any(one.preemptions for one in instance.waiting))
        pairs = pair(freeness, preempted, self.setup.lowest)
        if pairs and self.setup.random_pairs >= 0:
            drawn = [int(one) for one in self._draws.permutation(len(instances))]
            pairs = list(zip(drawn[: len(pairs)], drawn[len(pairs) :], strict=False))
        for source, target in pairs:
            out, to = instances[source], instances[target]
            if out not in self.migrating and to not in self.migrating:
                self.migrating[out], self.migrating[to] = to, out
                out.at_boundary(partial(self._choose, out, to))

    def _may_give(self, instance: Instance) -> bool:
        """Whether an instance is below the threshold or has a queue.

        Counting a batch is dear. Without priorities, one that looks as it did when it was counted has had time for so
        many steps, each of which reads the weights at least; a request takes a block now and then one in 16 steps.
        """
        if instance.waiting:
            return True
        slot, memory = instance.slots[0], instance.memory
        looks = memory.free, len(slot.group.members), len(slot.prefilling)
        until, looked = self._above.get(instance, (-1.0, looks))
        if self.loop.now < until and looks == looked:
            return False
        freeness = migration_freeness(load_of(instance, self.rules.target is not None), self.rules)
        if self.rules.target is None:
            steps = memory.block_tokens * (freeness - self.setup.lowest - 1) - 2
            shortest, _ = instance.latency.iteration([], 1, 0)
            self._above[instance] = self.loop.now + steps * shortest, looks
        return freeness < self.setup.lowest

    def _choose(self, source: Instance, target: Instance) -> None:
        """At a boundary of the source: move its head of line if that can start at the target, else a running one."""
        if not (source.waiting and self._move_queued(source, target)):
            moved = self._movable(source) if self.setup.move_running else None
            if moved is not None and not target.waiting:  # whoever waits at the target comes first
                how = self.setup
                link = self._links.setdefault(source, Link(how.bytes_per_s, how.message_seconds))
                LiveMigration(source, target, moved, link, how.block_bytes, how.stages, self._ended).stage()
                return
        del self.migrating[source], self.migrating[target]

    def _movable(self, source: Instance) -> Sequence | None:
        """The least important, then shortest running request (Section 4.4.3).

        Headroom alone makes no high-priority request move: it is there to keep others away. They move only where
        memory really is short, or the instance drains (the authors' scheduler.py never moves them).
        """
        group = source.slots[0].group
        normal = [one for one in group.members if one.priority <= 0]
        if not normal:
            load = load_of(source, priorities=False, draining=source in self.fleet.draining)
            if migration_freeness(load, self.rules) >= self.setup.lowest:
                return None
        return min(normal or group.members, key=lambda one: (one.base, one.index), default=None)

    def _move_queued(self, source: Instance, target: Instance) -> bool:
        """Move the head of a blocked queue, which has no KV cache, where it can start and nobody more urgent waits."""
        head = source.waiting[0]
        if source.memory.admits(source.memory.needs(head)):
            return False  # it starts here, now
        memory = target.memory
        behind = target.waiting and urgency(target.waiting[0]) < urgency(head)
        if behind or target.blocks_free() - memory.needs(head) < getattr(memory, "reserve", 0):
            return False
        source.waiting.popleft()
        self.queued_moves += 1
        queue_up(target.waiting, head)
        target.wake()
        return True

    def _ended(self, migration: LiveMigration, how: Migrated) -> None:
        self.migrations.append(how)
        self.migrating_seconds += 2 * how.seconds
        del self.migrating[migration.source], self.migrating[migration.target]

    # Auto-scaling

    def _scale(self) -> None:
        """More instances until the fleet is free enough, or one less where it would stay so (need_scale)."""
        self.fleet.settle(self.migrating.__contains__)
        fleet, rules = self.fleet, self.setup.scaling
        assert rules is not None
        loads = [load_of(one, False) for one in fleet.serving]
        if fleet.starting:
            return
        if cluster_freeness(loads, dispatch=True) < rules.low:
            if fleet.draining:
                fleet.serve_again(fleet.draining[-1])
                return
            fleet.start(instances_needed(loads, rules))
        elif not fleet.draining and len(fleet.serving) > rules.least:
            last = loads[-1]
            gone = last._replace(total=0, free=last.free - last.total, reserve=0)
            without = [*loads[:-1], gone]
            if cluster_freeness(without, dispatch=False) > rules.low + rules.width:
                fleet.drain(fleet.serving[-1])

    # What a run reports

    def _sample(self) -> None:
        instances = self.fleet.running
        loads = [load_of(one, self.rules.target is not None) for one in instances]
        blocked = [one.memory.needs(one.waiting[0]) for one in instances if one.waiting]
        free = sum(load.free for load in loads)
        total = sum(load.total for load in loads)
        self.samples.append(
            Sample(
                self.loop.now,
                1 - (free - sum(load.queued_blocks for load in loads)) / total,
                fragmented_blocks(free, blocked) / total,
                sum(load.queued for load in loads),
                [min(migration_freeness(load, self.rules), 1e3) for load in loads],
                [1 - load.free / load.total for load in loads],
                [load.queued_blocks / load.total for load in loads],
            )
        )


def instances_needed(loads: list[Load], rules: Scaling) -> int:
    """How many empty instances bring the fleet's freeness back to the band, as far as its limit allows."""
    loads = list(loads)
    empty = Load(loads[0].total, loads[0].total, loads[0].reserve)
    started = 0
    while len(loads) < rules.most and cluster_freeness(loads, dispatch=True) < rules.low:
        loads.append(empty)
        started += 1
    return started
