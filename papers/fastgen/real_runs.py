"""What really runs on this machine's CPU, on one thread: forward passes of many sizes, and an engine under policies."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.lab.runtime import Observations, Runtime, one_thread
from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.serving.live import LiveRun
from common.serving.metrics import token_gaps
from papers.fastgen import live_comparison, token_curve
from papers.fastgen.config import Config
from papers.fastgen.splitfuse import WHOLE

SMALL = DecoderConfig(vocab=512, hidden=256, layers=4, heads=4, intermediate=704, positions=1024)
COMPOSITIONS = (1, 4, 16)  # sequences that share the tokens of a pass
CURVE = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)  # tokens of a pass
WARM_UP = 2


def run_here(config: Config, lab: Runtime, seen: Observations) -> None:
    """Observe whatever of it is wanted, one row a seed."""
    with one_thread():
        for seed in lab.progress(lab.seeds, "real passes"):
            generator = torch.Generator().manual_seed(int(lab.rng(seed, "decoder").integers(2**31)))
            model = Decoder(SMALL, generator)
            if lab.wants("composition_variation"):
                compose(config, model, seen, seed)
            if lab.wants("concavity_cpu", "equal_split_gain_cpu", "live_tail_ratio"):
                budget = draw_curve(config, model, seen, seed)
                if lab.wants("equal_split_gain_cpu"):
                    split_unequally(config, model, budget, seen, seed)
                if config.live_requests and lab.wants("live_tail_ratio"):
                    serve_live(config, model, budget, lab, seen, seed)


def compose(config: Config, model: Decoder, seen: Observations, seed: int) -> None:
    """Seconds of passes over the same number of tokens, in 1, 4 and 16 sequences."""
    for tokens in (config.pass_tokens // 2, config.pass_tokens, 2 * config.pass_tokens):
        taken = by_composition(model, tokens, config.wrong, config.turns)
        for sequences, seconds in zip(COMPOSITIONS, taken, strict=True):
            seen.add("composition_seconds", seconds, seed, tokens=tokens, sequences=sequences)
        if tokens == config.pass_tokens:
            seen.add("composition_variation", token_curve.variation(taken), seed)


def draw_curve(config: Config, model: Decoder, seen: Observations, seed: int) -> int:
    """Seconds over the tokens of a pass, how concave the throughput is, and where it bends: the budget, tokens."""
    seconds = measured_curve(model, CURVE, config.turns)
    budget = token_curve.knee(CURVE, seconds)
    if config.curve != "measured":
        seconds = np.array([token_curve.MADE_UP[config.curve](tokens) for tokens in CURVE])
    rate = np.array(CURVE) / seconds
    for tokens, taken in zip(CURVE, seconds, strict=True):
        seen.add("pass_seconds_cpu", float(taken), seed, tokens=tokens)
    fitted = token_curve.concave_fit(CURVE, seconds)
    seen.add("knee_cpu", budget, seed)
    seen.add("concavity_cpu", token_curve.concavity(CURVE, seconds), seed)
    seen.add("concave_share_cpu", token_curve.concave_share(CURVE, seconds), seed)
    seen.add("concave_fit_cpu", token_curve.explained(rate, fitted), seed)
    return budget


def split_unequally(config: Config, model: Decoder, budget: int, seen: Observations, seed: int) -> None:
    """Seconds of four passes of unequal size over those of four equal ones with as many tokens in all."""
    plans = [token_curve.split(4 * budget, 4, wrong) for wrong in (config.wrong, token_curve.IRREGULAR)]
    counts = sorted({tokens for plan in plans for tokens in plan})
    taken = fastest([forward(model, tokens) for tokens in counts], 2 * config.turns)
    seconds = dict(zip(counts, taken, strict=True))
    ours, unequal = (token_curve.makespan(seconds.__getitem__, plan) for plan in plans)
    seen.add("equal_split_gain_cpu", unequal / ours, seed)


def serve_live(
    config: Config, model: Decoder, budget: int, lab: Runtime, seen: Observations, seed: int
) -> None:
    """P95 of token gaps under eight clients, and whether every schedule gives the same answers."""
    requests = live_comparison.draw_requests(lab.rng(seed, "live"), config.live_requests, model.config.vocab)
    used = budget if config.split else WHOLE
    systems = dict.fromkeys((config.system, "vllm", *(("orca",) if lab.wants("live_gap") else ())))
    turns = [*systems, *reversed(systems)]  # A B B A: what drifts meanwhile hits both alike
    runs: dict[str, list[LiveRun]] = {name: [] for name in systems}
    for name in turns:
        runs[name].append(live_comparison.run_policy(model, requests, name, used))
    for name, found in runs.items():
        gaps = np.concatenate([token_gaps(run.trace) for run in found])
        for share in (0.5, 0.95):
            seen.add("live_gap", float(np.quantile(gaps, share)), seed, system=name, quantile=share)
        seconds = sum(float(run.trace.finish.max()) for run in found)
        seen.add("live_throughput", len(found) * len(requests.prompts) / seconds, seed, system=name)
    ours = runs[config.system]
    same = [live_comparison.same_answers(ours[0], other) for found in runs.values() for other in found]
    seen.add("live_same_answers", min(same), seed)
    seen.add("live_tail_ratio", live_comparison.tail(runs["vllm"]) / live_comparison.tail(ours), seed)


def forward(model: Decoder, tokens: int, sequences: int = 1) -> Callable[[], object]:
    """A forward pass over `tokens` new tokens, as equal a share in each of `sequences` sequences as can be."""
    share, over = divmod(tokens, sequences)
    lengths = [share + (index < over) for index in range(sequences)]
    feeds = [torch.arange(length) % model.config.vocab for length in lengths if length]
    caches = [KVCache(model.config, len(feed)) for feed in feeds]

    def run() -> object:
        for cache in caches:
            cache.length = 0
        return model(feeds, caches)

    return run


def fastest(passes: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each pass, its fastest of several turns; they take turns, so that a slow moment hits all alike."""
    taken = [[0.0] * turns for _ in passes]
    for turn in range(-WARM_UP, turns):
        for place, run in enumerate(passes):
            begun = time.perf_counter()
            run()
            if turn >= 0:
                taken[place][turn] = time.perf_counter() - begun
    return [min(row) for row in taken]


def measured_curve(model: Decoder, tokens: Sequence[int], turns: int = 5) -> np.ndarray:
    """Seconds of a pass over one sequence, shape (len(tokens),)."""
    return np.array(fastest([forward(model, count) for count in tokens], turns))


def by_composition(model: Decoder, tokens: int, wrong: float = 0.0, turns: int = 5) -> list[float]:
    """Seconds of passes over the same number of tokens in 1, 4 and 16 sequences.

    wrong: share of its tokens that the first pass hands to the last, so that they are not the same number.
    """
    counts = [tokens] * len(COMPOSITIONS)
    counts[0] -= round(wrong * tokens)
    counts[-1] += round(wrong * tokens)
    passes = [forward(model, count, parts) for count, parts in zip(counts, COMPOSITIONS, strict=True)]
    return fastest(passes, turns)
