"""What else turns a network into an executable: tracing one sample, scripting, and graph breaks."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papers.dycl.backends import export, onnxruntime_call
from papers.dycl.loading import flat

Run = Callable[[Tensor], Any]


@contextmanager
def silent() -> Iterator[None]:
    """Within the block nothing of this process, nor of its libraries, reaches standard output and error."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)


class FlatOutputs(nn.Module):
    """A network whose outputs, numbers and lists among them, come as one tensor, as tracers demand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1).float() for part in _parts(self.network(*inputs))])


def _parts(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _parts(item)]
    return [value if isinstance(value, Tensor) else torch.tensor(float(value))]


def trace_onnx(network: nn.Module, sample: Tensor, threads: int = 1) -> Run:
    """torch.onnx.export of one sample's path, run by ONNX Runtime; a function of arrays."""
    model = export(FlatOutputs(network).eval(), (sample,), ["v0"], ["w0"])
    return onnxruntime_call(model, [""], threads)


def trace_torch(network: nn.Module, sample: Tensor) -> Run:
    """torch.jit.trace of one sample's path; a function of tensors."""
    import warnings

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(FlatOutputs(network).eval(), (sample,), check_trace=False)


def script_torch(network: nn.Module, sample: Tensor) -> Run:
    """torch.jit.script, which compiles a subset of Python with its control flow; raises where it can't."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network)


def script_onnx(network: nn.Module, sample: Tensor) -> Run:
    """The scripted network exported to ONNX, where its control flow becomes If and Loop; raises where it can't."""
    import io
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network)
        torch.onnx.export(
            scripted, (sample,), buffer, dynamo=False, opset_version=17, input_names=["v0"],  # type: ignore[arg-type]
        )  # fmt: skip
    call = onnxruntime_call(buffer.getvalue(), [""])
    return lambda x: call(x.numpy())


def graph_breaks(network: nn.Module, sample: Tensor) -> Run:
    """torch.compile with graph breaks; its capture alone (back end "eager"), for it is judged by its answers here."""
    import logging

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it tells of every break
    torch._dynamo.reset()
    return torch.compile(network, backend="eager", dynamic=False)


def share_equal(run: Run, inputs: Sequence[Any], wanted: Sequence[list[float]], tolerance: float) -> float:
    """The share of inputs on which a method gives the wanted numbers."""
    return float(
        np.mean([equal(flat(run(x)), want, tolerance) for x, want in zip(inputs, wanted, strict=True)])
    )


def equal(found: list[float], wanted: list[float], tolerance: float) -> bool:
    """Same length, and no number further off than the tolerance times max(1, its size)."""
    if len(found) != len(wanted):
        return False
    a, b = np.asarray(found), np.asarray(wanted)
    return bool(np.all(np.abs(a - b) <= tolerance * np.maximum(1.0, np.abs(b))))
