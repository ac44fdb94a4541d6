"""Multi-turn conversations: who asks when, how much, and what each turn must still know."""

import math
from dataclasses import dataclass

import numpy as np

from common.serving.clients import Sessions
from common.serving.workload import Lengths, Workload, poisson

MEAN_TURNS = 5.5  # of the paper's Multi-Round ShareGPT
MEAN_THINK = 30.0  # s between an answer and the next question, exponential (inferred)


@dataclass(frozen=True)
class Conversations:
    """Turns in order of their conversation's arrival; arrays of shape (turns,)."""

    workload: Workload  # what each turn adds
    session: np.ndarray  # whose turn it is
    history: np.ndarray  # tokens of the turns before it, prompts and answers
    think: np.ndarray  # seconds from the answer before to this turn

    @property
    def count(self) -> int:
        return int(self.session[-1]) + 1 if len(self.session) else 0

    @property
    def last(self) -> np.ndarray:
        """Whether a turn is the last of its conversation, shape (turns,)."""
        return np.append(self.session[1:] != self.session[:-1], True)

    def clients(self) -> Sessions:
        return Sessions(self.session, self.think)


def draw_conversations(
    rng: np.random.Generator,
    count: int,
    rate: float,
    turns: Lengths,
    longest: int,
    mean_turns: float = MEAN_TURNS,
    mean_think: float = MEAN_THINK,
) -> Conversations:
    """`count` conversations that begin as a Poisson process of `rate` a second. Raises ValueError where none can.

    turns: prompt and output tokens of single exchanges, drawn with replacement. The number of turns is geometric,
    `mean_turns` on average (1: always one); a conversation ends before a turn that would bring it above `longest`.
    """
    if not (mean_turns >= 1 and 0 < rate < math.inf and count >= 1 and 0 <= mean_think < math.inf):
        known = f"{count} conversations of {mean_turns} turns at {rate} a second, {mean_think} s of thought"
        raise ValueError(f"{known}: need one conversation and turn, a rate, and no time below zero")
    drawn = rng.geometric(1 / mean_turns, count) if mean_turns > 1 else np.ones(count, dtype=np.int64)
    arrivals = poisson(rng, count) / rate
    exchanges = turns.within(longest).sample(rng, int(drawn.sum()))
    think = rng.exponential(mean_think, int(drawn.sum()))
    whose = np.repeat(np.arange(count), drawn)
    added = exchanges.prompt + exchanges.output
    before = np.cumsum(added) - added
    first = np.cumsum(drawn) - drawn
    history = before - before[first][whose]
    keep = history + added <= longest  # history only grows, so what is cut is the end of a conversation
    load = Workload(arrivals[whose][keep], exchanges.prompt[keep], exchanges.output[keep])
    return Conversations(load, whose[keep], history[keep], np.where(history == 0, 0.0, think)[keep])
