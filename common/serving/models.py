"""Shapes of the served transformers: parameters, weight and KV bytes, and the matrices of one layer.

Shapes are the fields of each model's config.json on the Hugging Face Hub, at the repository named beside it.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer, as far as its sizes go; every field counts elements, none counts bytes."""

    name: str
    layers: int
    hidden: int
    heads: int  # query heads
    kv_heads: int  # key and value heads: fewer than `heads` under grouped-query attention
    head_dim: int
    intermediate: int  # width inside the MLP; of one expert where there are several
    gated: bool  # SwiGLU: a gate matrix beside the up matrix
    vocab: int
    tied: bool  # the output head shares the embedding's matrix
    learned_positions: int = 0  # rows of the position embedding; 0 with rotary positions
    experts: int = 1
    active_experts: int = 1  # experts that each token passes through
    biases: bool = False  # every linear layer has a bias, as in OPT
    norm_vectors: int = 1  # learned vectors in a norm: 1 RMSNorm (scale), 2 LayerNorm (scale and shift)

    @property
    def parameters(self) -> int:
        """All parameters."""
        attention = sum(self._linear(k, n) for k, n in self._attention())
        router = self.hidden * self.experts if self.experts > 1 else 0
        norms = 2 * self.norm_vectors * self.hidden
        layer = attention + self.experts * self._expert() + router + norms
        tables = (self.vocab * (1 if self.tied else 2) + self.learned_positions) * self.hidden
        return self.layers * layer + tables + self.norm_vectors * self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters without the experts a token does not pass through; `parameters` for a dense model."""
        return self.parameters - self.layers * (self.experts - self.active_experts) * self._expert()

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values that one token keeps in all layers, over all GPUs, none replicated."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes

    def weight_bytes(self, dtype_bytes: int = 2) -> int:
        """Bytes of all weights, over all GPUs."""
        return self.parameters * dtype_bytes

    def tensor_parallel_degrees(self) -> tuple[int, ...]:
        """Degrees that give each GPU whole query heads, and whole KV heads or one that several GPUs copy."""
        return tuple(
            degree
            for degree in range(1, self.heads + 1)
            if self.heads % degree == 0
            and self.intermediate % degree == 0
            and (self.kv_heads % degree == 0 or degree % self.kv_heads == 0)
        )

    def linears(self, tensor_parallel: int = 1) -> tuple[tuple[str, int, int], ...]:
        """Linear layers of one transformer layer on one GPU, as (name, k, n): [tokens, k] @ [k, n].

        Megatron's split (Shoeybi et al., 2019, arXiv:1909.08053, section 3): `qkv` and `mlp_up` by columns,
        `attention_output` and `mlp_down` by rows. A gated MLP's gate and up are one matrix. KV heads fewer
        than the GPUs are copied. With several experts the two MLP matrices are those of one expert.

        Raises ValueError for a degree that does not divide the heads.
        """
        degrees = self.tensor_parallel_degrees()
        if tensor_parallel not in degrees:
            valid = ", ".join(map(str, degrees))
            raise ValueError(f"{self.name} cannot split over {tensor_parallel} GPUs; valid degrees: {valid}")
        queries = self.heads // tensor_parallel
        keys_and_values = 2 * max(1, self.kv_heads // tensor_parallel)
        inner = self.intermediate // tensor_parallel
        return (
            ("qkv", self.hidden, (queries + keys_and_values) * self.head_dim),
            ("attention_output", queries * self.head_dim, self.hidden),
            ("mlp_up", self.hidden, 2 * inner if self.gated else inner),
            ("mlp_down", inner, self.hidden),
        )

    def _attention(self) -> tuple[tuple[int, int], ...]:
        return tuple((k, n) for _, k, n in self.linears()[:2])

    def _expert(self) -> int:
        return sum(self._linear(k, n) for _, k, n in self.linears()[2:])

    def _linear(self, k: int, n: int) -> int:
        return k * n + (n if self.biases else 0)


def _opt(name: str, layers: int, hidden: int, heads: int) -> ModelShape:
    """An OPT model (Zhang et al., 2022, arXiv:2205.01068, table 1): four-fold MLP, 2048 + 2 positions."""
    return ModelShape(
        name, layers, hidden, heads, heads, hidden // heads, 4 * hidden, gated=False, vocab=50272, tied=True,
        learned_positions=2050, biases=True, norm_vectors=2,
    )  # fmt: skip


def _llama(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int = 32000,
    experts: int = 1, active_experts: int = 1,
) -> ModelShape:  # fmt: skip
    """A model of Llama's layout: RMSNorm, SwiGLU, rotary positions, no biases, a separate output head."""
    return ModelShape(
        name, layers, hidden, heads, kv_heads, hidden // heads, intermediate, gated=True, vocab=vocab,
        tied=False, experts=experts, active_experts=active_experts,
    )  # fmt: skip


MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _opt("opt-13b", 40, 5120, 40),  # facebook/opt-13b
        _opt("opt-66b", 64, 9216, 72),  # facebook/opt-66b
        _opt("opt-175b", 96, 12288, 96),  # not on the Hub: arXiv:2205.01068, table 1
        _llama("llama-2-7b", 32, 4096, 32, 32, 11008),  # meta-llama/Llama-2-7b-hf
        _llama("llama-2-13b", 40, 5120, 40, 40, 13824),  # meta-llama/Llama-2-13b-hf
        _llama("llama-2-70b", 80, 8192, 64, 8, 28672),  # meta-llama/Llama-2-70b-hf
        _llama("llama-3-8b", 32, 4096, 32, 8, 14336, vocab=128256),  # meta-llama/Meta-Llama-3-8B
        _llama("llama-3-70b", 80, 8192, 64, 8, 28672, vocab=128256),  # meta-llama/Meta-Llama-3-70B
        _llama("mistral-7b", 32, 4096, 32, 8, 14336),  # mistralai/Mistral-7B-v0.1
        # mistralai/Mixtral-8x7B-v0.1
        _llama("mixtral-8x7b", 32, 4096, 32, 8, 14336, experts=8, active_experts=2),
        # tiiuae/falcon-180B; its checkpoint stores the output head too, but engines (vLLM's falcon.py) tie it
        ModelShape(
            "falcon-180b", 80, 14848, 232, 8, 64, 59392, gated=False, vocab=65024, tied=True, norm_vectors=2
        ),
    )
}  # fmt: skip


def model(name: str) -> ModelShape:
    """The shape called `name` in MODELS; KeyError with the nearest names otherwise."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
    raise KeyError(f"no model {name!r}; nearest: {', '.join(near or sorted(MODELS))}")
