"""Kernels that share a GPU: which performance P a share R of its execution units buys (Section 4.1.1, Table 3).

R of a kernel is the GEMM performance that it takes away, so that P = R for a GEMM by definition, and the shares of
kernels that run together sum to at most 1. Attention and collectives get more than their share, for a few thread
blocks nearly saturate memory or links: the paper prints R = 0.2 -> P = 0.3 for attention. A power law through that
point is R ** 0.75; the exponent of collectives is inferred, and swept.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.hardware.operators import H100
from papers.nanoflow.cost_model import COMPUTE, MEMORY, NETWORK

OVERLAP = H100 / "overlap.csv"  # measured for this project: kernels alone, and on concurrent streams
PUBLISHED_POINT = (0.2, 0.3)  # R -> P of decode attention, as the brief of the paper quotes it
ATTENTION_EXPONENT = round(
    math.log(PUBLISHED_POINT[1]) / math.log(PUBLISHED_POINT[0]), 2
)  # 0.75 (inferred form)
NETWORK_EXPONENT = 0.5  # (inferred)


@dataclass(frozen=True)
class Interference:
    """P = R ** exponent for each stream."""

    exponents: Mapping[str, float]

    def performance(self, stream: str, share: float) -> float:
        """The speed of a kernel with that share (above 0, at most 1), over its speed alone."""
        if not 0 < share <= 1:
            raise ValueError(f"a kernel's share of the execution units is above 0 and at most 1, not {share}")
        return share ** self.exponents[stream]

    def seconds(self, stream: str, work: float, share: float) -> float:
        """How long `work` (any unit) takes at that share."""
        return work / self.performance(stream, share)


def interference(attention: float = ATTENTION_EXPONENT, network: float = NETWORK_EXPONENT) -> Interference:
    """The paper's curves; exponents of 1 give kernels no more than their share."""
    return Interference({COMPUTE: 1.0, MEMORY: attention, NETWORK: network})


def fluid_bound(work: Mapping[str, float], curves: Interference) -> float:
    """The shortest period at which every stream runs all the time at a constant share, in the unit of `work`.

    work: total of each stream in a period. Solves sum of shares = 1 where stream i needs P_i(R_i) = work_i / T. No
    schedule with P concave is shorter: constant shares are the best use of concave curves. By bisection.
    """
    if not all(0 <= amount < math.inf for amount in work.values()) or not any(work.values()):
        raise ValueError(f"work is finite, not negative, and not all zero; not {dict(work)}")

    def needed(period: float) -> float:
        return sum(
            (amount / period) ** (1 / curves.exponents[stream]) for stream, amount in work.items() if amount
        )

    low, high = max(work.values()), 2 * sum(work.values())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) > 1 else (low, middle)
    return high


def measured_streams(path: Path = OVERLAP) -> dict[str, float]:
    """Median seconds of kernels alone and together ("gemm+decode_attention"), on one H100, no control of shares."""
    with path.open(newline="") as file:
        return {row["ops"]: float(row["seconds"]) for row in csv.DictReader(file)}


def naive_gain(pair: str, seconds: Mapping[str, float]) -> float:
    """Sum of the kernels alone over their time on concurrent streams: 1 where streams overlap nothing.

    pair: two kernels or more, joined by "+". ValueError for anything else.
    """
    return sum(_alone(pair, seconds)) / seconds[pair]


def hidden_share(pair: str, seconds: Mapping[str, float]) -> float:
    """Share of the shorter kernel's time that streams hide behind the longer one: 0 nothing, 1 all of it."""
    alone = _alone(pair, seconds)
    return (sum(alone) - seconds[pair]) / (sum(alone) - max(alone))


def _alone(pair: str, seconds: Mapping[str, float]) -> list[float]:
    kernels = pair.split("+")
    if len(kernels) < 2 or pair not in seconds:
        known = ", ".join(name for name in seconds if "+" in name)
        raise ValueError(f"{pair!r} is no kernels that ran together; there is: {known}")
    return [seconds[name] for name in kernels]
