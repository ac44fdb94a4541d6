"""What the claims read: perplexities with a packed key cache; the rest is in measurements.py."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import DataError, fetch
from common.lab.runtime import Observations, Runtime
from papers.bfp_outliers.config import BFP12, BFP16, Config

if TYPE_CHECKING:
    from torch import Tensor

    from papers.bfp_outliers.settings import Setting

MODEL, TEXT, CALIBRATION, SECOND = (
    "smollm2-135m-gguf",
    "wikitext2-test",
    "wikitext2-valid",
    "tiny-shakespeare",
)
GAINS = ((32, 4), (16, 4), (32, 3), (16, 3))  # (block, mantissa bits) whose gain a claim reads


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    import torch

    from papers.bfp_outliers import measurements

    seen = Observations()
    if config.layers and _have(lab, MODEL, TEXT, CALIBRATION, SECOND):
        windows = {seed: _window(lab, TEXT, seed, config) for seed in lab.seeds}
        perplexities(config, lab, windows, seen)
        measurements.same_model(config, lab, windows[lab.seeds[0]], seen)
        if lab.wants("channel_share", "rank_correlation", "norm_correlation"):
            first, second = (
                torch.cat([_window(lab, name, seed, config, "keys") for seed in lab.seeds])
                for name in (TEXT, SECOND)
            )
            measurements.key_statistics(config, lab, first, second, seen)
        if lab.wants("perplexity"):
            calibration = _window(lab, CALIBRATION, 0, config)
            measurements.errors_by_order(config, lab, windows[lab.seeds[0]], calibration, seen)
        if lab.wants("step_time_ratio"):
            measurements.decode_steps(config, lab, seen)
    if lab.wants("long_time_ratio"):
        measurements.long_contexts(config, lab, seen)
    return seen


def perplexities(config: Config, lab: Runtime, windows: "dict[int, Tensor]", seen: Observations) -> None:
    """Losses of every setting; gains are paired over the same windows, in percent of perplexity."""
    from papers.bfp_outliers.settings import Setting

    compared = {}  # metric: (before, after)
    for block, bits in GAINS:
        plain = Setting(bits=bits, block=block)
        compared[f"gain_n{block}_m{bits}"] = (plain, dataclasses.replace(plain, order=config.order))
    plain = Setting(block=16, equal=config.equal)
    compared["gain_pairs_n16_m4"] = (plain, dataclasses.replace(plain, order="pairs"))
    sorted_keys, wide = Setting(order=config.order), Setting(bits=BFP16)
    outliers = Setting(strength=config.planted, share=config.planted_share)
    planted = (outliers, dataclasses.replace(outliers, order=config.order))

    whole: list[Setting] = []
    for metric, pair in compared.items():
        if lab.wants(metric):
            whole += pair
    if lab.wants("increase_over_bfp16"):
        whole += [sorted_keys, wide]
    if lab.wants("planted_growth"):
        whole += [Setting(), sorted_keys, *planted]
    table = table_settings(config) if lab.wants("perplexity") else []
    if table:
        whole.append(Setting(keys="fp16"))
    losses = evaluate(config, lab, windows, whole, table)
    tokens = config.context - 1

    def gains(before: Setting, after: Setting) -> np.ndarray:
        return 100 * (1 - np.exp((losses[after] - losses[before]) / tokens))

    def add(metric: str, values: np.ndarray) -> None:
        for seed, value in zip(lab.seeds, values, strict=True):
            seen.add(metric, value, seed)

    for metric, pair in compared.items():
        if lab.wants(metric):
            add(metric, gains(*pair))
    if lab.wants("increase_over_bfp16"):
        add("increase_over_bfp16", -gains(wide, sorted_keys))
    if lab.wants("planted_growth"):
        add("planted_growth", gains(*planted) - gains(Setting(), sorted_keys))
    for setting in dict.fromkeys(table + whole if table else []):
        at: dict[str, Any] = dataclasses.asdict(setting) | {"bits_an_element": setting.bits_an_element}
        few = losses[setting][: config.table_windows]
        seen.add("perplexity", math.exp(few.mean() / tokens), **at)
        if len(losses[setting]) == len(lab.seeds):
            seen.add("perplexity_all", math.exp(losses[setting].mean() / tokens), **at)
    if table:
        exact = Setting(keys="fp16")
        for (block, bits), pair in zip(GAINS, list(compared.values())[: len(GAINS)], strict=True):
            before, after = (losses[setting].sum() - losses[exact].sum() for setting in pair)
            seen.add("degradation_removed", 1 - after / before, block=block, bits=bits)


def table_settings(config: Config) -> "list[Setting]":
    """What the table of perplexities holds beside the claims' own settings."""
    from papers.bfp_outliers.settings import Setting

    found = [
        Setting(order=order, bits=bits, block=block)
        for bits in (BFP12, 3)
        for block in config.blocks
        for order in ("original", "ksort")
    ]
    found += [Setting(order="random", block=block) for block in config.blocks if block in (32, 16)]
    for strength in config.strengths:
        found += [Setting(order=order, strength=strength) for order in ("original", "ksort")]
    if config.comparisons:
        found += [
            Setting(order=order, block=block) for order in ("calibrated", "weighted") for block in (32, 16)
        ]
        found += [Setting(order=order) for order in ("interleaved", "adjacent", "gains")]
        found += [
            Setting(keys="hadamard"),
            Setting(keys="hadamard", block=64),
            Setting(keys="per-channel"),
            Setting(clips=False),
            Setting(order="ksort", clips=False),
            Setting(order="ksort", value_bits=BFP12),
            Setting(order="ksort", query_bits=BFP16),
        ]
    return found


_known: "dict[tuple[object, ...], np.ndarray]" = {}  # losses that this process has seen: controls share settings


def evaluate(
    config: Config, lab: Runtime, windows: "dict[int, Tensor]", whole: "list[Setting]", table: "list[Setting]"
) -> "dict[Setting, np.ndarray]":
    """Summed loss of each window: of every seed's for `whole`, of the first `table_windows` for the rest."""
    import torch

    from papers.bfp_outliers.settings import Task, losses

    tokens = torch.cat(list(windows.values()))
    calibration = _window(lab, CALIBRATION, 0, config)
    counts = dict.fromkeys(table, config.table_windows) | dict.fromkeys(whole, len(tokens))
    keys = {
        setting: (setting, config.layers, tuple(tokens[:count].flatten().tolist()))
        for setting, count in counts.items()
    }
    missing = [setting for setting in counts if keys[setting] not in _known]
    missing.sort(
        key=counts.__getitem__, reverse=True
    )  # the long ones first, so that no process waits for one
    tasks = [Task(setting, tokens[: counts[setting]], calibration, config.layers) for setting in missing]
    for setting, found in zip(missing, lab.map(losses, tasks, "perplexity"), strict=True):
        _known[keys[setting]] = np.array(found)
    return {setting: _known[keys[setting]] for setting in counts}


def _window(lab: Runtime, text: str, seed: int, config: Config, stream: str = "window") -> "Tensor":
    """A seed's window of a text, int64 of shape (1, context)."""
    from common.models.llama import tokenizer
    from common.models.texts import encoded, random_windows

    path = lab.data(text)
    assert isinstance(path, Path)
    tokens = encoded(path, tokenizer(), config.letters)
    return random_windows(tokens, config.context, 1, lab.rng(seed, stream, text))


def _have(lab: Runtime, *names: str) -> bool:
    """Whether these data sets can be had; the record notes them."""
    for name in names:
        try:
            fetch(name)
        except DataError:
            return False
        lab.data(name)
    return True
