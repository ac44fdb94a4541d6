"""What a migration between two real processes stops, by method and length (Section 6.2, Figure 10).

Counted: blocks that move while the request stands still, tokens that it says meanwhile. Timed, for the figure and for
one direction: the stall that a client feels; of repeats the quickest, for the others were kept from their core.
"""

from itertools import product
from statistics import fmean, median

from common.distributed.launch import launch
from common.lab.runtime import Observations, Runtime, one_thread
from papers.llumnix.config import Config
from papers.llumnix.real_migration import Moved
from papers.llumnix.two_instances import Trial, migrations, unmoved

STEPS = 4  # tokens of a request before its migration begins, and at the target
SECONDS = 300.0  # after which a run is given up


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Run all trials in one pair of processes, in the order of seeds; what the claims and the figure read."""
    lengths = sorted(config.migration_lengths)
    short, long = lengths[0], lengths[-1]
    seen.add("length_ratio", long / short)
    methods = ["live"]
    if lab.wants("stall_gain_over_recompute"):
        methods.append("recompute")
    if lab.wants("token_gap"):
        methods.append("blocking")
    elif lab.wants("stopped_growth", "moved_and_identical"):  # an arm needs the ends alone
        lengths = [short, long]
    else:
        lengths = [long]
    keys = list(product(lab.seeds, range(config.migration_repeats), lengths, methods))
    trials = [Trial("live", short)] + [  # one to warm up
        Trial(config.move if method == "live" else method, length, append_only=config.append_only)
        for _, _, length, method in keys
    ]
    results = launch(migrations, 2, (trials, STEPS), seconds=SECONDS)[0][1:]
    found: dict[tuple[int, int, str], list[Moved]] = {}
    for (seed, _, length, method), moved in zip(keys, results, strict=True):
        found.setdefault((seed, length, method), []).append(moved)
    for (seed, length, method), runs in found.items():
        at: dict[str, str | float] = {"method": method, "tokens": length}
        seen.add("decode_step", median(step for one in runs for step in one.steps), seed, **at)
        seen.add("stopped_blocks", fmean(one.stopped_blocks for one in runs), seed, **at)
        if committed(runs):
            seen.add("token_gap", stall(runs), seed, **at)
    expected = said_unmoved(found) if lab.wants("moved_and_identical") else {}
    for seed in lab.seeds:
        if expected:
            same = [
                one.outcome == "committed" and one.tokens == expected[length][: len(one.tokens)]
                for length in lengths
                for one in found[seed, length, "live"]
            ]
            seen.add("moved_and_identical", fmean(same), seed)
        first, last = found[seed, lengths[0], "live"], found[seed, long, "live"]
        if not committed([*first, *last]):
            continue
        seen.add("decoded_meanwhile", fmean(one.said_meanwhile for one in last), seed)
        if "recompute" in methods:
            seen.add("stall_gain_over_recompute", stall(found[seed, long, "recompute"]) / stall(last), seed)
        if lengths[0] == short:
            growth = fmean(one.stopped_blocks for one in last) / fmean(one.stopped_blocks for one in first)
            seen.add("stopped_growth", growth, seed)


def committed(runs: list[Moved]) -> bool:
    """Whether all of them came through."""
    return all(one.outcome == "committed" for one in runs)


def stall(runs: list[Moved]) -> float:
    """Seconds between the last token at the source and the first at the target: the quickest of the repeats."""
    return min(one.gap for one in runs)


def said_unmoved(found: dict[tuple[int, int, str], list[Moved]]) -> dict[int, list[int]]:
    """The tokens of a request of each length that nobody migrates, as many as any that was migrated has."""
    most: dict[int, int] = {}
    for (_, length, method), runs in found.items():
        if method == "live":
            most[length] = max(most.get(length, 0), *(len(one.tokens) for one in runs))
    with one_thread():  # as in the processes of the run
        return {length: unmoved(length, tokens) for length, tokens in most.items()}
