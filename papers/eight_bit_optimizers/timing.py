"""Seconds of one optimizer update: on this CPU, in the table of an H100, on the user's GPU.

Adam in 32 bits moves 28 bytes a parameter (weight, gradient and two states read, weight and states written), in eight
bits 16: weight, gradient, weight in 32 bits, two states of a byte each read and written. Where moving bytes is all that
takes time, eight bits gain 28 / 16 = 1.75 at most.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.hardware import operators
from common.hardware.operators import read_table
from papers.eight_bit_optimizers.optimizer import Adam, States

TABLE = Path(operators.__file__).parent / "tables" / "h100" / "optimisers.csv"
BYTES_32, BYTES_8 = 28, 16  # moved a parameter and update, see above
H100_BANDWIDTH = 3.35e12  # bytes/s, NVIDIA's data sheet of the H100 SXM


def h100_rows() -> dict[tuple[str, int], float]:
    """Seconds of an update by optimizer and number of parameters."""
    return {(row["optimiser"], int(row["parameters"])): float(row["seconds"]) for row in read_table(TABLE)}


def h100_digest() -> str:
    """sha256 of the table."""
    return hashlib.sha256(TABLE.read_bytes()).hexdigest()


def rivals(names: Iterable[str], parameter: Callable[[], nn.Parameter], states: States) -> dict[str, Any]:
    """Optimizers by name, each with a parameter of its own.

    Names: torch foreach, torch fused, bitsandbytes 32, bitsandbytes 8, adafactor, and ours, which `states` describe.
    """
    made: dict[str, Any] = {}
    for name in names:
        if name == "torch foreach":
            made[name] = torch.optim.Adam([parameter()], foreach=True)
        elif name == "torch fused":
            made[name] = torch.optim.Adam([parameter()], fused=True)
        elif name.startswith("bitsandbytes"):
            import bitsandbytes

            made[name] = bitsandbytes.optim.Adam([parameter()], optim_bits=8 if name.endswith("8") else 32)
        elif name == "adafactor":
            from transformers.optimization import Adafactor

            made[name] = Adafactor(
                [parameter()], lr=1e-3, scale_parameter=False, relative_step=False, beta1=0.9
            )
        elif name == "ours":
            made[name] = Adam([parameter()], states)
        else:
            raise ValueError(f"no optimizer is named {name!r}")
    return made


def random_parameter(elements: int, generator: torch.Generator) -> Callable[[], nn.Parameter]:
    """Makes parameters of 1,024 rows (fewer, if there are fewer elements) with a gradient, standard normal."""
    rows = min(1024, elements)
    device = generator.device

    def normal() -> Tensor:
        return torch.randn(rows, elements // rows, generator=generator, device=device)

    def make() -> nn.Parameter:
        made = nn.Parameter(normal())
        made.grad = normal()
        return made

    return make


def cpu_seconds(
    elements: int, names: Iterable[str], states: States, generator: torch.Generator, rounds: int
) -> dict[str, float]:
    """Median seconds of an update on this CPU; the optimizers take turns, so that a slow moment meets them all."""
    made = rivals(names, random_parameter(elements, generator), states)
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 2):  # two to warm up
        for name, optimizer in made.items():
            begun = time.perf_counter()
            optimizer.step()
            if turn >= 2:
                taken[name].append(time.perf_counter() - begun)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def device_seconds(
    elements: int, names: Iterable[str], states: States, generator: torch.Generator, repeats: int = 30
) -> dict[str, float]:
    """Median seconds of an update on the generator's device, waited for; one optimizer exists at a time."""
    wait = torch.cuda.synchronize if generator.device.type == "cuda" else lambda: None
    found = {}
    for name in names:
        (optimizer,) = rivals([name], random_parameter(elements, generator), states).values()
        taken = []
        for turn in range(repeats + 2):  # two to warm up
            wait()
            begun = time.perf_counter()
            optimizer.step()
            wait()
            if turn >= 2:
                taken.append(time.perf_counter() - begun)
        found[name] = float(np.median(taken))
    return found
