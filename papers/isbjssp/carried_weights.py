"""Weights of a policy as JSON with their provenance, for runs that are too short to train one.

python -m papers.isbjssp.carried_weights      # trains seed 0 of profile default again and writes the file
"""

import base64
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from papers.isbjssp.training import Lessons, Trained

FILE = Path(__file__).with_name("carried_weights.json")


def to_json(made: Trained, lessons: Lessons, seed: int, seconds: float, code: str) -> str:
    """Weights (float32, base64) with the seed, the lessons, the curve and how long it took."""
    weights = {
        name: {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}
        for name, array in made.weights.items()
    }
    provenance = {"seed": seed, "lessons": asdict(lessons), "seconds": round(seconds, 1), "code": code}
    known = {"decisions": made.decisions, "curve": [round(value, 4) for value in made.curve]}
    return json.dumps({"provenance": {**provenance, **known}, "weights": weights}, indent=1) + "\n"


def from_json(text: str) -> tuple[Trained, dict[str, Any]]:
    """What `to_json` wrote: the policy and its provenance."""
    content = json.loads(text)
    weights: dict[str, np.ndarray] = {}
    for name, one in content["weights"].items():
        flat = np.frombuffer(base64.b64decode(one["float32"]), dtype=np.float32)
        weights[name] = flat.reshape(one["shape"]).copy()
    known = content["provenance"]
    return Trained(weights, tuple(known["curve"]), known["decisions"]), known


@cache
def carried() -> tuple[Trained, dict[str, Any]]:
    """The carried policy. FileNotFoundError where there is none."""
    return from_json(FILE.read_text(encoding="utf-8"))


def main() -> None:
    """Train seed 0 as profile default does, and write the file."""
    import time

    from common.lab.closure import digest_of, module_closure
    from common.lab.project import Project
    from papers.isbjssp.config import Config
    from papers.isbjssp.lessons import lessons_of, train_one

    torch.set_num_threads(1)
    lessons, begun = lessons_of(Config()), time.perf_counter()
    made = train_one((lessons, 0))
    files = module_closure(Project.current(), "papers.isbjssp.training")
    sources = {name: path for name, path in files.items() if path.suffix == ".py"}
    FILE.write_text(to_json(made, lessons, 0, time.perf_counter() - begun, digest_of(sources)))


if __name__ == "__main__":
    main()
