"""What claims compare: one run over another, the errors of real states, each with the metric's name."""

import math
from collections.abc import Callable

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.eight_bit_optimizers.config import Config
from papers.eight_bit_optimizers.optimizer import WIDE, States
from papers.eight_bit_optimizers.runs import Hyper, Task
from papers.eight_bit_optimizers.study import (
    ABLATION,
    BASE,
    NAIVE,
    Result,
    Run,
    loss,
    perplexity,
    points,
    side,
)
from papers.eight_bit_optimizers.tasks import ImageTask
from papers.eight_bit_optimizers.update_error import UpdateError

# Metrics of the language model, and the cells (see study.Cells) that they compare at the base point
AT_BASE = {
    "language_ratio": ("ours", "wide"),
    "code_gain": ("naive", "code"),
    "block_gain": ("code", "code and blocks"),
    "block_gain_stable": ("code, stable", "code and blocks, stable"),
    "all_parts_over_32": ("ours", "wide, standard"),
    "stable_gain_32": ("wide, standard", "wide as ours"),
    "stable_gain_8": ("code and blocks", "ours"),
    "error_code_gain": ("wide, standard",),
    "error_block_gain": ("wide, standard",),
    "flushed_naive": ("wide, standard",),
    "ablation": (*ABLATION, "ours"),
}
AT_FEW = {
    "never_unstable": ("ours",),
    "unstable_naive": ("naive", "ours"),
    "ablation": ("naive", "code", "blocks", "code and blocks"),
}
AT_ALL = {"gap_spread": ("ours", "wide")}


def compare_language(
    config: Config, of: Callable[..., Result], seed: int, lab: Runtime, seen: Observations
) -> None:
    """The language model's metrics of a seed; of: from a cell's name and a point to its result."""

    def nats(name: str, point: str = BASE) -> float:
        return loss(of(name, point).outcome)

    def ppl(name: str) -> float:
        return perplexity(of(name).outcome)

    for metric, (above, below) in (
        ("language_ratio", AT_BASE["language_ratio"]),
        ("block_gain_stable", AT_BASE["block_gain_stable"]),
        ("all_parts_over_32", AT_BASE["all_parts_over_32"]),
        ("stable_gain_32", AT_BASE["stable_gain_32"]),
        ("stable_gain_8", AT_BASE["stable_gain_8"]),
    ):
        if lab.wants(metric):
            seen.add(metric, ppl(above) / ppl(below), seed)
    for metric, (above, below) in (
        ("code_gain", AT_BASE["code_gain"]),
        ("block_gain", AT_BASE["block_gain"]),
    ):
        if lab.wants(metric):
            seen.add(metric, nats(above) / nats(below), seed)
    if lab.wants("gap_spread"):
        several = points(seed, config.sensitivity_points)
        gaps = [100 * (nats("ours", point) / nats("wide", point) - 1) for point in several]
        for point, gap in zip(several, gaps, strict=True):
            changed = point if point == BASE else f"{point} {side(seed, point)[point]:g}"
            seen.add("gap_percent", gap, seed, point=changed)
        seen.add("gap_spread", max(gaps) - min(gaps), seed)
    few = points(seed, config.ablation_points)
    ours = (
        float(np.mean([of("ours", point).outcome.unstable for point in few])) if lab.wants(*AT_FEW) else 0.0
    )
    if lab.wants("never_unstable"):
        seen.add("never_unstable", ours, seed)
    if lab.wants("unstable_naive"):
        seen.add(
            "unstable_naive", float(np.mean([of("naive", p).outcome.unstable for p in few])) - ours, seed
        )
    if lab.wants("ablation"):
        for name in dict.fromkeys([*AT_BASE["ablation"], "wide"]):
            outcome = of(name).outcome
            seen.add("ablation_loss", loss(outcome), seed, setting=name)
            seen.add("state_bytes", outcome.state_bytes / outcome.parameters, seed, setting=name)
            if seed == lab.seeds[0]:
                for step, value in enumerate(outcome.losses):
                    seen.add("training_loss", value, seed, setting=name, step=step)
            tried = few if name in AT_FEW["ablation"] or name == "ours" else [BASE]
            seen.add(
                "unstable", float(np.mean([of(name, p).outcome.unstable for p in tried])), seed, setting=name
            )
    compare_errors(config, of("wide, standard").errors if lab.wants(*ERRORS) else {}, seed, lab, seen)


ERRORS = ("error_code_gain", "error_block_gain", "flushed_naive")


def compare_errors(
    config: Config, errors: dict[str, UpdateError], seed: int, lab: Runtime, seen: Observations
) -> None:
    """What quantisation does to Adam's update on the last states of a 32-bit run with the standard embedding."""
    if not errors:
        return
    for name, error in errors.items():
        seen.add("update_error", error.absolute, seed, setting=name)
        seen.add("update_error_relative", error.relative, seed, setting=name)
        seen.add("flushed_percent", 100 * error.flushed, seed, setting=name)
    ours = f"{config.code}, {'blocks' if config.block else 'whole tensor'}"
    seen.add(
        "error_code_gain", errors["linear, blocks"].absolute / errors[f"{config.code}, blocks"].absolute, seed
    )
    seen.add(
        "error_block_gain", errors[f"{config.code}, whole tensor"].absolute / errors[ours].absolute, seed
    )
    seen.add("flushed_naive", 100 * (errors["linear, whole tensor"].flushed - errors[ours].flushed), seed)


def compare_others(
    others: dict[str, tuple[Task, Hyper]],
    states: States,
    seed: int,
    done: dict[Run, Result],
    lab: Runtime,
    seen: Observations,
) -> None:
    """Ours over 32 bits: perplexity of translation, loss on images, and of sentences the share of accuracy lost."""
    for name, (task, hyper) in others.items():
        wide, ours = (done[Run(task, seed, kept, hyper)].outcome for kept in (WIDE, states))
        for label, outcome in (("32 bits", wide), ("ours", ours)):
            seen.add("task_loss", loss(outcome), seed, task=name, states=label)
            if math.isfinite(outcome.accuracy):
                seen.add("task_accuracy", outcome.accuracy, seed, task=name, states=label)
        if name == "sentence":
            right = 0.0 if ours.broke else ours.accuracy
            seen.add("accuracy_lost", 1 - right / wide.accuracy, seed)
        elif name == "translation":
            seen.add("translation_ratio", perplexity(ours) / perplexity(wide), seed)
        else:
            seen.add("image_ratio", loss(ours) / loss(wide), seed)
            if lab.wants("naive_image_ratio"):
                naive = done[Run(task, seed, NAIVE, hyper)].outcome
                seen.add("naive_image_ratio", loss(naive) / loss(wide), seed)
                seen.add("on_cifar", float(isinstance(task, ImageTask) and bool(task.train)), seed)
