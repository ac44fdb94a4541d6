"""Seeded weights, and thresholds set on a batch of inputs so that every decision goes both ways."""

import math

import torch
from torch import Tensor, nn

SPREAD = 2.0  # standard deviation of logits over inputs, so that decisions are far from rounding errors


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights: normal of variance 2 / inputs (He et al. 2015), biases zero, embeddings standard normal."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
            elif isinstance(module, nn.RNNCellBase):
                for name, parameter in module.named_parameters():
                    bound = 1.0 if name.startswith("weight") else 0.0
                    parameter.normal_(std=bound / math.sqrt(module.hidden_size), generator=generator)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                inputs = module.weight[0].numel()
                module.weight.normal_(std=math.sqrt(2 / inputs), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


@torch.no_grad()
def normalise(layer: nn.Linear, features: Tensor, spread: float = SPREAD) -> None:
    """Scale and shift a linear layer so that over features (n, inputs) its outputs have mean 0 and this deviation."""
    outputs = layer(features)
    scale = spread / outputs.std(dim=0).clamp_min(1e-6)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_(scale * (layer.bias - outputs.mean(dim=0)))


@torch.no_grad()
def warm_statistics(module: nn.Module, inputs: Tensor) -> Tensor:
    """Set the batch norms inside `module` to the statistics of these inputs; its outputs after that, in eval mode."""
    norms = [inner for inner in module.modules() if isinstance(inner, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: after one batch, that batch's statistics
    module.train()
    module(inputs)
    module.eval()
    return module(inputs)


def quantile(values: Tensor, share: float) -> float:
    """The value below which this share of values (n,) lies, half way between its two neighbours."""
    ordered = values.flatten().double().sort().values
    place = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    return float((ordered[place - 1] + ordered[place]) / 2)
