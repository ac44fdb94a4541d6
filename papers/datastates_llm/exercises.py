"""The notebook's exercises and their solutions. Each answer is computed, by the model or from its closed form."""

import math
from typing import Any

from common.lab.exercises import Exercise
from papers.datastates_llm.cluster import simulate
from papers.datastates_llm.polaris import MODELS, ranks

FAILURES = 3 * 3600.0  # seconds from one to the next


def smallest_ring(lab: Any) -> float:
    """GB a GPU with which 13B at 4 GB/s a node never waits for room: what a copy at full rate leaves unwritten."""
    rank = ranks(MODELS["13B"], 4e9)[0]
    return rank.nbytes * (1 - rank.storage / rank.copy) / 1e9


def young_daly(lab: Any) -> float:
    """Seconds between two synchronous checkpoints of 30B at 4 GB/s a node: the square root of twice cost times gap."""
    model = MODELS["30B"]
    cost = simulate("sync", ranks(model, 4e9), model.phases, 2, 1).blocked[0]
    return math.sqrt(2 * cost * FAILURES)


EXERCISES = {
    "exercise-1": Exercise(
        "Which ring (GB a GPU) is the smallest with which 13B at 4 GB/s a node copies a checkpoint at full rate, "
        "every fifth update?",
        "While bytes arrive at rank.copy they leave at rank.storage; Buffer.take has the level at the end.",
        smallest_ring,
    ),
    "exercise-2": Exercise(
        "Young and Daly: how many seconds apart should synchronous checkpoints of 30B at 4 GB/s a node be, with a "
        "failure every three hours?",
        "The best interval is about the square root of 2 C M; C is what simulate('sync', ...).blocked says of one.",
        young_daly,
    ),
}
