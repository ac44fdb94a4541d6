"""The whole of DyCL: from a network and a few samples to a host program and sub-networks that run without torch."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from papers.dycl import backends
from papers.dycl.freezing import frozen
from papers.dycl.host import host_text
from papers.dycl.liveness import with_interfaces, without_dead
from papers.dycl.merging import merged
from papers.dycl.program import Program
from papers.dycl.recording import Decisions, built, record
from papers.dycl.rewriting import rewrite
from papers.dycl.subnetworks import Recorder, SubNetwork, eager, numbered, shared

SAMPLES = 20  # that the compiler sees
LOADER = Path(__file__).with_name("loading.py")


@dataclass(frozen=True)
class Options:
    """What of DyCL is on: the optimisations a to e of its graph, and the cutting itself."""

    cut: bool = True  # False: every branch as the first sample takes it, as a trace has it
    fold: bool = True  # a: branches that constants decide
    prune: bool = True  # b: dead code and dead outputs, by liveness
    merge: bool = True  # c: chains of tensor operations
    fuse_conditions: bool = True  # d: conditions join the sub-network before them
    share: bool = True  # e: equal sub-networks


@dataclass
class Compiled:
    """A network after DyCL. `seconds` holds what rewriting, recording and exporting took."""

    program: Program
    networks: list[SubNetwork]
    recorders: list[Recorder]
    text: str
    traced: str
    unreached: int  # sub-networks that only forced decisions reached
    seconds: dict[str, float]
    models: list[bytes] = field(default_factory=list)

    @property
    def scalars(self) -> list[list[str]]:
        """For each sub-network the numpy kind of inputs that may be host numbers, '' for tensors with dimensions."""
        kinds = []
        for recorder in self.recorders:
            assert recorder.seen is not None
            kinds.append(["" if value.dim() else str(value.numpy().dtype) for value in recorder.seen.inputs])
        return kinds

    def calls(self, backend: str = "onnxruntime", threads: int = 1) -> list[Callable[..., Any]]:
        """The sub-networks through a back end: onnxruntime or openvino (numpy arrays), inductor or eager (tensors)."""
        if backend == "eager":
            return eager(self.networks)
        if backend == "inductor":
            return backends.inductor_calls(self.networks)
        if backend not in ("onnxruntime", "openvino"):
            raise ValueError(f"{backend!r} is none of onnxruntime, openvino, inductor, eager")
        make = backends.onnxruntime_calls if backend == "onnxruntime" else backends.openvino_calls
        return make(self.export(), self.scalars, threads)

    def export(self) -> list[bytes]:
        """The sub-networks as ONNX models, made once."""
        if not self.models:
            start = time.perf_counter()
            for recorder in self.recorders:
                assert recorder.seen is not None
                self.models.append(backends.onnx_bytes(recorder.network, recorder.seen))
            self.seconds["export"] = time.perf_counter() - start
        return self.models

    def forward(self, calls: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
        """The host program over these sub-networks."""
        return built(self.text)["build"](calls)

    def watched(self, calls: Sequence[Callable[..., Any]], path: list[tuple[str, Any]]) -> Callable[..., Any]:
        """The same, appending every decision to `path` (see paths.watched)."""

        def seen(where: str, value: Any) -> None:
            path.append((where, int(value) if not isinstance(value, (bool, np.bool_)) else bool(value)))

        return built(self.traced)["build"](calls, seen, Decisions())

    def save(self, folder: Path) -> Path:
        """Write program.py, traced.py and the models; the folder runs with numpy and onnxruntime alone."""
        folder.mkdir(parents=True, exist_ok=True)
        backends.write(self.export(), folder)
        (folder / "subnetworks.json").write_text(json.dumps(self.scalars))
        loader = LOADER.read_text(encoding="utf-8")
        (folder / "program.py").write_text(f"{loader}\n\n{self.text}{ENDING}", encoding="utf-8")
        (folder / "traced.py").write_text(self.traced, encoding="utf-8")
        return folder


ENDING = '\n\nif __name__ == "__main__":\n    main(build)\n'


def samples(inputs: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The first inputs (n, ...), as compile_network takes them."""
    return [(inputs[i : i + 1],) for i in range(min(SAMPLES, len(inputs)))]


def compile_network(
    network: nn.Module, samples: Sequence[tuple[torch.Tensor, ...]], options: Options | None = None
) -> Compiled:
    """Rewrite a network in eval mode and run the result on samples: tuples of forward's arguments, a batch of one.

    Unsupported names file and line of a construct that can't be rewritten; ValueError for no samples.
    """
    if not samples:
        raise ValueError(
            "compiling needs at least one sample, from which sub-networks learn their inputs' shapes"
        )
    chosen = options or Options()
    start = time.perf_counter()
    program = rewrite(network, chosen.fold, chosen.fuse_conditions)
    if not chosen.cut:
        program = frozen(program, samples[0])
    if chosen.prune:
        program = without_dead(program)
    program = with_interfaces(merged(program, chosen.merge, chosen.fuse_conditions), chosen.prune)
    program, networks = numbered(program)
    recorders = [Recorder(part) for part in networks]
    traced = host_text(program, len(networks), traced=True)
    rewritten = time.perf_counter()
    unreached = record(program, traced, recorders, samples)
    if chosen.share:
        program, recorders = shared(program, recorders)
        traced = host_text(program, len(recorders), traced=True)
    networks = [recorder.network for recorder in recorders]
    text = host_text(program, len(networks))
    seconds = {"rewrite": rewritten - start, "record": time.perf_counter() - rewritten}
    return Compiled(program, networks, recorders, text, traced, unreached, seconds)
