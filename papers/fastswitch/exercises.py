"""The notebook's exercises and their solutions, computed by the mechanism."""

from typing import Any

from common.lab.exercises import Exercise
from papers.fastswitch.async_swaps import KVLayout, measured_cost

BLOCKS, PIECES = 63, 3  # of a conversation of 1,000 tokens: alone, and in groups


def calls_of_a_swap(lab: Any) -> float:
    """Copy calls of 1,000 tokens of LLaMA-3-8B, a call a block."""
    return float(KVLayout(32, 32 << 10).calls(BLOCKS))


def groups_over_blocks(lab: Any) -> float:
    """Seconds of that swap to the host with a call a block, over those with three pieces, on PCIe 4."""
    layout, cost = KVLayout(32, 32 << 10), measured_cost("d2h").over_pcie4()
    seconds = [cost.seconds(layout.calls(pieces), layout.size(BLOCKS)) for pieces in (BLOCKS, PIECES)]
    return seconds[0] / seconds[1]


EXERCISES = {
    "exercise-1": Exercise(
        "How many copy calls does a swap of 1,000 tokens of LLaMA-3-8B take with a call a block?",
        "A block is 16 tokens; each of 32 layers has keys and values: KVLayout(32, 32 << 10).calls(blocks).",
        calls_of_a_swap,
    ),
    "exercise-2": Exercise(
        "The same swap in three pieces over PCIe 4: how many times as fast is it as block by block?",
        "measured_cost('d2h').over_pcie4().seconds(calls, bytes), with calls and bytes from KVLayout.",
        groups_over_blocks,
    ),
}
