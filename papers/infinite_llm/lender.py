"""An instance that may borrow and lend KV memory: its rManager inside the serving engine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from common.serving.batch import Slot
from common.serving.engine import Instance
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory, blocks_of
from common.serving.schedulers import PrefillFirst
from common.serving.sequence import Sequence
from papers.infinite_llm.ledger import RManager, repay
from papers.infinite_llm.loan_costs import BLOCK_TOKENS, LendingLatency
from papers.infinite_llm.planning import Standing, Waiting


@dataclass(eq=False)
class Loan:
    """Blocks of one request that are (or will be, until `arrived`) at another instance. It ends with the request."""

    sequence: Sequence
    debtor: "Lender"
    creditor: "Lender"
    blocks: int
    arrived: bool = False


class LenderSlot(Slot):
    """A slot whose preemptions end the loans of the request that loses its cache."""

    instance: "Lender"

    def preempt(self, sequence: Sequence, swap: bool) -> None:
        """See Slot."""
        super().preempt(sequence, swap)
        self.instance.close_loans(sequence)


class Lender(Instance):
    """One instance that may borrow and lend. name: its number; node: where it stands.

    largest: blocks of the largest request that the cluster holds. on_parts: told when this instance's requests have
    come to lie at more or fewer creditors.
    """

    def __init__(
        self,
        loop: EventLoop,
        name: int,
        node: int,
        latency: LendingLatency,
        kv_tokens: int,
        records_tokens: bool = False,
    ) -> None:
        self.paged = PagedMemory(kv_tokens, BLOCK_TOKENS)
        super().__init__(loop, latency, self.paged, PrefillFirst(), records_tokens=records_tokens)
        self.name, self.node = name, node
        self.times = latency
        self.manager = RManager(name, self.paged.capacity)
        self.largest = self.paged.capacity
        self.loans: dict[Sequence, list[Loan]] = {}
        self.parts: dict[tuple[Sequence, Lender], int] = {}  # loans by which a request lies at a creditor
        self.near = self.far = 0  # parts of its requests at creditors of the node, and of others
        self.sharing = 1  # debtors that use the wire to other nodes when it does
        self.on_parts: Callable[[], None] = lambda: None
        self._only = LenderSlot(self, self.slots[0].group)
        self.slots = [self._only]

    def submit(self, sequence: Sequence) -> None:
        """Queue a request that the cluster can hold, if not this instance. ValueError for a larger one."""
        if blocks_of(sequence.prompt + sequence.stop, BLOCK_TOKENS) > self.largest:
            raise ValueError(
                f"a request of {sequence.prompt + sequence.stop} tokens does not fit the cluster"
            )
        self.enqueue(sequence)

    def _finish(self, slot: Slot, sequence: Sequence) -> None:
        super()._finish(slot, sequence)
        self.close_loans(sequence)

    # Loans of its requests

    def open_loan(self, sequence: Sequence, creditor: "Lender", blocks: int) -> Loan:
        """Reserve blocks at a creditor as it is now. Raises Refused; nothing has changed then."""
        creditor.manager.used = creditor.used_here()
        creditor.manager.lend(self.name, blocks)
        self.manager.took(creditor.name, blocks)
        creditor.take(blocks)
        loan = Loan(sequence, self, creditor, blocks)
        self.loans.setdefault(sequence, []).append(loan)
        return loan

    def arrived(self, loan: Loan) -> None:
        """At a boundary of this instance: the blocks are at the creditor, as much more room is here."""
        loan.arrived = True
        self._changed(loan, loan.blocks)
        self._part(loan, +1)

    def close_loans(self, sequence: Sequence) -> None:
        """The request's blocks are free, here and at the creditors. Between iterations, as all that ends requests."""
        for loan in self.loans.pop(sequence, []):
            self._repaid(loan, loan.blocks)
            loan.creditor.release(loan.blocks)
            if loan.arrived:
                self._changed(loan, -loan.blocks)
                self._part(loan, -1)

    def taken_back(self, creditor: "Lender", blocks: int) -> None:
        """So many blocks have come home from a creditor, into room that somebody else has left: see Lending."""
        for sequence, loans in list(self.loans.items()):
            for loan in [loan for loan in loans if loan.creditor is creditor and loan.arrived]:
                part = min(blocks, loan.blocks)
                if part:
                    blocks -= part
                    loan.blocks -= part
                    self._repaid(loan, part)
                    creditor.at_boundary(partial(creditor.hosts, -part))
                    self.at_boundary(partial(self.keeps, part))
                if not loan.blocks:
                    loans.remove(loan)
                    self.at_boundary(partial(self._part, loan, -1))
            if not loans:
                del self.loans[sequence]
        assert not blocks, "more came home than was away"

    def owed_by(self, creditor: "Lender") -> int:
        """Blocks of its requests that lie at a creditor."""
        return sum(
            loan.blocks
            for loans in self.loans.values()
            for loan in loans
            if loan.creditor is creditor and loan.arrived
        )

    def keeps(self, blocks: int) -> None:
        """It attends to so many more blocks of its own requests itself."""
        self.times.remote -= blocks * BLOCK_TOKENS

    def hosts(self, blocks: int) -> None:
        """It attends to so many more blocks of others."""
        self.times.hosted += blocks * BLOCK_TOKENS

    def _repaid(self, loan: Loan, blocks: int) -> None:
        books = {self.name: self.manager, loan.creditor.name: loan.creditor.manager}
        repay(books, self.name, loan.creditor.name, blocks)

    def _changed(self, loan: Loan, blocks: int) -> None:
        self.paged.free += blocks
        self.keeps(-blocks)
        loan.creditor.at_boundary(lambda: loan.creditor.hosts(blocks))

    def _part(self, loan: Loan, change: int) -> None:
        """Count the loans by which a request lies at a creditor; from the first to the last they are one part of it."""
        key = loan.sequence, loan.creditor
        before = self.parts.get(key, 0)
        self.parts[key] = before + change
        if not self.parts[key]:
            del self.parts[key]
        if not before or key not in self.parts:
            if loan.creditor.node == self.node:
                self.near += change
            else:
                self.far += change
            self.on_parts()

    # What it tells

    def used_here(self) -> int:
        """Own blocks that its requests use."""
        return max(0, self.manager.blocks - sum(self.manager.lent.values()) - max(0, self.blocks_free()))

    def fits_alone(self, waiting: Sequence) -> bool:
        """Whether an empty instance would admit it, above the watermark."""
        return self.memory.needs(waiting) + 1 <= self.manager.blocks - self.paged.reserve

    def could_lend(self) -> bool:
        """Whether nobody waits here who would fit: free blocks that the head of the queue cannot use serve others."""
        return not self.waiting or self.lacking(self.waiting[0]) > 0

    def lacking(self, sequence: Sequence) -> int:
        """Blocks that lack for a waiting request to be admitted after those before it, which get what was reserved."""
        needed = self.paged.reserve - self.blocks_free()
        for one in self.waiting:
            needed += self.memory.needs(one)
            if one is sequence:
                return needed
            needed -= sum(loan.blocks for loan in self.loans.get(one, []) if not loan.arrived)
        raise ValueError(f"request {sequence.index} does not wait here")

    def movable(self, sequence: Sequence) -> int:
        """Blocks of a running request that are here, full, and not its newest."""
        away = sum(loan.blocks for loan in self.loans.get(sequence, []))
        return (sequence.base + self.slots[0].group.step + self.steps_over()) // BLOCK_TOKENS - away - 1

    def standing(self, heads: int) -> Standing:
        """Its heartbeat. heads: waiting requests that it tells of."""
        group = self.slots[0].group
        waiting = []
        for sequence in list(self.waiting)[:heads]:
            if not self.fits_alone(sequence):  # waits for a place of another kind, and nobody passes it
                break
            waiting.append(Waiting(sequence, self.memory.needs(sequence), sequence.goal))
        longest = max(group.members, key=lambda one: (one.base, -one.index), default=None)
        return Standing(
            self.name,
            self.node,
            self.times.base,
            self.manager.blocks,
            self.blocks_free() - self.paged.reserve,
            sum(self.manager.lent.values()),
            self.could_lend(),
            len(group),
            group.context + len(group) * self.steps_over(),
            self.times.remote,
            self.times.hosted,
            self.near,
            self.far,
            self.sharing,
            longest,
            max(0, self.movable(longest)) if longest else 0,
            frozenset(loan.creditor.name for loan in self.loans.get(longest, [])) if longest else frozenset(),
            tuple(waiting),
        )
