"""Quantised models of one size: round to nearest, GPTQ, AWQ's scale search, and bitsandbytes' NF4.

Each changes a model's linear layers in place to what their codes stand for, and says how many bytes the packed codes
with their scales and zero points take. AWQ's calibration tokens are those of BitStack's scales; GPTQ has more.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.models.capture import Channels, Grams, watching
from common.models.llama import embed, linears, through
from common.quant.gptq import gptq
from common.quant.groups import restored, round_to_nearest
from papers.bitstack.scaling import READERS, inputs_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

METHODS = ("rtn", "gptq", "awq", "nf4")
EXPONENTS = tuple(i / 10 for i in range(10))  # of AWQ's grid; the authors try twenty
SEARCHED_TOKENS = 256  # calibration tokens on which an exponent's output error is measured
SEARCHED_ROWS = 4  # one in so many output channels, on which it is measured; rows are rounded independently
NF4_BLOCK = 64


def packed_bytes(rows: int, columns: int, bits: int, group: int) -> int:
    """Codes as a stream of bits; a float16 scale and a zero point of `bits` bits for each group."""
    groups = rows * (columns // (group or columns))
    return -(-rows * columns * bits // 8) + 2 * groups + -(-groups * bits // 8)


class Inputs:
    """Of each layer's inputs the mean magnitude of every channel, and every n-th token: what AWQ's search needs."""

    def __init__(self, every: int) -> None:
        self.every = max(1, every)
        self.channels = Channels()
        self.kept: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, inputs: Tensor) -> None:
        """Add inputs of shape (..., inputs)."""
        self.channels(name, inputs)
        rows = inputs.reshape(-1, inputs.shape[-1])[:: self.every]
        self.kept.setdefault(name, []).append(rows.clone())

    def summary(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Means (inputs,) and tokens (n, inputs), float32, by the layer's name."""
        means = self.channels.magnitudes
        return {
            name: ((means[name] / self.channels.tokens[name]).float(), torch.cat(rows))
            for name, rows in self.kept.items()
        }


Seen = Mapping[str, tuple[Tensor, Tensor]]  # what Inputs.summary gives


@torch.no_grad()
def quantise(
    model: "LlamaForCausalLM",
    method: str,
    bits: int,
    group: int,
    windows: Tensor,
    first: int = 0,
    seen: Seen | None = None,
) -> int:
    """Quantise all linear layers from block `first` on; their packed bytes.

    group: inputs that share a scale, 0 for all of a row. windows: calibration tokens (n, length). seen: the inputs of
    these windows, where they are known already. ValueError for an unknown method, and for NF4 in anything but its own
    4 bits and blocks of 64.
    """
    chosen = {n: layer for n, layer in linears(model).items() if int(n.partition(".")[0]) >= first}
    if method == "nf4":
        if (bits, group) != (4, NF4_BLOCK):
            raise ValueError(f"NF4 has 4 bits and blocks of {NF4_BLOCK}, not {bits} and {group}")
        return sum(int(_nf4(layer)) for layer in chosen.values())
    if method == "rtn":
        for layer in chosen.values():
            layer.weight.copy_(restored(round_to_nearest(layer.weight, bits, group)))
    elif method == "gptq":
        _gptq(model, bits, group, windows, first)
    elif method == "awq":
        _awq(model, bits, group, seen or seen_by(model, windows), first)
    else:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    return sum(packed_bytes(layer.out_features, layer.in_features, bits, group) for layer in chosen.values())


def _nf4(layer: torch.nn.Linear) -> int:
    """bitsandbytes' own NF4, on its CPU kernel; codes and float32 scales."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(layer.weight.data, blocksize=NF4_BLOCK, quant_type="nf4")
    layer.weight.copy_(dequantize_4bit(codes, state))
    return codes.nbytes + state.absmax.nbytes


def _readers(model: "LlamaForCausalLM", index: int) -> Iterator[tuple[str, list[torch.nn.Linear]]]:
    """Each distinct input of a block and the layers that read it."""
    layers = linears(model)
    for reader, names in READERS.items():
        yield f"{index}.{reader}", [layers[f"{index}.{name}"] for name in names]


def _replace(layers: list[torch.nn.Linear], weight: Tensor) -> None:
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.copy_(part)


def _gptq(model: "LlamaForCausalLM", bits: int, group: int, windows: Tensor, first: int) -> None:
    """Block by block, each on what the quantised blocks before it put out, as in the authors' code."""
    hidden = through(model, embed(model, windows), 0, first)
    for index in range(first, len(model.model.layers)):
        grams = Grams()
        with watching({n: x for n, x in inputs_of(model).items() if n.startswith(f"{index}.")}, grams):
            through(model, hidden, index, index + 1)
        for name, layers in _readers(model, index):
            weight = torch.cat([layer.weight for layer in layers])
            _replace(layers, restored(gptq(weight, grams.sums[name], bits, group)))
        hidden = through(model, hidden, index, index + 1)


def seen_by(model: "LlamaForCausalLM", windows: Tensor) -> Seen:
    """The inputs of all layers over calibration windows."""
    inputs = Inputs(windows.numel() // SEARCHED_TOKENS)
    for window in windows:
        with watching(inputs_of(model), inputs):
            through(model, embed(model, window[None]))
    return inputs.summary()


def _awq(model: "LlamaForCausalLM", bits: int, group: int, seen: Seen, first: int) -> None:
    """Scale channels by a power of their mean input before rounding, the power with the least output error.

    Lin et al. (MLSys 2024, arXiv:2306.00978), Section 3.2, without clipping. Scales fold into what makes the inputs
    (scaling.py); rounding commutes with a factor a row, so that here they are taken out of the weights again instead.
    Like the authors' code it leaves o_proj alone under grouped-query attention.
    """
    grouped_query = model.config.num_key_value_heads != model.config.num_attention_heads
    for index in range(first, len(model.model.layers)):
        for name, layers in _readers(model, index):
            weight = torch.cat([layer.weight for layer in layers])
            mean, rows = seen[name]
            only = (0.0,) if grouped_query and name.endswith("o_proj") else EXPONENTS
            _replace(layers, awq(weight, mean.clamp(min=1e-4), rows, bits, group, only)[0])


def awq(
    weight: Tensor,
    mean: Tensor,
    inputs: Tensor,
    bits: int,
    group: int,
    exponents: tuple[float, ...] = EXPONENTS,
) -> tuple[Tensor, float]:
    """The rounded matrix (rows, columns) of the best exponent, and that exponent.

    mean: mean magnitude of each input, (columns,). inputs: (tokens, columns), on which output errors are compared.
    """
    few = weight[::SEARCHED_ROWS]
    tried = {}
    for exponent in exponents:
        s = _scales(mean, exponent)
        rounded = restored(round_to_nearest(few * s, bits, group)) / s
        tried[exponent] = float((inputs @ (rounded - few).T).square().sum())
    best = min(tried, key=tried.__getitem__)
    s = _scales(mean, best)
    return restored(round_to_nearest(weight * s, bits, group)) / s, best


def _scales(mean: Tensor, exponent: float) -> Tensor:
    s = mean**exponent
    return s / (s.max() * s.min()).sqrt()
