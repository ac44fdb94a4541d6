"""What the claims of FastGen read: closed loops and replicas in simulation, a real forward pass and a real engine."""

from functools import partial

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.fastgen.closed_loop import pass_seconds
from papers.fastgen.config import Config
from papers.fastgen.deployments import LLAMA_70B
from papers.fastgen.load_sweep import AS_AGREED, AT_EQUAL, GAPS, compare_closed_loops
from papers.fastgen.replicas import compare_deployments, scale
from papers.fastgen.token_curve import (
    A100_CURVE,
    IRREGULAR,
    MADE_UP,
    SPLITS,
    concavity,
    knee,
    makespan,
    split,
)

PASSES = 4  # over which the tokens of SPLITS are divided
REAL = ("composition_variation", "concavity_cpu", "equal_split_gain_cpu", "live_tail_ratio")


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if lab.wants(*AS_AGREED, *AT_EQUAL, *GAPS):
        compare_closed_loops(config, lab, seen)
    for study, label, metrics in (
        (compare_deployments, "models and GPUs", ("throughput_gain_everywhere", "tail_ratio_everywhere")),
        (scale, "replicas", ("scaling_per_replica",)),
    ):
        if lab.wants(*metrics):
            seeds = [(seed, lab.rng(seed, label)) for seed in lab.seeds]
            for rows in lab.map(partial(study, config), seeds, label):
                seen.extend(rows)
    if lab.wants("equal_split_gain_all_sizes"):
        analyse_profile(config, lab, seen)
    if config.pass_tokens and lab.wants(*REAL):
        from papers.fastgen.real_runs import run_here  # brings torch, which the simulations do without

        run_here(config, lab, seen)
    return seen


def analyse_profile(config: Config, lab: Runtime, seen: Observations) -> None:
    """Throughput over the tokens of a pass on the profiled A100s, and what equal passes gain: without a seed."""
    seconds = MADE_UP.get(config.curve, partial(pass_seconds, LLAMA_70B.latency()))
    curve = np.array([seconds(tokens) for tokens in A100_CURVE])
    for tokens, taken in zip(A100_CURVE, curve, strict=True):
        seen.add("pass_seconds", float(taken), tokens=tokens)
    seen.add("knee_a100", knee(A100_CURVE, curve))
    seen.add("concavity_a100", concavity(A100_CURVE, curve))
    gains = []
    for tokens in SPLITS:
        ours, unequal = (split(PASSES * tokens, PASSES, share) for share in (config.wrong, IRREGULAR))
        gains.append(makespan(seconds, unequal) / makespan(seconds, ours))
        seen.add("equal_split_gain_by_pass", gains[-1], tokens=tokens)
    seen.add("equal_split_gain_all_sizes", float(np.exp(np.mean(np.log(gains)))))
