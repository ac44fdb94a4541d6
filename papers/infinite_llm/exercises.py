"""The notebook's exercises and their solutions, computed by the mechanism."""

from typing import Any

from common.lab.exercises import Exercise
from papers.infinite_llm.cluster import ETHERNET, SHAPE, Setup, longest_served
from papers.infinite_llm.planning import Rules


def longest_of_two(lab: Any) -> float:
    """Longest context of two instances that may lend half, over that of one."""
    setup = Setup(gpus=2, rules=Rules(most_lent=0.5))
    return longest_served(setup, "infinite") / longest_served(setup, "vllm-multi")


def milliseconds_of_sixteen(lab: Any) -> float:
    """Of moving 16 tokens of LLaMA-2-7B between nodes."""
    return 1000 * 16 * SHAPE.kv_bytes_per_token() / ETHERNET


EXERCISES = {
    "exercise-1": Exercise(
        "Two instances may lend half of their blocks. How many times longer a context do they hold than one?",
        "longest_served(Setup(gpus=2, rules=Rules(most_lent=0.5)), system) for 'infinite' and 'vllm-multi'.",
        longest_of_two,
    ),
    "exercise-2": Exercise(
        "How many milliseconds do 16 tokens of LLaMA-2-7B take over 125 MB/s between nodes?",
        "SHAPE.kv_bytes_per_token() is the size of one token's keys and values.",
        milliseconds_of_sixteen,
    ),
}
