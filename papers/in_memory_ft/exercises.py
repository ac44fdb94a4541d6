"""The notebook's exercises and their solutions, computed by the mechanism."""

from typing import Any

from common.lab.exercises import Exercise
from papers.in_memory_ft import survival
from papers.in_memory_ft.parity import block_bytes

SHARD = 1000  # bytes, of the first exercise


def memory_of_a_group_of_five(lab: Any) -> float:
    """Bytes that a node of five holds for a shard of 1,000: two halves, each of four blocks and a parity."""
    return 2 * 5 * block_bytes(SHARD, 5)


def hours_replication_over_parity(lab: Any) -> float:
    """Hours of 90% survival: groups of two (a full copy on a neighbour) over groups of eight."""
    pair, eight = (survival.hours_at(survival.erasure_coded, survival.Fleet(group=m), 0.9) for m in (2, 8))
    return pair / eight


def fatal_pairs(lab: Any) -> float:
    """Share of pairs of lost nodes that a group of four among 384 nodes does not outlive."""
    sets = survival.node_sets(survival.Fleet())
    pairs = sum(len(one) * (len(one) - 1) // 2 for one in sets)
    return pairs / (384 * 383 / 2)


EXERCISES = {
    "exercise-1": Exercise(
        "A shard has 1,000 bytes and its group five nodes. How many bytes does a node hold (two buffers, parity)?",
        "block_bytes(1000, 5) is the size of one of four blocks; a buffer has one more, the parity.",
        memory_of_a_group_of_five,
        tolerance=0.001,
    ),
    "exercise-2": Exercise(
        "A full copy on a neighbour is parity in groups of two. How many times longer does a state last at 90% than in "
        "groups of eight, which need a seventh of the extra memory?",
        "Divide survival.hours_at(survival.erasure_coded, Fleet(group=m), 0.9) of m = 2 by that of m = 8.",
        hours_replication_over_parity,
    ),
    "exercise-3": Exercise(
        "Two of 384 nodes are lost at once, groups of four. What share of the pairs of nodes is fatal?",
        "Two nodes are fatal when they are of one group: count pairs inside survival.node_sets(Fleet()), and divide.",
        fatal_pairs,
    ),
}
