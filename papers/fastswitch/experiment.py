"""What the claims of FastSwitch read: a ladder of systems on the same conversations, and a server that really copies.

    vLLM         priorities by swapping: a block a copy call, waited for, everything copied out every time
    +DBG         block groups: one copy call moves a run of blocks
    +DBG+Reuse   host copies stay valid, only new blocks are copied out
    FastSwitch   copies run beside computing

Every system sees the same conversations and the same priorities, and admits by the same count of blocks.
"""

from collections.abc import Hashable
from functools import partial
from itertools import product
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch

from common.lab.runtime import Observations, Runtime
from common.serving.workload import draw_lengths
from papers.fastswitch.config import Config
from papers.fastswitch.conversations import Conversations, draw_conversations
from papers.fastswitch.deployments import SYSTEMS
from papers.fastswitch.evaluation import Job, serve
from papers.fastswitch.live_study import Swapped, answer_swapped, decode_beside

GAINS = ("ttft_p95", "ttft_p99", "tbt_p999")  # vLLM's over FastSwitch's
TAILS = (*GAINS, "tbt_p99", "stall_share", "swapped_share")
SHOWN = (*TAILS, "tokens_per_s", "tokens", "preemptions", "out_blocks", "evicted_blocks")
COUNTED = ("switch_gain_32kib", "switch_gain_128kib", "granularity")  # off the tables of +DBG
NEEDED = {  # systems whose runs a metric is read off
    **dict.fromkeys([f"{name}_gain" for name in GAINS], ("vLLM", "FastSwitch")),
    **dict.fromkeys(("ttft_gain", "tbt_gain", "throughput_gain"), ("vLLM", "FastSwitch")),
    "stall_share_p99": ("vLLM",),
    **dict.fromkeys(COUNTED, ("+DBG",)),
    "reuse_saving": ("+DBG+Reuse",),
    "asynchronous_tbt_gain": ("+DBG+Reuse", "FastSwitch"),
}
Key = tuple[str, float, int, str]  # pattern, frequency, seed, system


def run(config: Config, lab: Runtime) -> Observations:
    """Serve every seed's conversations with every system that somebody asks about, then let a real server talk."""
    seen = Observations()
    observe(config, lab, served(config, lab), seen)
    if config.answered_turns and lab.wants("changed_answers"):
        seeds = [(seed, lab.rng(seed, "answers")) for seed in lab.seeds]
        rounds = lab.map(partial(answers, config), seeds, "answers")
        for seed, found in zip(lab.seeds, rounds, strict=True):
            seen.add("changed_answers", found.changed, seed)
            seen.add("answers_saving", found.saving, seed)
            seen.add("answers_compared", found.tokens, seed)
    if config.copied_tokens and lab.wants("copied_beside"):
        for seed in lab.seeds:  # one at a time: two would time each other
            generator, rng = torch.Generator().manual_seed(seed), lab.rng(seed, "copies")
            switches = config.copy_worker, config.instant_copies
            share = decode_beside(generator, rng, config.copied_tokens, 20, *switches)
            seen.add("copied_beside", share, seed)
    return seen


def served(config: Config, lab: Runtime) -> dict[Key, dict[str, float]]:
    """What each run gave; a run that several arms ask for is made once."""
    jobs = chosen_jobs(config, lab)
    known: dict[Hashable, dict[str, float]] = lab.once("fastswitch: servers", dict)
    keys = {at: job.decided_by for at, job in jobs.items()}
    missing = {key: jobs[at] for at, key in keys.items() if key not in known}
    for key, found in zip(missing, lab.map(serve, missing.values(), "servers"), strict=True):
        known[key] = found
    return {at: known[key] for at, key in keys.items()}


def chosen_jobs(config: Config, lab: Runtime) -> dict[Key, Job]:
    """The runs behind the metrics that are asked for."""
    needed = {name for metric, names in NEEDED.items() if lab.wants(metric) for name in names}
    systems = [name for name in SYSTEMS if name in needed]
    jobs: dict[Key, Job] = {}
    for seed in lab.seeds:
        conversations = draw(config, lab, seed)
        frequencies = [config.frequency]
        if lab.wants("tail") and seed in lab.seeds[: config.sweep_seeds]:
            frequencies += [f for f in config.sweep if f != config.frequency]
        for frequency in frequencies:
            for pattern, system in product(config.patterns, systems):
                if frequency == config.frequency or system in ("vLLM", "FastSwitch"):
                    chances = lab.rng(seed, "priorities", pattern)
                    job = Job(config, system, pattern, frequency, seed, conversations, chances)
                    jobs[pattern, frequency, seed, system] = job
    return jobs


def draw(config: Config, lab: Runtime, seed: int) -> Conversations:
    """Conversations whose turns have the lengths of ShareGPT's first turns, from its table of quantiles."""
    turns = draw_lengths("sharegpt", lab.rng(seed, "turns"), 20_000, lab.data("nanoflow-sharegpt-lengths"))
    count, rate, rng = config.conversations, config.rate, lab.rng(seed, "conversations")
    return draw_conversations(rng, count, rate, turns, config.longest, config.mean_turns)


def observe(config: Config, lab: Runtime, results: dict[Key, dict[str, float]], seen: Observations) -> None:
    """What each run gave, and the claims' metrics at the config's own frequency."""
    for (pattern, frequency, seed, system), found in results.items():
        for name in SHOWN:
            at: dict[str, Any] = {"kind": name, "pattern": pattern, "frequency": frequency, "system": system}
            seen.add("tail", found[name], seed, **at)
    for seed in lab.seeds:
        ours = {key: found for key, found in results.items() if key[1:3] == (config.frequency, seed)}
        if ours:
            by = {(pattern, system): found for (pattern, _, _, system), found in ours.items()}
            observe_claims(config.patterns, by, seed, seen)


def observe_claims(
    patterns: list[str], by: dict[tuple[str, str], dict[str, float]], seed: int, seen: Observations
) -> None:
    """The claims' metrics of one seed. by: what a run gave, for (pattern, system)."""

    def has(*systems: str) -> bool:
        return all((pattern, system) in by for pattern in patterns for system in systems)

    def ratios(name: str, above: str, below: str) -> list[float]:
        return [by[pattern, above][name] / by[pattern, below][name] for pattern in patterns]

    def mean(name: str, system: str) -> float:
        return float(np.mean([by[pattern, system][name] for pattern in patterns]))

    for name in ("turns", "turns_per_s", "tokens"):
        first = by.get((patterns[0], "vLLM"), next(iter(by.values())))
        seen.add(name, first[name], seed)
    if has("vLLM", "FastSwitch"):
        for name in GAINS:
            gains = ratios(name, "vLLM", "FastSwitch")
            seen.add(f"{name}_gain", geometric_mean(gains), seed)
            for pattern, gain in zip(patterns, gains, strict=True):
                seen.add(f"{name[: name.index('_')]}_gain", gain, seed, pattern=pattern, quantile=name)
        for pattern, gain in zip(patterns, ratios("tokens_per_s", "FastSwitch", "vLLM"), strict=True):
            seen.add("throughput_gain", gain, seed, pattern=pattern)
    if has("+DBG+Reuse", "FastSwitch"):
        gain = geometric_mean(ratios("tbt_p999", "+DBG+Reuse", "FastSwitch"))
        seen.add("asynchronous_tbt_gain", gain, seed)
    if has("vLLM"):
        for pattern in patterns:
            seen.add("stall_share_p99", by[pattern, "vLLM"]["stall_share_p99"], seed, pattern=pattern)
    if has("+DBG"):
        for name in COUNTED:
            seen.add(name, mean(name, "+DBG"), seed)
    if has("+DBG+Reuse"):
        seen.add("reuse_saving", mean("saving", "+DBG+Reuse"), seed)


def answers(config: Config, one: tuple[int, np.random.Generator]) -> Swapped:
    """A live server's conversations of one seed."""
    generator, rng = torch.Generator().manual_seed(one[0]), one[1]
    return answer_swapped(generator, rng, config.answered_turns, trust=config.trust_copies)
