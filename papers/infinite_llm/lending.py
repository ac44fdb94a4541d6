"""Memory lent between serving instances, and what it does to the speed of both (v2, Section 5).

A loan of n blocks moves the oldest blocks of the debtor's longest request to the creditor. The debtor has n blocks more
for waiting requests, whose arrival makes its batch larger and the reading of its weights pay more. It exchanges queries
and partial results with the creditor at every layer; the creditor attends to n blocks more in every iteration.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import partial

from common.serving.batch import Slot
from common.serving.engine import Instance
from common.serving.latency import LatencyModel, Line
from common.serving.link import Link
from common.serving.loop import COPY, EventLoop
from common.serving.memory import PagedMemory, blocks_of
from common.serving.schedulers import PrefillFirst
from common.serving.sequence import Sequence
from papers.infinite_llm.ledger import PROPOSALS, GManager, Refused, RManager, cancel_cycles, repay

BLOCK_TOKENS = 16  # of an rBlock (inferred: vLLM's block)


@dataclass(frozen=True)
class Wire:
    """Between two instances: bytes/s, and the seconds of one message."""

    bytes_per_s: float
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """What a decode iteration exchanges with the creditors: a round trip a layer, with all of them at a time."""

    layers: int
    sent_bytes: float  # a query and a partial result of all heads, one layer, one remote part

    def seconds(self, wires: Several[Wire]) -> float:
        """wires: to each creditor. Their delays overlap, their bytes follow one another."""
        if not wires:
            return 0.0
        round_trip = 2 * max(wire.seconds for wire in wires)
        return self.layers * (round_trip + sum(self.sent_bytes / wire.bytes_per_s for wire in wires))


class LendingLatency:
    """An instance's latencies with loans: `remote` tokens of its requests lie elsewhere, it hosts `hosted` of others.

    exchange_seconds: of one iteration's queries and partial results. prefills: False lets requests arrive prefilled, so
    that prompts cost nothing: what lending changes is the decode batch.
    """

    stages = 1

    def __init__(self, base: LatencyModel, prefills: bool) -> None:
        self.base = base
        self.prefills = prefills
        self.remote = 0
        self.hosted = 0
        self.exchange_seconds = 0.0

    def iteration(self, chunks: Several[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        seconds = self.base.iteration(chunks, 0, 0)[0] if chunks and self.prefills else 0.0
        if decodes:
            line = self.decode_line(decodes, context)
            seconds += line.intercept + line.slope * context
        return seconds, 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel. A request that ended may leave fewer tokens than are remote, until the loan is repaid."""
        intercept, slope, until = self.base.decode_line(decodes, context)
        fixed = intercept + slope * self.hosted + self.exchange_seconds
        if context < self.remote:
            return Line(fixed, 0.0, min(until, float(self.remote)))
        return Line(fixed - slope * self.remote, slope, until)

    def tokens_per_s(self, decodes: int, context: int, remote: int, hosted: int, exchange: float) -> float:
        """Throughput of a batch, if that much were remote and hosted."""
        if not decodes:
            return 0.0
        intercept, slope, _ = self.base.decode_line(decodes, context)
        return decodes / (intercept + slope * (max(0, context - remote) + hosted) + exchange)


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

    on_loans: told when the creditors of this instance's requests have changed.
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
        memory = PagedMemory(kv_tokens, BLOCK_TOKENS)
        super().__init__(loop, latency, memory, PrefillFirst(), records_tokens=records_tokens)
        self.name, self.node = name, node
        self.times = latency
        self.manager = RManager(name, self.memory.capacity)
        self.largest = self.memory.capacity  # blocks of a request that may come
        self.loans: dict[Sequence, list[Loan]] = {}
        self.on_loans: Callable[[Lender], None] = lambda one: None
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

    def close_loans(self, sequence: Sequence) -> None:
        """The request's blocks are free, here and at the creditors. Between iterations, as all that ends requests."""
        for loan in self.loans.pop(sequence, []):
            self.settle(loan, loan.blocks)

    def settle(self, loan: Loan, blocks: int) -> None:
        """End a loan, or `blocks` of it, whose tokens are free or here again."""
        repay(
            {self.name: self.manager, loan.creditor.name: loan.creditor.manager},
            self.name,
            loan.creditor.name,
            blocks,
        )
        loan.blocks -= blocks
        loan.creditor.release(blocks)
        if loan.arrived:
            self.changes_by(-blocks)
            loan.creditor.at_boundary(lambda: loan.creditor.hosts(-blocks))

    def changes_by(self, blocks: int) -> None:
        """So many blocks of its requests are elsewhere, or fewer: as much more room is here."""
        self.memory.free += blocks
        self.memory.capacity += blocks
        self.times.remote += blocks * BLOCK_TOKENS
        self.on_loans(self)

    def hosts(self, blocks: int) -> None:
        """It attends to so many more blocks of others."""
        self.times.hosted += blocks * BLOCK_TOKENS

    def synchronise(self) -> None:
        """Let the manager know what the requests use here."""
        lent = sum(self.manager.lent.values())
        self.manager.used = max(0, self.manager.blocks - lent - max(0, self.blocks_free()))

    def fits_alone(self, waiting: Sequence) -> bool:
        """Whether an empty instance would admit it, above the watermark."""
        room = self.manager.blocks - self.memory.reserve  # type: ignore[attr-defined]
        return self.memory.needs(waiting) + 1 <= room

    def could_lend(self) -> bool:
        """Whether nobody waits here who would fit: free blocks that the head of the queue cannot use serve others."""
        return not self.waiting or self.missing(1)[0] > 0

    def missing(self, most: int) -> list[int]:
        """Blocks that lack for the first 1, 2, ... waiting requests to be admitted, at most `most` of them."""
        lacking, needed = [], self.memory.reserve - self.blocks_free()  # type: ignore[attr-defined]
        for sequence in list(self.waiting)[:most]:
            needed += self.memory.needs(sequence) + 1
            lacking.append(needed)
        return lacking

    def movable(self) -> tuple[Sequence, int] | None:
        """The longest running request, and its blocks that are here and full; None without one."""
        group = self.slots[0].group
        if not group.members:
            return None
        longest = max(group.members, key=lambda one: (one.base, -one.index))
        away = sum(loan.blocks for loan in self.loans.get(longest, []))
        return longest, (longest.base + group.step) // BLOCK_TOKENS - away - 1


@dataclass(frozen=True)
class Rules:
    """When and how much is lent. Thresholds as in v2's scheduler; values inferred.

    period: s between two plans, which rest on the heartbeats of the one before. busy: a creditor's share of blocks in
    use, above which it lends nothing. most_lent: share of its blocks that it may lend. heads: waiting requests that a
    plan looks at. pieces: sizes of a loan that are tried, in parts of what could be moved. least_gain: share of the
    debtor's throughput that a loan must add. cancels: whether debts along cycles are cancelled.
    """

    period: float = 0.25
    busy: float = 0.8
    most_lent: float = 0.8
    heads: int = 16
    pieces: int = 4
    least_gain: float = 0.02
    cancels: bool = True


class Lending:
    """The global manager's rounds over a cluster's instances."""

    def __init__(
        self,
        loop: EventLoop,
        instances: Several[Lender],
        rules: Rules,
        exchange: Exchange,
        block_bytes: float,
        wires: tuple[Wire, Wire],
    ) -> None:
        self.loop, self.instances, self.rules = loop, instances, rules
        self.exchange, self.block_bytes = exchange, block_bytes
        self.within, self.across = wires  # a node, nodes
        self.global_manager = GManager(node_of={one.name: one.node for one in instances})
        self.managers = {one.name: one.manager for one in instances}
        self.links = {(one.name, wire): Link(wire.bytes_per_s) for one in instances for wire in wires}
        self.moved_blocks = self.refused = self.cancelled = self.loans = 0
        self.remote_share: list[float] = []  # of all blocks in use, a round
        for one in instances:
            one.manager.most_lent = rules.most_lent
            one.largest = sum(other.memory.capacity for other in instances)
            one.on_loans = self._set_exchange
        loop.every(rules.period, COPY, self._round)

    def wire(self, one: Lender, other: Lender) -> Wire:
        return self.within if one.node == other.node else self.across

    def _exchange(self, debtor: Lender, creditors: Iterable[int]) -> float:
        return self.exchange.seconds([self.wire(debtor, self.instances[name]) for name in sorted(creditors)])

    def _set_exchange(self, debtor: Lender) -> None:
        debtor.times.exchange_seconds = self._exchange(debtor, debtor.manager.borrowed)

    def _round(self) -> None:
        for one in self.instances:
            one.synchronise()
        if self.rules.cancels:
            self._cancel()
        for debtor in sorted(self.instances, key=lambda one: (one.slots[0].size, one.name)):
            if debtor.name in self.global_manager.ledger and (debtor.waiting or debtor.slots[0].size):
                self._lend_to(debtor)
        used = sum(one.memory.capacity - max(0, one.blocks_free()) for one in self.instances)
        remote = sum(sum(one.manager.borrowed.values()) for one in self.instances)
        self.remote_share.append(remote / used if used else 0.0)
        for one in self.instances:  # heard now, acted upon in the next round
            one.synchronise()
            self.global_manager.hear(one.manager)

    def _lend_to(self, debtor: Lender) -> None:
        """Move blocks of the longest request where that raises both instances' throughput together most, if it does.

        A waiting request that no instance could hold alone gets its room from as many creditors as it takes.
        """
        if debtor.waiting and not debtor.fits_alone(debtor.waiting[0]):
            self._house(debtor, debtor.waiting[0])
            return
        movable = debtor.movable()
        if movable is None or movable[1] < 1:
            return
        longest, blocks = movable
        best, chosen = self.rules.least_gain * self._speed(debtor), None
        for creditor in self._creditors(debtor)[:PROPOSALS]:
            most = min(blocks, self._spare(creditor))
            for piece in range(1, self.rules.pieces + 1):
                loan = most * piece // self.rules.pieces
                gain = self._gain(debtor, creditor, loan) if loan else 0.0
                if gain > best:
                    best, chosen = gain, (creditor, loan)
        if chosen is not None:
            self._lend(debtor, longest, *chosen)

    def _house(self, debtor: Lender, waiting: Sequence) -> None:
        on_the_way = sum(loan.blocks for loan in debtor.loans.get(waiting, []) if not loan.arrived)
        lacking = debtor.missing(1)[0] - on_the_way
        plan = []
        for creditor in self._creditors(debtor):
            if lacking > 0:
                plan.append((creditor, min(lacking, self._spare(creditor))))
                lacking -= plan[-1][1]
        if lacking > 0:
            return
        made: list[Loan] = []
        for creditor, blocks in plan:
            loan = self._lend(debtor, waiting, creditor, blocks)
            if loan is None:  # all or nothing, or two such requests could each hold what the other lacks
                for other in made:
                    debtor.loans[waiting].remove(other)
                    debtor.settle(other, other.blocks)
                return
            made.append(loan)

    def _creditors(self, debtor: Lender) -> list[Lender]:
        """Instances with room to lend, as far as is known: the same node first, then most free."""
        names = self.global_manager.propose(debtor.name, 1, most=len(self.instances))
        found = [self.instances[name] for name in names]
        return [one for one in found if one.could_lend() and self._spare(one) > 0]

    def _spare(self, creditor: Lender) -> int:
        """Blocks that a creditor may lend, as its last heartbeat said."""
        told = self.global_manager.ledger[creditor.name]
        total = creditor.manager.blocks
        kept = (1 - self.rules.busy) * total
        return int(min(told.free - kept, self.rules.most_lent * total - sum(told.lent.values())))

    def _speed(self, one: Lender, guests: int = 0) -> float:
        """Tokens/s of an instance as it is, or with so many more tokens of others to attend to."""
        group, times = one.slots[0].group, one.times
        hosted = times.hosted + guests
        return times.tokens_per_s(len(group), group.context, times.remote, hosted, times.exchange_seconds)

    def _gain(self, debtor: Lender, creditor: Lender, blocks: int) -> float:
        """Tokens/s that a loan adds: a larger batch and less to attend to here, more to attend to there."""
        group, times = debtor.slots[0].group, debtor.times
        admitted = sum(0 < lacking <= blocks for lacking in debtor.missing(self.rules.heads))
        joining = sum(sequence.goal for sequence in list(debtor.waiting)[:admitted])
        tokens = blocks * BLOCK_TOKENS
        after = times.tokens_per_s(
            len(group) + admitted,
            group.context + joining,
            times.remote + tokens,
            times.hosted,
            self._exchange(debtor, debtor.manager.borrowed.keys() | {creditor.name}),
        )
        lost = self._speed(creditor) - self._speed(creditor, guests=tokens)
        return after - self._speed(debtor) - lost

    def _lend(self, debtor: Lender, sequence: Sequence, creditor: Lender, blocks: int) -> Loan | None:
        """Reserve at the creditor as it is now (None: refused); move; only then does the debtor have the room."""
        try:
            if not creditor.can_take(blocks):
                raise Refused("its blocks are gone since the heartbeat")
            creditor.manager.lend(debtor.name, blocks)
        except Refused:
            self.refused += 1
            return None
        debtor.manager.took(creditor.name, blocks)
        creditor.take(blocks)
        self.loans += 1
        loan = Loan(sequence, debtor, creditor, blocks)
        debtor.loans.setdefault(sequence, []).append(loan)
        filled = (
            blocks if sequence.started >= 0 else 0
        )  # what is prefilled yet needs a copy, what will be does not
        self.moved_blocks += filled
        link = self.links[debtor.name, self.wire(debtor, creditor)]
        end = link.send(self.loop.now, filled * self.block_bytes)
        self.loop.at(end, COPY, lambda _: debtor.at_boundary(lambda: self._arrived(loan)))
        return loan

    @staticmethod
    def _arrived(loan: Loan) -> None:
        """At a boundary of the debtor. The request may have ended meanwhile: then the loan has, too."""
        if loan in loan.debtor.loans.get(loan.sequence, []):
            loan.arrived = True
            loan.debtor.changes_by(loan.blocks)
            loan.creditor.at_boundary(lambda: loan.creditor.hosts(loan.blocks))

    def _cancel(self) -> None:
        """Debts along cycles: every instance on one takes its own blocks back into the room that it had lent."""
        before = {one.name: dict(one.manager.borrowed) for one in self.instances}
        books = {one.name: one.manager.copy() for one in self.instances}
        if not cancel_cycles(books):
            return
        for one in self.instances:
            for name, blocks in before[one.name].items():
                back = blocks - books[one.name].borrowed.get(name, 0)
                if back:
                    one.at_boundary(partial(self._take_back, one, name, back))

    def _take_back(self, one: Lender, creditor: int, blocks: int) -> None:
        """At a boundary: end `blocks` of the loans at a creditor, as far as they still stand and fit here."""
        for loans in one.loans.values():
            for loan in [loan for loan in loans if loan.creditor.name == creditor and loan.arrived]:
                part = min(blocks, loan.blocks, one.memory.free)
                if part > 0:
                    one.settle(loan, part)
                    self.cancelled += part
                    blocks -= part
                if not loan.blocks:
                    loans.remove(loan)
