"""Latencies of several systems on the same inputs, interleaved, with a fixed number of threads."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

WARM_UP = 8  # calls of a system before any of a round is timed


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block torch computes with so many threads, and records no gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def latencies(
    systems: Mapping[str, Callable[[Any], Any]], inputs: Mapping[str, Sequence[Any]], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each system on each input, (inputs,): the fastest of the rounds, which other load disturbs least.

    In every round all inputs go through one system after the other, whose order turns from round to round; call by
    call, the threads of one system, which spin for a while after each, would slow down the other's.
    """
    names = list(systems)
    count = len(inputs[names[0]])
    seconds = {name: np.empty((rounds, count)) for name in names}
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            call = systems[name]
            for i in range(WARM_UP):
                call(inputs[name][i % count])
            for i, value in enumerate(inputs[name]):
                start = time.perf_counter()
                call(value)
                seconds[name][round_, i] = time.perf_counter() - start
    return {name: taken.min(axis=0) for name, taken in seconds.items()}


class Inside:
    """Sub-network calls with a clock around each: what is left of a forward's time is the host program's."""

    def __init__(self, calls: Sequence[Callable[..., Any]]) -> None:
        self.seconds = 0.0
        self.calls = [self._timed(call) for call in calls]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any) -> Any:
            start = time.perf_counter()
            found = call(*values)
            self.seconds += time.perf_counter() - start
            return found

        return timed


def host_share(
    build: Callable[..., Any], calls: Sequence[Callable[..., Any]], inputs: Sequence[Any]
) -> float:
    """The share of the latency that is spent in the host program and not in sub-networks."""
    inside = Inside(calls)
    forward = build(inside.calls)
    for value in inputs[:WARM_UP]:
        forward(value)
    inside.seconds, start = 0.0, time.perf_counter()
    for value in inputs:
        forward(value)
    whole = time.perf_counter() - start
    return 1 - inside.seconds / whole
