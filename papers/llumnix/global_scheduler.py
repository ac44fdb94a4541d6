"""The cluster: dispatch by freeness, pairs of sources and destinations, migration, draining and auto-scaling.

`Llumnix` is the paper's system (Sections 4.3 and 4.4). INFaaS++, its strong baseline, is `FreestFirst` behind the same
instances: the same load metric and the same auto-scaling, and no migration.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np

from common.serving.cluster import Dispatcher, Fleet
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
class Moving:
    """How requests migrate. block_bytes: of a KV block.

    lowest: freeness in blocks a request below which an instance gives requests away (3 or 10 in the artifact).
    round_seconds: between two pairings; the artifact's four status updates of an instance are about four iterations.
    bytes_per_s, seconds: of a copy and of the messages around it (inferred, see Config). drains: whether a draining
    instance gives its requests away, or waits until they end. running: whether requests that run migrate, or only
    queued ones move. random_pairs: from 0 on the seed by which pairs are drawn, as many as freeness would make.
    """

    block_bytes: float
    lowest: float = 3.0
    round_seconds: float = 0.15
    bytes_per_s: float = 1.5e9
    seconds: float = 0.005
    drains: bool = True
    running: bool = True
    random_pairs: int = -1
    stages: Stages = Stages()


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


@dataclass
class Sample:
    """The cluster at one moment, blocks as shares of its memory.

    used: held. demanded: held, or asked for by queued requests. fragmented: free, and enough for queued head requests.
    queued: requests. instances: paid for. Of each running instance: freeness, at most 1,000; held: its share of blocks;
    asked: what its queue asks for, as such a share.
    """

    time: float
    used: float
    demanded: float
    fragmented: float
    queued: int
    instances: int
    freeness: list[float]
    held: list[float]
    asked: list[float]


class Llumnix:
    """A fleet with a global scheduler. moving: None switches migration off. scaling: None keeps the fleet as it is.

    sample_seconds: between two samples of the cluster's state; 0 takes none.
    """

    def __init__(
        self,
        loop: EventLoop,
        fleet: Fleet,
        dispatcher: Dispatcher,
        rules: Rules,
        moving: Moving | None = None,
        scaling: Scaling | None = None,
        sample_seconds: float = 0.0,
    ) -> None:
        self.loop, self.fleet, self.dispatcher, self.rules = loop, fleet, dispatcher, rules
        self.moving, self.scaling = moving, scaling
        self.migrations: list[Migrated] = []
        self.queued_moves = 0  # waiting requests that changed instance, without KV
        self.samples: list[Sample] = []
        self.migrating: dict[Instance, Instance] = {}  # either end of a migration -> the other
        self.migrating_seconds = 0.0  # summed over both ends of all migrations
        self._draws = np.random.default_rng(max(0, moving.random_pairs)) if moving else None
        self._links: dict[Instance, Link] = {}
        self._above: dict[Instance, tuple[float, tuple[int, int, int]]] = {}  # until when it surely stays so
        if moving is not None:
            loop.every(moving.round_seconds, COPY, self._round)
        if scaling is not None:
            loop.every(scaling.check_seconds, COPY, self._scale)
        if sample_seconds:
            loop.every(sample_seconds, COPY, self._sample)

    def submit(self, sequence: Sequence) -> None:
        """A new request, to the freest serving instance."""
        submit(self.dispatcher.choose(self.fleet.serving, sequence), sequence)

    # Migration

    def _round(self) -> None:
        """Pair sources with destinations; each pair migrates one request now, and another in the next round."""
        assert self.moving is not None
        self._settle()
        instances = self.fleet.running if self.moving.drains else self.fleet.serving
        serving = len(self.fleet.serving)
        if len(instances) == serving and not any(map(self._may_give, instances)):
            return
        freeness, preempted = [], []
        for place, instance in enumerate(instances):
            load = load_of(instance, self.rules.target is not None, place >= serving)
            freeness.append(migration_freeness(load, self.rules))
            preempted.append(load.queued > 0 and any(one.preemptions for one in instance.waiting))
        pairs = pair(freeness, preempted, self.moving.lowest)
        if pairs and self.moving.random_pairs >= 0:
            assert self._draws is not None
            drawn = [int(one) for one in self._draws.permutation(len(instances))]
            pairs = list(zip(drawn[: len(pairs)], drawn[len(pairs) :], strict=False))
        for source, target in pairs:
            out, to = instances[source], instances[target]
            if out not in self.migrating and to not in self.migrating:
                self._begin(out, to)

    def _may_give(self, instance: Instance) -> bool:
        """Whether an instance is below the threshold or has a queue.

        Counting a batch is dear. Without priorities, one that looks as it did when it was counted has had time for so
        many steps, each of which reads the weights at least; a request takes a block now and then one in 16 steps.
        """
        assert self.moving is not None
        if instance.waiting:
            return True
        slot, memory = instance.slots[0], instance.memory
        looks = memory.free, len(slot.group.members), len(slot.prefilling)
        until, looked = self._above.get(instance, (-1.0, looks))
        if self.loop.now < until and looks == looked:
            return False
        freeness = migration_freeness(load_of(instance, self.rules.target is not None), self.rules)
        if self.rules.target is None:
            steps = memory.block_tokens * (freeness - self.moving.lowest - 1) - 2
            shortest, _ = instance.latency.iteration([], 1, 0)
            self._above[instance] = self.loop.now + steps * shortest, looks
        return freeness < self.moving.lowest

    def _begin(self, source: Instance, target: Instance) -> None:
        self.migrating[source], self.migrating[target] = target, source
        source.at_boundary(lambda: self._choose(source, target))

    def _choose(self, source: Instance, target: Instance) -> None:
        """At a boundary of the source: move its head of line if that can start at the target, else a running one."""
        if not (source.waiting and self._move_queued(source, target)):
            assert self.moving is not None
            moved = self._movable(source) if self.moving.running else None
            if moved is not None and not target.waiting:  # whoever waits at the target comes first
                link = self._links.setdefault(source, Link(self.moving.bytes_per_s, self.moving.seconds))
                block_bytes, stages = self.moving.block_bytes, self.moving.stages
                LiveMigration(source, target, moved, link, block_bytes, stages, self._ended).stage()
                return
        self._free(source, target)

    def _movable(self, source: Instance) -> Sequence | None:
        """The least important, then shortest running request (Section 4.4.3).

        Headroom alone makes no high-priority request move: it is there to keep others away. They move only where
        memory really is short, or the instance drains (the authors' scheduler.py never moves them).
        """
        assert self.moving is not None
        group = source.slots[0].group
        normal = [one for one in group.members if one.priority <= 0]
        if not normal:
            load = load_of(source, priorities=False, draining=source in self.fleet.draining)
            if migration_freeness(load, self.rules) >= self.moving.lowest:
                return None
        return min(normal or group.members, key=lambda one: (one.base, one.index), default=None)

    def _move_queued(self, source: Instance, target: Instance) -> bool:
        """Move the head of a blocked queue, which has no KV cache, where it can start and nobody more urgent waits."""
        head = source.waiting[0]
        if source.memory.admits(source.memory.needs(head)):
            return False  # it starts here, now
        memory = target.memory
        reserve = getattr(memory, "reserve", 0)
        if target.waiting and urgency(target.waiting[0]) < urgency(head):
            return False
        if target.blocks_free() - memory.needs(head) < reserve:
            return False
        source.waiting.popleft()
        self.queued_moves += 1
        queue_up(target.waiting, head)
        target.wake()
        return True

    def _ended(self, migration: LiveMigration, how: Migrated) -> None:
        self.migrations.append(how)
        self.migrating_seconds += 2 * how.seconds
        self._free(migration.source, migration.target)

    def _free(self, source: Instance, target: Instance) -> None:
        del self.migrating[source], self.migrating[target]

    # Auto-scaling

    def _scale(self) -> None:
        """More instances until the fleet is free enough, or one less where it would stay so (need_scale)."""
        assert self.scaling is not None
        self._settle()
        fleet, rules = self.fleet, self.scaling
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
            without = [
                *loads[:-1],
                Load(0, last.free - last.total, 0, last.running, last.queued, last.queued_blocks),
            ]
            if cluster_freeness(without, dispatch=False) > rules.low + rules.width:
                fleet.drain(fleet.serving[-1])

    def _settle(self) -> None:
        if self.fleet.draining:
            self.fleet.settle(lambda one: one in self.migrating)

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
                1 - free / total,
                1 - (free - sum(load.queued_blocks for load in loads)) / total,
                fragmented_blocks(free, blocked) / total,
                sum(load.queued for load in loads),
                self.fleet.changes[-1][1],
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
