"""A stack of mixtures of experts with one expert an input (Switch, Fedus et al. 2021): modules chosen by an index."""

import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import normalise


class Mixture(nn.Module):
    """The router's best expert transforms the input; the others do not run."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        chances = self.router(y).softmax(dim=-1)
        chosen = int(chances.argmax(dim=-1))
        return x + chances[0, chosen] * self.experts[chosen](y)


class ExpertStack(nn.Module):
    """Layers of mixtures of experts and a head."""

    def __init__(self, width: int = 64, layers: int = 4, experts: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mixture(width, experts) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(1, width) to logits (1, classes)."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """Every router sends a like share of the inputs (n, width) to each expert."""
        x = inputs
        for layer in self.layers:
            assert isinstance(layer, Mixture)
            normalise(layer.router, layer.norm(x))
            x = torch.cat([layer(row[None]) for row in x])
        normalise(self.head, x)
