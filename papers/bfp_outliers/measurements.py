"""Exactness, bytes, the statistics of keys, and clocks: what the claims read beside perplexities."""

from statistics import median

import torch
from torch import Tensor

from common.lab.runtime import Observations, Runtime
from papers.bfp_outliers.config import BFP12, BFP16, Config
from papers.bfp_outliers.packed_rows import BlockRows

FEW = 2  # seeds that do not pay for processes of their own


def same_model(config: Config, lab: Runtime, window: Tensor, seen: Observations) -> None:
    """Scores and logits of rearranged models, codes of a whole head, and bytes of real caches: no chance in them."""
    metrics = (
        "differing_scores", "differing_scores_pairs", "differing_codes", "bytes_saving",
    )  # fmt: skip
    wanted = tuple(metric for metric in metrics if lab.wants(metric))
    if wanted:
        (found,) = lab.map(_same_model, [(config, window[:, : config.exact_tokens], wanted)], "exactness")
        seen.extend(found)


def _same_model(task: tuple[Config, Tensor, tuple[str, ...]]) -> Observations:
    from papers.bfp_outliers import exactness, ksort
    from papers.bfp_outliers.block_cache import CodedCache, Half, RowCode
    from papers.bfp_outliers.channel_outliers import cached_keys
    from papers.bfp_outliers.settings import order_of, pretrained

    config, tokens, wanted = task
    seen = Observations()
    model = pretrained(config.layers)
    for order, metric in (("ksort", "differing_scores"), ("pairs", "differing_scores_pairs")):
        if metric in wanted:
            rearranged = ksort.fold(model, order_of(model, order), queries=config.sort_queries)
            share, largest = exactness.differing_scores(model, rearranged, tokens)
            seen.add(metric, share)
            seen.add("largest_score_difference", largest, order=order)
    if "differing_codes" in wanted:
        keys = cached_keys(model, tokens)
        share = exactness.differing_codes(keys, order_of(model, "ksort"), BFP12, config.null_block)
        seen.add("differing_codes", share)
    if "bytes_saving" in wanted:
        sizes = {}
        codes: dict[str, RowCode] = {
            "small": BlockRows(config.saving_bits, 32),
            "wide": BlockRows(BFP16, 32),
            "fp16": Half(),
            **{f"bfp12_n{block}": BlockRows(BFP12, block) for block in config.blocks},
        }
        for name, code in codes.items():
            cache = CodedCache(config.layers, code)
            model.model(tokens, past_key_values=cache, use_cache=True)
            sizes[name] = cache.key_bytes
        seen.add("bytes_saving", sizes["wide"] / sizes["small"])
        for name, size in sizes.items():
            seen.add("key_bytes_a_token", size / tokens.shape[1], format=name)
    return seen


def key_statistics(config: Config, lab: Runtime, first: Tensor, second: Tensor, seen: Observations) -> None:
    """Where the variance of log |k| lies, and whether channels that are large on one text are so on another.

    first, second: a window of each text for every seed, (seeds, context).
    """
    half = -(-len(lab.seeds) // 2)
    parts = (slice(0, half), slice(half, None)) if len(lab.seeds) > FEW else (slice(None),)
    tasks = [
        (config, lab.seeds[part], first[part, : config.key_tokens], second[part, : config.key_tokens])
        for part in parts
    ]
    for found in lab.map(_key_statistics, tasks, "keys"):
        seen.extend(found)


def _key_statistics(task: tuple[Config, tuple[int, ...], Tensor, Tensor]) -> Observations:
    from papers.bfp_outliers.channel_outliers import (
        cached_keys,
        rank_correlation,
        shuffle_channels,
        variance_shares,
    )
    from papers.bfp_outliers.ksort import row_norms
    from papers.bfp_outliers.settings import pretrained

    config, seeds, first, second = task
    model = pretrained(config.layers)
    seen = Observations()
    for seed, one, other in zip(seeds, first.split(1), second.split(1), strict=True):
        keys = [cached_keys(model, text) for text in (one, other)]
        if config.shuffle:
            generator = torch.Generator().manual_seed(seed)
            keys = [shuffle_channels(found, generator) for found in keys]
        shares = variance_shares(keys[0])
        seen.add("key_tokens", config.key_tokens, seed)
        seen.add("channel_share", shares.channel, seed)
        seen.add("token_share", shares.token, seed)
        sizes = [found.abs().mean(dim=2) for found in keys]
        seen.add("rank_correlation", float(rank_correlation(*sizes).mean()), seed)
        seen.add("norm_correlation", float(rank_correlation(row_norms(model), sizes[0]).mean()), seed)
    return seen


def errors_by_order(
    config: Config, lab: Runtime, window: Tensor, calibration: Tensor, seen: Observations
) -> None:
    """Error of keys and divergence of attention, of the same exact keys stored in each order; no claim reads them."""
    (found,) = lab.map(_errors_by_order, [(config, window, calibration)], "errors by order")
    seen.extend(found)


def _errors_by_order(task: tuple[Config, Tensor, Tensor]) -> Observations:
    from papers.bfp_outliers.attention_error import errors, queries_and_keys
    from papers.bfp_outliers.settings import ORDERS, order_of, pretrained

    config, window, calibration = task
    model = pretrained(config.layers)
    queries, keys = queries_and_keys(model, window)
    seen = Observations()
    for order in ORDERS:
        found = errors(queries, keys, order_of(model, order, calibration), BlockRows(BFP12, 32))
        seen.add("key_error", found.keys, order=order)
        seen.add("attention_divergence", found.attention, order=order)
    return seen


def decode_steps(config: Config, lab: Runtime, seen: Observations) -> None:
    """Seconds of a decode step: transformers' own model, rearranged ones, and keys rearranged as they are read."""
    (found,) = lab.map(_decode_steps, [(config, lab.seeds)], "decode steps")
    seen.extend(found)


def _decode_steps(task: tuple[Config, tuple[int, ...]]) -> Observations:
    from transformers.cache_utils import DynamicCache

    from papers.bfp_outliers import ksort
    from papers.bfp_outliers.decode_latency import gathered_cache, step_seconds
    from papers.bfp_outliers.settings import order_of, pretrained

    config, seeds = task
    model = pretrained(config.layers)
    order = order_of(model, "ksort")
    systems = {"unsorted": (model, DynamicCache), "gathered": (model, lambda: gathered_cache(order))}
    if not config.gather:
        for name in ("ksort", "pairs"):
            systems[name] = (ksort.fold(model, order_of(model, name)), DynamicCache)
    seconds = step_seconds(systems, config.decode_context, config.rounds * len(seeds))  # type: ignore[arg-type]
    seen = Observations()
    for index, seed in enumerate(seeds):
        mine = slice(index * config.rounds, (index + 1) * config.rounds)
        for name, series in seconds.items():
            ratio = median(a / b for a, b in zip(series[mine], seconds["unsorted"][mine], strict=True))
            seen.add("step_ms", 1e3 * median(series[mine]), seed, system=name)
            seen.add("step_over_unsorted", ratio, seed, system=name)
            if name == ("gathered" if config.gather else "ksort"):
                seen.add("step_time_ratio", ratio, seed)
    return seen


def long_contexts(config: Config, lab: Runtime, seen: Observations) -> None:
    """Attention of one token with 128 channels a head over long packed caches, on this runtime's device."""
    from papers.bfp_outliers.packed_attention import Shape, measure, time_ratio

    shape = Shape(config.long_heads, config.long_heads)
    for seed in lab.seeds if config.long_tokens else ():
        for tokens in config.long_tokens:
            generator = lab.torch_generator(seed, "long", str(tokens))
            measured = measure(shape, tokens, BlockRows(BFP12, 32), config.long_rounds, generator)
            for way, series in measured.seconds.items():
                seen.add("long_ms", 1e3 * median(series), seed, way=way, tokens=tokens)
            for name, size in measured.key_bytes.items():
                seen.add("long_key_bytes", size, seed, format=name, tokens=tokens)
        seen.add(
            "long_time_ratio",
            time_ratio(measured, "gathered" if config.gather else "sorted", "original"),
            seed,
        )
