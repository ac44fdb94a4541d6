"""Run an experiment where only torch and numpy exist, such as a bare GPU machine.

    python -m common.lab.bare <slug> config.json observations.json

`make config PAPER=<slug> PROFILE=cuda` writes the config.json; `make record PAPER=<slug> FROM=observations.json` judges
and records what came out, with the machine it ran on.
"""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from common.lab.closure import sources_digest
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.machine import describe, now, peak_rss_bytes
from common.lab.project import Project
from common.lab.runtime import Observations, Runtime
from common.lab.surroundings import settle
from common.lab.typed import build


def run(project: Project, slug: str, source: Path, target: Path) -> None:
    """Run the config in `source` and write observations and provenance to `target`, whole or not at all."""
    try:
        given = json.loads(source.read_text(encoding="utf-8"))
        settings, seeds, profile = given["config"], given["seeds"], given["profile"]
    except OSError as error:
        raise LabError(f"{source}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{source}: no config as `make config` writes it: {error!r}") from error
    if given.get("paper") != slug:
        raise LabError(f"{source}: is a config of {given.get('paper')!r}, not of {slug!r}")
    experiment = project.experiment(slug)
    config = build(experiment.config, settings, f"{source}: config")
    try:
        experiment.check(config)
    except (ValueError, KeyError) as error:
        raise LabError(f"{source}: config: {error}") from error
    device = "cuda" if profile == "cuda" else "cpu"
    check_device(device)
    kept: dict[Hashable, Any] = {}
    first = Runtime(seeds, device, progress_lines, kept=kept)
    seen, measured = observe(project, slug, experiment.run, config, first)
    under = {}
    for name, arm in given.get("arms", {}).items():
        if not set(arm["metrics"]) & set(seen.metrics):
            continue  # its claims are not run here, so there is nothing to compare
        changed = build(experiment.config, arm["config"], f"{source}: arms.{name}.config")
        runtime = Runtime(arm["seeds"], device, progress_lines, wanted=arm["metrics"], kept=kept)
        under[name] = json.loads(experiment.run(changed, runtime).to_json())
    content = {**given, "measured": measured, "observations": json.loads(seen.to_json()), "under": under}
    write_atomically(target, json.dumps(content, indent=1, allow_nan=False) + "\n")


def observe(
    project: Project, slug: str, experiment: Callable[[Any, Any], Any], config: Any, runtime: Runtime
) -> tuple[Observations, dict[str, Any]]:
    """Run an experiment; what it saw, and the part of its provenance that only the run knows."""
    sources, started, clock = sources_digest(project, slug), now(), time.perf_counter()
    seen = experiment(config, runtime)
    if not isinstance(seen, Observations):
        raise LabError(f"papers/{slug}/experiment.py: run() returned {type(seen).__name__}, not Observations")
    return seen, {
        "sources": sources,
        "machine": describe(runtime.device),
        "python": platform.python_version(),
        "data": dict(sorted(runtime.data_used.items())),
        "started": started,
        "seconds": round(time.perf_counter() - clock, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def check_device(device: str) -> None:
    """LabError where a GPU is needed and there is none."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise LabError(
            "PROFILE=cuda needs a GPU and torch sees none here; PROFILE=smoke, default and full run without one "
            "(claims that need a GPU are then `not run`)"
        )


def progress_lines(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    """Progress for a terminal without anything installed: one line, overwritten."""
    clock = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        print(
            f"\r{label}: {done}/{total or '?'}, {time.perf_counter() - clock:.0f} s", end="", file=sys.stderr
        )
    print(file=sys.stderr)


def main(arguments: list[str]) -> int:
    """The command line; 2 for a wrong call, 1 for an error in one line (DEBUG=1 shows the trace)."""
    if len(arguments) != 3:
        print("usage: python -m common.lab.bare <slug> config.json observations.json", file=sys.stderr)
        return 2
    slug, source, target = arguments
    try:
        run(Project.current(), slug, Path(source), Path(target))
    except Exception as error:
        if os.environ.get("DEBUG"):
            traceback.print_exc()
        line = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    settle()
    sys.exit(main(sys.argv[1:]))
