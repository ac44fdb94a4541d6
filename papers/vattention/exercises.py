"""The notebook's exercises and their solutions."""

from typing import Any

import numpy as np

from common.lab.exercises import Exercise
from common.serving.models import ModelShape
from papers.vattention.allocator import Layout
from papers.vattention.deployments import DEPLOYMENTS, Deployment
from papers.vattention.driver_calls import LARGE_PAGE, SMALL_PAGE
from papers.vattention.fragmentation import chat_lengths, occupancy

# meta-llama/Meta-Llama-3-70B, config.json
LLAMA_3_70B = ModelShape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, gated=True, vocab=128256, tied=False)


def tokens_of_a_page(lab: Any) -> int:
    """Of 2 MB, Llama-3-70B on eight workers: one KV head each."""
    return Deployment(LLAMA_3_70B, 8).layout(1, 32768, LARGE_PAGE).tokens_per_page


def largest_batch(sliced: bool) -> int:
    """The largest batch of Llama-3-8B with pages of 2 MB."""
    deployment = DEPLOYMENTS["llama-3-8b"]
    layout = deployment.layout(640, 32768, LARGE_PAGE, sliced=sliced)
    return occupancy(layout, deployment.kv_bytes(), chat_lengths(np.random.default_rng(0), 800), 200).largest


def gain_of_slicing(lab: Any) -> float:
    """The batch with slicing over that without."""
    return largest_batch(True) / largest_batch(False)


def pages_read(context: int, layout: Layout) -> int:
    """Pages that one decode iteration of a request reads, in all tensors."""
    return layout.tensors * layout.pages(context)


def small_pages_read(lab: Any) -> int:
    """Of 64 KB, 131,072 tokens, Llama-3-8B on two workers."""
    return pages_read(131_072, DEPLOYMENTS["llama-3-8b"].layout(1, 131_072, SMALL_PAGE))


EXERCISES = {
    "exercise-1": Exercise(
        question=(
            "Llama-3-70B on eight GPUs has one KV head a worker. How many tokens does a page of 2 MB hold in one "
            "tensor? (It is also how long a request must be to fill one.)"
        ),
        hint="`layout(...).tokens_per_page`, with eight workers instead of one.",
        answer=tokens_of_a_page,
        tolerance=0.0,
    ),
    "exercise-2": Exercise(
        question=(
            "Slicing puts all layers into one tensor, so that a page of 2 MB holds fewer tokens of each. How many "
            "times as many chat requests of Llama-3-8B fit at once?"
        ),
        hint="`largest_batch` takes `sliced`; pages are in two tensors then, instead of 64.",
        answer=gain_of_slicing,
        tolerance=0.01,
    ),
    "exercise-3": Exercise(
        question=(
            "Small pages need more entries in the TLB. How many pages of 64 KB does one decode iteration read for a "
            "request of 131,072 tokens, Llama-3-8B on two workers?"
        ),
        hint="`pages_read` counts them in all tensors; the cell asks with pages of 2 MB.",
        answer=small_pages_read,
        tolerance=0.0,
    ),
}
