"""The judge on trial: simulated experiments whose truth is known, and how often it says what is not so.

    python benchmarks/judge.py            # a few minutes on one core; writes docs/judge.md
    python benchmarks/judge.py --quick    # seconds: fewer runs, nothing written

Effects are in units of the paper's (0 nothing, 1 its number), spreads (standard deviations over seeds) too. Everything
goes through `settings`, `judge` and `control_outcome` as in a recording. "Before" is the rule that this judge replaced:
a bootstrap interval, and the band met wherever the interval touches it.
"""

import argparse
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, bootstrap

from common.lab.card import Claim, Control
from common.lab.effect import Sample, settings
from common.lab.outcome import DRAWS, control_outcome
from common.lab.runtime import Observations
from common.lab.verdict import UPHELD, Verdict, judge

PAGE = Path(__file__).resolve().parents[1] / "docs" / "judge.md"
SEEDS = (3, 5, 8, 10, 20)
SPREADS = (0.02, 0.1, 0.25, 0.5, 1.0, 3.0)
USUAL = (0.02, 0.1, 0.25, 0.5)  # spreads at which power is shown
TARGET = 0.025  # of false verdicts
PLACES = 4  # settings of a maximum
Draw = Callable[[np.random.Generator, float, float, int, int], Iterable[list[Sample]]]


# ---- what is judged


def claim(kind: str = "value", unit: str = "s", **changes: Any) -> Claim:
    """A claim with an effect of 10 s (no_effect 0) or, of a ratio, of `number` - 1; a cost's bound is 10 s."""
    number = changes.pop("number", 2.0 if unit == "ratio" else 10.0)
    paper: dict[str, Any] = {"kind": kind, "unit": unit, "source": "simulated"}
    if kind == "range":
        nothing = 1.0 if unit == "ratio" else 0.0
        low, high = changes.pop("ends", (0.8, 1.2))
        paper |= {"low": nothing + low * (number - nothing), "high": nothing + high * (number - nothing)}
    elif kind not in ("direction", "parity"):
        paper |= {"value": number}
    fields: dict[str, Any] = {
        "id": "simulated",
        "statement": "simulated",
        "metric": "m",
        "evidence": "simulated",
        "better": "lower" if kind == "at_most" else "higher",
        "no_effect": None if kind in ("at_most", "exact") else 1.0 if unit == "ratio" else 0.0,
        "tolerance": 0.25 if kind in ("value", "up_to") else None,
        "margin": 10.0 if kind == "parity" else None,
        "reason": "simulated",
        "control": "off",
        **changes,
    }
    fields["paper"] = paper | fields.get("paper", {})
    return Claim.model_validate(fields)


def one(values: Sequence[float]) -> list[Sample]:
    return [Sample(tuple(values), tuple(range(len(values))))]


def linear(rng: np.random.Generator, x: float, spread: float, n: int, runs: int) -> Iterable[list[Sample]]:
    """Normal noise on a metric whose effect is 10."""
    return map(one, (10 * (x + spread * rng.standard_normal((runs, n)))).tolist())


def noise_of(number: float, x: float, spread: float) -> tuple[float, float]:
    """Logarithm of the ratio that leaves x of a paper's ratio, and the spread of its logarithm."""
    ratio = 1 + x * (number - 1)
    return math.log(ratio), math.sqrt(math.log1p((spread * (number - 1) / ratio) ** 2))


def lognormal(number: float) -> Draw:
    """Lognormal noise on a ratio, the paper's being `number`."""

    def draw(rng: np.random.Generator, x: float, spread: float, n: int, runs: int) -> Iterable[list[Sample]]:
        middle, sigma = noise_of(number, x, spread)
        return map(one, np.exp(middle + sigma * rng.standard_normal((runs, n))).tolist())

    return draw


def normal_ratio(
    rng: np.random.Generator, x: float, spread: float, n: int, runs: int
) -> Iterable[list[Sample]]:
    """Normal noise on a ratio of 2, where it stays clear of zero."""
    if 1 + x < 4 * spread:
        return []
    return map(one, np.maximum(1e-3, 1 + x + spread * rng.standard_normal((runs, n))).tolist())


def left(rng: np.random.Generator, x: float, spread: float, n: int, runs: int) -> Iterable[list[Sample]]:
    """A score with no_effect 0.8 and the paper's 0.9 (half of what was left), lognormal in what is left."""
    middle, sigma = noise_of(2.0, x, spread)
    return map(one, (1 - 0.2 / np.exp(middle + sigma * rng.standard_normal((runs, n)))).tolist())


def over_baseline(
    rng: np.random.Generator, x: float, spread: float, n: int, runs: int
) -> Iterable[list[Sample]]:
    """Ours and the baseline's seconds, both lognormal, the paper's 3 against 6."""
    middle, sigma = noise_of(2.0, x, spread)
    noise = np.exp(sigma / math.sqrt(2) * rng.standard_normal((2, runs, n)))
    for ours, theirs in zip((6 / math.exp(middle) * noise[0]).tolist(), (6 * noise[1]).tolist(), strict=True):
        seen = Observations()
        for seed in range(n):
            seen.add("m", ours[seed], seed)
            seen.add("rival", theirs[seed], seed)
        yield settings(BASELINE, seen, range(n))


def at_a_setting(
    rng: np.random.Generator, x: float, spread: float, n: int, runs: int
) -> Iterable[list[Sample]]:
    """The setting that the paper names, beside one with twice the paper's effect."""
    for values in (10 * (x + spread * rng.standard_normal((runs, n)))).tolist():
        seen = Observations()
        for seed, value in enumerate(values):
            seen.add("m", value, seed, model="named")
            seen.add("m", value + 20.0, seed, model="other")
        yield settings(AT, seen, range(n))


def maximum(*widths: float) -> Draw:
    """Settings of the same truth, each with its own share of the spread."""

    def draw(rng: np.random.Generator, x: float, spread: float, n: int, runs: int) -> Iterable[list[Sample]]:
        noise = rng.standard_normal((runs, len(widths), n)) * np.array(widths)[:, None]
        for values in (10 * (x + spread * noise)).tolist():
            yield [sample for row in values for sample in one(row)]

    return draw


def counts(rng: np.random.Generator, x: float, spread: float, n: int, runs: int) -> Iterable[list[Sample]]:
    """A count of 10; without its full effect it is off by one in one seed."""
    return (one([10.0] * (n - 1) + [10.0 if x == 1 else 11.0]) for _ in range(runs))


BASELINE = claim(better="lower", no_effect={"metric": "rival"}, number=3.0, paper={"baseline": 6.0})
AT = claim("up_to", at={"model": "named"})


@dataclass(frozen=True)
class Case:
    """A kind of claim: how it is drawn, at which truths its verdicts are false, and at which the paper is right."""

    name: str
    claim: Claim
    draw: Draw = linear
    untrue: dict[str, float] = field(default_factory=lambda: {"none": 0.0, "half": 0.5})
    true: dict[str, float] = field(default_factory=lambda: {"full": 1.0, "1.5 times": 1.5})


def cases() -> list[Case]:
    ratio, near = {"unit": "ratio"}, (0.1, 1.9)
    nearer = {"none": 0.0, "half its nearer end": 0.4}
    nothing = {"none": 0.0}
    return [
        Case("value", claim()),
        Case("value, tolerance 0.1", claim(tolerance=0.1)),
        Case("value, tolerance 0.5", claim(tolerance=0.5)),
        Case("value, ratio 2, lognormal", claim(**ratio), lognormal(2.0)),
        Case("value, ratio 10, lognormal", claim(number=10.0, **ratio), lognormal(10.0)),
        Case("value, ratio 2, normal", claim(**ratio), normal_ratio),
        Case("value, over a baseline's metric", BASELINE, over_baseline),
        Case("value, by what is left", claim(number=0.9, no_effect=0.8, left=True), left),
        Case("range 0.8 to 1.2", claim("range"), untrue=nearer),
        Case("range 0.8 to 1.2, ratio 2, lognormal", claim("range", **ratio), lognormal(2.0), nearer),
        Case(
            "range 0.1 to 1.9",
            claim("range", ends=near),
            untrue={"none": 0.0, "half its nearer end": 0.05},
        ),
        Case("up to, at its setting", AT, at_a_setting),
        Case(f"up to, best of {PLACES}", claim("up_to"), maximum(*[1.0] * PLACES)),
        Case(f"up to, best of {PLACES}, one four times as wide", claim("up_to"), maximum(1, 1, 1, 4)),
        Case("at least", claim("at_least")),
        Case("at least, ratio 2, lognormal", claim("at_least", **ratio), lognormal(2.0)),
        Case(
            "at most (1 is the bound)",
            claim("at_most"),
            untrue={"at its bound": 1.0, "1.25 times": 1.25},
            true={"half": 0.5},
        ),
        Case(
            "parity (1 is the margin)",
            claim("parity"),
            untrue={"at its margin": -1.0, "1.5 times": -1.5},
            true={"none": 0.0},
        ),
        Case("direction", claim("direction"), untrue=nothing, true={"full": 1.0}),
        Case(
            "direction, ratio, lognormal", claim("direction", **ratio), lognormal(2.0), nothing, {"full": 1.0}
        ),
        Case("direction, ratio, normal", claim("direction", **ratio), normal_ratio, nothing, {"full": 1.0}),
        Case(
            "direction, least 0.5",
            claim("direction", least=5.0),
            untrue={"none": 0.0, "half": 0.5},
            true={"full": 1.0},
        ),
        Case("exact", claim("exact"), counts, {"off in one seed": 0.0}, {"full": 1.0}),
    ]


# ---- how often it says what


def generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def tally(case: Case, x: float, spread: float, n: int, runs: int, part: int = 0) -> Counter[str]:
    """How often each verdict fell."""
    rng = generator(case.name, x, spread, n, part)
    return Counter(judge(case.claim, samples).verdict for samples in case.draw(rng, x, spread, n, runs))


def false_of(case: Case, x: float) -> tuple[str, ...]:
    """The verdicts that are false where the truth is x: with no effect every one that upholds."""
    gain = case.claim.paper.kind not in ("at_most", "parity", "exact")
    return UPHELD if gain and x == 0 else ("reproduced",)


@dataclass(frozen=True)
class Rate:
    """How many of so many runs, at one spread."""

    count: int
    runs: int
    spread: float = math.nan

    @property
    def share(self) -> float:
        return self.count / self.runs if self.runs else 0.0

    def __str__(self) -> str:
        return f"{100 * self.share:.1f}"


Line = tuple[Case, str, dict[int, Rate]]  # a truth of a case, and its false verdicts by the number of seeds


def worst_rate(case: Case, x: float, n: int, first: int, most: int) -> Rate:
    """False verdicts at the spread where they are most often: found by some runs, measured by others."""

    def rate(spread: float, runs: int, part: int) -> Rate:
        seen = tally(case, x, spread, n, runs, part)
        return Rate(sum(seen[name] for name in false_of(case, x)), seen.total(), spread)

    found = max((rate(spread, first, 0) for spread in SPREADS), key=lambda rate: rate.share)
    rare = found.share < TARGET / 3
    return rate(found.spread, first if rare else most, 1)


def false_verdicts(first: int, most: int) -> list[Line]:
    """Of each case and untrue truth, the false verdicts at every number of seeds."""
    return [
        (case, label, {n: worst_rate(case, x, n, first, most) for n in SEEDS})
        for case in cases()
        for label, x in case.untrue.items()
    ]


def missed(lines: list[Line]) -> list[str]:
    """The cells that lie above the target by more than chance explains (1% for the whole table)."""
    cells = [(case, label, n, rate) for case, label, by_n in lines for n, rate in by_n.items()]
    return [
        f"{case.name}, {label}, {n} seeds, spread {rate.spread:g}: {rate}% of {rate.runs}"
        for case, label, n, rate in cells
        if binom.sf(rate.count - 1, rate.runs, TARGET) < 0.01 / len(cells)
    ]


def share(seen: Counter[str], *names: str) -> str:
    total = seen.total()
    return f"{100 * sum(seen[name] for name in names) / total:.0f}" if total else ""


# ---- controls


def left_under(
    control: Control, share_left: float, spread: float, n: int, runs: int, ratio: float = 0.0
) -> Counter[str]:
    """Outcomes of a control that leaves a share, over runs in which the claim (its full effect) is upheld."""
    the = claim(unit="ratio", number=ratio, tolerance=0.5) if ratio else claim(tolerance=0.5)
    rng = generator("control", share_left, spread, n, ratio)
    draw = lognormal(ratio) if ratio else linear
    ours = draw(rng, 1.0, spread, n, runs)
    theirs = draw(rng, share_left, spread, n, runs)
    pairs = ((judge(the, a), judge(the, b)) for a, b in zip(list(ours), theirs, strict=True))
    return Counter(control_outcome(the, control, a, b)[0] for a, b in pairs if a.verdict in UPHELD)


def certain(x: float) -> Verdict:
    return judge(claim(tolerance=0.5), [Sample((10 * x,))])


def placebo(kind: str, runs: int) -> Counter[str]:
    """Outcomes of 19 draws against a result without chance."""
    rng = generator("placebo", kind)
    found: Counter[str] = Counter()
    while found.total() < runs:
        if kind == "ours is a draw like the others":
            own, *under = rng.normal(0.3, 0.4, DRAWS + 1)
        elif kind == "ours is one of twelve choices, the best":
            choices = np.sort(rng.normal(0.0, 0.5, 12))
            own, under = choices[-1], rng.choice(choices, DRAWS).tolist()
        else:
            own, under = 1.0, rng.normal(float(kind.split()[-1]), 0.2, DRAWS).tolist()
        ours = certain(own)
        theirs = judge(claim(tolerance=0.5), one([10 * x for x in under]))
        outcome, _ = control_outcome(claim(tolerance=0.5), CONTROL, ours, theirs, placebo=True)
        if outcome != "nothing to break":
            found[outcome] += 1
    return found


CONTROL = Control(set={"mechanism": False}, why="simulated")
PARTIAL = Control(set={"mechanism": False}, why="simulated", partial=True, reason="simulated")
PLACEBOS = (
    "ours is a draw like the others",
    "ours is one of twelve choices, the best",
    "draws leave 0.0",
    "draws leave 0.25",
    "draws leave 0.5",
)


# ---- the rule before


def intervals_before(values: np.ndarray, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """BCa bootstrap intervals of the means of rows, the percentile interval where BCa is none."""
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            found = bootstrap((values,), np.mean, n_resamples=resamples, method=method, axis=-1, rng=0)
        ends.append((found.confidence_interval.low, found.confidence_interval.high))
    (low, high), (plain_low, plain_high) = ends
    fine = np.isfinite(low) & np.isfinite(high)
    return np.where(fine, low, plain_low), np.where(fine, high, plain_high)


def reproduced_before(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the former rule says reproduced, on the effect: the band touched, or of a bound or range not left."""
    if kind == "direction":
        return a > 0
    if kind in ("value", "up_to"):
        return (a > 0) & (b >= 0.75) & (a <= 1.25)
    low, high = (0.8, 1.2) if kind == "range" else (1.0, math.inf)
    return (a > 0) & (a >= low) & (b <= high)


def before(kind: str, x: float, n: int, runs: int, resamples: int) -> float:
    """The worst share over spreads of false verdicts by the former rule; of a maximum it took each seed's best."""
    noise = (
        generator("before", kind, n).standard_normal((runs, PLACES if kind == "up_to" else 1, n)).max(axis=1)
    )
    low, high = intervals_before(noise, resamples)
    rule = "direction" if x == 0 else kind  # with no effect, whatever upholds
    return max(float(np.mean(reproduced_before(rule, x + s * low, x + s * high))) for s in SPREADS)


# ---- noise that nobody promised


def hostile(kind: str, n: int, runs: int) -> np.ndarray:
    """Noise of mean 0 and spread 1 that is not normal."""
    rng = generator("hostile", kind, n)
    if kind == "heavy tails (t with 3 degrees)":
        return rng.standard_t(3, (runs, n)) / math.sqrt(3)
    if kind == "one seed in ten falls far behind":
        return (
            np.where(rng.random((runs, n)) < 0.1, -3.0, 0.0) + 0.3 + 0.44 * rng.standard_normal((runs, n))
        ) / 1.0
    if kind == STEPS:
        return rng.standard_normal((runs, n))
    if kind == "two modes":
        return np.where(rng.random((runs, n)) < 0.5, -1.0, 1.0) + 0.0
    skewed = (np.exp(rng.standard_normal((runs, n))) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)
    return skewed if kind == "skewed upwards (lognormal)" else -skewed


STEPS = "normal, seen in steps of the whole effect, undeclared"
HOSTILE = (
    "heavy tails (t with 3 degrees)",
    "two modes",
    STEPS,
    "skewed upwards (lognormal)",
    "skewed downwards (lognormal)",
    "one seed in ten falls far behind",
)


def hostile_rate(kind: str, of: Claim, x: float, n: int, runs: int) -> Rate:
    """The worst over spreads of what is called reproduced."""
    noise = hostile(kind, n, runs)
    worst = Rate(0, runs)
    for spread in (0.1, 0.25, 1.0):
        effects = x + spread * noise
        values = (10 * (np.rint(effects) if kind == STEPS else effects)).tolist()
        count = sum(judge(of, one(row)).verdict == "reproduced" for row in values)
        worst = max(worst, Rate(count, runs, spread), key=lambda rate: rate.share)
    return worst


# ---- the page


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def page(quick: bool) -> tuple[str, list[str]]:
    """The whole text, and the cells that miss the target."""
    first, most, runs, resamples = (20, 20, 20, 99) if quick else (500, 8000, 1000, 999)
    falsely = false_verdicts(first, most)
    misses = missed(falsely)
    by_seeds = [f"{n} seeds" for n in SEEDS]
    parts = [
        "# The judge on trial",
        "Written by `python benchmarks/judge.py`. Simulated experiments whose truth is known, judged as in a "
        "recording. Effects and spreads (standard deviation over seeds) are in units of the paper's effect. "
        "Shares in percent.",
        "## False verdicts",
        "With no effect every verdict that upholds is false (reproduced, weaker, stronger); elsewhere `reproduced` "
        "is. Each cell is the worst of the spreads "
        f"{', '.join(f'{s:g}' for s in SPREADS)}: found by {first} runs each, "
        f"then measured by {most} others (by {first} where it is rare), so that a share of 2.5 is uncertain by "
        f"{200 * math.sqrt(TARGET * (1 - TARGET) / most):.1f} (two standard errors). At most 2.5 is asked for. "
        + (
            "Above the target by more than chance explains: " + "; ".join(misses) + "."
            if misses
            else "No cell lies above the target by more than chance explains."
        ),
        table(
            ["claim", "truth", *by_seeds],
            [[case.name, label, *by_n.values()] for case, label, by_n in falsely],
        ),
        "## Power",
        "How often `reproduced` falls where the paper is right (of a claim's whole effect; of parity: nothing is lost; "
        f"of a cost: half of its bound), from {runs // 2} runs each; after the stroke `weaker`, `stronger`, "
        "`absent` and `contradicted` together, which are false there.",
        table(
            ["claim", *(f"n={n}, spread {s:g}" for n in (5, 10) for s in USUAL)],
            [
                [case.name, *(_power(case, n, s, runs // 2) for n in (5, 10) for s in USUAL)]
                for case in cases()
            ],
        ),
        "With one and a half times the paper's effect: `stronger` (of a bound, a direction: `reproduced`).",
        table(
            ["claim", *(f"n={n}, spread {s:g}" for n in (5, 10) for s in USUAL)],
            [
                [
                    case.name,
                    *(
                        share(
                            tally(case, 1.5, s, n, runs // 4),
                            "reproduced" if case.claim.paper.kind == "at_least" else "stronger",
                        )
                        for n in (5, 10)
                        for s in USUAL
                    ),
                ]
                for case in cases()
                if "1.5 times" in case.true
            ],
        ),
        "A maximum over k settings is judged at 1 - 0.05/k and so takes more seeds: `reproduced` at full effect and "
        "spread 0.1.",
        table(
            ["settings", *(f"{n} seeds" for n in (5, 6, 7, 8, 10))],
            [
                [k, *(share(tally(_best_of(k), 1.0, 0.1, n, runs), "reproduced") for n in (5, 6, 7, 8, 10))]
                for k in (1, 2, 4, 8)
            ],
        ),
        "## Controls",
        "What a control that leaves a share of the effect is said to do to a claim that is upheld: `breaks it` / "
        "`does not break it`. Only a quarter and less should break it; `partial` less than half.",
        table(
            [
                "noise, seeds, spread",
                *(f"leaves {x:g}" for x in (0, 0.1, 0.25, 0.5, 0.9)),
                "partial, leaves 0.5",
            ],
            [
                [
                    f"{'lognormal, ratio ' + format(ratio, 'g') if ratio else 'normal'}, n={n}, {s:g}",
                    *(
                        f"{share(seen, 'breaks it')} / {share(seen, 'does not break it')}"
                        for x in (0.0, 0.1, 0.25, 0.5, 0.9)
                        for seen in [left_under(CONTROL, x, s, n, runs // 4, ratio)]
                    ),
                    share(left_under(PARTIAL, 0.5, s, n, runs, ratio), "breaks it"),
                ]
                for ratio in (0.0, 2.0, 10.0)
                for n in (3, 5, 10)
                for s in (0.02, 0.1, 0.25)
            ],
        ),
        f"A placebo of {DRAWS} draws against a claim without chance. Where it chooses among few, a draw often is ours, "
        "and nothing can be told.",
        table(
            ["draws", "breaks it", "does not break it", "could not tell"],
            [
                [kind, *(share(seen, name) for name in ("breaks it", "does not break it", "could not tell"))]
                for kind in PLACEBOS
                for seen in [placebo(kind, runs)]
            ],
        ),
        "## Before",
        "The same false verdicts, the worst over spreads, by the rule that this judge replaced (bootstrap interval, "
        "the band met where the interval touches it, a maximum of each seed's best) and now; normal noise, "
        f"{runs} runs.",
        table(
            ["claim", "truth", *(f"{n} seeds: before, now" for n in SEEDS)],
            [
                [
                    kind,
                    label,
                    *(
                        f"{100 * before(kind, x, n, runs, resamples):.0f}, {_now(falsely, name, label, n)}"
                        for n in SEEDS
                    ),
                ]
                for kind, name, label, x in BEFORE
            ],
        ),
        "## Noise that nobody promised",
        "Student's interval supposes normal noise over seeds (of a ratio, normal on logarithms). Where it is not, a "
        "few seeds promise too much; this is the limit of every verdict here. The worst over spreads of 0.1, 0.25 and "
        f"1 called `reproduced`, {runs} runs: a direction without effect, and a value with half of it.",
        table(
            [
                "noise",
                *(f"{what}, n={n}" for what in ("direction, none", "value, half") for n in (3, 5, 10, 20)),
            ],
            [
                [kind, *(hostile_rate(kind, of, x, n, runs) for of, x in HARD for n in (3, 5, 10, 20))]
                for kind in HOSTILE
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n", misses


BEFORE = (
    ("value", "value", "none", 0.0),
    ("value", "value", "half", 0.5),
    ("range", "range 0.8 to 1.2", "none", 0.0),
    ("range", "range 0.8 to 1.2", "half its nearer end", 0.4),
    ("up_to", f"up to, best of {PLACES}", "none", 0.0),
    ("up_to", f"up to, best of {PLACES}", "half", 0.5),
    ("at_least", "at least", "half", 0.5),
    ("direction", "direction", "none", 0.0),
)
HARD = ((claim("direction"), 0.0), (claim(), 0.5))


def _power(case: Case, n: int, spread: float, runs: int) -> str:
    seen = tally(case, next(iter(case.true.values())), spread, n, runs)
    wrong = share(seen, "weaker", "stronger", "absent", "contradicted")
    return f"{share(seen, 'reproduced')} / {wrong}" if seen else ""


def _best_of(k: int) -> Case:
    return Case(f"best of {k}", claim("up_to"), maximum(*[1.0] * k))


def _now(falsely: list[Line], name: str, label: str, n: int) -> Rate:
    return next(by_n[n] for case, told, by_n in falsely if (case.name, told) == (name, label))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs, nothing written")
    quick = parser.parse_args(arguments).quick
    text, misses = page(quick)
    print(text)
    if not quick:
        PAGE.write_text(text, encoding="utf-8")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
