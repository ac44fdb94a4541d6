"""Residual networks that leave blocks out: a gate before each (SkipNet), or one policy for all (BlockDrop)."""

import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import warm_statistics
from common.models.dynamic.early_exit import Head, Residual, convolution


class GatedResNet(nn.Module):
    """Before each block a gate looks at the features; the block is skipped where it says so (Wang et al. 2018)."""

    def __init__(self, width: int = 32, blocks: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.stem = convolution(3, width, 2)
        self.blocks = nn.ModuleList(Residual(width, width) for _ in range(blocks))
        self.gates = nn.ModuleList(Head(width, 1) for _ in range(blocks))
        self.head = Head(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, h, w) to logits (1, classes)."""
        x = self.stem(x)
        for block, gate in zip(self.blocks, self.gates):  # noqa: B905
            if gate(x) > 0:
                x = block(x)
        return self.head(x)

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """Each gate lets about half of the inputs (n, 3, h, w) through."""
        x = warm_statistics(self.stem, inputs)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            gate.normalise(x)  # type: ignore[operator]
            through = gate(x).flatten() > 0
            ran = warm_statistics(block, x[through])
            x = x.clone()
            x[through] = ran
        self.head.normalise(x)


class PolicyResNet(nn.Module):
    """A small network reads the image first and chooses the blocks that run (Wu et al. 2018)."""

    def __init__(self, width: int = 32, blocks: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.policy = nn.Sequential(convolution(3, 16, 4), Head(16, blocks))
        self.stem = convolution(3, width, 2)
        self.blocks = nn.ModuleList(Residual(width, width) for _ in range(blocks))
        self.head = Head(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, h, w) to logits (1, classes)."""
        keep = self.policy(x)[0] > 0
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if not keep[i]:
                continue
            x = block(x)
        return self.head(x)

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """The policy keeps each block for about half of the inputs (n, 3, h, w)."""
        features = warm_statistics(self.policy[0], inputs)
        self.policy[1].normalise(features)  # type: ignore[operator]
        keep = self.policy(inputs) > 0
        x = warm_statistics(self.stem, inputs)
        for i, block in enumerate(self.blocks):
            ran = warm_statistics(block, x[keep[:, i]])
            x = x.clone()
            x[keep[:, i]] = ran
        self.head.normalise(x)
