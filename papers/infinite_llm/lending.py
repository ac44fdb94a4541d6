"""Instances that borrow and lend KV memory, and their loans round after round: heartbeats, plans, reservations, moves.

A plan rests on heartbeats that are one round old. The debtor asks the creditor to reserve; a creditor whose blocks are
gone refuses, and the plan is dropped. A request that no instance holds alone is served out of turn: its instance
gathers blocks, round after round, until it has enough; of those who would gather in a node, one does at a time, so that
no two can each hold what the other lacks.
"""

import random
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import partial

from common.serving.batch import Slot
from common.serving.engine import Instance
from common.serving.link import Link
from common.serving.loop import COPY, EventLoop
from common.serving.memory import PagedMemory, blocks_of
from common.serving.schedulers import PrefillFirst
from common.serving.sequence import Sequence
from papers.infinite_llm.ledger import GManager, Refused, RManager, cycles, repay
from papers.infinite_llm.planning import (
    BLOCK_TOKENS,
    Exchange,
    LendingLatency,
    Plan,
    Rules,
    Standing,
    Waiting,
    plan_loans,
)


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
        self.away: dict[Lender, int] = {}  # blocks at each creditor
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
                    self.at_boundary(partial(self.keeps, creditor, part))
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

    def keeps(self, creditor: "Lender", blocks: int) -> None:
        """It attends to so many blocks itself that were at a creditor."""
        self.away[creditor] = self.away.get(creditor, 0) - blocks
        if not self.away[creditor]:
            del self.away[creditor]
        self.times.remote -= blocks * BLOCK_TOKENS
        self.times.largest_part = max(self.away.values(), default=0) * BLOCK_TOKENS

    def hosts(self, blocks: int) -> None:
        """It attends to so many more blocks of others."""
        self.times.hosted += blocks * BLOCK_TOKENS

    def _repaid(self, loan: Loan, blocks: int) -> None:
        books = {self.name: self.manager, loan.creditor.name: loan.creditor.manager}
        repay(books, self.name, loan.creditor.name, blocks)

    def _changed(self, loan: Loan, blocks: int) -> None:
        self.paged.free += blocks
        self.keeps(loan.creditor, -blocks)
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
            needed -= self.reserved(one)
        raise ValueError(f"request {sequence.index} does not wait here")

    def reserved(self, sequence: Sequence) -> int:
        """Blocks that creditors hold ready for a waiting request."""
        return sum(loan.blocks for loan in self.loans.get(sequence, []) if not loan.arrived)

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
            needed = self.memory.needs(sequence) - self.reserved(sequence)
            waiting.append(Waiting(sequence, needed, sequence.goal))
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
            self.times.prefills,
            self.near,
            self.far,
            self.sharing,
            longest,
            max(0, self.movable(longest)) if longest else 0,
            frozenset(loan.creditor.name for loan in self.loans.get(longest, [])) if longest else frozenset(),
            tuple(waiting),
            {creditor.name: blocks * BLOCK_TOKENS for creditor, blocks in self.away.items()},
        )


class Lending:
    """The global manager's rounds over a cluster's instances.

    memory_bandwidth: bytes/s of an instance's GPUs, which a move shares with the iterations of both its ends.
    """

    def __init__(
        self,
        loop: EventLoop,
        instances: Several[Lender],
        rules: Rules,
        exchange: Exchange,
        memory_bandwidth: float,
    ) -> None:
        self.loop, self.instances, self.rules = loop, instances, rules
        self.exchange, self.memory_bandwidth = exchange, memory_bandwidth
        self.global_manager = GManager(node_of={one.name: one.node for one in instances})
        self.heard: dict[int, Standing] = {}
        # requests that no instance holds alone: whose they are, and the nodes that they ask
        self.gathering: dict[Sequence, tuple[Lender, frozenset[int]]] = {}
        self._near = {one.name: Link(exchange.within.bytes_per_s) for one in instances}
        self._far = {
            one.node: Link(exchange.across.bytes_per_s) for one in instances
        }  # one network card a node
        self._rng = None if rules.drawn is None else random.Random(rules.drawn)
        self._cancelling = False
        self.moved_blocks = self.placed_blocks = self.refused = self.dropped = self.cancelled = self.loans = 0
        self.remote_share: list[float] = []  # of all blocks in use, a round
        for one in instances:
            one.manager.most_lent = rules.most_lent
            others = [int(rules.most_lent * other.manager.blocks) for other in instances if other is not one]
            one.largest = one.manager.blocks + sum(sorted(others)[-rules.most_parts :])
            one.on_parts = self._share_the_network
        loop.every(rules.period, COPY, self._round)

    def _round(self) -> None:
        for plan in plan_loans(self.heard, self.rules, self.exchange, self._rng):
            self._carry_out(plan)
        self._give_up()
        for debtor in self.instances:
            if debtor.waiting and not debtor.fits_alone(debtor.waiting[0]):
                self._gather(debtor, debtor.waiting[0])
        if self.rules.cancels and not self._cancelling:
            self._cancel()
        remote = sum(sum(one.manager.borrowed.values()) for one in self.instances)
        used = remote
        for one in self.instances:
            one.manager.used = one.used_here()
            used += one.manager.used
            self.heard[one.name] = one.standing(self.rules.heads)
            self.global_manager.hear(one.manager)
        self.remote_share.append(remote / used if used else 0.0)

    def _carry_out(self, plan: Plan) -> None:
        """Reserve, then move or place, if debtor and creditor are still as the plan says."""
        debtor, creditor = self.instances[plan.debtor], self.instances[plan.creditor]
        sequence, blocks = plan.sequence, plan.blocks
        if plan.moves:
            stands = sequence in debtor.slots[0].group.members and blocks <= debtor.movable(sequence)
        else:
            blocks = debtor.lacking(sequence) if sequence in debtor.waiting else 0
            stands = blocks > 0 and sequence not in debtor.loans
        if not stands:
            self.dropped += 1
            return
        loan = self._reserve(debtor, sequence, creditor, blocks)
        if loan is None:
            return
        if plan.moves:
            self._move(loan)
        else:
            debtor.at_boundary(partial(self._place, debtor, sequence))

    def _reserve(self, debtor: Lender, sequence: Sequence, creditor: Lender, blocks: int) -> Loan | None:
        try:
            if not creditor.can_take(blocks):
                raise Refused("its blocks are gone since the heartbeat")
            if sequence not in self.gathering and not creditor.could_lend():
                raise Refused("its own next request needs them")
            loan = debtor.open_loan(sequence, creditor, blocks)
        except Refused:
            self.refused += 1
            return None
        self.loans += 1
        return loan

    def _move(self, loan: Loan) -> None:
        """Copy blocks of a running request beside both ends' iterations; the debtor has the room afterwards."""
        size = loan.blocks * self.exchange.block_bytes
        self.moved_blocks += loan.blocks
        end = self._sent(loan.debtor, loan.creditor, size)
        for one in (loan.debtor, loan.creditor):
            one.at_boundary(partial(self._slow, one, size))

        def arrived() -> None:
            if loan in loan.debtor.loans.get(loan.sequence, []):  # its request has not ended
                loan.debtor.arrived(loan)

        self.loop.at(end, COPY, lambda _: loan.debtor.at_boundary(arrived))

    def _slow(self, one: Lender, size: float) -> None:
        """An iteration shares the memory's bandwidth with a copy."""
        if one.slots[0].group.members:
            one.slots[0].copy_seconds += size / self.memory_bandwidth

    def _sent(self, one: Lender, other: Lender, size: float) -> float:
        """When a copy that begins now has arrived."""
        if one.node == other.node:
            return self._near[one.name].send(self.loop.now, size)
        return max(self._far[node].send(self.loop.now, size) for node in (one.node, other.node))

    def _place(self, debtor: Lender, sequence: Sequence) -> None:
        """At a boundary: the waiting request has its room, unless what it lacks has become more; it goes in next.

        What its prompt writes at creditors crosses the wires while it is computed; where that takes longer than the
        computing, its iteration takes as long.
        """
        loans = [loan for loan in debtor.loans.get(sequence, []) if not loan.arrived]
        if not loans:  # asked for twice, or given up
            return
        if debtor.lacking(sequence) > sum(loan.blocks for loan in loans):
            if sequence not in self.gathering:
                debtor.close_loans(sequence)
                self.dropped += 1
            return
        self.gathering.pop(sequence, None)
        written = self.loop.now
        for loan in loans:
            self.placed_blocks += loan.blocks
            debtor.arrived(loan)
            if debtor.times.prefills:
                size = loan.blocks * self.exchange.block_bytes
                written = max(written, self._sent(debtor, loan.creditor, size))
        computed = debtor.times.iteration([(sequence.goal, 0)], 0, 0)[0]
        debtor.slots[0].copy_seconds += max(0.0, written - self.loop.now - computed)

    def _give_up(self) -> None:
        """Who went in without help, or was overtaken in its queue by a request that was preempted, gathers no more."""
        for sequence, (debtor, _) in list(self.gathering.items()):
            if not debtor.waiting or debtor.waiting[0] is not sequence:
                debtor.close_loans(sequence)
                del self.gathering[sequence]

    def _gather(self, debtor: Lender, sequence: Sequence) -> None:
        """Reserve what a request that fits no instance still lacks, from whoever has some."""
        if sequence not in self.gathering:
            nodes = self._nodes_for(debtor, sequence)
            if any(nodes & others for _, others in self.gathering.values()):
                return
            self.gathering[sequence] = debtor, nodes
        nodes = self.gathering[sequence][1]
        lacking = debtor.lacking(sequence) - sum(loan.blocks for loan in debtor.loans.get(sequence, []))
        for name in self.global_manager.propose(debtor.name, 1, most=len(self.instances)):
            holders = {loan.creditor.name for loan in debtor.loans.get(sequence, [])}
            if len(holders | {name}) > self.rules.most_parts:
                continue
            creditor = self.instances[name]
            told = self.global_manager.ledger[name]
            may = int(self.rules.most_lent * creditor.manager.blocks) - sum(told.lent.values())
            blocks = min(lacking, told.free, may)
            if blocks > 0 and creditor.node in nodes:
                loan = self._reserve(debtor, sequence, creditor, blocks)
                lacking -= loan.blocks if loan is not None else 0
        if lacking <= 0:
            debtor.at_boundary(partial(self._place, debtor, sequence))

    def _nodes_for(self, debtor: Lender, sequence: Sequence) -> frozenset[int]:
        """The debtor's node, if its instances could hold the request together; else all."""
        near = [one.manager.blocks for one in self.instances if one.node == debtor.node and one is not debtor]
        room = debtor.manager.blocks + sum(int(self.rules.most_lent * blocks) for blocks in near)
        if debtor.memory.needs(sequence) + debtor.paged.reserve + 1 <= room:
            return frozenset([debtor.node])
        return frozenset(one.node for one in self.instances)

    def _share_the_network(self) -> None:
        """Debtors that exchange over the network between nodes share it, each from its next iteration on."""
        users: dict[int, int] = {}
        for one in self.instances:
            for node in self._far_nodes(one):
                users[node] = users.get(node, 0) + 1
        for one in self.instances:
            sharing = max((users[node] for node in self._far_nodes(one)), default=1)
            seconds = self.exchange.seconds(one.near, one.far, sharing)
            one.sharing = sharing
            if seconds != one.times.exchange_seconds:
                one.at_boundary(partial(self._exchanges, one))

    def _exchanges(self, one: Lender) -> None:
        one.times.exchange_seconds = self.exchange.seconds(one.near, one.far, one.sharing)

    @staticmethod
    def _far_nodes(one: Lender) -> set[int]:
        """Nodes at the ends of its exchanges with other nodes."""
        far = {creditor.node for _, creditor in one.parts if creditor.node != one.node}
        return far | {one.node} if far else far

    def _cancel(self) -> None:
        """Begin the swap along a cycle of debts, as far as the heartbeats know one."""
        cycle = next(cycles(self.global_manager.debts()), None)
        if cycle is None:
            return
        pairs = self._pairs(cycle)
        blocks = min(debtor.owed_by(creditor) for debtor, creditor in pairs)
        if blocks:
            self._cancelling = True
            size = blocks * self.exchange.block_bytes
            end = max(self._sent(creditor, debtor, size) for debtor, creditor in pairs)
            for debtor, _ in pairs:
                debtor.at_boundary(partial(self._slow, debtor, 2 * size))
            self.loop.at(end, COPY, self._cancelled, (cycle, blocks))

    def _cancelled(self, swap: tuple[list[int], int]) -> None:
        """Each instance has its blocks again, in the room of those that the one before it had here.

        What has been repaid meanwhile needs no swap. No instance has more or fewer blocks free than before.
        """
        cycle, blocks = swap
        pairs = self._pairs(cycle)
        blocks = min(blocks, *(debtor.owed_by(creditor) for debtor, creditor in pairs))
        self._cancelling = False
        if blocks:
            for debtor, creditor in pairs:
                debtor.taken_back(creditor, blocks)
            self.cancelled += blocks * len(pairs)

    def _pairs(self, cycle: list[int]) -> list[tuple[Lender, Lender]]:
        return [
            (self.instances[name], self.instances[following])
            for name, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True)
        ]
