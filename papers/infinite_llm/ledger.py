"""Who lends memory to whom: the global manager's ledger and each instance's own manager (v1, Section 5).

An rBlock is the KV of a fixed number of tokens. Every instance's `RManager` owns its physical rBlocks and alone decides
about them. The `GManager` only knows what heartbeats told it, which may be old: it proposes creditors, and a creditor
that has less than was thought refuses. A creditor never borrows on to serve a loan, so there are no chains. What i
has stored at j is an edge i -> j of the ledger's graph; debts along a cycle cancel, each instance taking its own back.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

PROPOSALS = 3  # creditors that the global manager names at most (v1)


class Refused(Exception):
    """A creditor has no room, or has lent as much as it may."""


@dataclass
class RManager:
    """The rBlocks of one instance. lent, borrowed: by the other instance; most_lent: share that may be lent out."""

    name: int
    blocks: int
    most_lent: float = 1.0
    used: int = 0  # by the instance's own requests, here
    lent: dict[int, int] = field(default_factory=dict)
    borrowed: dict[int, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.blocks - self.used - sum(self.lent.values())

    def lend(self, debtor: int, blocks: int) -> None:
        """Reserve blocks for another instance, before anything moves. Refused without room; never borrows on."""
        within = sum(self.lent.values()) + blocks <= self.most_lent * self.blocks
        if debtor == self.name or blocks > self.free or not within:
            raise Refused(f"instance {self.name} lends no {blocks} rBlocks to {debtor}: {self.free} are free")
        self.lent[debtor] = self.lent.get(debtor, 0) + blocks

    def took(self, creditor: int, blocks: int) -> None:
        """A creditor has reserved blocks for this instance."""
        self.borrowed[creditor] = self.borrowed.get(creditor, 0) + blocks

    def settled(self, other: int, blocks: int, as_debtor: bool) -> None:
        """A loan is over in part or whole. ValueError for more than there is."""
        book = self.borrowed if as_debtor else self.lent
        if blocks > book.get(other, 0):
            raise ValueError(
                f"instance {self.name}: a loan of {book.get(other, 0)} cannot shrink by {blocks}"
            )
        book[other] -= blocks
        if not book[other]:
            del book[other]


@dataclass(frozen=True)
class Heartbeat:
    """What an instance tells the global manager now and then."""

    free: int
    lent: Mapping[int, int]


@dataclass
class GManager:
    """The Global Debt Ledger, as old as the heartbeats. node_of: of each instance; loans within a node come first."""

    ledger: dict[int, Heartbeat] = field(default_factory=dict)
    node_of: Mapping[int, int] = field(default_factory=dict)

    def hear(self, manager: RManager) -> None:
        """A heartbeat."""
        self.ledger[manager.name] = Heartbeat(manager.free, dict(manager.lent))

    def propose(self, debtor: int, blocks: int, most: int = PROPOSALS) -> list[int]:
        """Up to `most` instances with so many free, as far as is known: the same node first, then most free."""
        fitting = [name for name, told in self.ledger.items() if name != debtor and told.free >= blocks]
        home = self.node_of.get(debtor)

        def rank(name: int) -> tuple[bool, int, int]:
            return self.node_of.get(name) != home, -self.ledger[name].free, name

        return sorted(fitting, key=rank)[:most]

    def debts(self) -> dict[int, dict[int, int]]:
        """Edges debtor -> creditor -> blocks."""
        edges: dict[int, dict[int, int]] = {}
        for creditor, told in self.ledger.items():
            for debtor, blocks in told.lent.items():
                edges.setdefault(debtor, {})[creditor] = blocks
        return edges


def repay(managers: Mapping[int, RManager], debtor: int, creditor: int, blocks: int) -> None:
    """The debtor needs `blocks` of a loan no longer, or holds them itself now."""
    managers[creditor].settled(debtor, blocks, as_debtor=False)
    managers[debtor].settled(creditor, blocks, as_debtor=True)


def cycles(debts: Mapping[int, Mapping[int, int]]) -> Iterator[list[int]]:
    """Cycles of debt, each as its instances in order, shortest first found from the lowest name; may be none."""
    for start in sorted(debts):
        paths = [[start]]
        seen = {start}
        while paths:
            path = paths.pop(0)
            for creditor in sorted(debts.get(path[-1], {})):
                if creditor == start:
                    yield path
                    paths = []
                    break
                if creditor not in seen:
                    seen.add(creditor)
                    paths.append([*path, creditor])


def cancel_cycles(managers: Mapping[int, RManager]) -> int:
    """Cancel debts along every cycle; the blocks that are remote no more.

    Along i -> j -> ... -> i each has stored at least n blocks at the next one. Each takes n of its own back into the
    room that the one before it had at its place: a swap along the cycle, which needs no free block anywhere.
    """
    cancelled = 0
    while True:
        edges = {name: dict(manager.borrowed) for name, manager in managers.items() if manager.borrowed}
        cycle = next(cycles(edges), None)
        if cycle is None:
            return cancelled
        pairs = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        blocks = min(edges[debtor][creditor] for debtor, creditor in pairs)
        for debtor, creditor in pairs:
            repay(managers, debtor, creditor, blocks)
            managers[debtor].used += blocks  # its own KV, where its creditor's debtor had stored some
        cancelled += blocks * len(pairs)


def audit(managers: Iterable[RManager]) -> None:
    """No manager has given more than it has, and both sides of every loan agree; AssertionError else."""
    known = {manager.name: manager for manager in managers}
    for manager in known.values():
        assert manager.free >= 0 and manager.used >= 0, f"instance {manager.name} is over-committed"
        for debtor, blocks in manager.lent.items():
            assert known[debtor].borrowed.get(manager.name) == blocks > 0, "the books differ"
        assert all(name in known and manager.name in known[name].lent for name in manager.borrowed)
