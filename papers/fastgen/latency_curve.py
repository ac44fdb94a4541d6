"""Throughput against latency as the number of clients grows, and what two such curves say of each other (Section 4.B).

In a closed loop nothing but a replica's own passes makes time pass. A replica that is s times slower therefore
does the very same at s times the latency and 1 / s of the throughput, so that the slowdown which would explain a gain
follows from the curve without another simulation.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LatencyCurve:
    """Mean latency in seconds and throughput in requests/s at a rising number of clients, arrays of shape (counts,).

    ValueError for other shapes, and for what is not finite and positive.
    """

    latency: np.ndarray
    throughput: np.ndarray

    def __post_init__(self) -> None:
        both = self.latency, self.throughput
        if any(each.shape != (len(self.latency),) or not each.size for each in both):
            raise ValueError("a curve needs one latency and one throughput for each number of clients")
        if not all(np.all(np.isfinite(each) & (each > 0)) for each in both):
            raise ValueError("latencies and throughputs must be finite and positive")

    def slower(self, times: float) -> "LatencyCurve":
        """The same replica, `times` slower."""
        return LatencyCurve(times * self.latency, self.throughput / times)

    def throughput_at(self, latency: float) -> float:
        """Requests/s at a mean latency in seconds; between two counts of clients on the line that joins them.

        nan below the latency of the fewest clients and above that of the most: nobody saw what happens there.
        """
        rising = np.maximum.accumulate(self.latency)
        return float(np.interp(latency, rising, self.throughput, left=np.nan, right=np.nan))

    def latency_at(self, throughput: float) -> float:
        """Seconds of mean latency at a throughput, up to the highest; nan where it is never reached or passed."""
        highest = int(np.argmax(self.throughput))
        rising = np.maximum.accumulate(self.throughput[: highest + 1])
        return float(np.interp(throughput, rising, self.latency[: highest + 1], left=np.nan, right=np.nan))


def slowdown_for(gain: float, ours: LatencyCurve, theirs: LatencyCurve, latency: float) -> float:
    """How many times slower the others' passes must be for our throughput to be `gain` times theirs at that latency.

    To 1e-6; nan where no slowdown does it that leaves the latency on their curve.
    """
    goal = ours.throughput_at(latency) / gain
    low, high = latency / theirs.latency.max(), latency / theirs.latency.min()
    if not theirs.throughput_at(theirs.latency.min()) / high <= goal <= theirs.throughput.max() / low:
        return float("nan")
    while high - low > 1e-6:
        middle = (low + high) / 2
        if theirs.slower(middle).throughput_at(latency) > goal:
            low = middle
        else:
            high = middle
    return high
