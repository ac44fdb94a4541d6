"""A setting is an order of channels and a format of keys; what it costs is the perplexity of a real model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from papers.bfp_outliers import ksort
from papers.bfp_outliers.attention_error import over_queries, queries_and_keys
from papers.bfp_outliers.channel_outliers import planted_factors
from papers.bfp_outliers.config import BFP12, BFP16, GAINS, Config
from papers.bfp_outliers.packed_rows import BlockRows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FORMATS = ("fp16", "bfp", "hadamard", "per-channel")
ORDERS = (
    "original",
    "interleaved",
    "ksort",
    "pairs",
    "adjacent",
    "random",
    "foreign",
    "gains",
    "calibrated",
    "weighted",
)


@dataclass(frozen=True)
class Setting:
    """Where a key's channels stand, and in which format the cache stores it."""

    order: str = "original"  # of ORDERS
    draw: int = 0  # of the random order
    bits: int = 4  # of a mantissa with its sign
    block: int = 32  # n, channels that share an exponent
    keys: str = "bfp"  # of FORMATS; hadamard: BFP of rotated keys
    clips: bool = (
        True  # the step of common/quant/shared_exponent.py; False: twice as large, nothing is clipped
    )
    value_bits: int = 0  # mantissa of values in BFP; 0: FP16
    query_bits: int = 0  # the same of queries; 0: as they are
    strength: float = 1.0  # of planted outliers; 1: none
    share: float = 1 / 16  # of the rotary pairs that they are planted in
    equal: bool = False  # all rotary pairs of a head scaled to one norm

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.keys not in FORMATS:
            raise ValueError(
                f"order is one of {', '.join(ORDERS)}, keys one of {', '.join(FORMATS)}; not {self}"
            )

    @property
    def bits_an_element(self) -> float:
        """What a key's element takes, exponents and scales included."""
        if self.keys == "fp16":
            return 16.0
        return 5.0 if self.keys == "per-channel" else self.bits + 8 / self.block


class Task(NamedTuple):
    """A setting on windows of a text, each a tuple of as many tokens, for a model of `layers` blocks."""

    setting: Setting
    windows: tuple[tuple[int, ...], ...]
    layers: int


def compared(config: Config) -> dict[str, tuple[Setting, Setting]]:
    """Metric -> the settings before and after whose perplexities it compares."""
    found = {
        f"gain_n{block}_m{bits}": (
            Setting(bits=bits, block=block, equal=config.equal),
            Setting(config.order, 0, bits, block, equal=config.equal),
        )
        for block, bits in GAINS
    }
    plain = Setting(block=16, equal=config.equal)
    found["gain_pairs_n16_m4"] = (plain, dataclasses.replace(plain, order="pairs"))
    found["gain_over_foreign"] = (Setting(order="foreign"), Setting(order=config.order))
    found["increase_over_bfp16"] = (Setting(bits=BFP16), Setting(order=config.order, bits=config.saving_bits))
    return found


def table_settings(config: Config) -> list[Setting]:
    """What the table of perplexities holds beside the claims' own settings."""
    found = [
        Setting(order=order, bits=bits, block=block)
        for bits in (BFP12, 3)
        for block in config.blocks
        for order in ("original", "ksort")
    ]
    found += [
        Setting(order=order, block=block)
        for order in ("random", "foreign")
        for block in config.blocks
        if block in (32, 16)
    ]
    for strength in config.strengths:
        found += [Setting(order=order, strength=strength) for order in ("original", "ksort")]
    if config.comparisons:
        found += [
            Setting(order=order, block=block) for order in ("calibrated", "weighted") for block in (32, 16)
        ]
        found += [Setting(order=order) for order in ("interleaved", "adjacent", "gains")]
        found += [
            Setting(keys="hadamard"),
            Setting(keys="hadamard", block=64),
            Setting(keys="per-channel"),
            Setting(clips=False),
            Setting(order="ksort", clips=False),
            Setting(order="ksort", value_bits=BFP12),
            Setting(order="ksort", query_bits=BFP16),
        ]
    return found


@lru_cache(maxsize=1)
def pretrained(layers: int) -> "LlamaForCausalLM":
    """SmolLM2-135M, loaded once a process."""
    from common.models.llama import load_smollm2

    return load_smollm2(layers)


def order_of(
    model: "LlamaForCausalLM", name: str, calibration: Tensor | None = None, draw: int = 0
) -> Tensor:
    """An order of ORDERS for this model; draw: which of the random ones. foreign: by the norms of another head.

    The last three are ours: rows times the gains before them; mean |k| on a text; mean |k| over mean |q| on it.
    """
    norms = ksort.row_norms(model)
    if name in ("calibrated", "weighted"):
        if calibration is None:
            raise ValueError(f"the {name} order needs a text")
        queries, keys = queries_and_keys(model, calibration)
        return ksort.ksort(over_queries(queries, keys) if name == "weighted" else keys.abs().mean(dim=(1, 3)))
    made: dict[str, Callable[[], Tensor]] = {
        "original": lambda: ksort.original(norms),
        "interleaved": lambda: ksort.interleaved(norms),
        "ksort": lambda: ksort.ksort(norms),
        "gains": lambda: ksort.ksort(ksort.row_norms(model, gains=True)),
        "pairs": lambda: ksort.pair_sort(norms),
        "adjacent": lambda: ksort.pair_sort(norms, adjacent=True),
        "random": lambda: ksort.shuffled(norms, torch.Generator().manual_seed(draw)),
        "foreign": lambda: ksort.ksort(norms.roll(1, dims=1)),
    }
    return made[name]()


def prepared(
    model: "LlamaForCausalLM", setting: Setting, calibration: Tensor | None = None
) -> "LlamaForCausalLM":
    """The model of a setting: planted or equal pairs, rearranged. All but W_k and W_q is shared with the given one."""
    if setting.equal:
        model = ksort.scale_pairs(model, ksort.equal_pairs(model))
    if setting.strength != 1:
        generator = torch.Generator().manual_seed(1)
        factors = planted_factors(ksort.row_norms(model), setting.strength, setting.share, generator)
        model = ksort.scale_pairs(model, factors)
    if setting.order != "original" or setting.query_bits:
        model = ksort.fold(model, order_of(model, setting.order, calibration, setting.draw))
    if setting.query_bits:
        from papers.bfp_outliers.sorted_attention import encode_queries

        code = BlockRows(setting.query_bits, setting.block, setting.clips)
        encode_queries(model, lambda queries: code.decode(code.encode(queries)))
    return model


def new_cache(setting: Setting, layers: int, head_dim: int) -> Any:
    """An empty cache of transformers in a setting's format."""
    from papers.bfp_outliers.baselines import PerChannelCache, RotatedRows
    from papers.bfp_outliers.block_cache import CodedCache, Half, RowCode

    if setting.keys == "per-channel":
        return PerChannelCache(layers)
    rows = BlockRows(setting.bits, setting.block, setting.clips)
    values = BlockRows(setting.value_bits, setting.block, setting.clips) if setting.value_bits else Half()
    codes: dict[str, RowCode] = {"fp16": Half(), "bfp": rows, "hadamard": RotatedRows(rows, head_dim)}
    return CodedCache(layers, codes[setting.keys], values)


def losses(task: Task, calibration: Tensor) -> tuple[float, ...]:
    """Summed loss of each window, nats, of its tokens but the first; keys are read from the packed cache.

    calibration: text, (1, length), for orders that need one.
    """
    from common.models.perplexity import window_losses, windows

    base = pretrained(task.layers)
    model = prepared(base, task.setting, calibration)
    head_dim = model.model.layers[0].self_attn.head_dim

    def logits(tokens: Tensor) -> Tensor:
        cache = new_cache(task.setting, task.layers, head_dim)
        return model(tokens, past_key_values=cache, use_cache=True).logits

    tokens = torch.tensor(task.windows)
    found = window_losses(logits, windows(tokens.flatten(), tokens.shape[1]), batch=4)[0]
    return tuple(found.tolist())
