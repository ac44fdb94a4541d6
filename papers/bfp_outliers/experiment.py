"""What the claims read: perplexities with a packed key cache; the rest is in measurements.py."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data import DataError, fetch
from common.lab.runtime import Observations, Runtime
from papers.bfp_outliers.config import GAINS, Config

if TYPE_CHECKING:
    from torch import Tensor

    from papers.bfp_outliers.settings import Setting

MODEL, TEXT, CALIBRATION, SECOND = (
    "smollm2-135m-gguf",
    "wikitext2-test",
    "wikitext2-valid",
    "tiny-shakespeare",
)
COSTS = ("increase_over_bfp16",)  # of perplexity, in percent: more is worse


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
    from papers.bfp_outliers.settings import Setting, compared, table_settings

    pairs = {metric: pair for metric, pair in compared(config).items() if lab.wants(metric)}
    growth = {}
    if lab.wants("planted_growth"):
        outliers = Setting(strength=config.planted, share=config.planted_share)
        growth = {
            "plain": (Setting(), Setting(order=config.order)),
            "planted": (outliers, dataclasses.replace(outliers, order=config.order)),
        }
    table = table_settings(config) if lab.wants("perplexity") else []
    exact = [Setting(keys="fp16")] if table else []
    whole = [setting for pair in (*pairs.values(), *growth.values()) for setting in pair] + exact
    losses = evaluate(config, lab, windows, whole, table)
    tokens = config.context - 1

    def gains(before: Setting, after: Setting) -> np.ndarray:
        return 100 * (1 - np.exp((losses[after] - losses[before]) / tokens))

    def add(metric: str, values: np.ndarray) -> None:
        for seed, value in zip(lab.seeds, values, strict=True):
            seen.add(metric, value, seed)

    for metric, pair in pairs.items():
        add(metric, (-1 if metric in COSTS else 1) * gains(*pair))
    if growth:
        add("planted_growth", gains(*growth["planted"]) - gains(*growth["plain"]))
    for setting in dict.fromkeys(table + whole if table else []):
        at: dict[str, Any] = dataclasses.asdict(setting) | {"bits_an_element": setting.bits_an_element}
        few = losses[setting][: config.table_windows]
        seen.add("perplexity", math.exp(few.mean() / tokens), **at)
        if len(losses[setting]) == len(lab.seeds):
            seen.add("perplexity_all", math.exp(losses[setting].mean() / tokens), **at)
    for block, bits in GAINS if table else ():
        pair = pairs[f"gain_n{block}_m{bits}"]
        before, after = (losses[setting].sum() - losses[exact[0]].sum() for setting in pair)
        seen.add("degradation_removed", 1 - after / before, block=block, bits=bits)


def evaluate(
    config: Config, lab: Runtime, windows: "dict[int, Tensor]", whole: "list[Setting]", table: "list[Setting]"
) -> "dict[Setting, np.ndarray]":
    """Summed loss of each window: of every seed's for `whole`, of the first `table_windows` for the rest.

    A random order is drawn anew for each seed's window.
    """
    from papers.bfp_outliers.settings import Setting, Task, losses

    tokens = {seed: tuple(window.flatten().tolist()) for seed, window in windows.items()}
    few = lab.seeds[: config.table_windows]
    seeds = dict.fromkeys(table, few) | dict.fromkeys(whole, lab.seeds)

    def tasks(setting: Setting) -> list[Task]:
        if setting.order != "random":
            return [Task(setting, tuple(tokens[seed] for seed in seeds[setting]), config.layers)]
        return [
            Task(dataclasses.replace(setting, draw=seed), (tokens[seed],), config.layers)
            for seed in seeds[setting]
        ]

    asked = {setting: tasks(setting) for setting in seeds}
    # the long ones first, so that no process waits for one
    every = sorted((task for some in asked.values() for task in some), key=lambda task: -len(task.windows))
    calibration = _window(lab, CALIBRATION, 0, config)
    found = lab.map_once(
        "bfp_outliers: losses", partial(losses, calibration=calibration), every, "perplexity"
    )
    return {
        setting: np.array([loss for task in some for loss in found[task]]) for setting, some in asked.items()
    }


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
