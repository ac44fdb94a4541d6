"""Virtual usage and freeness: every scheduling goal as one number an instance (Sections 4.3 and 4.4.1).

    F = (M - sum of virtual usages) / B

in KV blocks a request: the blocks that each request of the batch may still take before the memory is full (times 16
tokens a block: "decode steps that the batch can still run"). A queued request counts with its demand, so F may be
negative; a high-priority request counts with a headroom; a draining instance holds a fake request of infinite usage.

The two forms are those of the authors' code (alibaba/llm-scheduling-artifact, vllm/instance_info.py): loads there are
negative freeness.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from common.serving.engine import Instance
from common.serving.memory import PagedMemory

PRIORITY_TARGET = 100  # blocks: "set target 2k tokens load", 1600 // 16 in the authors' instance_info.py


class Load(NamedTuple):
    """What an instance reports. Blocks are KV blocks of 16 tokens."""

    total: int
    free: int
    reserve: int = 0  # the watermark of blocks that admissions leave free
    running: int = 0  # requests that prefill or decode
    queued: int = 0
    queued_blocks: int = 0  # what queued requests demand
    priority: bool = False  # a high-priority request runs or waits
    draining: bool = False  # it takes no more requests and should empty


def load_of(instance: Instance, priorities: bool = True, draining: bool = False) -> Load:
    """What `instance` would report now. priorities: look for high-priority requests (else there are none, sooner)."""
    memory = instance.memory
    slot = instance.slots[0]
    waiting = instance.waiting
    batches = (waiting, slot.group.members, slot.prefilling) if priorities else ()
    return Load(
        memory.capacity,
        instance.blocks_free(),
        memory.reserve if isinstance(memory, PagedMemory) else 0,
        len(slot.group.members) + len(slot.prefilling),
        len(waiting),
        sum(memory.needs(one) for one in waiting) if waiting else 0,
        any(one.priority > 0 for batch in batches for one in batch),
        draining,
    )


@dataclass(frozen=True)
class Rules:
    """Which virtual usages count. Each can be switched off: a control.

    queued_demand: queued requests use what they demand. target: blocks of load that an instance with a high-priority
    request should carry at most; the rest of its memory is headroom (None: priorities are ignored).
    """

    queued_demand: bool = True
    target: int | None = PRIORITY_TARGET

    def headroom(self, load: Load) -> int:
        """Blocks that high-priority requests add to the usage of an instance."""
        return 0 if self.target is None else max(0, load.total - self.target)


def migration_freeness(load: Load, rules: Rules) -> float:
    """Freeness that decides who gives requests away and who takes them; +inf for an empty instance."""
    if load.draining:
        return -math.inf
    available = load.free - load.reserve
    batch = load.running
    if rules.queued_demand:
        available -= load.queued_blocks
        batch += load.queued > 0
    if load.priority:
        available -= rules.headroom(load)
    return available / batch if batch else math.inf


def dispatch_freeness(load: Load, rules: Rules, priority: bool = False) -> float:
    """Freeness that decides where a new request goes: all queued requests count, as demand and in the batch.

    A normal request sees the headroom of high-priority ones; a high-priority one where there are none yet.
    """
    if load.draining:
        return -math.inf
    available = load.free - load.reserve - load.queued_blocks
    if priority != load.priority:
        available -= rules.headroom(load)
    batch = load.running + load.queued
    return available / batch if batch else math.inf


def pair(freeness: list[float], preempted: list[bool], lowest: float) -> list[tuple[int, int]]:
    """Migration pairs (source, destination) of indices: the least free with the freest, and so on inwards.

    Sources lie below the threshold `lowest` or have preempted requests waiting; destinations lie above it and have
    none (Section 4.4.3; need_migrate_prefill_v2 of the authors' code). Ties go to the lower index.
    """
    order = sorted(range(len(freeness)), key=lambda i: freeness[i])
    sources = [i for i in order if preempted[i] or freeness[i] < lowest]
    destinations = [i for i in reversed(order) if not preempted[i] and freeness[i] > lowest]
    return list(zip(sources, destinations, strict=False))
