"""The plain alternative: nano-batches on three streams that nobody controls (Section 4.1.1, why shares are controlled).

Every stream takes its ready nano-operations in the order of layers and nano-batches, and starts them as soon as it is
idle. Of k kernels that run at a time each holds 1/k of the execution units, whatever it would need.
"""

import math

from papers.nanoflow.interference import Interference
from papers.nanoflow.nano_batches import STREAMS, Layer

_FIRST, _LAST = 3, 9  # the period is the mean between the ends of these layers
_LAYERS = _LAST + 3  # the last ones for company alone: they are not waited for


def fair_period(layer: Layer, curves: Interference) -> float:
    """Microseconds a layer on three streams that share the execution units fairly."""
    ops = layer.ops
    waits = {(i, n): 0 for n in range(_LAYERS) for i in range(len(ops))}
    for edge in layer.dependencies:
        for n in range(edge.lag, _LAYERS):
            waits[edge.after, n] += 1
    ends, open_ops = [0.0] * _LAYERS, len(ops) * (_LAST + 1)  # that the measured layers still need
    waiting = set(waits)
    running: dict[str, tuple[int, int]] = {}
    left: dict[str, float] = {}
    now = 0.0
    while open_ops:
        for stream in STREAMS:
            ready = [(n, ops[i].low, i) for i, n in waiting if ops[i].stream == stream and not waits[i, n]]
            if stream not in running and ready:
                n, _, i = min(ready)
                waiting.discard((i, n))
                running[stream], left[stream] = (i, n), ops[i].work
        share = 1 / len(running)
        speed = {stream: curves.performance(stream, share) for stream in running}
        step = min(left[stream] / speed[stream] for stream in running)
        now += step
        for stream in list(running):
            left[stream] -= step * speed[stream]
            if left[stream] > 1e-9 * max(1.0, now):
                continue
            i, n = running.pop(stream)
            ends[n] = max(ends[n], now)
            open_ops -= n <= _LAST
            for edge in layer.dependencies:
                if edge.before == i and n + edge.lag < _LAYERS:
                    waits[edge.after, n + edge.lag] -= 1
    period = (ends[_LAST] - ends[_FIRST]) / (_LAST - _FIRST)
    assert math.isfinite(period)
    return period
