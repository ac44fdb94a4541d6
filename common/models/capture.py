"""What enters the linear layers of a model, seen by hooks and summed up as it passes, so that memory stays bounded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `see(name, input)` is called with whatever enters a module, shape (..., inputs), detached."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0].detach()))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Channels:
    """Running sums over tokens of each module's inputs: how large its channels are.

    Memory: three vectors a module, whatever the number of tokens.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.squares: dict[str, Tensor] = {}  # sum of squares, float64 of shape (inputs,)
        self.magnitudes: dict[str, Tensor] = {}  # sum of absolute values
        self.largest: dict[str, Tensor] = {}  # largest absolute value

    def __call__(self, name: str, inputs: Tensor) -> None:
        """Add inputs of shape (..., inputs)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        if name not in self.tokens:
            self.tokens[name] = 0
            for kept in (self.squares, self.magnitudes, self.largest):
                kept[name] = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        self.tokens[name] += len(rows)
        self.squares[name] += rows.square().sum(dim=0)
        self.magnitudes[name] += rows.abs().sum(dim=0)
        self.largest[name] = torch.maximum(self.largest[name], rows.abs().amax(dim=0))

    def root_mean_square(self, name: str) -> Tensor:
        """Of each channel, float64 of shape (inputs,)."""
        return (self.squares[name] / self.tokens[name]).sqrt()


class Grams:
    """Sum over tokens of x x^T of each module's inputs, float32 of shape (inputs, inputs): GPTQ's Hessian up to 2."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    def __call__(self, name: str, inputs: Tensor) -> None:
        """Add inputs of shape (..., inputs)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if name not in self.sums:
            self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            self.tokens[name] = 0
        self.sums[name].addmm_(rows.T, rows)
        self.tokens[name] += len(rows)
