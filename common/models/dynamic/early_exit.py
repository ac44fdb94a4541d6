"""Networks that answer as soon as they are sure: VGG and ResNet (SDN, Kaya et al. 2019), transformer (PABEE)."""

import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import normalise, quantile, warm_statistics


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Head(nn.Module):
    """Mean over positions and a linear layer: (n, channels, h, w) to (n, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean(dim=(2, 3)))

    def normalise(self, features: Tensor) -> None:
        """Scale and shift so that over these features every output has mean 0 and the deviation of calibration.py."""
        normalise(self.linear, features.mean(dim=(2, 3)))


class EarlyExitVGG(nn.Module):
    """Six convolutional blocks, a head after each; leaves where the most likely class is likely enough."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        channels = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        blocks: list[nn.Module] = []
        inputs = 3
        for place, outputs in enumerate(channels):
            block = nn.Sequential(convolution(inputs, outputs), convolution(outputs, outputs))
            blocks.append(nn.Sequential(block, nn.MaxPool2d(2)) if place % 2 == 0 else block)
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(Head(outputs, classes) for outputs in channels)
        self.thresholds = [0.5] * (len(channels) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, h, w) to logits (1, classes)."""
        for i in range(len(self.thresholds)):
            x = self.blocks[i](x)
            logits = self.heads[i](x)
            if logits.softmax(dim=-1).max() > self.thresholds[i]:
                return logits
        return self.heads[-1](self.blocks[-1](x))

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """An equal share of the inputs (n, 3, h, w) leaves at each exit."""
        x, left = inputs, torch.ones(len(inputs), dtype=torch.bool)
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = warm_statistics(block, x)
            head.normalise(x)  # type: ignore[operator]
            if i < len(self.thresholds):
                sure = head(x).softmax(dim=-1).amax(dim=-1)
                self.thresholds[i] = quantile(sure[left], 1 - 1 / (len(self.blocks) - i))
                left = left & (sure <= self.thresholds[i])


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return torch.relu(x + y)


class EarlyExitResNet(nn.Module):
    """Four stages of residual blocks; leaves where the entropy of the prediction is low."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        channels = [width, width, 2 * width, 4 * width]
        self.stem = convolution(3, width)
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(inputs, outputs, 1 if place == 0 else 2), Residual(outputs, outputs))
            for place, (inputs, outputs) in enumerate(zip([width, *channels[:-1]], channels, strict=True))
        )
        self.heads = nn.ModuleList(Head(outputs, classes) for outputs in channels)
        self.thresholds = [0.0] * len(channels)  # of the last one nothing depends

    def entropy(self, logits: Tensor) -> Tensor:
        """Of each prediction, nats: (n, classes) to (n,)."""
        shares = logits.softmax(dim=-1)
        return -(shares * shares.log()).sum(dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """(1, 3, h, w) to logits (1, classes) and the number of stages that ran."""
        x = self.stem(x)
        ran = 0
        for stage, head, threshold in zip(self.stages, self.heads, self.thresholds):  # noqa: B905
            x = stage(x)
            logits = head(x)
            ran += 1
            if ran < len(self.stages) and self.entropy(logits) < threshold:
                break
        return logits, ran

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """An equal share of the inputs (n, 3, h, w) leaves after each stage."""
        x, left = warm_statistics(self.stem, inputs), torch.ones(len(inputs), dtype=torch.bool)
        for i, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            x = warm_statistics(stage, x)
            head.normalise(x)  # type: ignore[operator]
            unsure = self.entropy(head(x))
            if i + 1 < len(self.stages):
                self.thresholds[i] = quantile(unsure[left], 1 / (len(self.stages) - i))
                left = left & (unsure >= self.thresholds[i])


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and a feed-forward layer: (n, length, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        mixed = self.mix(self.before(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        x = x + self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.between(x))))


class PatientEncoder(nn.Module):
    """Transformer encoder that stops after `patience` repetitions of one prediction in a row (Zhou et al. 2020)."""

    def __init__(
        self,
        width: int = 64,
        layers: int = 6,
        classes: int = 4,
        patience: int = 1,
        vocabulary: int = 512,
        length: int = 24,
    ) -> None:
        super().__init__()
        self.patience = patience
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.ModuleList(EncoderLayer(width, 4) for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))

    def forward(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Token ids (1, length) to logits (1, classes) and the number of layers that ran."""
        x = self.words(tokens) + self.places.weight
        before, agreed, ran = -1, 0, 0
        for layer, head in zip(self.layers, self.heads):  # noqa: B905
            x = layer(x)
            logits = head(x.mean(dim=1))
            ran += 1
            now = int(logits.argmax(dim=-1))
            agreed = agreed + 1 if now == before else 0
            if agreed >= self.patience:
                break
            before = now
        return logits, ran

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """Every head predicts each class for a like share of the inputs (n, length)."""
        x = self.words(inputs) + self.places.weight
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x)
            normalise(head, x.mean(dim=1))  # type: ignore[arg-type]
