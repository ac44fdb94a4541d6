"""What the claims of FoldGPT read: SmolLM2-135M folded, healed and tried; small decoders of several depths; clocks."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.lab.runtime import Observations, Runtime, one_thread
from papers.foldgpt.config import Config

if TYPE_CHECKING:
    from papers.foldgpt.tasks import Climb, Text

SIMILAR = 0.9  # a cosine above this is "highly similar" (chosen; the paper gives no threshold)


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    from papers.foldgpt.study import METRICS, Study
    from papers.foldgpt.tasks import Text, Trial, outcomes

    seen = Observations()
    files = {name: _file(lab, name) for name in DATA}
    climbs = rungs(config, lab, files["tiny-shakespeare"]) if lab.wants("ladder_slope") else []
    train, test = files["wikitext2-valid"], files["wikitext2-test"]
    text = study = None
    if config.blocks and files["smollm2-135m-gguf"] is not None and train is not None and test is not None:
        text = Text(train, test, config.blocks, config.letters)
        if config.folding and lab.wants(*METRICS):
            trial = Trial(config.test_windows, config.test_length)
            study = Study(config, lab, seen, text, trial, files["sst2-dev"], files["ag-news-test"])
    first = [*(study.first_tasks() if study else ()), *climbs]
    outcomes(lab, first, "gates, scores and decoders", parallel=config.parallel)  # once, then by name
    if climbs:
        ladder(config, lab, seen, climbs)
    if study:
        study.run()
    if text is not None and lab.wants("similar_share"):
        profile(config, lab, seen, text)
    if text is not None and lab.wants("decode_gain", "byte_ratio", "decode_gain_gpu"):
        clocks(config, lab, seen, text)
    return seen


DATA = (
    "smollm2-135m-gguf",
    "wikitext2-valid",
    "wikitext2-test",
    "tiny-shakespeare",
    "sst2-dev",
    "ag-news-test",
)


def _file(lab: Runtime, name: str) -> Path | None:
    """A data set's file, downloaded on first use; None where it cannot be had."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)


def rungs(config: Config, lab: Runtime, file: Path | None) -> list["Climb"]:
    """The decoders of several depths, of every seed."""
    from papers.foldgpt.tasks import Climb

    return [
        Climb(file, layers, config.ladder_steps, seed, member)
        for seed in lab.seeds
        for member, layers in enumerate(config.depths)
        if file is not None
    ]


def ladder(config: Config, lab: Runtime, seen: Observations, tasks: list["Climb"]) -> None:
    """Similarity against depth; the claim reads the slope of the mean cosine per doubling of the depth."""
    from papers.foldgpt.tasks import outcomes

    found = outcomes(lab, tasks, "decoders of several depths", parallel=config.parallel)
    steps = np.arange(len(config.depths))  # one doubling each
    for seed in lab.seeds:
        own = [rung for task, rung in zip(tasks, found, strict=True) if task.seed == seed]
        for member, rung in enumerate(own):
            at = {"layers": rung.layers, "member": member}
            seen.add("ladder_cosine", rung.cosine, seed, **at)
            seen.add("ladder_untrained", rung.untrained, seed, **at)
            seen.add("ladder_loss", rung.loss, seed, **at)
            seen.add("ladder_parameters", rung.parameters, seed, **at)
        for metric, values in (
            ("ladder_slope", [rung.cosine for rung in own]),
            ("ladder_slope_untrained", [rung.untrained for rung in own]),
        ):
            seen.add(metric, float(np.polyfit(steps, values, 1)[0]), seed)


def profile(config: Config, lab: Runtime, seen: Observations, text: "Text") -> None:
    """Cosine of what enters and leaves each block; the claim reads the share of blocks above 0.9."""
    from papers.foldgpt.similarity import cosines, states
    from papers.foldgpt.tasks import CALIBRATION, pretrained

    model = pretrained(text.blocks)
    with one_thread():
        for seed in lab.seeds:
            tokens = text.windows(text.train, CALIBRATION, seed, config.calibration, config.looked)
            entered = states(model, tokens)
            found = cosines(entered, config.looked // 2 if config.other_tokens else 0)
            for block, cosine in enumerate(found):
                seen.add("cosine", cosine, seed, block=block)
            for block, cosine in enumerate(cosines(entered, config.looked // 2)):
                seen.add("cosine_other_token", cosine, seed, block=block)
            seen.add("similar_share", float(np.mean([cosine > SIMILAR for cosine in found])), seed)
            for blocks in (text.blocks // 3, 2 * text.blocks // 3, text.blocks):
                seen.add("prefix_cosine", float(np.mean(found[:blocks])), seed, blocks=blocks)


def clocks(config: Config, lab: Runtime, seen: Observations, text: "Text") -> None:
    """Decoding with every two neighbours sharing against copies of the same matrices; bytes held by both."""
    import copy

    import torch

    from papers.foldgpt.latency import paired_decoding
    from papers.foldgpt.tasks import CALIBRATION, pretrained
    from papers.foldgpt.virtual_blocks import Fold, fold, unique_bytes

    base = pretrained(text.blocks)
    on_gpu = lab.device.startswith("cuda")
    if on_gpu:
        base = copy.deepcopy(base)
        base.to(lab.device)  # type: ignore[arg-type]
    every = tuple(range(text.blocks))
    plan = Fold(text.blocks, every, tuple(block - block % 2 for block in every))
    with one_thread(), torch.inference_mode():
        unshared, shared = fold(base, plan, copies=True), fold(base, plan, copies=config.copies)
        held = [unique_bytes(model.model.layers.parameters()) for model in (unshared, shared)]
        seen.add("byte_ratio", held[1] / held[0])
        seen.add("block_bytes", held[0], sharing=False)
        seen.add("block_bytes", held[1], sharing=True)
        for seed in lab.seeds if lab.wants("decode_gain", "decode_gain_gpu") else ():
            prompt = text.windows(text.train, CALIBRATION, seed, 1, 16).to(lab.device)
            times = paired_decoding(unshared, shared, prompt, config.decode_steps, config.decode_rounds)
            for sharing, seconds in zip((False, True), times, strict=True):
                seen.add("token_ms", 1e3 * seconds, seed, sharing=sharing)
            gain = times[0] / times[1]
            seen.add("decode_gain_gpu" if on_gpu else "decode_gain", gain, seed)
