"""What the claims of DyCL read: nine networks compiled, compared with eager mode on every input, and timed."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.lab.runtime import Observations, Runtime
from common.models.dynamic import zoo
from papers.dycl.config import Config
from papers.dycl.inputs import drawn


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    if lab.device.startswith("cuda"):
        from papers.dycl.gpu import on_gpu

        return on_gpu(config, lab)
    seen = Observations()
    with tempfile.TemporaryDirectory(prefix="dycl-") as folder:
        verified(config, lab, Path(folder), seen)
        if lab.wants("speedup", "least_speedup", "mean_speedup", "overhead_of_cutting"):
            timed(config, lab, Path(folder), seen)
    return seen


def verified(config: Config, lab: Runtime, folder: Path, seen: Observations) -> None:
    """Compile every network and compare it with eager mode, two processes at a time."""
    from papers.dycl.compiler import Options
    from papers.dycl.verification import Task, verify

    correct = lab.wants("correct_share")
    timing = lab.wants("speedup", "least_speedup", "mean_speedup", "overhead_of_cutting") and config.compile
    trace, backends = lab.wants("trace_wrong_share", "trace_right_share"), lab.wants("backends_right_share")
    everything = lab.wants("everything")  # not in a control's run
    tasks = []
    for seed in lab.seeds:
        data = drawn(config, lab, seed)
        for name in config.networks:
            calibration, inputs = data[zoo.recipe(name).reads]
            first = seed == lab.seeds[0]
            chosen = tuple(config.backends) + (("inductor",) if name in config.inductor else ())
            tasks.append(
                Task(
                    network=name,
                    seed=seed,
                    state=int(lab.rng(seed, "weights", name).integers(2**31)),
                    width=zoo.recipe(name).width * config.wider // config.narrower,
                    calibration=calibration,
                    inputs=inputs,
                    folder=str(folder / f"{name}-{seed}"),
                    options=Options(cut=config.cut, merge=config.merge),
                    one_path=config.one_path,
                    correct=correct,
                    trace=trace,
                    rivals=config.rivals and everything and first,
                    backends=chosen if backends and first else (),
                    ablations=tuple(config.ablations) if everything and first else (),
                    deploy=timing,
                )
            )
    tasks.sort(key=lambda task: not task.backends)  # the longest first
    for rows in lab.map(verify, tasks, "networks"):
        seen.extend(rows)
    summarised(config, lab, seen)


def summarised(config: Config, lab: Runtime, seen: Observations) -> None:
    """What claims read of the comparison, one value a seed."""
    for seed in lab.seeds:
        right = seen.values("right", seed=seed)
        if right:
            seen.add("correct_share", float(np.mean(right)), seed)
        wrong = seen.values("trace_wrong", seed=seed, method="trace to ONNX")
        if wrong:
            seen.add("trace_wrong_share", float(np.mean(wrong)), seed)
            seen.add("trace_right_share", float(np.mean(np.equal(wrong, 0))), seed)
        parts, whole = (sum(seen.values(metric, seed=seed)) for metric in ("regions", "operations"))
        seen.add("regions_per_operation", parts / whole, seed)
    pairs = seen.values("backend_right")
    if pairs:
        seen.add("backends_right_share", float(np.mean(pairs)))


def timed(config: Config, lab: Runtime, folder: Path, seen: Observations) -> None:
    """Latencies, one network after the other with nothing beside them."""
    from common.stats.paired import ratio_of_means
    from papers.dycl import baselines
    from papers.dycl.timing import host_share, latencies, torch_threads

    for seed in lab.seeds:
        data = drawn(config, lab, seed)
        for name in lab.progress(config.networks, f"latencies, seed {seed}"):
            calibration, inputs = data[zoo.recipe(name).reads]
            place = folder / f"{name}-{seed}"
            network: nn.Module = torch.load(place / "network.pt", weights_only=False)
            rows = [inputs[i : i + 1] for i in range(min(config.timed_inputs, len(inputs)))]
            arrays = [row.numpy() for row in rows]
            at: dict[str, Any] = {"network": name}
            if lab.wants("speedup", "least_speedup", "mean_speedup"):
                more = lab.wants("everything") and seed == lab.seeds[0]
                for threads in config.threads if more else config.threads[:1]:
                    systems: dict[str, Callable[[Any], Any]] = {"eager": network}
                    if config.compile:
                        systems["dycl"], build, calls = deployed(place, threads)
                    else:
                        systems["dycl"] = rewritten_only(network, calibration)
                    given: dict[str, Sequence[Any]] = {
                        "eager": rows,
                        "dycl": arrays if config.compile else rows,
                    }
                    with torch_threads(threads):
                        found = latencies(systems, given, config.rounds)
                        if config.compile and threads == 1:
                            seen.add("host_share", host_share(build, calls, arrays), seed, **at)
                    ratio = ratio_of_means(found["eager"], found["dycl"])
                    for system, seconds in found.items():
                        seen.add(
                            "latency_ms",
                            1e3 * float(np.mean(seconds)),
                            seed,
                            system=system,
                            threads=threads,
                            **at,
                        )
                    judged = threads == config.threads[0]
                    seen.add(
                        "speedup" if judged else "more_threads", ratio.value, seed, threads=threads, **at
                    )
                    seen.add("speedup_low", ratio.low, seed, threads=threads, **at)
                    seen.add("speedup_high", ratio.high, seed, threads=threads, **at)
            if config.compile and lab.wants("overhead_of_cutting"):
                whole = {"trace": baselines.trace_onnx(network, rows[0]), "dycl": deployed(place, 1)[0]}
                traced = arrays[:1] * len(arrays)  # the sample itself: its path is the trace's
                with torch_threads(1):
                    found = latencies(whole, dict.fromkeys(whole, traced), config.rounds)
                seen.add("over_trace", float(np.mean(found["dycl"]) / np.mean(found["trace"])), seed, **at)
            if seed == lab.seeds[0] and config.compile and lab.wants("everything"):
                for part in config.ablations:
                    pair = {"dycl": deployed(place, 1)[0], part: deployed(place / part, 1)[0]}
                    with torch_threads(1):
                        found = latencies(pair, dict.fromkeys(pair, arrays), 1)
                    ratio = ratio_of_means(found[part], found["dycl"])
                    seen.add("slower_without", ratio.value, optimisation=part, **at)
            shutil.rmtree(place, ignore_errors=True) if config.compile else None
        fastest = [seen.values("speedup", seed=seed, network=name) for name in config.networks]
        if any(fastest):
            seen.add("least_speedup", min(min(ratios) for ratios in fastest), seed)
            seen.add("mean_speedup", float(np.exp(np.mean(np.log(np.concatenate(fastest))))), seed)
        over = seen.values("over_trace", seed=seed)
        if over:
            seen.add("overhead_of_cutting", float(np.exp(np.mean(np.log(over)))) - 1, seed)


def deployed(
    place: Path, threads: int
) -> tuple[Callable[[Any], Any], Callable[..., Any], list[Callable[..., Any]]]:
    """A saved program: its forward over arrays, its build function and its sub-networks."""
    import json

    from papers.dycl import loading

    spec = importlib.util.spec_from_file_location("generated_program", place / "program.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = json.loads((place / "subnetworks.json").read_text())
    calls = [
        loading.sub_network(place / f"sub_{k:03d}.onnx", known, threads) for k, known in enumerate(kinds)
    ]
    return module.build(calls), module.build, calls


def rewritten_only(network: nn.Module, calibration: Tensor) -> Callable[[Any], Any]:
    """The host program over eager modules: what rewriting alone does to latency."""
    from papers.dycl.compiler import compile_network, samples

    compiled = compile_network(network, samples(calibration))
    return compiled.forward(compiled.calls("eager"))
