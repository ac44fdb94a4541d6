"""A project of one tiny paper, `toy`, written into any folder: what the lab's own tests run."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

CARD = """\
slug: toy
title: Twice as fast by not waiting
year: 2024
arxiv: "2401.09670"
topic: scheduling
summary: A mechanism doubles a number. Without it the number is one.
finding: It doubles it.
claims:
  - id: gain
    headline: true
    statement: The mechanism doubles the rate
    paper: {value: 2.0, kind: value, unit: ratio, source: "v1, Table 1"}
    metric: gain
    evidence: simulated
    better: higher
    no_effect: 1.0
    tolerance: 0.25
    operating_point:
      requests: {paper: 100, config: requests}
    free: {bias: [-0.1, 0.1]}
    control: without
    placebo: shuffled
  - id: peak
    headline: true
    statement: Up to three times at the best rate
    paper: {value: 3.0, kind: up_to, unit: ratio, source: "v1, Figure 2"}
    metric: gain_at
    evidence: simulated
    better: higher
    no_effect: 1.0
    tolerance: 0.1
    operating_point:
      rate: {paper: 3.0, config: rates}
    control: without
    placebo: {none: the rate is not chosen}
  - id: slow
    statement: It takes half of the waiting away
    paper: {value: 5.0, kind: value, unit: s, source: "v1, Table 2"}
    metric: seconds
    evidence: simulated
    better: lower
    no_effect: 10.0
    tolerance: 0.25
    operating_point:
      requests: {paper: 100, config: requests}
    control: without
    because: the toy waits longer than the paper's machine
    revived_by: quick
  - id: kernel
    statement: The kernel is faster than the library's
    paper: {kind: direction}
    metric: kernel_speedup
    evidence: measured
    better: higher
    no_effect: 1.0
    needs: a GPU
    control: without
controls:
  without: {set: {mechanism: false}, why: nothing is left that could double anything}
  shuffled: {set: {shuffled: true}, why: any factor instead of the right one}
settings:
  quick: {set: {tardy: 0.0}, why: without what the toy wastes}
not_reproduced:
  - The authors' cluster.
"""

CONFIG = '''\
"""Sizes and switches of the toy."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Inferred, Length


@dataclass(frozen=True)
class Noise:
    scale: Annotated[float, At(0.0, 10.0)] = 0.05  # standard deviation


@dataclass(frozen=True)
class Config:
    requests: Annotated[int, At(1, 1_000_000)] = 100  # samples a seed
    rates: Annotated[list[float], Length(1), At(0.0, 100.0)] = field(  # settings of the second claim
        default_factory=lambda: [1.0, 2.0, 3.0]
    )
    mechanism: bool = True
    shuffled: bool = False  # any factor instead of the mechanism's
    noise: Noise = field(default_factory=Noise)
    bias: Annotated[float, Inferred(-0.2, 0.2, "nobody says")] = 0.0  # on the gain
    tardy: Annotated[float, At(0.0, 100.0)] = 3.0  # seconds that the toy wastes
    wait: Annotated[float, At(0.0, 1000.0)] = 0.0  # seconds that the experiment takes longer
    fail: bool = False  # raise instead


def check(config: Config) -> None:
    if config.shuffled and not config.mechanism:
        raise ValueError("shuffled: there is nothing to shuffle without the mechanism")
'''

EXPERIMENT = '''\
"""A number that the mechanism doubles."""

import time

from common.lab.runtime import Observations, Runtime
from papers.toy.config import Config
from papers.toy.doubling import doubled


def run(config: Config, lab: Runtime) -> Observations:
    seen = Observations()
    if config.fail:
        raise RuntimeError("the experiment broke")
    for seed in lab.progress(lab.seeds, "seeds"):
        time.sleep(config.wait)
        draw = lab.rng(seed, "gain").normal(1.0, config.noise.scale, config.requests)
        factor = doubled(1.0) if config.mechanism else 1.0
        if config.shuffled:
            factor = lab.rng(seed, "shuffled").uniform(0.9, 1.1)
        spread = draw.mean() - 1.0
        bias = config.bias if config.mechanism else 0.0
        seen.add("gain", factor + bias + spread, seed)
        for rate in config.rates:
            seen.add("gain_at", (rate if config.mechanism else 1.0) + spread, seed, rate=rate)
        seen.add("seconds", 10.0 / factor + config.tardy + spread, seed)
    return seen
'''

PROFILE = """\
# @package _global_
seeds: {seeds}
paper:
  requests: {requests}
"""

NOTEBOOK = [
    ("parameters", 'profile = "smoke"\noverrides = []'),
    (
        "",
        'from common.lab import Lab\nlab = Lab("toy", profile=profile, overrides=overrides)\nseen = lab.run()',
    ),
    (
        "",
        "import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt\n"
        "fig, ax = plt.subplots()\nax.plot(seen.values('gain'))\nax.axhline(lab.paper('gain'))\nlab.save(fig, 'gain')",
    ),
    ("", "lab.judge()"),
]


def write_project(root: Path) -> Path:
    """Lay the project out in `root`."""
    write(root / "papers" / "__init__.py", "")
    write(root / "papers" / "toy" / "__init__.py", '"""A toy."""\n')
    write(root / "papers" / "toy" / "paper.yaml", CARD)
    write(root / "papers" / "toy" / "config.py", CONFIG)
    write(root / "papers" / "toy" / "experiment.py", EXPERIMENT)
    write(root / "papers" / "toy" / "doubling.py", "def doubled(x: float) -> float:\n    return 2 * x\n")
    for profile, seeds, requests in (("smoke", 3, 60), ("default", 5, 100), ("cuda", 2, 60)):
        text = PROFILE.format(seeds=seeds, requests=requests)
        write(root / "conf" / "paper" / "toy" / f"{profile}.yaml", text)
    write(root / "conf" / "config.yaml", (REPOSITORY / "conf" / "config.yaml").read_text())
    for launcher in (REPOSITORY / "conf" / "launcher").glob("*.yaml"):
        write(root / "conf" / "launcher" / launcher.name, launcher.read_text())
    write(root / "requirements.lock", "numpy==2\n")
    write(root / "notebooks" / "toy.ipynb", json.dumps(notebook()))
    return root


def notebook() -> dict[str, object]:
    """The toy's notebook, as nbformat 4.5 keeps it."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell{i}",
            "metadata": {"tags": [tag] if tag else []},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for i, (tag, source) in enumerate(NOTEBOOK)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def environment(root: Path, **more: str) -> dict[str, str]:
    """The environment in which commands work on the project in `root`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PAPERLAB_", "MLFLOW_"))}
    kept.pop("DEBUG", None)
    path = os.pathsep.join([str(root), str(REPOSITORY)])
    return {**kept, "PAPERLAB_ROOT": str(root), "PYTHONPATH": path, **more}


def start(root: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    """`python -m common.lab <arguments>` (or `common.lab.bare`) on the project, in a process group of its own."""
    module = ["common.lab"]
    if arguments[0] == "bare":
        module, arguments = ["common.lab.bare"], arguments[1:]
    return subprocess.Popen(
        [sys.executable, "-m", *module, *arguments],
        cwd=root,
        env=environment(root, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lab(root: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """The same, and wait for its end."""
    with start(root, *arguments, **more) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
