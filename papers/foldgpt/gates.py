"""Learnable gates: one scalar a block, all trained jointly while the weights stand still.

    x_{l+1} = x_l + g_l (Block_l(x_l) - x_l),    g(phi) = phi^2 / (phi^2 + eps)
    L = L_LM + lambda sum_l F_l g_l / sum_l F_l

eps falls from 0.1 to 0.0001, so that a gate ends at exactly 0 or near 1; lambda moves until `target` gates are below a
half. Because all gates move at once, the price of a block is its price in a model that has lost others already. The
abstract names learnable gates; the form of g, the FLOPs constraint and the schedule are inferred from summaries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models.llama import embed, linears, logits
from common.models.perplexity import token_losses
from common.training.loop import Batch, train

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FIRST_EPS, LAST_EPS = 1e-1, 1e-4
CLOSED = 0.5  # a gate below this counts as removed


def gate(phi: Tensor, eps: float) -> Tensor:
    """g(phi), between 0 and 1; phi of any shape."""
    return phi.square() / (phi.square() + eps)


def block_flops(model: "LlamaForCausalLM", length: int) -> Tensor:
    """F_l: floating-point operations of each block for a sequence of `length` tokens, float32 of shape (blocks,)."""
    found = torch.zeros(len(model.model.layers))
    for name, linear in linears(model).items():
        found[int(name.split(".")[0])] += 2 * length * linear.weight.numel()
    return found + 2 * length**2 * model.config.hidden_size  # causal: half of two products


class Gated(nn.Module):
    """A model with a gate around each block; the gates' phi, shape (blocks,), is its only parameter that is trained."""

    def __init__(self, model: "LlamaForCausalLM") -> None:
        super().__init__()
        self.inner = [model]  # in a list: no submodule, so that its weights are nobody's parameters here
        self.phi = nn.Parameter(torch.ones(len(model.model.layers)))
        self.eps = FIRST_EPS

    @property
    def gates(self) -> Tensor:
        """g_l, shape (blocks,)."""
        return gate(self.phi, self.eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (batch, length, vocab)."""
        (model,) = self.inner
        hidden, gates = embed(model, tokens), self.gates
        positions = torch.arange(hidden.shape[1])[None]
        turned = model.model.rotary_emb(hidden, position_ids=positions)
        for index, block in enumerate(model.model.layers):
            hidden = hidden + gates[index] * (block(hidden, position_embeddings=turned) - hidden)
        return logits(model, hidden)


@dataclass(frozen=True)
class Trained:
    """phi and g at the end, g of every step (steps, blocks), the language loss and lambda of every step."""

    phi: tuple[float, ...]
    gates: tuple[float, ...]
    history: tuple[tuple[float, ...], ...]
    losses: tuple[float, ...]
    weights: tuple[float, ...]

    def ranking(self) -> list[int]:
        """Blocks from the least important: by the final g; of gates that are closed for good the earlier first."""
        mean = [sum(column) for column in zip(*self.history, strict=True)]
        return sorted(range(len(self.phi)), key=lambda block: (self.phi[block], mean[block]))


@dataclass(frozen=True)
class Pressure:
    """How the FLOPs term's weight lambda is moved: times `factor` a step while too few gates are closed.

    Where enough are, the constraint is met: the term is off, and lambda is divided by `factor` for when it comes back.
    Until the share `until` of the steps the wanted number rises to the target, then stays.
    """

    first: float = 1.0
    factor: float = 1.3
    until: float = 0.7


def train_gates(
    model: "LlamaForCausalLM",
    batch_at: Callable[[int], Batch],
    steps: int,
    target: int,
    rate: float,
    pressure: Pressure = Pressure(),
) -> Trained:
    """Train phi alone with Adam; batches are int64 tokens (rows, length). pressure.first 0: no FLOPs term.

    ValueError for a target that is no number of blocks to remove.
    """
    gated = Gated(model)
    blocks = len(gated.phi)
    if not 0 < target < blocks:
        raise ValueError(f"of {blocks} blocks 1 to {blocks - 1} can be removed, not {target}")
    flops = block_flops(model, batch_at(0)[0].shape[1])
    share = flops / flops.sum()
    now = height = pressure.first
    history, losses, weights = [], [], []

    def loss_of(_: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            gated.phi.clamp_(min=0.0)  # the proximal step: a gate that has reached 0 stays there
        language = token_losses(gated(*batch), *batch).mean()
        losses.append(float(language.detach()))
        return language + now * (share * gated.gates).sum()

    def before_step(step: int) -> None:
        nonlocal now, height
        history.append(tuple(gated.gates.detach().tolist()))
        weights.append(now)
        wanted = target * min(1.0, (step + 1) / (pressure.until * steps))
        closed = int((gated.gates < CLOSED).sum())
        height = height * pressure.factor if closed < wanted else height / pressure.factor
        now = height if closed < wanted else 0.0  # a constraint that is met costs nothing
        gated.eps = FIRST_EPS * (LAST_EPS / FIRST_EPS) ** ((step + 1) / steps)

    optimiser = torch.optim.Adam([gated.phi], lr=rate, betas=(0.8, 0.95))
    train(gated, optimiser, batch_at, loss_of, steps, before_step=before_step)
    gated.phi.data.clamp_(min=0.0)
    ends = gated.gates.detach()
    return Trained(
        tuple(gated.phi.detach().tolist()),
        tuple(ends.tolist()),
        tuple(history),
        tuple(losses),
        tuple(weights),
    )
