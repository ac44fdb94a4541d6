"""The notebook's exercises and their solutions. Each answer is computed by the mechanism."""

from typing import Any

import numpy as np

from common.lab.exercises import Exercise
from papers.llumnix.cluster import migrate_alone, serve
from papers.llumnix.freeness import Load, Rules, migration_freeness
from papers.llumnix.global_scheduler import Setup
from papers.llumnix.lengths import draw_trace
from papers.llumnix.migration import Stages

BLOCKING = Stages(last_stage_blocks=10**9)  # the first copy is the last


def waiting_prompt(lab: Any) -> float:
    """Freeness of an instance with 120 free blocks, 8 requests, and a prompt of 200 blocks that waits."""
    return migration_freeness(Load(851, free=120, running=8, queued=1, queued_blocks=200), Rules())


def stopped_longer(lab: Any) -> float:
    """Downtime of a blocking copy of 6,144 tokens over that of a live migration."""
    (_, blocking), (_, live) = migrate_alone(6144, stages=BLOCKING), migrate_alone(6144)
    return blocking.downtime / live.downtime


def abort_share(lab: Any, lowest: float = 10.0) -> float:
    """Share of migrations that abort on four instances where an instance gives below `lowest` blocks a request."""
    requests = draw_trace("512-512", np.random.default_rng(5), 300).scaled(1.15)
    run = serve(requests, Setup("llumnix", instances=4, lowest=lowest, sample_seconds=0.0))
    return sum(one.outcome != "committed" for one in run.migrations) / len(run.migrations)


EXERCISES = {
    "exercise-1": Exercise(
        "851 blocks, 120 of them free, 8 requests run, and a prompt of 200 blocks waits. What is F for migration?",
        "The queued demand counts as used, and the head of the queue as one of the batch.",
        waiting_prompt,
    ),
    "exercise-2": Exercise(
        "How many times longer does a request of 6,144 tokens stop for a blocking copy than for a live migration?",
        "Call migrate_alone(6144) with and without stages=BLOCKING, and compare their downtime.",
        stopped_longer,
    ),
    "exercise-3": Exercise(
        "On the four instances of section 1, let an instance give below 10 blocks a request instead of 3. Which share "
        "of the migrations aborts?",
        "run = serve(four, Setup('llumnix', instances=4, lowest=10.0)); count run.migrations by outcome.",
        abort_share,
    ),
}
