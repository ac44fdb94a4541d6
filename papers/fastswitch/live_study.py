"""What the live server is asked: whether swapping changes an answer, and whether decoding goes on while blocks move."""

from dataclasses import dataclass

import numpy as np
import torch

from common.lab.runtime import one_thread
from common.models.decoder import Decoder, DecoderConfig
from common.serving.workload import Lengths, Workload
from papers.fastswitch.block_groups import BLOCK_TOKENS
from papers.fastswitch.conversations import Conversations, draw_conversations
from papers.fastswitch.ledger import saving
from papers.fastswitch.live_server import serve_live, undisturbed
from papers.fastswitch.priorities import random_priorities

TINY = DecoderConfig(vocab=256, hidden=64, layers=2, heads=2, intermediate=128, positions=1024)
SMALL = DecoderConfig(vocab=256, hidden=256, layers=4, heads=4, intermediate=512, positions=2048)
EXCHANGES = Lengths(np.array([20, 40, 60]), np.array([15, 30, 60]))  # prompt and answer of a turn, tokens
LONG, SHORT = 3, 4  # conversations of the second study
TURN_UPDATES = 2  # priority updates after which long and short conversations change places


@dataclass(frozen=True)
class Swapped:
    """changed: share of tokens that differ from undisturbed answers. saving: see ledger. tokens: compared."""

    changed: float
    saving: float
    tokens: int


def answer_swapped(
    generator: torch.Generator,
    rng: np.random.Generator,
    turns: float = 4.0,
    count: int = 8,
    trust: bool = False,
) -> Swapped:
    """Let conversations of `turns` turns on average answer in memory for about two of them; compare their tokens.

    trust: never copy out again what was copied once, so that copies go stale.
    """
    with one_thread():
        model = Decoder(TINY, generator)
        talks = draw_conversations(rng, count, 40.0, EXCHANGES, 400, mean_turns=turns, mean_think=0.02)
        prompts = draw_prompts(rng, talks)
        truth = undisturbed(model, talks, prompts)
        longest = max(map(len, truth.values()))
        blocks = max(40, -(-longest // BLOCK_TOKENS) + 4)
        update = random_priorities(rng, talks.count)
        run = serve_live(model, talks, prompts, update, blocks, count * 40, trusts_copies=trust)
    compared = [(a, b) for who, text in truth.items() for a, b in zip(text, run.texts[who], strict=True)]
    return Swapped(float(np.mean([a != b for a, b in compared])), saving(run.swaps), len(compared))


def decode_beside(
    generator: torch.Generator,
    rng: np.random.Generator,
    tokens: int,
    output: int,
    worker: bool,
    instant: bool = False,
) -> float:
    """Long conversations (prompts of `tokens`) and short ones take turns on the GPU; all of them swap at a time.

    Returns the share of the seconds of computing in which a copy was under way. worker: a thread copies; False: the
    server does it itself. instant: copies move nothing.
    """
    with one_thread():
        model = Decoder(SMALL, generator)
        prompt = np.array([tokens] * LONG + [BLOCK_TOKENS] * SHORT)
        answer = np.array([output] * LONG + [2 * output] * SHORT)
        count = LONG + SHORT
        zeros = np.zeros(count, dtype=np.int64)
        load = Workload(np.zeros(count), prompt, answer)
        talks = Conversations(load, np.arange(count), zeros, np.zeros(count))
        prompts = draw_prompts(rng, talks)
        blocks = count + int(sum(-(-(prompt + answer) // BLOCK_TOKENS)))
        run = serve_live(
            model, talks, prompts, taking_turns, blocks + 8, 2 * blocks,
            worker=worker, instant=instant, max_sequences=SHORT,
        )  # fmt: skip
    return run.copied_beside


def taking_turns(k: int) -> np.ndarray:
    """Priorities of the k-th update: the long conversations first, then the short ones, and so on."""
    long_first = (k // TURN_UPDATES) % 2 == 0
    return np.array([1.0 + long_first] * LONG + [2.0 - long_first] * SHORT)


def draw_prompts(rng: np.random.Generator, talks: Conversations) -> list[list[int]]:
    """Random tokens for every turn."""
    return [rng.integers(0, TINY.vocab, int(n)).tolist() for n in talks.workload.prompt]
