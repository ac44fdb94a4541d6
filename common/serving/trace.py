"""What a simulation leaves behind: the time stamps of every request, and of every token where they were recorded."""

from array import array
from dataclasses import dataclass, field

import numpy as np

from common.serving.sequence import Sequence


@dataclass(frozen=True)
class Trace:
    """What happened to each request, arrays of shape (requests,): seconds, and counts."""

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    first_token: np.ndarray
    finish: np.ndarray
    preemptions: np.ndarray
    token_times: tuple[np.ndarray, ...] = ()  # end of every token of each request, where recorded
    started: np.ndarray = field(default_factory=lambda: np.empty(0))  # when its first tokens were scheduled

    @property
    def ttft(self) -> np.ndarray:
        """Time to first token, seconds."""
        return self.first_token - self.arrival

    @property
    def scheduling_delay(self) -> np.ndarray:
        """From arrival until the first iteration that computes a request begins, seconds."""
        return self.started - self.arrival

    @property
    def tpot(self) -> np.ndarray:
        """Time per output token after the first, seconds; 0 for one-token outputs."""
        return (self.finish - self.first_token) / np.maximum(1, self.output - 1)


class TokenLog:
    """When each step of a decode group ended, a stretch a row, so that token times can be read back."""

    def __init__(self) -> None:
        self.steps = array("q")  # step count before the stretch
        self.starts = array("d")
        self.firsts = array("d")  # seconds of the stretch's first iteration
        self.increments = array("d")  # what each further iteration adds

    def add(self, step: int, start: float, first: float, increment: float) -> None:
        self.steps.append(step)
        self.starts.append(start)
        self.firsts.append(first)
        self.increments.append(increment)

    def times(self, first: int, last: int) -> np.ndarray:
        """End of the steps first..last-1, seconds, shape (last - first,)."""
        steps = np.arange(first, last)
        row = np.searchsorted(np.asarray(self.steps), steps, side="right") - 1
        done = steps - np.asarray(self.steps)[row] + 1
        firsts, increments = np.asarray(self.firsts)[row], np.asarray(self.increments)[row]
        return np.asarray(self.starts)[row] + done * firsts + increments * (done * (done - 1) / 2)


def token_times(sequence: Sequence) -> np.ndarray:
    """When each token of a finished sequence came out, seconds, shape (output tokens,)."""
    parts = [
        log.times(first, last) if isinstance(log, TokenLog) else np.array([log])
        for log, first, last in sequence.spans
    ]
    return np.concatenate(parts)[: sequence.output]
