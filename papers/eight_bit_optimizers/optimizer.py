"""Adam and Momentum whose states are kept in eight bits between steps (Section 2 of the paper).

    m, r = dequantise(states)
    m = b1 m + (1 - b1) g ;  r = b2 r + (1 - b2) g^2
    w -= lr * m / (1 - b1^t) / (sqrt(r / (1 - b2^t)) + eps)
    states = quantise(m, signed code), quantise(r, unsigned code)

in 32 bits, tensor by tensor, so that of the wide states only one tensor's exist at a time. Hyper-parameters are those
of the 32-bit optimizers. States of small tensors, and of groups with `bits: 32`, stay in 32 bits.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from common.quant.blockwise import WHOLE, Quantised, dequantise, quantise
from common.quant.codebooks import dynamic, linear
from papers.eight_bit_optimizers.percentile_clipping import LAST, clipping_factor

Code = Literal["dynamic", "linear", "linear4"]
SMALLEST = 4096  # elements of a tensor whose states are quantised (bitsandbytes' min_8bit_size)


@dataclass(frozen=True)
class States:
    """How states are kept between steps."""

    bits: int = 8  # or 32
    code: Code = "dynamic"  # or linear; or linear4: 16 values, one a byte, which no claim of memory rests on
    block: int = 2048  # elements with a scale of their own; 0: a tensor is one block
    smallest: int = SMALLEST

    def __post_init__(self) -> None:
        if self.bits not in (8, 32):
            raise ValueError(f"states have 8 or 32 bits, not {self.bits}")
        if self.code not in get_args(Code):
            raise ValueError(f"a code book is one of {', '.join(get_args(Code))}, not {self.code!r}")
        if self.block < 0:
            raise ValueError(
                f"a block has a positive number of elements, or 0 for the tensor; not {self.block}"
            )


WIDE = States(bits=32)


@cache
def code_book(code: Code, signed: bool, device: str = "cpu") -> Tensor:
    """256 ascending values (16 of linear4); the same tensor every time."""
    book = dynamic(signed) if code == "dynamic" else linear(signed, 4 if code == "linear4" else 8)
    return book.to(device)


class QuantisedOptimizer(torch.optim.Optimizer):
    """What Adam and Momentum share: reading and writing states, clipping, checkpoints.

    A group may override `bits`, such as 32 for an embedding. percentile: clip each tensor's gradient at this percentile
    of its last hundred norms; 100 does not clip.
    """

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], states: States, percentile: int
    ) -> None:
        if not defaults["lr"] >= 0.0:
            raise ValueError(f"a learning rate is not negative: {defaults['lr']}")
        if not 0 < percentile <= 100:
            raise ValueError(f"a percentile lies above 0 and at most at 100, not at {percentile}")
        kept = {"bits": states.bits, "code": states.code, "block": states.block, "smallest": states.smallest}
        super().__init__(params, {**defaults, **kept, "percentile": percentile})
        for group in self.param_groups:
            if group["bits"] not in (8, 32):
                raise ValueError(f"states have 8 or 32 bits, not {group['bits']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient. ValueError where one is not finite."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                gradient = parameter.grad.to(torch.float32)
                if group["percentile"] < 100:
                    norms = state.setdefault("norms", torch.zeros(LAST, device=parameter.device))
                    gradient = gradient * clipping_factor(
                        norms, state["step"], float(gradient.norm()), group["percentile"]
                    )
                wide = parameter.to(torch.float32)  # the parameter itself where it is 32 bits wide
                self.update(wide, gradient, state, group)
                if wide is not parameter:
                    parameter.copy_(wide)
        return loss

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change one parameter in place, and its state."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their own type: torch would make parameters' type of codes and scales."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    value = value.detach().clone().to(parameter.device)
                self.state[parameter][name] = value

    def state_bytes(self) -> int:
        """Bytes of all state tensors that exist; code books, shared by all tensors, are not among them."""
        return sum(
            value.nbytes
            for state in self.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


def read(state: dict[str, Any], name: str, like: Tensor, group: dict[str, Any], signed: bool) -> Tensor:
    """A state in 32 bits and in the shape of its parameter; zeros before the first step.

    Of a 32-bit state the tensor itself, so that what is done to it in place stays.
    """
    if name not in state:
        if group["bits"] == 32 or like.numel() < group["smallest"]:
            state[name] = torch.zeros_like(like, dtype=torch.float32)
        else:
            return torch.zeros_like(like, dtype=torch.float32)
    if state[name].dtype == torch.float32:
        return state[name]
    code = code_book(group["code"], signed, str(like.device))
    block = group["block"] or like.numel()
    return dequantise(Quantised(state[name], state[f"{name}_scales"], like.shape, block), code)


def write(state: dict[str, Any], name: str, value: Tensor, group: dict[str, Any], signed: bool) -> None:
    """Keep a state until the next step: codes and the scales of their blocks, or nothing to do for 32 bits."""
    if name in state and state[name].dtype == torch.float32:
        return
    code = code_book(group["code"], signed, str(value.device))
    kept = quantise(value, code, group["block"] or WHOLE)
    state[name], state[f"{name}_scales"] = kept.codes, kept.scales


class Adam(QuantisedOptimizer):
    """Adam; with `decoupled` AdamW's weight decay (Loshchilov and Hutter, 2019), else added to the gradient."""

    def __init__(
        self,
        params: Iterable[Any],
        states: States = States(),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        percentile: int = 100,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas lie at 0 or between 0 and 1, not at {betas}")
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
        }
        super().__init__(params, settings, states, percentile)

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """See QuantisedOptimizer."""
        (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        if decay and group["decoupled"]:
            parameter.mul_(1 - rate * decay)
        elif decay:
            gradient = gradient.add(parameter, alpha=decay)
        first = read(state, "first", parameter, group, signed=True)
        second = read(state, "second", parameter, group, signed=False)
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = second.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        parameter.addcdiv_(first, root, value=-rate / (1 - beta1 ** state["step"]))
        write(state, "first", first, group, signed=True)
        write(state, "second", second, group, signed=False)


class Momentum(QuantisedOptimizer):
    """Stochastic gradient descent with momentum: m = b1 m + g, from m = g at the first step."""

    def __init__(
        self,
        params: Iterable[Any],
        states: States = States(),
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        percentile: int = 100,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"a momentum lies at 0 or between 0 and 1, not at {momentum}")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, settings, states, percentile)

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """See QuantisedOptimizer."""
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        first = read(state, "first", parameter, group, signed=True)
        first.mul_(group["momentum"]).add_(gradient)
        parameter.add_(first, alpha=-group["lr"])
        write(state, "first", first, group, signed=True)
