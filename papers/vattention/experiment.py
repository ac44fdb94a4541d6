"""What the claims of vAttention read: real mappings and kernels on this CPU, counts and clocks at the paper's scale."""

from pathlib import Path

import numpy as np

from common.hardware.operators import read_table
from common.lab.runtime import Observations, Runtime
from common.serving.workload import Lengths, poisson, read_trace
from papers.vattention.config import SMALL_PAGE, Config
from papers.vattention.deployments import DEPLOYMENTS, latency_of
from papers.vattention.driver_calls import LARGE_PAGE, call_seconds
from papers.vattention.fragmentation import occupancy, static_batch
from papers.vattention.long_prompts import attention_share, serve
from papers.vattention.overlap import decode_series, prefill_ratio

RATIOS = Path(__file__).parent / "paged_over_contiguous.csv"


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if config.simulate:
        if lab.wants("spike_removed_ms", "async_excess_share"):
            overlap_at_scale(config, lab, seen)
        if lab.wants("prefill_gain"):
            prefills_at_scale(config, seen)
        batches(config, lab, seen)
        long_traces(config, lab, seen)
    if config.layers:
        from papers.vattention import measurements  # brings torch, which the simulations do without

        measurements.run(config, lab, seen)
    if lab.device.startswith("cuda") and lab.wants("gpu_decode_gain", "gpu_prefill_gain"):
        on_gpu(config, lab, seen)
    return seen


def overlap_at_scale(config: Config, lab: Runtime, seen: Observations) -> None:
    """Decode-only iterations of Llama-3-8B with 2 MB pages, batch 64: the authors' run_figure_11.sh."""
    deployment = DEPLOYMENTS["llama-3-8b"]
    layout = deployment.layout(64, 32768, LARGE_PAGE)
    path = lab.data("vattention-sync-async")
    for seed in lab.seeds:
        rng = lab.rng(seed, "overlap")
        if (
            path is None
        ):  # like the trace: prompts within 1,600 to 2,000 tokens, outputs 500 to 1,000 (its SOURCE.md)
            lengths = Lengths(
                rng.integers(1600, 2001, config.requests), rng.integers(500, 1001, config.requests)
            )
        else:
            lengths = read_trace(path).sample(rng, config.requests)
        excess = {}
        for system in ("sync", "async"):
            mode = system if config.overlap or system == "sync" else "wait"
            blocks = deployment.kv_bytes() // layout.block_bytes
            series = decode_series(
                layout, blocks, lengths, latency_of("llama-3-8b"), call_seconds(LARGE_PAGE),
                config.iterations, mode,
            )  # fmt: skip
            excess[system] = series.added
            if seed == lab.seeds[0]:
                for index, (compute, added) in enumerate(zip(series.compute, series.added, strict=True)):
                    seen.add("iteration_ms", 1e3 * (compute + added), seed, system=system, iteration=index)
        seen.add("spike_removed_ms", 1e3 * (excess["sync"].max() - excess["async"].max()), seed)
        seen.add("spike_ms", 1e3 * excess["sync"].max(), seed, system="sync")
        seen.add("spike_ms", 1e3 * excess["async"].max(), seed, system="async")
        seen.add("async_excess_share", excess["async"].sum() / max(excess["sync"].sum(), 1e-12), seed)


def prefills_at_scale(config: Config, seen: Observations) -> None:
    """Prefill of Llama-3-8B behind a request of the same length, with pages of 64 KB; the claim reads the mean."""
    layout = DEPLOYMENTS["llama-3-8b"].layout(2, 200_000, SMALL_PAGE)
    gains = []
    for prompt in config.prefills:
        after = {
            system: prefill_ratio(
                layout,
                2 * layout.pages_per_slot,
                prompt,
                latency_of("llama-3-8b"),
                call_seconds(SMALL_PAGE),
                kept,
            )
            for system, kept in (("eager", False), ("deferred", config.deferred))
        }
        for system, ratio in after.items():
            seen.add("prefill_over_unmapped", ratio, prompt=prompt, system=system)
        gains.append(after["eager"] / after["deferred"])
    seen.add("prefill_gain", float(np.mean(gains)))


def batches(config: Config, lab: Runtime, seen: Observations) -> None:
    """The largest batch of every model by page size, on chat-like lengths."""
    for model in config.models:
        metric = "batch_gain_" + model.replace("-", "_")
        if not lab.wants(metric):
            continue
        deployment = DEPLOYMENTS[model]
        for seed in lab.seeds:
            lengths = chat_lengths(lab.rng(seed, "fragmentation"), 4 * config.requests, config.aligned)
            largest: dict[int, int] = {}
            for page in config.pages:
                for sliced in (False, True) if page == LARGE_PAGE else (False,):
                    layout = deployment.layout(512, 32768, page, sliced=sliced)
                    found = occupancy(layout, deployment.kv_bytes(), lengths, config.iterations)
                    at: dict[str, str | int] = {"model": model, "page": page, "sliced": int(sliced)}
                    seen.add("largest_batch", found.largest, seed, **at)
                    seen.add("waste", found.waste, seed, **at)
                    if not sliced:
                        largest[page] = found.largest
                    reserved = static_batch(layout, deployment.kv_bytes())
            seen.add("largest_batch", reserved, seed, model=model, page=0, sliced=0)
            seen.add(metric, largest[SMALL_PAGE] / largest[LARGE_PAGE], seed)


def chat_lengths(rng: np.random.Generator, n: int, aligned: bool) -> Lengths:
    """Chat lengths by the brief's fit to openchat_sharegpt4: in ~ lognormal(ln 1730, 0.93), out ~ (ln 415, 0.5).

    The medians are those of Sarathi-Serve (OSDI 2024), Table 2. aligned: end at a multiple of 2,048 tokens.
    """
    prompts = np.clip(rng.lognormal(np.log(1730), 0.93, n), 8, 24_000).astype(np.int64)
    outputs = np.clip(rng.lognormal(np.log(415), 0.5, n), 8, 8_000).astype(np.int64)
    if aligned:
        return Lengths(-(-prompts // 2048) * 2048 - 1, np.ones_like(outputs))
    return Lengths(prompts, outputs)


def measured_ratio() -> float:
    """Paged over contiguous prefill attention at the longest context measured on a CPU: gathered, then the same kernel.

    The blocked kernel's ratio in the same table is smaller, little more than noise; so would be every gain.
    """
    rows = [row for row in read_table(RATIOS) if int(row["block_tokens"]) == 16]
    return float(max(rows, key=lambda row: int(row["context"]))["gathered"])


def long_traces(config: Config, lab: Runtime, seen: Observations) -> None:
    """Requests per second offline, and median latency online, over those of a paged prefill kernel."""
    ratio = config.kernel_ratio or measured_ratio()
    for model in ("llama-3-8b", "yi-34b"):
        slug = model.replace("-", "_")
        if model not in config.models or not lab.wants(f"offline_gain_{slug}", f"online_cut_{slug}"):
            continue
        latency, deployment = latency_of(model), DEPLOYMENTS[model]
        kv_tokens = deployment.kv_bytes() // (
            deployment.layout(1, 1, SMALL_PAGE).token_bytes * 2 * latency.shape.layers
        )
        for prompt in (1024, 8192, 32768, 131072):
            seen.add("attention_share", attention_share(latency, prompt), model=model, prompt=prompt)
        for seed in lab.seeds:
            rng = lab.rng(seed, "long", model)
            offline = long_lengths(
                lab, rng, "vattention-arxiv-offline", (64_000, 192_000), config.long_requests
            )
            at_once = np.zeros(len(offline.prompt))
            for tried in dict.fromkeys((ratio, 1.1, 1.2, 1.3, 1.4)):
                base, paged = (serve(latency, r, kv_tokens, offline, at_once)[0] for r in (1.0, tried))
                seen.add("offline_gain", base / paged, seed, model=model, ratio=tried)
                if tried == ratio:
                    seen.add(f"offline_gain_{slug}", base / paged, seed)
            online = long_lengths(lab, rng, "vattention-arxiv-online", (22_000, 45_000), config.long_requests)
            every, _ = serve(latency, ratio, kv_tokens, online, np.zeros(len(online.prompt)))
            arrivals = poisson(rng, len(online.prompt)) / (ONLINE_LOAD * every)
            base, paged = (serve(latency, r, kv_tokens, online, arrivals)[1] for r in (1.0, ratio))
            seen.add(f"online_cut_{slug}", 1.0 - base / paged, seed)


ONLINE_LOAD = (
    0.9  # arrivals over what the paged kernel's server can take: near capacity, as in the paper (chosen)
)


def long_lengths(
    lab: Runtime, rng: np.random.Generator, name: str, bounds: tuple[int, int], n: int
) -> Lengths:
    """Of the authors' trace where it can be had, else uniform prompts within its bounds and its mean output."""
    path = lab.data(name)
    if path is not None:
        return read_trace(path).sample(rng, n)
    return Lengths(rng.integers(*bounds, n), rng.integers(100, 700, n))


def on_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """Paged over contiguous FlashAttention-2 at the shapes of Llama-3-8B on one of two workers."""
    from papers.vattention.gpu_kernels import BLOCK_TOKENS, paged_over_contiguous

    for seed in lab.seeds:
        for metric, batch, new, context in (
            ("gpu_decode_gain", 16, 1, 16384), ("gpu_prefill_gain", 1, 32768, 32768),
        ):  # fmt: skip
            block = BLOCK_TOKENS if config.block_tokens else context
            seen.add(metric, paged_over_contiguous(batch, new, context, 16, 4, 128, block), seed)
