"""One training loop over accelerate: one process or several, checkpoints that survive a kill, bit-exact resumption.

    losses = train(model, optimiser, batch_at, loss_of, steps=400, schedule=warmup_cosine(20, 400), clip=1.0)

A batch is a function of its step, so that a resumed run sees the data it would have seen. Under `torchrun` (on GPUs
also `accelerate launch`, which starts several CPU processes through MPI alone) the same call trains with data
parallelism: every process takes its rows of each batch, gradients are averaged.
"""

import atexit
import gc
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[Tensor, ...]  # of the same first dimension
PREFIX = "step-"  # of a checkpoint's folder; one that is still being written has another name
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a run is kept, and after how many steps each time. Only the newest checkpoint stays."""

    folder: Path
    every: int


def train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[nn.Module, Batch], Tensor],
    steps: int,
    *,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    before_step: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    show: Callable[[Iterable[int]], Iterable[int]] = iter,
    until: Callable[[float], bool] | None = None,
) -> list[float]:
    """Train in place; the loss of every step, averaged over processes, those of an earlier run that was resumed too.

    loss_of: a scalar, the mean over the batch's rows. schedule: factor on the learning rates, of the step. clip: the
    largest norm of all gradients. before_step: called with the step between the gradients and the update. show: passes
    the steps through, such as a progress bar. until: given a loss, whether to end early (a run that diverged).
    Gradients and updates are float32; the model trains on the device that its parameters are on. A run whose folder has
    a checkpoint goes on from there. ValueError for a batch whose rows cannot be dealt out to the processes evenly.
    """
    accelerator = _accelerator(next(model.parameters()).device)
    rates = [group["lr"] for group in optimiser.param_groups]
    trained, stepped = accelerator.prepare(model, optimiser, device_placement=[False, False])
    losses = _resume(accelerator, checkpoints)
    for step in show(range(len(losses), steps)):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (schedule(step) if schedule else 1.0)
        loss = loss_of(trained, _share(batch_at(step), accelerator))
        accelerator.backward(loss)
        if clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), clip)
        if before_step is not None:
            before_step(step)
        stepped.step()
        stepped.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
        if checkpoints is not None and (len(losses) % checkpoints.every == 0 or len(losses) == steps):
            _save(accelerator, checkpoints, losses)
        if until is not None and until(losses[-1]):
            break
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    return losses


def warmup_cosine(warmup: int, steps: int, last: float = 0.1) -> Callable[[int], float]:
    """A schedule: linear to 1 over `warmup` steps, then half a cosine down to `last` at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))

    return factor


def _accelerator(device: torch.device) -> "Accelerator":
    """accelerate's view of this process. A process group that it makes is ended with the process, and by us."""
    from accelerate import Accelerator

    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    made = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    if not before and torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_end_group)
    return made


def _end_group() -> None:
    """End the process group while the interpreter stands: its threads abort a process that goes down around them.

    Not at the end of `train`: the next call in the same process needs it, and a second one cannot be made.
    """
    gc.collect()  # models that still hold the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _share(batch: Batch, accelerator: "Accelerator") -> Batch:
    """This process's rows."""
    processes, rows = accelerator.num_processes, len(batch[0])
    if rows % processes:
        raise ValueError(f"a batch of {rows} rows cannot be dealt out evenly to {processes} processes")
    return tuple(part[accelerator.process_index :: processes].to(accelerator.device) for part in batch)


def _save(accelerator: "Accelerator", checkpoints: Checkpoints, losses: list[float]) -> None:
    """The newest checkpoint is whole at any moment: it gets its name when all of it is written."""
    whole = checkpoints.folder / f"{PREFIX}{len(losses):09d}"
    part = checkpoints.folder / f"writing-{whole.name}"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (part / PROGRESS).write_text(json.dumps(losses))
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
        for older in checkpoints.folder.glob(f"{PREFIX}*"):
            if older != whole:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def _resume(accelerator: "Accelerator", checkpoints: Checkpoints | None) -> list[float]:
    """Load the newest checkpoint, if there is one; the losses so far."""
    kept = sorted(checkpoints.folder.glob(f"{PREFIX}*")) if checkpoints else []
    if not kept:
        return []
    accelerator.load_state(str(kept[-1]))
    losses: Any = json.loads((kept[-1] / PROGRESS).read_text())
    return [float(loss) for loss in losses]
