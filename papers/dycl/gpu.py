"""Sub-networks as CUDA graphs under the same host program; on a CPU the same code calls the modules directly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from common.lab.runtime import Observations, Runtime
from common.models.dynamic import zoo
from papers.dycl.compiler import compile_network, samples
from papers.dycl.config import Config
from papers.dycl.inputs import drawn
from papers.dycl.subnetworks import Seen, SubNetwork, as_tensor
from papers.dycl.timing import latencies, torch_threads


def on_gpu(config: Config, lab: Runtime) -> Observations:
    """Latency of eager mode over that of the host program with captured sub-networks; outputs are compared first."""
    seen = Observations()
    for seed in lab.seeds:
        data = drawn(config, lab, seed)
        for name in lab.progress(config.networks, f"networks, seed {seed}"):
            calibration, inputs = data[zoo.recipe(name).reads]
            state = int(lab.rng(seed, "weights", name).integers(2**31))
            width = zoo.recipe(name).width * config.wider // config.narrower
            network = zoo.build(name, torch.Generator().manual_seed(state), calibration, width)
            forward = on_device(network, calibration, lab.device, captured=config.compile)
            rows = [inputs[i : i + 1].to(lab.device) for i in range(config.timed_inputs)]
            with torch_threads(1):
                found = latencies(
                    {"eager": timed_on(network, lab.device), "dycl": timed_on(forward, lab.device)},
                    {"eager": rows, "dycl": rows},
                    config.rounds,
                )
                worst = max(_difference(network(row), forward(row)) for row in rows[:20])
            seen.add("gpu_difference", worst, seed, network=name)
            for system, seconds in found.items():
                seen.add("gpu_latency_ms", 1e3 * float(np.mean(seconds)), seed, network=name, system=system)
            seen.add(
                "gpu_speedup", float(np.mean(found["eager"]) / np.mean(found["dycl"])), seed, network=name
            )
    return seen


def on_device(
    network: nn.Module, calibration: torch.Tensor, device: str, captured: bool = True
) -> Callable[[torch.Tensor], Any]:
    """The host program over a network's sub-networks on a device; the network itself moves there too."""
    compiled = compile_network(network, samples(calibration))
    network.to(device)
    calls: list[Callable[..., Any]] = []
    for recorder in compiled.recorders:
        assert recorder.seen is not None
        recorder.network.to(device)
        calls.append(capture(recorder.network, recorder.seen, device if captured else "cpu"))
    return compiled.forward(calls)


def capture(network: SubNetwork, seen: Seen, device: str) -> Callable[..., Any]:
    """A sub-network as a CUDA graph with fixed places for its inputs. On a CPU the module itself."""
    single = network.arity[1] == 1
    if not device.startswith("cuda"):

        def plain(*values: Any) -> Any:
            outputs = network(*(as_tensor(value) for value in values))
            return outputs[0] if single else outputs

        return plain
    if seen.varying:
        raise ValueError(f"{network.place}: a CUDA graph needs inputs of one shape")
    places = [value.detach().clone().to(device) for value in seen.inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(3):
                network(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = network(*places)

    def replay(*values: Any) -> Any:
        for place, value in zip(places, values, strict=True):
            place.copy_(as_tensor(value))
        graph.replay()
        kept = [output.clone() for output in outputs]
        return kept[0] if single else kept

    return replay


def timed_on(call: Callable[[torch.Tensor], Any], device: str) -> Callable[[torch.Tensor], Any]:
    """The call with the device's work finished before it returns."""

    def whole(x: torch.Tensor) -> Any:
        found = call(x)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return found

    return whole


def _difference(one: Any, other: Any) -> float:
    if isinstance(one, (tuple, list)):
        if len(one) != len(other):
            return float("1e9")
        return max([_difference(a, b) for a, b in zip(one, other, strict=True)], default=0.0)
    if isinstance(one, torch.Tensor):
        return float((one - other).abs().max())
    return abs(float(one) - float(other))
