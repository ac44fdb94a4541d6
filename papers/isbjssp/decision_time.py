"""How long a decision takes: the policy's, and solving the rest of the schedule anew with CP-SAT."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from common.rl.graph_ppo import choose
from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Shop
from common.scheduling.job_shop_optimum import solve_rest
from papers.isbjssp.disjunctive_graph import Graphs, fixed

Decide = Callable[[Shop], int]


def by_policy(policy: nn.Module, shop: Shop) -> Decide:
    """A decision maker for one shop: its graph, the network, the likeliest candidate."""
    known, graphs = fixed(shop.instance), Graphs(1, *shop.instance.durations.shape)

    @torch.no_grad()
    def decide(shop: Shop) -> int:
        graphs.write(0, shop, known)
        seen = graphs.tensors()
        return int(choose(policy(seen)[0], seen["allowed"])[0])

    return decide


def by_replanning(seconds: float | None = None, work: float | None = None) -> Decide:
    """A decision maker that solves the rest with CP-SAT and takes the candidate that starts first in that plan."""

    def decide(shop: Shop) -> int:
        plan = solve_rest(shop, seconds, work)
        if plan.starts is None:
            return int(shop.candidates[0])
        following = shop.jobs[events.STARTED, shop.candidates]
        return int(shop.candidates[np.argmin(plan.starts[shop.candidates, following])])

    return decide


def timed(shop: Shop, decide: Decide, most: int | None = None) -> list[float]:
    """Milliseconds of each decision (of the first `most`) on the way through a shop."""
    took: list[float] = []
    while not shop.done and (most is None or len(took) < most):
        begun = time.perf_counter()
        job = decide(shop)
        took.append(1e3 * (time.perf_counter() - begun))
        shop.take(job)
    return took


def finish(shop: Shop, decide: Decide) -> int:
    """The makespan by these decisions."""
    while not shop.done:
        shop.take(decide(shop))
    return shop.makespan
