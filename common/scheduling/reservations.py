"""Reservations of resources in whole slots, and the earliest start at which a set of intervals is free.

The slots that a resource has given away are the bits of one integer, so that "at which starts would this interval
meet a reservation" is a handful of shifts, whatever the number of reservations.
"""

from collections.abc import Iterable, Mapping

from common.scheduling.task_graph import Use


class Reservations:
    """Slots reserved so far, a bit set for each resource. Time begins at slot 0 and has no end."""

    def __init__(self) -> None:
        self._busy: dict[str, int] = {}

    def earliest(self, uses: Iterable[Use], at_least: int = 0) -> int:
        """The first start s >= at_least at which every use, moved by s, meets no reservation. O(uses x log length)."""
        blocked = 0
        for resource, begin, end in uses:
            busy = self._busy.get(resource, 0)
            if busy:
                blocked |= _spread(busy, int(end) - int(begin)) >> int(begin)
        free = ~(blocked >> at_least)
        return at_least + (free & -free).bit_length() - 1

    def is_free(self, uses: Iterable[Use], start: int = 0) -> bool:
        """Whether every use, moved by `start`, meets no reservation."""
        return all(
            not (self._busy.get(resource, 0) >> (start + int(begin))) & ((1 << (int(end) - int(begin))) - 1)
            for resource, begin, end in uses
        )

    def busy_until(self, resource: str, begin: int, end: int) -> int:
        """The slot after the last reserved one of a resource in [begin, end); `begin` if it is free there."""
        inside = (self._busy.get(resource, 0) >> begin) & ((1 << max(end - begin, 0)) - 1)
        return begin + inside.bit_length()

    def reserve(self, uses: Iterable[Use], start: int = 0) -> None:
        """Reserve every use, moved by `start`. Reserving a slot twice is not refused: a verifier's business."""
        for resource, begin, end in uses:
            width = int(end) - int(begin)
            self._busy[resource] = self._busy.get(resource, 0) | ((1 << width) - 1) << (start + int(begin))

    def intervals(self) -> Mapping[str, list[tuple[int, int]]]:
        """What is reserved, as [begin, end) of each resource, in order."""
        found: dict[str, list[tuple[int, int]]] = {}
        for resource, busy in self._busy.items():
            slot, spans = 0, []
            while busy:
                skip = (busy & -busy).bit_length() - 1
                busy >>= skip
                run = (~busy & -~busy).bit_length() - 1
                spans.append((slot + skip, slot + skip + run))
                slot, busy = slot + skip + run, busy >> run
            found[resource] = spans
        return found


def _spread(busy: int, width: int) -> int:
    """Bits s for which one of s, s+1, ..., s+width-1 is busy. Widths are doubled, so that log2(width) shifts do it.

    Starts before slot 0 don't exist, so what falls off the low end is of no interest.
    """
    covered = 1
    if width <= 0:
        return 0
    while covered < width:
        step = min(covered, width - covered)
        busy |= busy >> step
        covered += step
    return busy
