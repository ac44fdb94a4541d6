"""Every parameter of the decoder by name: its whole shape, how tensor ranks split it, where it lives, how it begins."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.training.sharded.layout import Layout

SPREAD = 0.02  # standard deviation of first weights (GPT-2)


@dataclass(frozen=True)
class Shape:
    """A decoder: sizes, and which of the usual variations it has.

    kv_heads: below `heads` for grouped queries. experts: 0 for one MLP a block, else a mixture routed to one expert.
    tied: the head's matrix is the embedding's. ValueError for sizes that do not fit.
    """

    vocab: int = 101
    hidden: int = 32
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 64
    context: int = 16
    gated: bool = True
    experts: int = 0
    tied: bool = True

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"{self.hidden} channels, {self.heads} heads and {self.kv_heads} key heads don't divide"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Split:
    """How tensor ranks share a tensor: each of `parts` along `dim` is cut into equal pieces. dim None: all have it.

    parts: sizes that add up to the tensor's, e.g. of queries, keys and values in one matrix; a rank holds its piece of
    each, one after another.
    """

    dim: int | None = None
    parts: tuple[int, ...] = ()

    def take(self, whole: Tensor, index: int, of: int) -> Tensor:
        """The piece of rank `index`. ValueError where a part is no multiple of the ranks."""
        if self.dim is None:
            return whole
        if any(part % of for part in self.parts):
            raise ValueError(f"{of} tensor ranks can't share parts of {self.parts}")
        parts = whole.split(self.parts, self.dim)
        return torch.cat([part.chunk(of, self.dim)[index] for part in parts], self.dim)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The whole tensor from the pieces of all ranks; of one that all have, the first."""
        if self.dim is None:
            return pieces[0]
        own = [part // len(pieces) for part in self.parts]
        split = [piece.split(own, self.dim) for piece in pieces]
        return torch.cat([part for parts in zip(*split, strict=True) for part in parts], self.dim)


@dataclass(frozen=True)
class Parameter:
    """One parameter. size: of the whole, with the vocabulary padded. unit: "embedding", a block's number, or "head"."""

    name: str
    size: tuple[int, ...]
    split: Split
    unit: str | int
    begins: str = "normal"  # or ones, zeros
    rows: int | None = None  # of `size[0]` that mean something; the others are padding

    def first_values(self, seed: int, dtype: torch.dtype) -> Tensor:
        """The whole tensor as training begins: the same for every layout, whatever the padding."""
        rows = self.size[0] if self.rows is None else self.rows
        size = (rows, *self.size[1:])
        if self.begins == "ones":
            values = torch.ones(size, dtype=torch.float64)
        elif self.begins == "zeros":
            values = torch.zeros(size, dtype=torch.float64)
        else:
            word = hashlib.sha256(f"{seed} {self.name}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(word, "little"))
            values = SPREAD * torch.randn(size, generator=generator, dtype=torch.float64)
        padding = torch.zeros(self.size[0] - rows, *self.size[1:], dtype=torch.float64)
        return torch.cat([values, padding]).to(dtype)


def padded_vocab(shape: Shape, layout: Layout, multiple: int = 8) -> int:
    """Rows of the embedding: the vocabulary, filled up so that tensor ranks get equal multiples of `multiple`."""
    unit = multiple * layout.tensor
    return -(-shape.vocab // unit) * unit


def parameters(shape: Shape, layout: Layout) -> list[Parameter]:
    """All parameters of the decoder, in order. A tied head has none of its own."""
    h, d = shape.hidden, shape.head_dim
    vocab = padded_vocab(shape, layout)
    whole = Split()
    fused = Split(0, (shape.heads * d, shape.kv_heads * d, shape.kv_heads * d))
    up_parts = (shape.mlp,) * ((2 if shape.gated else 1) * max(1, shape.experts))
    up, copies = Split(0, up_parts), max(1, shape.experts)

    def norm(name: str, unit: str | int) -> list[Parameter]:
        return [
            Parameter(f"{name}.weight", (h,), whole, unit, "ones"),
            Parameter(f"{name}.bias", (h,), whole, unit, "zeros"),
        ]

    table = Parameter("embedding.weight", (vocab, h), Split(0, (vocab,)), "embedding", rows=shape.vocab)
    found = [table, Parameter("positions.weight", (shape.context, h), whole, "embedding")]
    for i in range(shape.layers):
        block = f"blocks.{i}"
        found += norm(f"{block}.norm1", i)
        found += [
            Parameter(f"{block}.attention.qkv.weight", (sum(fused.parts), h), fused, i),
            Parameter(f"{block}.attention.qkv.bias", (sum(fused.parts),), fused, i),
            Parameter(f"{block}.attention.out.weight", (h, h), Split(1, (h,)), i),
            Parameter(f"{block}.attention.out.bias", (h,), whole, i),
        ]
        found += norm(f"{block}.norm2", i)
        if shape.experts:
            found.append(Parameter(f"{block}.mlp.router.weight", (shape.experts, h), whole, i))
        found += [
            Parameter(f"{block}.mlp.up.weight", (sum(up_parts), h), up, i),
            Parameter(f"{block}.mlp.up.bias", (sum(up_parts),), up, i),
            Parameter(f"{block}.mlp.down.weight", (copies * h, shape.mlp), Split(1, (shape.mlp,)), i),
            Parameter(f"{block}.mlp.down.bias", (copies * h,), whole, i),
        ]
    found += norm("norm", "head")
    if not shape.tied:
        found.append(Parameter("head.weight", (vocab, h), Split(0, (vocab,)), "head", rows=shape.vocab))
    return found


def held_by(shape: Shape, layout: Layout, stage: int) -> list[Parameter]:
    """The parameters of a pipeline stage; a tied embedding is held by the first stage and by the last."""
    units: set[str | int] = set(layout.stages(shape.layers)[stage])
    if stage == 0:
        units.add("embedding")
    last = stage == layout.pipeline - 1
    if last:
        units.add("head")
    return [
        p
        for p in parameters(shape, layout)
        if p.unit in units or (last and shape.tied and p.name == "embedding.weight")
    ]
