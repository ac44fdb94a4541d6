"""A cascade over resolutions: it looks more closely until the answer is sure (RANet, Yang et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.dynamic.calibration import quantile, warm_statistics
from common.models.dynamic.early_exit import Head, Residual, convolution


class ResolutionCascade(nn.Module):
    """Three networks at a quarter, half and whole resolution; each is given the features of the one before."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.scales = [4, 2, 1]
        self.stems = nn.ModuleList(convolution(3, width) for _ in self.scales)
        self.bodies = nn.ModuleList(
            nn.Sequential(Residual(width, width), Residual(width, width)) for _ in self.scales
        )
        self.heads = nn.ModuleList(Head(width, classes) for _ in self.scales)
        self.thresholds = [0.5, 0.5]

    def look(self, x: Tensor, coarse: Tensor | None, i: int) -> Tensor:
        """What enters the i-th body: the stem's features at its resolution, plus those of the coarser body."""
        scale = self.scales[i]
        features = self.stems[i](x if scale == 1 else F.avg_pool2d(x, scale))
        if coarse is None:
            return features
        return features + F.interpolate(coarse, scale_factor=2.0, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, h, w) to logits (1, classes)."""
        features = None
        for i in range(len(self.scales)):
            features = self.bodies[i](self.look(x, features, i))
            logits = self.heads[i](features)
            if i < len(self.thresholds):
                best = logits.softmax(dim=-1).topk(2).values[0]
                if best[0] - best[1] > self.thresholds[i]:
                    return logits
        return logits

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """A third of the inputs (n, 3, h, w) leaves at each resolution."""
        features, left = None, torch.ones(len(inputs), dtype=torch.bool)
        for i, scale in enumerate(self.scales):
            warm_statistics(self.stems[i], F.avg_pool2d(inputs, scale))
            features = warm_statistics(self.bodies[i], self.look(inputs, features, i))
            self.heads[i].normalise(features)  # type: ignore[operator]
            if i < len(self.thresholds):
                best = self.heads[i](features).softmax(dim=-1).topk(2).values
                margin = best[:, 0] - best[:, 1]
                self.thresholds[i] = quantile(margin[left], 1 - 1 / (len(self.scales) - i))
                left = left & (margin <= self.thresholds[i])
