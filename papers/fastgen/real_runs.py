"""What really runs on this machine's CPU, on one thread: forward passes of many sizes, and an engine under policies."""

from dataclasses import dataclass

import numpy as np
import torch

from common.lab.runtime import Observations, Runtime, one_thread
from common.models.decoder import Decoder
from common.serving.metrics import token_gaps
from papers.fastgen import live_comparison, token_curve
from papers.fastgen.splitfuse import WHOLE


@dataclass(frozen=True)
class Sizes:
    """The experiment's Config, as far as the real runs read it."""

    system: str
    split: bool
    requests: int  # of the engine
    pass_tokens: int
    turns: int
    wrong: float
    measured: bool
    irregular: float
    curve: tuple[int, ...]


def run(sizes: Sizes, lab: Runtime, seen: Observations) -> None:
    """Observe whatever of it is wanted, one row a seed."""
    with one_thread():
        for seed in lab.progress(lab.seeds, "real passes"):
            generator = torch.Generator().manual_seed(int(lab.rng(seed, "decoder").integers(2**31)))
            model = Decoder(token_curve.SMALL, generator)
            if lab.wants("composition_variation"):
                compose(sizes, model, seen, seed)
            if lab.wants("concavity_cpu", "equal_split_gain_cpu", "live_tail_ratio"):
                budget = draw_curve(sizes, model, seen, seed)
                if lab.wants("equal_split_gain_cpu"):
                    split_unequally(sizes, model, budget, seen, seed)
                if sizes.requests and lab.wants("live_tail_ratio"):
                    serve_live(sizes, model, budget, lab, seen, seed)


def compose(sizes: Sizes, model: Decoder, seen: Observations, seed: int) -> None:
    """Seconds of passes over the same number of tokens, in 1, 4 and 16 sequences."""
    for tokens in (sizes.pass_tokens // 2, sizes.pass_tokens, 2 * sizes.pass_tokens):
        taken = token_curve.by_composition(model, tokens, sizes.wrong, sizes.turns)
        for sequences, seconds in zip(token_curve.COMPOSITIONS, taken, strict=True):
            seen.add("composition_seconds", seconds, seed, tokens=tokens, sequences=sequences)
        if tokens == sizes.pass_tokens:
            seen.add("composition_variation", token_curve.variation(taken), seed)


def draw_curve(sizes: Sizes, model: Decoder, seen: Observations, seed: int) -> int:
    """Seconds over the tokens of a pass, how concave the throughput is, and where it bends: the budget, tokens."""
    seconds = token_curve.measured_curve(model, sizes.curve, sizes.turns)
    budget = token_curve.knee(sizes.curve, seconds)
    if not sizes.measured:
        seconds = 1.0 / np.array(sizes.curve)
    rate = np.array(sizes.curve) / seconds
    for tokens, taken in zip(sizes.curve, seconds, strict=True):
        seen.add("pass_seconds_cpu", float(taken), seed, tokens=tokens)
    fitted = token_curve.concave_fit(sizes.curve, seconds)
    seen.add("knee_cpu", budget, seed)
    seen.add("concavity_cpu", token_curve.concavity(sizes.curve, seconds), seed)
    seen.add("concave_share_cpu", token_curve.concave_share(sizes.curve, seconds), seed)
    seen.add("concave_fit_cpu", token_curve.explained(rate, fitted), seed)
    return budget


def split_unequally(sizes: Sizes, model: Decoder, budget: int, seen: Observations, seed: int) -> None:
    """Seconds of four passes of unequal size over those of four equal ones with as many tokens in all."""
    plans = [token_curve.split(4 * budget, 4, wrong) for wrong in (sizes.wrong, sizes.irregular)]
    counts = sorted({tokens for plan in plans for tokens in plan})
    taken = token_curve.fastest([token_curve.forward(model, tokens) for tokens in counts], 2 * sizes.turns)
    seconds = dict(zip(counts, taken, strict=True))
    ours, unequal = (token_curve.makespan(seconds.__getitem__, plan) for plan in plans)
    seen.add("equal_split_gain_cpu", unequal / ours, seed)


def serve_live(
    sizes: Sizes, model: Decoder, budget: int, lab: Runtime, seen: Observations, seed: int
) -> None:
    """P95 of token gaps under eight clients, and whether every schedule gives the same answers."""
    requests = live_comparison.draw_requests(lab.rng(seed, "live"), sizes.requests, model.config.vocab)
    used = budget if sizes.split else WHOLE
    systems = dict.fromkeys((sizes.system, "vllm", *(("orca",) if lab.wants("live_gap") else ())))
    runs = {name: live_comparison.run_policy(model, requests, name, used) for name in systems}
    for name, found in runs.items():
        gaps = token_gaps(found.trace)
        for share in (0.5, 0.95):
            seen.add("live_gap", float(np.quantile(gaps, share)), seed, system=name, quantile=share)
        at = len(found.trace.arrival) / float(found.trace.finish.max())
        seen.add("live_throughput", at, seed, system=name)
    ours = runs[sizes.system]
    same = [live_comparison.same_answers(ours, other) for other in runs.values()]
    seen.add("live_same_answers", min(same), seed)
    seen.add("live_tail_ratio", live_comparison.tail(runs["vllm"]) / live_comparison.tail(ours), seed)
