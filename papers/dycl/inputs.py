"""What the networks are given: for calibration and for testing, real where it can be had."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from common.lab.runtime import Runtime
from common.models.dynamic import zoo
from papers.dycl.config import Config


def drawn(config: Config, lab: Runtime, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For each kind of input those for calibration and those for testing: real ones where they can be had."""
    wanted = {zoo.recipe(name).reads for name in config.networks}
    counts = (config.calibration, config.inputs)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for reads in sorted(wanted):
        generator = torch.Generator().manual_seed(int(lab.rng(seed, "inputs", reads).integers(2**31)))
        if reads == "images":
            files = [registered(lab, name) for name in ("cifar10-train-a", "cifar10-test")]
            if None not in files and importlib.util.find_spec("PIL") is not None:
                rng = lab.rng(seed, "images")
                first, second = (
                    zoo.read_images(file, count, rng)
                    for file, count in zip(files, counts, strict=True)
                    if file is not None
                )
                made[reads] = (first, second)
                continue
        if reads in ("sentences", "sequences"):
            file = registered(lab, "sst2-dev")
            if file is not None:
                sentences = zoo.read_sentences(file)
                order = lab.rng(seed, "sentences").permutation(len(sentences))[: sum(counts)]
                rows: Tensor = sentences[torch.from_numpy(order)]
                if reads == "sequences":
                    rows = zoo.sequences_of(rows, generator)
                made[reads] = (rows[: counts[0]], rows[counts[0] :])
                continue
        width = zoo.recipe("expert_stack").width * config.wider // config.narrower
        rows = zoo.draw(reads, sum(counts), generator, width)
        made[reads] = (rows[: counts[0]], rows[counts[0] :])
    return made


def registered(lab: Runtime, name: str) -> Path | None:
    """A data set's file, downloaded where it has an address; None where it can't be had."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)
