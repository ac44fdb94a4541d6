"""The accuracy of a grouped network: really trained, on all images but a fold, and tested on that fold.

Each seed leaves out another fold, draws other weights and another order of images, so that five seeds test on every
image once. The baseline and every other network of a seed see the same folds and the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.grouped_mobilenet import SMALL_BLOCKS, new_grouped_mobilenet
from common.training.loop import Batch, train, warmup_cosine
from papers.draco.cooptimization import FOLDS
from papers.draco.images import Images, load

# Blocks for 8 x 8 digits: two stages of 8 x 8 and 4 x 4. The MNIST network's first layer halves 28 x 28.
DIGIT_BLOCKS = ((16, 1), (32, 2), (32, 1))


@dataclass(frozen=True)
class Training:
    """One network to train."""

    group_size: int
    width: float
    seed: int
    data: str  # mnist-5k, digits or cifar10
    epochs: int
    batch: int
    learning_rate: float
    frozen: bool = False  # 3 x 3 layers of larger groups keep their random weights
    device: str = "cpu"


def accuracy(training: Training, paths: tuple[Path, ...] = ()) -> float:
    """Train on the images of these files and test: percent of the left-out fold's images that are classified right."""
    return accuracy_on(load(training.data, paths), training)


def accuracy_on(images: Images, training: Training) -> float:
    """The same on images at hand."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))
    fold = order.chunk(FOLDS)[training.seed % FOLDS]
    rest = order[~torch.isin(order, fold)]
    device = torch.device(training.device)
    pixels = images.pixels.to(device, memory_format=torch.channels_last)
    labels = images.labels.to(device)
    small = training.data == "digits"
    model = new_grouped_mobilenet(
        torch.Generator(device).manual_seed(1000 + training.seed),
        training.group_size,
        training.width,
        blocks=DIGIT_BLOCKS if small else SMALL_BLOCKS,
        channels=images.pixels.shape[1],
        stem_stride=1 if small else 2,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    for layer in model.spatial:
        layer.weight.requires_grad_(not training.frozen or training.group_size == 1)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    steps = training.epochs * (len(rest) // training.batch)
    train(
        model,
        torch.optim.AdamW(learned, lr=training.learning_rate, weight_decay=0.05, fused=True),
        batches(pixels, labels, rest.to(device), training.batch, training.seed),
        _loss,
        steps,
        schedule=warmup_cosine(max(1, steps // 10), steps, last=0.0),
    )
    with torch.inference_mode():
        right = (model.eval()(pixels[fold]).argmax(dim=1) == labels[fold]).sum()
    return 100.0 * float(right) / len(fold)


def batches(pixels: Tensor, labels: Tensor, rest: Tensor, rows: int, seed: int) -> Callable[[int], Batch]:
    """Batches for `train`: each epoch deals out the images of `rest` in another order, a function of seed and epoch.

    ValueError for a batch that is larger than what there is to learn from.
    """
    if not 1 <= rows <= len(rest):
        raise ValueError(f"a batch of {rows} rows from {len(rest)} images")
    each = len(rest) // rows

    def at(step: int) -> Batch:
        epoch, place = divmod(step, each)
        shuffled = torch.randperm(
            len(rest), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)
        )
        chosen = rest[shuffled[place * rows : (place + 1) * rows].to(rest.device)]
        return pixels[chosen], labels[chosen]

    return at


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)
