"""One network of the zoo, compiled and compared with eager mode on outputs and paths; its rivals on outputs."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.lab.runtime import Observations
from common.models.dynamic import zoo
from papers.dycl import baselines
from papers.dycl.baselines import equal, silent
from papers.dycl.compiler import Compiled, Options, compile_network, samples
from papers.dycl.loading import flat
from papers.dycl.paths import watched
from papers.dycl.program import Region, nodes

TOLERANCE = 1e-4  # relative, for outputs that go through other kernels


@dataclass(frozen=True)
class Task:
    """A network, the data it is calibrated and tested on, and what is wanted of it."""

    network: str
    seed: int
    state: int  # of the weights' generator
    width: int
    calibration: Tensor
    inputs: Tensor
    folder: str
    options: Options
    one_path: bool = False  # only inputs that take the path of the traced sample
    correct: bool = True
    trace: bool = True
    rivals: bool = False  # scripting, graph breaks
    backends: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ()
    deploy: bool = True  # leave files for timing


def verify(task: Task) -> Observations:
    """Build, compile, run in a fresh process, compare; leaves the program's files and the network in the folder."""
    folder = Path(task.folder)
    generator = torch.Generator().manual_seed(task.state)
    network = zoo.build(task.network, generator, task.calibration, task.width)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network, folder / "network.pt")
    seen = Observations()

    def add(metric: str, value: float, **at: str | float) -> None:
        seen.add(metric, value, task.seed, network=task.network, **at)

    compiled = compile_network(network, samples(task.calibration), task.options)
    regions = [node for node in nodes(compiled.program.body) if isinstance(node, Region) and node.index >= 0]
    operations = sum(not op.alias for region in regions for op in region.ops)
    add("operations", operations)
    add("regions", len(regions))
    add("subnetworks", len(compiled.networks))
    add("only_forced", compiled.unreached)
    add("regions_per_operation_of", len(regions) / operations)
    if task.correct or task.deploy:
        compiled.save(folder)
        add("bytes_over_original", _size(folder, "*.onnx") / (folder / "network.pt").stat().st_size)
        for stage, seconds in compiled.seconds.items():
            add("compile_seconds", seconds, stage=stage)
    if not (task.correct or task.trace or task.rivals or task.backends):
        return seen
    wanted, paths = reference(network, task.inputs, compiled)
    common = Counter(json.dumps(path) for path in paths)
    add("paths_seen", len(common))
    for where, share in decision_shares(paths).items():
        add("decision_share", share, where=where)
    if task.correct:
        found = in_a_fresh_process(folder, task.inputs)
        wrong = [not equal(a, b, TOLERANCE) for a, b in zip(found["outputs"], wanted, strict=True)]
        strayed = [a != b for a, b in zip(found["paths"], paths, strict=True)]
        add("wrong_outputs", float(np.mean(wrong)))
        add("wrong_paths", float(np.mean(strayed)))
        add("right", not any(wrong) and not any(strayed) and found["same"] and not found["torch"])
    rows = [task.inputs[i : i + 1] for i in range(len(task.inputs))]
    alike = [paths[i] == paths[0] and _integers(wanted[i]) == _integers(wanted[0]) for i in range(len(rows))]
    kept = [i for i in range(len(rows)) if alike[i] or not task.one_path]
    add("traced_path_share", float(np.mean(alike)))
    tested, answers = [rows[i] for i in kept], [wanted[i] for i in kept]
    with torch.no_grad():
        if task.trace:
            traces: dict[str, tuple[Callable[[nn.Module, Tensor], Any], list[Any]]] = {
                "trace to ONNX": (baselines.trace_onnx, [row.numpy() for row in tested]),
                "torch.jit.trace": (baselines.trace_torch, tested),
            }
            for method, (make, given) in traces.items():
                right = baselines.share_equal(make(network, rows[0]), given, answers, TOLERANCE)
                add("trace_wrong", 1 - right, method=method)
        if task.rivals:
            _rivals(network, tested[:60], answers[:60], add)
        for backend in task.backends:
            _backend(compiled, backend, tested[:60], answers[:60], add)
    for name in task.ablations:
        _ablation(network, task, name, add)
    return seen


def reference(
    network: nn.Module, inputs: Tensor, compiled: Compiled
) -> tuple[list[list[float]], list[list[list[Any]]]]:
    """Outputs and paths of eager mode on each input, seen in the network's own source."""
    outputs, paths = [], []
    with watched(network, compiled.program.sources) as path, torch.inference_mode():
        for i in range(len(inputs)):
            path.clear()
            outputs.append(flat(network(inputs[i : i + 1])))
            paths.append([list(step) for step in path])
    return outputs, paths


def decision_shares(paths: list[list[list[Any]]]) -> dict[str, float]:
    """For each decision that went both ways, by its place in the source: how often it came out true (or as index 0)."""
    outcomes: dict[str, list[bool]] = {}
    for path in paths:
        for where, outcome in path:
            outcomes.setdefault(where, []).append(outcome is True or (outcome == 0 and outcome is not False))
    return {where: float(np.mean(found)) for where, found in outcomes.items() if 0 < np.mean(found) < 1}


def in_a_fresh_process(folder: Path, inputs: Tensor) -> dict[str, Any]:
    """What the saved program says, run by an interpreter that sees neither torch nor this project."""
    np.savez(folder / "inputs.npz", x=inputs.numpy())
    command = [
        sys.executable,
        "-I",
        str(folder / "program.py"),
        str(folder / "inputs.npz"),
        str(folder / "found.json"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if ended.returncode != 0:
        raise RuntimeError(f"the generated program failed: {ended.stderr.strip().splitlines()[-1:]}")
    return json.loads((folder / "found.json").read_text())


def _integers(output: list[float]) -> list[float]:
    """The numbers of an output that are whole: counters and tokens, which a trace freezes too."""
    return [number for number in output if number == int(number)]


def _size(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


def _rivals(
    network: nn.Module, rows: list[Tensor], answers: list[list[float]], add: Callable[..., None]
) -> None:
    """Methods that keep control flow: whether they build, and the share of right answers."""
    methods = {
        "torch.jit.script": baselines.script_torch,
        "script to ONNX If/Loop": baselines.script_onnx,
        "graph breaks": baselines.graph_breaks,
    }
    for method, make in methods.items():
        try:
            with silent():  # the exporter prints the graph that it can't take
                right = baselines.share_equal(make(network, rows[0]), rows, answers, TOLERANCE)
        except Exception:  # a compiler that refuses, in whatever way
            right = 0.0
        add("rival_right", right, method=method)


def _backend(
    compiled: Compiled, backend: str, rows: list[Tensor], answers: list[list[float]], add: Callable[..., None]
) -> None:
    """Sub-networks through one back end, the host program unchanged; nothing where its compiler is missing."""
    try:
        start = time.perf_counter()
        forward = compiled.forward(compiled.calls(backend))
        given = [row if backend == "inductor" else row.numpy() for row in rows]
        forward(given[0])
        seconds = time.perf_counter() - start
    except Exception as error:
        if backend == "inductor" and "compiler" in str(error).lower():
            return
        raise
    add("backend_seconds", seconds, backend=backend)
    add("backend_right", baselines.share_equal(forward, given, answers, TOLERANCE) == 1.0, backend=backend)


def _ablation(network: nn.Module, task: Task, name: str, add: Callable[..., None]) -> None:
    """One optimisation off: what is left in its own folder, for timing."""
    compiled = compile_network(network, samples(task.calibration), replace(task.options, **{name: False}))
    compiled.save(Path(task.folder) / name)
    add("subnetworks_without", len(compiled.networks), optimisation=name)
    outputs = sum(part.arity[1] for part in compiled.networks)
    add("outputs_without", outputs, optimisation=name)
