"""The global scheduler: dispatch by freeness, pairs of sources and destinations, and who migrates between them.

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
from papers.llumnix.auto_scaling import Scaling, scale
from papers.llumnix.freeness import Load, Rules, dispatch_freeness, load_of, migration_freeness, pair
from papers.llumnix.llama_on_a10 import BLOCK_TOKENS, KV_BYTES, MEMORY_SHARE
from papers.llumnix.local_scheduler import queue_up, submit, urgency
from papers.llumnix.migration import LiveMigration, Migrated, Stages
from papers.llumnix.samples import Sample, sample


class FreestFirst:
    """Dispatch to the freest instance; the first of equals. This and no migration is INFaaS++."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance:
        known = self.rules.target is not None
        priority = known and sequence.priority > 0
        return max(instances, key=lambda one: dispatch_freeness(load_of(one, known), self.rules, priority))


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
        if setup.migrates:
            loop.every(setup.round_seconds, COPY, self._round)
        if setup.scaling is not None:
            scaled = partial(scale, fleet, setup.scaling, self.migrating.__contains__)
            loop.every(setup.scaling.check_seconds, COPY, scaled)
        if setup.sample_seconds:
            loop.every(setup.sample_seconds, COPY, self._sample)

    def submit(self, sequence: Sequence) -> None:
        """A new request, to the freest serving instance."""
        if self.levels is not None:
            sequence.priority = int(self.levels[sequence.index])
        submit(self.dispatcher.choose(self.fleet.serving, sequence), sequence)

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

        Counting is dear. One whose batch could go on until its next request ends, and still be above, is not counted:
        nothing else takes blocks of it meanwhile, and those of a stretch under way are not off its memory yet.
        """
        if instance.waiting:
            return True
        known, memory, slot = self.rules.target is not None, instance.memory, instance.slots[0]
        if not known and slot.group.members:
            taken = slot.group.growth(slot.group.steps_to_finish())
            least = Load(memory.capacity, memory.free - taken, getattr(memory, "reserve", 0), slot.size)
            if migration_freeness(least, self.rules) >= self.setup.lowest:
                return False
        return migration_freeness(load_of(instance, known), self.rules) < self.setup.lowest

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

    def _sample(self) -> None:
        self.samples.append(sample(self.loop.now, self.fleet.running, self.rules))
