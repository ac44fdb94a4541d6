"""Claims and samples for the tests of the judge: an effect of 1 is 10 s, or a ratio of 2."""

import math
from collections.abc import Sequence
from typing import Any

from scipy.stats import t

from common.lab.card import Claim
from common.lab.effect import Sample
from common.lab.verdict import Verdict, judge


def claim(kind: str = "value", better: str = "higher", **changes: Any) -> Claim:
    """A claim in seconds whose paper says 10 (better lower: -10) where 0 is nothing; a range is from 8 to 12."""
    sign = 1.0 if better == "higher" else -1.0
    paper: dict[str, Any] = {"kind": kind, "unit": "s", "source": "v1, Table 1"}
    if kind == "range":
        paper |= {"low": min(8 * sign, 12 * sign), "high": max(8 * sign, 12 * sign)}
    elif kind not in ("direction", "parity"):
        paper |= {"value": 10.0 * sign}
    fields: dict[str, Any] = {
        "id": "c",
        "statement": "s",
        "metric": "m",
        "evidence": "simulated",
        "better": better,
        "no_effect": None if kind in ("at_most", "exact", "invariant") else 0.0,
        "tolerance": 0.25 if kind in ("value", "up_to") else None,
        "margin": 10.0 if kind == "parity" else None,
        "reason": "said",
        "control": "off",
        **changes,
    }
    return Claim.model_validate({**fields, "paper": {**paper, **changes.get("paper", {})}})


def ratio(kind: str = "value", **changes: Any) -> Claim:
    """The same for a ratio of 2; a range is from 1.8 to 2.2."""
    paper: dict[str, Any] = {"low": 1.8, "high": 2.2} if kind == "range" else {"value": 2.0}
    paper = {} if kind in ("direction", "parity") else paper
    changed = {"no_effect": 1.0, **changes}
    return claim(kind, **{**changed, "paper": {"unit": "ratio", **paper, **changes.get("paper", {})}})


def spread(mean: float, half: float, n: int = 5, confidence: float = 0.95) -> list[float]:
    """n values with this mean, whose Student interval reaches `half` to each side."""
    raw = [i - (n - 1) / 2 for i in range(n)]
    deviation = math.sqrt(sum(x * x for x in raw) / (n - 1))
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return [mean + half * x / reach for x in raw]


def sample(values: Sequence[float]) -> Sample:
    return Sample(tuple(values), tuple(range(len(values))))


def certain(value: float) -> Sample:
    return Sample((value,))


def seen(of: Claim, mean: float, half: float, n: int = 5, off: bool = False) -> Verdict:
    """The verdict on a claim in seconds whose effect has this mean and this half-width."""
    sign = 1.0 if of.better == "higher" or of.paper.kind == "at_most" else -1.0
    samples = [sample([sign * 10 * x for x in spread(mean, half, n)])]
    return judge(of, samples, {"gpu": "another"} if off else None)
