"""Which blocks to lend to whom: the global manager's plan of a round (v2's scheduler).

It knows the instances by their heartbeats, which are one round old, and a model of their speed. A debtor is an instance
with a small batch, a creditor one with free memory. A loan frees blocks of the debtor, so that waiting requests join
and the reading of the weights pays more; it costs the exchange of queries, and the creditor attends to more. There are
two ways to lend: the oldest blocks of the debtor's longest request move away while it decodes (v2), or the first
waiting request gets the room that it lacks at a creditor, where its prompt's keys and values are written as they are
computed (v1). What raises the throughput of both together most is planned: placements, which act at once, as long as
one pays, then a move, as far as it gets until the next plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from common.serving.latency import LatencyModel
from common.serving.sequence import Sequence
from papers.infinite_llm.ledger import PROPOSALS
from papers.infinite_llm.loan_costs import BLOCK_TOKENS, Exchange, tokens_per_s


@dataclass(frozen=True)
class Rules:
    """When and how much is lent. Thresholds as in v2's scheduler; values inferred where no source is named.

    period: s between two plans. batch: beta, the batch from which an instance borrows no more. busy: mu, the share of
    blocks in use from which an instance lends no more. most_lent: share of its blocks that it may lend. heads: waiting
    requests that a plan looks at. pieces: sizes of a move that are tried, in parts of what could be moved.
    moved_per_step: tokens that may leave a request in a decode step (v2 finds that 16 cost nothing). least_gain: share
    of the debtor's throughput that a loan must add (v2: more than nothing, which costs throughput here: what a loan
    takes from the creditor's next requests is not in the model). cancels: whether debts along cycles are cancelled.
    """

    period: float = 0.25
    batch: int = 64
    busy: float = 0.8
    most_lent: float = 0.8
    heads: int = 16
    pieces: int = 4
    moved_per_step: int = 16
    least_gain: float = 0.02
    cancels: bool = True


class Waiting(NamedTuple):
    """A request at the head of a queue: blocks that it needs to be admitted, and its tokens by then."""

    sequence: Sequence
    blocks: int
    tokens: int


class Standing(NamedTuple):
    """An instance as its heartbeat describes it; the planner changes copies. Blocks, tokens, requests.

    free: blocks, above what admissions leave free. remote, hosted: tokens of its requests elsewhere, of others here.
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
    near: int = 0
    far: int = 0
    sharing: int = 1
    longest: Sequence | None = None
    movable: int = 0
    parts_at: frozenset[int] = frozenset()
    waiting: tuple[Waiting, ...] = ()


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
    """Tokens/s of an instance with the requests that it would admit now."""
    decodes, context, free = one.decodes, one.context, one.free
    for head in one.waiting:
        if head.blocks > free:
            break
        free -= head.blocks
        decodes += 1
        context += head.tokens
    seconds = exchange.seconds(one.near, one.far, one.sharing)
    return tokens_per_s(one.times, decodes, context, one.remote, one.hosted, seconds)


def movable_in_a_round(one: Standing, rules: Rules, exchange: Exchange) -> int:
    """Blocks that leave a request in the decode steps of a round without slowing them."""
    if not one.decodes:
        return 0
    steps = rules.period * speed(one._replace(waiting=()), exchange) / one.decodes
    return int(steps * rules.moved_per_step / BLOCK_TOKENS)


def creditors_of(debtor: Standing, known: Mapping[int, Standing], rules: Rules) -> list[Standing]:
    """The instances to ask: the same node first, then those with most free; PROPOSALS at most."""
    able = [one for one in known.values() if one.name != debtor.name and one.lends and spare(one, rules)]
    able.sort(key=lambda one: (one.node != debtor.node, -one.free, one.name))
    return able[:PROPOSALS]


def lent(debtor: Standing, creditor: Standing, blocks: int, of_longest: bool) -> tuple[Standing, Standing]:
    """Both instances after a loan."""
    part = not (of_longest and creditor.name in debtor.parts_at)
    near = debtor.node == creditor.node
    after = debtor._replace(
        free=debtor.free + blocks,
        remote=debtor.remote + blocks * BLOCK_TOKENS,
        near=debtor.near + (part and near),
        far=debtor.far + (part and not near),
    )
    if of_longest:
        after = after._replace(movable=debtor.movable - blocks, parts_at=debtor.parts_at | {creditor.name})
    return after, creditor._replace(
        free=creditor.free - blocks,
        lent=creditor.lent + blocks,
        hosted=creditor.hosted + blocks * BLOCK_TOKENS,
    )


def plan_loans(heard: Mapping[int, Standing], rules: Rules, exchange: Exchange) -> list[Plan]:
    """The loans of a round, in the order in which they should be made."""
    known = dict(heard)
    plans: list[Plan] = []

    def make(found: tuple[Plan, Standing, Standing]) -> None:
        plan, debtor, creditor = found
        plans.append(plan)
        known[debtor.name], known[creditor.name] = _admitted(debtor), creditor

    for name in sorted(known, key=lambda name: (known[name].decodes, name)):
        known[name] = _admitted(known[name])
        while known[name].decodes < rules.batch:
            if found := placement(known[name], known, rules, exchange):
                make(found)
            elif found := move(known[name], known, rules, exchange):
                make(found)
                break  # no more leaves it in this round
            else:
                break
    return plans


def placement(
    debtor: Standing, known: Mapping[int, Standing], rules: Rules, exchange: Exchange
) -> tuple[Plan, Standing, Standing] | None:
    """The best loan of what the debtor's next request lacks, with both instances after it; None if none pays."""
    if not debtor.waiting:
        return None
    head = debtor.waiting[0]
    lacking = head.blocks - max(0, debtor.free)
    now = speed(debtor, exchange)
    best, found = rules.least_gain * now, None
    for creditor in creditors_of(debtor, known, rules):
        if lacking <= spare(creditor, rules):
            after = lent(debtor, creditor, lacking, of_longest=False)
            gain = speed(after[0], exchange) + speed(after[1], exchange) - now - speed(creditor, exchange)
            if gain > best:
                best = gain
                found = Plan(debtor.name, creditor.name, head.sequence, lacking, False), *after
    return found


def move(
    debtor: Standing, known: Mapping[int, Standing], rules: Rules, exchange: Exchange
) -> tuple[Plan, Standing, Standing] | None:
    """The best move of blocks of the longest request, with both instances after it; None if none pays.

    Only what leaves the request within a round counts. To count on all that might follow costs throughput: most
    requests end before it has.
    """
    if debtor.longest is None:
        return None
    movable = min(debtor.movable, movable_in_a_round(debtor, rules, exchange))
    now = speed(debtor, exchange)
    best, found = rules.least_gain * now, None
    for creditor in creditors_of(debtor, known, rules):
        before = now + speed(creditor, exchange)
        most = min(movable, spare(creditor, rules))
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
