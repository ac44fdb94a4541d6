"""Throughput against latency as the number of clients grows, and what two such curves say of each other (Section 4.B).

In a closed loop nothing but a replica's own passes makes time pass. A replica that is s times slower therefore
does the very same at s times the latency and 1 / s of the throughput, so that the slowdown which would explain a gain
follows from the curve without another simulation.
"""

from dataclasses import dataclass

import numpy as np

LARGEST_SLOWDOWN = 16.0


@dataclass(frozen=True)
class LatencyCurve:
    """Mean latency in seconds and throughput in requests/s at a rising number of clients, arrays of shape (counts,)."""

    latency: np.ndarray
    throughput: np.ndarray

    def slower(self, times: float) -> "LatencyCurve":
        """The same replica, `times` slower."""
        return LatencyCurve(times * self.latency, self.throughput / times)

    def throughput_at(self, latency: float) -> float:
        """Requests/s at a mean latency in seconds; between two counts of clients on the line that joins them.

        Below the latency of the fewest clients, and above that of the most, the throughput of that end.
        """
        return float(np.interp(latency, self.latency, self.throughput))

    def latency_at(self, throughput: float) -> float:
        """Seconds of mean latency at a throughput; where it is never reached, those at the highest."""
        highest = int(np.argmax(self.throughput))
        rising = np.maximum.accumulate(self.throughput[: highest + 1])
        return float(np.interp(throughput, rising, self.latency[: highest + 1]))


def slowdown_for(gain: float, ours: LatencyCurve, theirs: LatencyCurve, latency: float) -> float:
    """How many times slower the others' passes must be for our throughput to be `gain` times theirs at that latency.

    At most LARGEST_SLOWDOWN, to 1e-6.
    """
    goal = ours.throughput_at(latency) / gain
    low, high = 1.0 / LARGEST_SLOWDOWN, LARGEST_SLOWDOWN
    while high - low > 1e-6:
        middle = (low + high) / 2
        if theirs.slower(middle).throughput_at(latency) > goal:
            low = middle
        else:
            high = middle
    return high
