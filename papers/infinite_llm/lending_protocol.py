"""Borrowers in several real processes that ask one creditor at once, from a ledger that is out of date.

The creditor is the last to decide: its manager reserves or refuses, one message after another, whatever the global
ledger said. So it never promises more than it has, and nobody waits for somebody who waits.
"""

import random

import torch
import torch.distributed as dist

from papers.infinite_llm.ledger import Refused, RManager, audit

ASK, REPAY, DONE = range(3)


def lend_concurrently(
    rank: int, world: int, blocks: int, requests: int, seed: int, refuses: bool = True
) -> tuple[int, int, int] | tuple[int, int]:
    """Rank 0 has `blocks` to lend; every other rank asks `requests` times for up to half of what it heard once.

    Rank 0 answers (most lent at once, granted, refused), the others (granted, refused). For common.distributed.launch.
    refuses: False makes a creditor that believes the ledger and grants whatever is asked.
    """
    if rank:
        return _borrower(rank, blocks, requests, random.Random(seed * 1000 + rank))
    manager = RManager(0, blocks if refuses else blocks * requests * world)
    peers = {name: RManager(name, 0) for name in range(1, world)}
    word = torch.zeros(2, dtype=torch.int64)
    most = granted = refused = 0
    working = world - 1
    while working:
        name = dist.recv(word)
        assert name is not None
        kind, wanted = word.tolist()
        if kind == DONE:
            working -= 1
            continue
        if kind == REPAY:
            manager.settled(name, wanted, as_debtor=False)
            peers[name].settled(0, wanted, as_debtor=True)
            continue
        try:
            manager.lend(name, wanted)
            peers[name].took(0, wanted)
            agreed, granted = 1, granted + 1
        except Refused:
            agreed, refused = 0, refused + 1
        most = max(most, sum(manager.lent.values()))
        audit([manager, *peers.values()])
        dist.send(torch.tensor([agreed]), name)
    assert not manager.lent, "a loan is left over"
    return most, granted, refused


def _borrower(rank: int, heard: int, requests: int, rng: random.Random) -> tuple[int, int]:
    """heard: what the ledger said was free, at the start and never again."""
    held: list[int] = []
    granted = 0
    answer = torch.zeros(1, dtype=torch.int64)
    for _ in range(requests):
        wanted = rng.randint(1, max(1, heard // 2))
        dist.send(torch.tensor([ASK, wanted]), 0)
        dist.recv(answer, 0)
        if int(answer):
            held.append(wanted)
            granted += 1
        if held and rng.random() < 0.5:
            dist.send(torch.tensor([REPAY, held.pop()]), 0)
    for wanted in held:
        dist.send(torch.tensor([REPAY, wanted]), 0)
    dist.send(torch.tensor([DONE, 0]), 0)
    return granted, requests - granted
