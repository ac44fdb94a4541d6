"""Live migration of one request between two simulated instances (Section 4.2, Figures 6 and 7).

A KV cache only grows at its end, so old blocks are copied while the request goes on decoding; what it wrote meanwhile
is the next, much shorter stage. When at most `last_stage_blocks` are left, the request leaves its batch, the rest is
copied, and it goes on at the destination: that stop is the downtime. Before every stage the destination allocates the
blocks; a request that finishes or is preempted meanwhile, or a destination without room, aborts the migration.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.serving.engine import Instance
from common.serving.link import Link
from common.serving.loop import COPY
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence


@dataclass(frozen=True)
class Stages:
    """How migration proceeds: `max_stages` copies at most, the last one of at most `last_stage_blocks` blocks.

    Defaults of AlibabaPAI/llumnix. With `last_stage_blocks` beyond any cache, the first copy is the last: a blocking
    copy.
    """

    max_stages: int = 3
    last_stage_blocks: int = 16


@dataclass(frozen=True)
class Migrated:
    """How one migration went, seconds; downtime is -1 unless it was committed.

    outcome: "committed", or why not: "finished", "preempted", "no room", "too many stages".
    """

    outcome: str
    stages: int
    begun: float
    seconds: float
    downtime: float = -1.0
    bytes: float = 0.0  # sent over the wire, also by a migration that was aborted


class LiveMigration:
    """The migration of `sequence`, under way. Make it at an iteration boundary of the source, then call `stage`.

    link: the wire out of the source. block_bytes: of one KV block. ended: called with the result, once.
    """

    def __init__(
        self,
        source: Instance,
        target: Instance,
        sequence: Sequence,
        link: Link,
        block_bytes: float,
        stages: Stages,
        ended: Callable[["LiveMigration", Migrated], None],
    ) -> None:
        self.source, self.target, self.sequence = source, target, sequence
        self.link, self.block_bytes, self.stages, self.ended = link, block_bytes, stages, ended
        self.loop = source.loop
        self.begun = self.loop.now
        self.preemptions = sequence.preemptions
        self.allocated = 0  # blocks held at the target
        self.copies = 0  # stages begun
        self.bytes = 0.0  # sent
        self.sent: list[tuple[float, float]] = []  # begin and end of each copy
        self.stopped = -1.0  # when the request left its batch

    def stage(self) -> None:
        """At an iteration boundary of the source: copy what is new, or stop the request and copy the rest."""
        group = self.source.slots[0].group
        if self.sequence not in group.members or self.sequence.preemptions != self.preemptions:
            self._abort("finished" if self.sequence.finish >= 0 else "preempted")
            return
        tokens = self.sequence.base + group.step
        new = blocks_of(tokens, self.source.memory.block_tokens) - self.allocated
        last = new <= self.stages.last_stage_blocks
        self.copies += 1
        if not last and self.copies == self.stages.max_stages:
            self._abort("too many stages")
            return
        if not last:
            new -= 1  # the block that is being written stays for the next stage
        if not self._allocate(new):
            self._abort("no room")
            return
        if last:
            self.source.slots[0].stop_decoding(self.sequence)
            self.stopped = self.loop.now
        self.bytes += new * self.block_bytes
        end = self.link.send(self.loop.now, new * self.block_bytes)
        self.sent.append((self.loop.now, end))
        self.loop.at(end, COPY, self._copied, last)

    def _allocate(self, blocks: int) -> bool:
        """Hold blocks at the target, like an admission there: its watermark stays free."""
        reserve = getattr(self.target.memory, "reserve", 0)
        if not self.target.can_take(blocks + reserve):
            return False
        self.target.take(blocks)
        self.allocated += blocks
        return True

    def _copied(self, last: bool) -> None:
        if last:
            self.source.release(self.sequence.blocks)
            self.sequence.blocks = self.allocated
            self.target.at_boundary(self._commit)
        else:
            self.source.at_boundary(self.stage)

    def _commit(self) -> None:
        """At an iteration boundary of the target: the request decodes here from now on."""
        self.target.slots[0].start_decoding(self.sequence)
        now = self.loop.now
        spent, downtime = now - self.begun, now - self.stopped
        self.ended(self, Migrated("committed", self.copies, self.begun, spent, downtime, self.bytes))

    def _abort(self, why: str) -> None:
        """The target frees what it had allocated; the request goes on where it was, if it goes on."""
        if self.allocated:
            self.target.release(self.allocated)
        spent = self.loop.now - self.begun
        self.ended(self, Migrated(why, self.copies, self.begun, spent, bytes=self.bytes))
