"""Back ends that turn a sub-network without conditions into something fast: ONNX Runtime, inductor, OpenVINO."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from papers.dycl.source import Place, Unsupported
from papers.dycl.subnetworks import Seen, SubNetwork

Call = Callable[..., Any]
CONTROL = {"If", "Loop", "Scan"}  # operators that no sub-network may hold
LOST = ("Converting a tensor to a", "registered as constants in the trace")  # what a tracer freezes


def onnx_bytes(network: SubNetwork, seen: Seen) -> bytes:
    """A sub-network as an ONNX model; inputs v0, v1, ..., outputs w0, w1, ...

    Unsupported where the tracer would freeze a value, and where the model holds a control-flow operator.
    """
    names = [f"v{i}" for i in range(network.arity[0])]
    axes: dict[str, dict[int, str]] = {}
    for place, dimension in sorted(seen.varying):
        axes.setdefault(names[place], {})[dimension] = f"d{place}_{dimension}"
    outputs = [f"w{i}" for i in range(network.arity[1])]
    content = export(network, seen.inputs, names, outputs, network.place, axes)
    held = operators(content) & CONTROL
    if held:
        raise Unsupported(network.place, f"the sub-network holds {', '.join(sorted(held))}")
    return content


def export(
    module: nn.Module, inputs: Sequence[Any], names: list[str], outputs: list[str],
    place: Place | None = None, axes: dict[str, dict[int, str]] | None = None,
) -> bytes:  # fmt: skip
    """Trace a module on these inputs and write it as ONNX (torch's exporter by tracing).

    With a place, a value that the trace freezes is an error there; without one it is what the tracer's user gets.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        torch.onnx.export(
            module, tuple(inputs), buffer, dynamo=False, opset_version=17, input_names=names,  # type: ignore[arg-type]
            output_names=outputs, dynamic_axes=axes or None,
        )  # fmt: skip
    frozen = [str(w.message) for w in caught if any(lost in str(w.message) for lost in LOST)]
    if place is not None and frozen:
        raise Unsupported(
            place, "a module called here turns a tensor into a Python value: " + frozen[0].split(".")[0]
        )
    return buffer.getvalue()


def operators(content: bytes) -> set[str]:
    """The kinds of operators in an ONNX model, those in nested graphs too."""
    import onnx

    found: set[str] = set()

    def look(graph: Any) -> None:
        for node in graph.node:
            found.add(node.op_type)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    look(attribute.g)

    look(onnx.load_from_string(content).graph)
    return found


def onnxruntime_calls(
    models: Sequence[bytes], scalars: Sequence[Sequence[str]], threads: int = 1
) -> list[Call]:
    """Each model as a function of numpy arrays. scalars: the kind of each input that is a host number, else ''."""
    return [onnxruntime_call(model, kinds, threads) for model, kinds in zip(models, scalars, strict=True)]


def onnxruntime_call(model: bytes | str, kinds: Sequence[str], threads: int = 1) -> Call:
    """One model as a function of numpy arrays and host numbers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    known = {given.name for given in session.get_inputs()}
    names = [f"v{i}" for i in range(len(kinds))]
    run = session.run
    if known != set(names) or any(kinds):
        casts = [
            (i, names[i], np.dtype(kind).type if kind else None)
            for i, kind in enumerate(kinds)
            if names[i] in known
        ]

        def feed(values: tuple[Any, ...]) -> dict[str, Any]:
            return {
                key: values[i]
                if cast is None or isinstance(values[i], np.ndarray)
                else np.asarray(cast(values[i]))
                for i, key, cast in casts
            }

    else:

        def feed(values: tuple[Any, ...]) -> dict[str, Any]:
            return dict(zip(names, values))  # noqa: B905

    if len(outputs) == 1:
        return lambda *values: run(outputs, feed(values))[0]
    return lambda *values: run(outputs, feed(values))


def openvino_calls(models: Sequence[bytes], scalars: Sequence[Sequence[str]], threads: int = 1) -> list[Call]:
    """The same through OpenVINO's CPU plug-in, in 32-bit arithmetic."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def call(content: bytes, kinds: Sequence[str]) -> Call:
        request = core.compile_model(
            core.read_model(io.BytesIO(content)), "CPU", settings
        ).create_infer_request()
        known = {name for given in request.model_inputs for name in given.get_names()}
        count = len(request.model_outputs)

        def run(*values: Any) -> Any:
            given = {
                f"v{i}": np.asarray(value, dtype=kinds[i] or None)
                for i, value in enumerate(values)
                if f"v{i}" in known
            }
            found = request.infer(given)
            outputs = [np.array(found[place]) for place in range(count)]
            return outputs[0] if count == 1 else outputs

        return run

    return [call(content, kinds) for content, kinds in zip(models, scalars, strict=True)]


def inductor_calls(networks: Sequence[SubNetwork]) -> list[Call]:
    """Each sub-network through torch.compile as one whole graph; functions of tensors and numbers."""

    from torch._inductor import config

    config.compile_threads = 1  # no pool of processes for a handful of kernels

    def call(network: SubNetwork) -> Call:
        compiled = torch.compile(network, fullgraph=True)

        def run(*values: Any) -> Any:
            outputs = compiled(*values)  # host numbers stay numbers, which inductor makes symbols of
            return outputs[0] if len(outputs) == 1 else outputs

        return run

    return [call(network) for network in networks]


def write(models: Sequence[bytes], folder: Path) -> None:
    """sub_000.onnx, sub_001.onnx, ..."""
    for k, content in enumerate(models):
        (folder / f"sub_{k:03d}.onnx").write_bytes(content)
