"""What the live server is asked: whether swapping changes an answer, and whether decoding goes on while blocks move."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from common.lab.runtime import one_thread
from common.models.decoder import Decoder, DecoderConfig
from common.serving.workload import Lengths, Workload
from papers.fastswitch.conversations import Conversations, draw_conversations
from papers.fastswitch.ledger import saving
from papers.fastswitch.live_server import LiveRun, serve_live, undisturbed
from papers.fastswitch.priorities import random_priorities
from papers.fastswitch.server import BLOCK_TOKENS

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
    system: str = "FastSwitch",
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
        run = serve_live(model, talks, prompts, update, system, blocks, count * 40, trusts_copies=trust)
    compared = [(a, b) for who, text in truth.items() for a, b in zip(text, run.texts[who], strict=True)]
    return Swapped(float(np.mean([a != b for a, b in compared])), saving(run.swaps), len(compared))


@dataclass(frozen=True)
class Beside:
    """waiting, beside: P99 of gaps between tokens, s, of a server that copies itself and of one with a thread for it.

    copied_beside: share of the seconds of computing in which a copy was under way, with the thread.
    """

    waiting: float
    beside: float
    copied_beside: float


def decode_beside(
    generator: torch.Generator,
    rng: np.random.Generator,
    tokens: int,
    output: int,
    worker: bool,
    instant: bool = False,
) -> Beside:
    """Long conversations (prompts of `tokens`) and short ones take turns on the GPU; all of them swap at a time.

    worker False: the server copies itself in either case.
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
        serve = partial(serve_live, model, talks, prompts, taking_turns, "FastSwitch", blocks + 8, 2 * blocks)
        alone = serve(worker=False, instant=instant, max_sequences=SHORT)
        beside = serve(worker=worker, instant=instant, max_sequences=SHORT)
    return Beside(tail_gap(alone), tail_gap(beside), beside.copied_beside)


def taking_turns(k: int) -> np.ndarray:
    """Priorities of the k-th update: the long conversations first, then the short ones, and so on."""
    long_first = (k // TURN_UPDATES) % 2 == 0
    return np.array([1.0 + long_first] * LONG + [2.0 - long_first] * SHORT)


def tail_gap(run: LiveRun) -> float:
    """P99 of the gaps between tokens from the last prompt on, s."""
    begun = float(run.trace.first_token.max())
    gaps = [np.diff(times[times >= begun]) for times in run.trace.token_times]
    return float(np.quantile(np.concatenate(gaps), 0.99))


def draw_prompts(rng: np.random.Generator, talks: Conversations) -> list[list[int]]:
    """Random tokens for every turn."""
    return [rng.integers(0, TINY.vocab, int(n)).tolist() for n in talks.workload.prompt]
