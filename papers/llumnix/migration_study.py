"""What a client feels of a migration between two real processes: stalls by length, and slower steps (Section 6.2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median

from common.distributed.launch import launch
from common.lab.runtime import one_thread
from papers.llumnix.two_instances import Moved, Trial, migrations, unmoved

BEFORE = 4  # tokens of a request before its migration begins
AFTER = 4  # tokens of it at the target
LONG = 512  # tokens from which a live migration takes more than one stage, so that steps and copies overlap
SECONDS = 300.0  # after which a run is given up


@dataclass(frozen=True)
class Plan:
    """Which trials to run: for every seed and length `repeats` of "live", and one of each other method.

    move: the method of the mechanism under test, "live" unless a control replaces it. append_only: False for a
    cache that is rewritten at every step. compares_tokens: with those of requests that are not migrated.
    """

    lengths: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    repeats: int
    move: str = "live"
    append_only: bool = True
    compares_tokens: bool = True


Row = tuple[str, float, int, dict[str, str | float]]  # metric, value, seed, coordinates


def measure(plan: Plan) -> Iterator[Row]:
    """Run all trials in one pair of processes, in the order of seeds, and give rows of observations."""
    keys = [
        (seed, length, method, repeat)
        for seed, repeat, length, method in product(
            plan.seeds, range(plan.repeats), plan.lengths, plan.methods
        )
        if method == "live" or not repeat  # the others are for comparison
    ]
    trials = [Trial("live", plan.lengths[0])] + [  # one to warm up
        Trial(plan.move if method == "live" else method, length, append_only=plan.append_only)
        for _, length, method, _ in keys
    ]
    results = launch(migrations, 2, (trials, BEFORE, AFTER), seconds=SECONDS)[0][1:]
    by_setting: dict[tuple[int, int, str], list[Moved]] = {}
    for (seed, length, method, _), moved in zip(keys, results, strict=True):
        by_setting.setdefault((seed, length, method), []).append(moved)
    for (seed, length, method), moved in by_setting.items():
        at: dict[str, str | float] = {"method": method, "tokens": length}
        yield from _of_setting(moved, seed, at)
    yield from _claims(plan, by_setting)


def _of_setting(moved: list[Moved], seed: int, at: dict[str, str | float]) -> Iterator[Row]:
    done = [one for one in moved if one.outcome == "committed"]
    yield "migrations_committed", len(done) / len(moved), seed, at
    yield "migration_stages", fmean(one.stages for one in moved), seed, at
    yield "decode_step", median(step for one in moved for step in one.steps), seed, at
    if done:
        yield "token_gap", median(one.gap for one in done), seed, at
        yield "downtime", median(one.downtime for one in done), seed, at


def _claims(plan: Plan, by_setting: dict[tuple[int, int, str], list[Moved]]) -> Iterator[Row]:
    """The numbers of claims: growth of the gap with length, gain over recomputing, equal tokens, slower steps."""
    short, long = min(plan.lengths), max(plan.lengths)
    expected = _expected(plan, by_setting) if plan.compares_tokens else {}
    for seed in plan.seeds:
        live = {length: by_setting[seed, length, "live"] for length in plan.lengths}
        first, last = _gap(live[short]), _gap(live[long])
        if first is not None and last is not None:
            yield "gap_growth", last / first, seed, {}
            recompute = _gap(by_setting.get((seed, long, "recompute"), []))
            if recompute is not None:
                yield "gap_gain_over_recompute", recompute / last, seed, {}
        every = [(length, one) for length, moved in live.items() for one in moved]
        if plan.compares_tokens:
            same = [
                one.outcome == "committed" and one.tokens == expected[length][: len(one.tokens)]
                for length, one in every
            ]
            yield "moved_and_identical", fmean(same), seed, {}
        slower = slowdown(one for length, one in every if length >= LONG)
        if slower is not None:
            yield "step_slowdown", slower, seed, {}


def slowdown(moved: Iterable[Moved]) -> float | None:
    """How much longer the source's iterations take while it migrates a request, 0.1 for a tenth; None: none overlap.

    Of each migration the mean over those iterations that overlap it, against the median of those before and after.
    """
    shares = [fmean(one.busy_steps) / median(one.steps) - 1 for one in moved if one.busy_steps]
    return median(shares) if shares else None


def _gap(moved: list[Moved]) -> float | None:
    gaps = [one.gap for one in moved if one.outcome == "committed"]
    return median(gaps) if gaps else None


def _expected(plan: Plan, by_setting: dict[tuple[int, int, str], list[Moved]]) -> dict[int, list[int]]:
    """The tokens of a request of each length that nobody migrates, as many as any that was migrated has."""
    with one_thread():  # as in the processes of the run
        most = {
            length: max(len(one.tokens) for seed in plan.seeds for one in by_setting[seed, length, "live"])
            for length in plan.lengths
        }
        return {length: unmoved(length, tokens) for length, tokens in most.items()}
