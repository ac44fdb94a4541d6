"""Llama-shaped language models of transformers: SmolLM2-135M with its real weights, and small ones to train.

The class is transformers' LlamaForCausalLM, so that whatever works on the small one works on the real one, and on any
Llama checkpoint. Its forward pass stands here once more in three steps, embed, through and logits, for methods that
enter or leave between two blocks: `logits(model, through(model, embed(model, tokens)))` equals `model(tokens).logits`.

SmolLM2's weights are those of smollm2.py: they were 4-bit once, activations and behaviour are real.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.data import cache as data_cache
from common.data import fetch
from common.models import smollm2
from common.models.smollm2 import CONFIG, DATASET

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER = "smollm2/tokenizer.json"  # below the data cache
Block = Callable[[int, Tensor], None]


def load_smollm2(layers: int = CONFIG.layers) -> "LlamaForCausalLM":
    """SmolLM2-135M-Instruct, float32, without gradients; of its 30 blocks the first `layers`.

    DataError where its file cannot be had. ValueError for a number of layers that it does not have.
    """
    if not 1 <= layers <= CONFIG.layers:
        raise ValueError(f"SmolLM2-135M has 1 to {CONFIG.layers} layers to take, not {layers}")
    stored = smollm2.load_smollm2(positions=1).state_dict()
    found = {
        "model.embed_tokens.weight": stored["embedding.weight"],
        "lm_head.weight": stored["embedding.weight"],
        "model.norm.weight": stored["norm.weight"],
    }
    queries, keys = CONFIG.hidden, CONFIG.groups * CONFIG.head_dim
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        q, k, v = stored[f"{ours}.qkv.weight"].split([queries, keys, keys])
        gate, up = stored[f"{ours}.up.weight"].chunk(2)
        found |= {
            f"{theirs}.input_layernorm.weight": stored[f"{ours}.attention_norm.weight"],
            f"{theirs}.self_attn.q_proj.weight": _halves(q),
            f"{theirs}.self_attn.k_proj.weight": _halves(k),
            f"{theirs}.self_attn.v_proj.weight": v.clone(),
            f"{theirs}.self_attn.o_proj.weight": stored[f"{ours}.out.weight"],
            f"{theirs}.post_attention_layernorm.weight": stored[f"{ours}.mlp_norm.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate.clone(),
            f"{theirs}.mlp.up_proj.weight": up.clone(),
            f"{theirs}.mlp.down_proj.weight": stored[f"{ours}.down.weight"],
        }
    model = _empty(
        _config(
            vocab=CONFIG.vocab, hidden=CONFIG.hidden, layers=layers, heads=CONFIG.heads, kv_heads=CONFIG.groups,
            intermediate=CONFIG.intermediate, positions=CONFIG.positions, rotary_base=CONFIG.rotary_base,
        )
    )  # fmt: skip
    model.load_state_dict(found, strict=True, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def new_llama(
    generator: torch.Generator,
    *,
    vocab: int,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    positions: int = 512,
    spread: float = 0.02,
) -> "LlamaForCausalLM":
    """An untrained model whose weights come from `generator`: normal with standard deviation `spread`, gains one."""
    model = _empty(
        _config(
            vocab=vocab, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads or heads,
            intermediate=intermediate or 8 * hidden // 3, positions=positions, rotary_base=10_000.0,
        )
    )  # fmt: skip
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread, generator=generator)
            else:
                parameter.fill_(1.0)
    return model.train()


def embed(model: "LlamaForCausalLM", tokens: Tensor) -> Tensor:
    """What enters the first block, shape (batch, length, hidden), of int64 tokens (batch, length)."""
    return model.model.embed_tokens(tokens)


def through(
    model: "LlamaForCausalLM",
    hidden: Tensor,
    start: int = 0,
    stop: int | None = None,
    before: Block | None = None,
) -> Tensor:
    """Hidden values behind blocks start to stop - 1, causal, positions from zero; (batch, length, hidden) both ways.

    before: called with each block's number and what enters it. The final norm is not applied.
    """
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    turned = model.model.rotary_emb(hidden, position_ids=positions)
    for index in range(start, len(model.model.layers) if stop is None else stop):
        if before is not None:
            before(index, hidden)
        hidden = model.model.layers[index](hidden, position_embeddings=turned)
    return hidden


def logits(model: "LlamaForCausalLM", hidden: Tensor) -> Tensor:
    """Logits, shape (batch, length, vocab), of what leaves the last block."""
    return model.lm_head(model.model.norm(hidden))


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linears(model: "LlamaForCausalLM") -> dict[str, torch.nn.Linear]:
    """The seven linear layers of every block, in order, by names such as `3.q_proj`; weights are (outputs, inputs)."""
    found = {}
    for index, block in enumerate(model.model.layers):
        for name in PROJECTIONS:
            holder = block.mlp if hasattr(block.mlp, name) else block.self_attn
            found[f"{index}.{name}"] = getattr(holder, name)
    return found


@cache
def tokenizer() -> "Tokenizer":
    """SmolLM2's tokenizer, from the header of its GGUF file, which takes seconds to read; a copy is kept."""
    from tokenizers import Tokenizer

    kept = data_cache() / TOKENIZER
    if not kept.is_file():
        from transformers import AutoTokenizer

        file = fetch(DATASET)
        made = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).backend_tokenizer
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=kept.parent, suffix=".part")
        os.close(handle)
        try:
            made.save(name)
            Path(name).replace(kept)
        finally:
            Path(name).unlink(missing_ok=True)
    return Tokenizer.from_file(str(kept))


def _config(
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    positions: int,
    rotary_base: float,
) -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(  # type: ignore[call-arg]
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        rms_norm_eps=CONFIG.norm_eps or 1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": rotary_base},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )


def _empty(config: "LlamaConfig") -> "LlamaForCausalLM":
    """Without memory for its weights; the rotary frequencies, which no file holds, are real."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def _halves(interleaved: Tensor) -> Tensor:
    """Rows of rotary pairs (0, 1), (2, 3), ... of each head as transformers wants them: all first, then all second."""
    return (
        interleaved.view(-1, CONFIG.head_dim // 2, 2, CONFIG.hidden).transpose(1, 2).reshape_as(interleaved)
    )
