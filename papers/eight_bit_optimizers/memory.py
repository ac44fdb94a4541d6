"""Bytes of optimizer state: of tensors that exist, and of the paper's models by the same rule."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.eight_bit_optimizers.optimizer import Adam, Momentum, QuantisedOptimizer, States


def measured_bytes(states: States, shape: tuple[int, ...], momentum: bool = False) -> int:
    """Bytes of all state tensors after a step on a parameter of this shape."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.ones(shape)
    made: QuantisedOptimizer = Momentum([parameter], states) if momentum else Adam([parameter], states)
    made.step()
    return made.state_bytes()


def adafactor_bytes(shape: tuple[int, ...], first_moment: bool = True) -> int:
    """The same of transformers' Adafactor with a constant rate, as the paper used it; with beta1 = 0.9 or without."""
    from transformers.optimization import Adafactor

    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.ones(shape)
    made = Adafactor(
        [parameter], lr=1e-3, scale_parameter=False, relative_step=False, beta1=0.9 if first_moment else None
    )
    made.step()
    return sum(
        v.nbytes for state in made.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()
    )


def adam_bytes(states: States, elements: int, wide: bool = False) -> int:
    """Bytes of Adam's states of one tensor, by counting; `wide`: kept in 32 bits, as an embedding's are."""
    if wide or states.bits == 32 or elements < states.smallest:
        return 8 * elements
    return 2 * (elements + 4 * -(-elements // (states.block or elements)))


@dataclass(frozen=True)
class Shape:
    """A transformer: blocks of four attention matrices and two of the feed-forward layer, with biases and norms."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    positions: int

    def tensors(self) -> Iterator[tuple[int, bool]]:
        """Elements of each tensor, and whether it is an embedding of tokens."""
        yield self.vocab * self.hidden, True
        yield self.positions * self.hidden, False
        for _ in range(self.layers):
            for _ in range(4):
                yield self.hidden**2, False
                yield self.hidden, False
            yield self.hidden * self.intermediate, False
            yield self.hidden * self.intermediate, False
            yield self.intermediate, False
            for _ in range(5):  # the second layer's bias, two norms of a gain and a bias
                yield self.hidden, False


# 1.5 billion parameters in GPT-2 XL's shape (Radford et al., 2019, Table 2); the paper's model is not published.
GPT2_XL = Shape(layers=48, hidden=1600, intermediate=6400, vocab=50_257, positions=1024)
# Liu et al., 2019 (arXiv:1907.11692), Section 3.1.
ROBERTA_LARGE = Shape(layers=24, hidden=1024, intermediate=4096, vocab=50_265, positions=514)


def saved_bytes(shape: Shape, states: States) -> int:
    """Bytes that Adam's states take less than in 32 bits, the token embedding's staying at 32."""
    return sum(8 * elements - adam_bytes(states, elements, wide) for elements, wide in shape.tensors())
