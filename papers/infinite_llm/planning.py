"""Which blocks to lend to whom: the global manager's plan of a round (v2's scheduler).

It knows the instances by their heartbeats, which are one round old, and a model of their speed. A debtor is an instance
with a small batch, a creditor one with free memory. A loan frees blocks of the debtor, so that waiting requests join
and the reading of the weights pays more; it costs the exchange of queries, and the creditor attends to more. There are
two ways to lend: the oldest blocks of the debtor's longest request move away while it decodes (v2), or the first
waiting request gets the room that it lacks at a creditor, where its prompt's keys and values are written as they are
computed (v1). What raises the throughput of both together most is planned: placements, which act at once, as long as
one pays, then a move, as far as it gets until the next plan.
"""

import random
from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import NamedTuple

from common.serving.latency import LatencyModel, Line
from common.serving.sequence import Sequence
from papers.infinite_llm.ledger import PROPOSALS

BLOCK_TOKENS = 16  # of an rBlock (inferred: vLLM's block)


@dataclass(frozen=True)
class Wire:
    """Between two instances: bytes/s, and the seconds of one message."""

    bytes_per_s: float
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """What a decode iteration exchanges with the creditors: a round trip a layer, with all of them at a time.

    sent_bytes: a query and a partial result of all heads in one layer, for one request's part at one creditor.
    block_bytes: keys and values of a block. within, across: the wires inside a node and between nodes.
    """

    layers: int
    sent_bytes: float
    block_bytes: float
    within: Wire
    across: Wire

    def seconds(self, near: int, far: int, sharing: int = 1) -> float:
        """Of an iteration with so many remote parts in the node and beyond it.

        The parts of a wire follow one another, the two wires and all delays overlap. sharing: debtors that use the
        wire between nodes at the same time.
        """
        slowest = 0.0
        for wire, parts, users in ((self.within, near, 1), (self.across, far, sharing)):
            if parts:
                slowest = max(slowest, 2 * wire.seconds + parts * users * self.sent_bytes / wire.bytes_per_s)
        return self.layers * slowest

    def hides(self, debtor: "Standing", creditor: "Standing", prompt: int, blocks: int) -> bool:
        """Whether blocks of a prompt cross to a creditor, layer by layer, while it is computed (v1)."""
        if not debtor.prompts_cost:
            return True
        wire = self.within if debtor.node == creditor.node else self.across
        return blocks * self.block_bytes / wire.bytes_per_s <= debtor.times.iteration([(prompt, 0)], 0, 0)[0]


class LendingLatency:
    """An instance's latencies with loans: `remote` tokens of its requests lie elsewhere, it hosts `hosted` of others.

    largest_part: tokens at the creditor that has most of them; it attends while the instance does, and the slower of
    the two counts. exchange_seconds: of one iteration's queries and partial results. prefills: False lets requests
    arrive prefilled, so that prompts cost nothing. fetch_seconds_per_token: where remote keys and values come home in
    every step instead of the query going out; the creditor then only stores them.
    """

    stages = 1

    def __init__(
        self, base: LatencyModel, prefills: bool, fetch_seconds_per_token: float | None = None
    ) -> None:
        self.base = base
        self.prefills = prefills
        self.fetch_seconds_per_token = fetch_seconds_per_token
        self.remote = self.largest_part = self.hosted = 0
        self.exchange_seconds = 0.0

    def iteration(self, chunks: Several[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        seconds = self.base.iteration(chunks, 0, 0)[0] if chunks and self.prefills else 0.0
        if decodes:
            line = self.decode_line(decodes, context)
            seconds += line.intercept + line.slope * context
        return seconds, 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel. Below `remote` + `largest_part` tokens the creditor is what is waited for."""
        intercept, slope, until = self.base.decode_line(decodes, context)
        if self.fetch_seconds_per_token is not None:
            return Line(intercept + self.fetch_seconds_per_token * self.remote, slope, until)
        fixed = intercept + slope * self.hosted + self.exchange_seconds
        even = self.remote + self.largest_part
        if context < even:
            return Line(fixed + slope * self.largest_part, 0.0, min(until, float(even)))
        return Line(fixed - slope * self.remote, slope, until)


@dataclass(frozen=True)
class Rules:
    """When and how much is lent. Thresholds as in v2's scheduler; values inferred where no source is named.

    period: s between two plans. batch: beta, the batch from which an instance borrows no more. busy: mu, the share of
    blocks in use from which an instance lends no more. most_lent: share of its blocks that it may lend. heads: waiting
    requests that a plan looks at. pieces: sizes of a move that are tried, in parts of what could be moved.
    moved_per_step: tokens that may leave a request in a decode step (v2 finds that 16 cost nothing). cancels: whether
    debts along cycles are cancelled. most_parts: creditors that a request which fits no instance may lie at. drawn: a
    seed; debtors and creditors are then drawn among those that may, whatever the model says of them (a placebo).
    """

    period: float = 0.25
    batch: int = 64
    busy: float = 0.8
    most_lent: float = 0.8
    heads: int = 16
    pieces: int = 4
    moved_per_step: int = 16
    cancels: bool = True
    most_parts: int = 31
    drawn: int | None = None


class Waiting(NamedTuple):
    """A request at the head of a queue: blocks that it needs beside those reserved for it, and its tokens by then.

    Below 0 where more is reserved, for what an instance keeps free may be in use.
    """

    sequence: Sequence
    blocks: int
    tokens: int


class Standing(NamedTuple):
    """An instance as its heartbeat describes it; the planner changes copies. Blocks, tokens, requests.

    free: blocks, above what admissions leave free. remote, hosted: tokens of its requests elsewhere, of others here.
    away: tokens of its requests by creditor.
    near, far: parts of its requests in the node and beyond it. longest: its running request with most tokens, `movable`
    blocks of which may leave; parts_at: creditors that have some of it already.
    lends: whether its own next request would not fit anyway.
    """

    name: int
    node: int
    times: LatencyModel
    blocks: int
    free: int
    lent: int
    lends: bool
    decodes: int
    context: int
    remote: int
    hosted: int
    prompts_cost: bool = True
    near: int = 0
    far: int = 0
    sharing: int = 1
    longest: Sequence | None = None
    movable: int = 0
    parts_at: frozenset[int] = frozenset()
    waiting: tuple[Waiting, ...] = ()
    away: Mapping[int, int] = {}

    @property
    def largest_part(self) -> int:
        return max(self.away.values(), default=0)


class Plan(NamedTuple):
    """A loan to try: blocks of a running request move, or a waiting one gets its room."""

    debtor: int
    creditor: int
    sequence: Sequence
    blocks: int
    moves: bool


def spare(one: Standing, rules: Rules) -> int:
    """Blocks that an instance may lend."""
    kept = (1 - rules.busy) * one.blocks
    return max(0, int(min(one.free - kept, rules.most_lent * one.blocks - one.lent)))


def speed(one: Standing, exchange: Exchange) -> float:
    """Tokens/s of an instance with the requests that it would admit now, see LendingLatency."""
    decodes, context, free = one.decodes, one.context, one.free
    for head in one.waiting:
        if head.blocks > free:
            break
        free -= head.blocks
        decodes += 1
        context += head.tokens
    if not decodes:
        return 0.0
    intercept, slope, _ = one.times.decode_line(decodes, context)
    attended = max(one.largest_part, context - one.remote) + one.hosted
    return decodes / (intercept + slope * attended + exchange.seconds(one.near, one.far, one.sharing))


def movable_in_a_round(one: Standing, rules: Rules, exchange: Exchange) -> int:
    """Blocks that leave a request in the decode steps of a round without slowing them."""
    if not one.decodes:
        return 0
    steps = rules.period * speed(one._replace(waiting=()), exchange) / one.decodes
    return int(steps * rules.moved_per_step / BLOCK_TOKENS)


def creditors_of(
    debtor: Standing, known: Mapping[int, Standing], rules: Rules, rng: random.Random | None = None
) -> list[Standing]:
    """The instances to ask: the same node first, then those with most free; PROPOSALS at most. rng: one of all."""
    able = [one for one in known.values() if one.name != debtor.name and one.lends and spare(one, rules)]
    if rng is not None:
        return [rng.choice(able)] if able else []
    able.sort(key=lambda one: (one.node != debtor.node, -one.free, one.name))
    return able[:PROPOSALS]


def lent(debtor: Standing, creditor: Standing, blocks: int, of_longest: bool) -> tuple[Standing, Standing]:
    """Both instances after a loan."""
    part = not (of_longest and creditor.name in debtor.parts_at)
    near = debtor.node == creditor.node
    tokens = blocks * BLOCK_TOKENS
    after = debtor._replace(
        free=debtor.free + blocks,
        remote=debtor.remote + tokens,
        away={**debtor.away, creditor.name: debtor.away.get(creditor.name, 0) + tokens},
        near=debtor.near + (part and near),
        far=debtor.far + (part and not near),
    )
    if of_longest:
        after = after._replace(movable=debtor.movable - blocks, parts_at=debtor.parts_at | {creditor.name})
    return after, creditor._replace(
        free=creditor.free - blocks,
        lent=creditor.lent + blocks,
        hosted=creditor.hosted + tokens,
    )


def plan_loans(
    heard: Mapping[int, Standing], rules: Rules, exchange: Exchange, rng: random.Random | None = None
) -> list[Plan]:
    """The loans of a round, in the order in which they should be made. rng: draws them, where the rules say so."""
    known = dict(heard)
    plans: list[Plan] = []

    def make(found: tuple[Plan, Standing, Standing]) -> None:
        plan, debtor, creditor = found
        plans.append(plan)
        known[debtor.name], known[creditor.name] = _admitted(debtor), creditor

    order = sorted(known, key=lambda name: (known[name].decodes, name))
    if rng is not None:
        rng.shuffle(order)
    for name in order:
        known[name] = _admitted(known[name])
        while known[name].decodes < rules.batch:
            if found := placement(known[name], known, rules, exchange, rng):
                make(found)
            elif found := move(known[name], known, rules, exchange, rng):
                make(found)
                break  # no more leaves it in this round
            else:
                break
    return plans


def placement(
    debtor: Standing,
    known: Mapping[int, Standing],
    rules: Rules,
    exchange: Exchange,
    rng: random.Random | None = None,
) -> tuple[Plan, Standing, Standing] | None:
    """The best loan of what the debtor's next request lacks, with both instances after it; None if none pays."""
    if not debtor.waiting:
        return None
    head = debtor.waiting[0]
    lacking = head.blocks - debtor.free
    now = speed(debtor, exchange)
    best, found = 0.0 if rng is None else -float("inf"), None
    for creditor in creditors_of(debtor, known, rules, rng):
        if lacking <= spare(creditor, rules) and exchange.hides(debtor, creditor, head.tokens, lacking):
            after = lent(debtor, creditor, lacking, of_longest=False)
            gain = speed(after[0], exchange) + speed(after[1], exchange) - now - speed(creditor, exchange)
            if gain > best:
                best = gain
                found = Plan(debtor.name, creditor.name, head.sequence, lacking, False), *after
    return found


def move(
    debtor: Standing,
    known: Mapping[int, Standing],
    rules: Rules,
    exchange: Exchange,
    rng: random.Random | None = None,
) -> tuple[Plan, Standing, Standing] | None:
    """The best move of blocks of the longest request, with both instances after it; None if none pays.

    Only what leaves the request within a round counts. To count on all that might follow costs throughput: most
    requests end before it has.
    """
    if debtor.longest is None:
        return None
    movable = min(debtor.movable, movable_in_a_round(debtor, rules, exchange))
    now = speed(debtor, exchange)
    best, found = 0.0 if rng is None else -float("inf"), None
    for creditor in creditors_of(debtor, known, rules, rng):
        most = min(movable, spare(creditor, rules))
        all_moved = lent(debtor, creditor, most, of_longest=True)[0]
        waits_for_itself = all_moved.context - all_moved.remote >= all_moved.largest_part
        if not debtor.waiting and waits_for_itself and speed(all_moved, exchange) - now <= best:
            continue  # with nobody to let in, fewer blocks gain less, and a creditor gains nothing
        before = now + speed(creditor, exchange)
        for blocks in sorted({most * piece // rules.pieces for piece in range(1, rules.pieces + 1)} - {0}):
            after = lent(debtor, creditor, blocks, of_longest=True)
            gain = speed(after[0], exchange) + speed(after[1], exchange) - before
            if gain > best:
                best = gain
                found = Plan(debtor.name, creditor.name, debtor.longest, blocks, True), *after
    return found


def _admitted(one: Standing) -> Standing:
    """The instance after it has admitted whom it can."""
    while one.waiting and one.waiting[0].blocks <= one.free:
        head, *rest = one.waiting
        one = one._replace(
            decodes=one.decodes + 1,
            context=one.context + head.tokens,
            free=one.free - head.blocks,
            waiting=tuple(rest),
        )
    return one
