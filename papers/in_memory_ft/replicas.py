"""Replicas, and their state as one stretch of bytes: weights and moments, which peers share, and an own header."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.flat_state import FlatState
from common.training.sharded.layout import Groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from common.training.sharded.zero import Fragment, Resident, hold

MAGIC = b"in-mem-1"
FIELDS = struct.Struct("<8sQQQQ")  # magic, step, data position, bytes of the whole state and of the generator
HEADER = 5120  # bytes: the fields and torch's CPU generator (5,056 bytes)


class Replica(Trainer):
    """A trainer of ZeRO stage 0 with one reduction a step instead of one a tensor. ValueError for another stage."""

    held: Resident

    def __init__(self, shape: Shape, groups: Groups, recipe: Recipe) -> None:
        # imported by the first optimiser of a process, for more than a second; named here, the lab loads it ahead
        import torch._dynamo  # noqa: F401

        if groups.layout.zero:
            raise ValueError(f"peers hold the same state in ZeRO stage 0, not {groups.layout.zero}")
        super().__init__(shape, groups, recipe)
        tensors = {name: one.detach() for name, one in self.held.tensors.items()}
        self.held = hold(tensors, replace(groups, data=None), recipe.adam)  # type: ignore[assignment]

    def step(self, batch: Tensor, before_update: Callable[[int], None] | None = None) -> float:
        """As Trainer's."""

        def added_up(step: int) -> None:
            if self.groups.data is not None:
                gradients = [self.held.gradient(name) for name in self.held.tensors]
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                dist.all_reduce(flat, group=self.groups.data)
                for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                    gradient.copy_(part.view_as(gradient))
            if before_update is not None:
                before_update(step)

        return super().step(batch, added_up)


@dataclass(frozen=True)
class Header:
    """What a rank has beside weights and moments: steps taken, rows read, the generator of its dropout."""

    step: int
    position: int
    state_bytes: int
    rng: Tensor

    def pack(self) -> bytes:
        """HEADER bytes. ValueError for a generator that does not fit."""
        rng = self.rng.numpy().tobytes()
        if FIELDS.size + len(rng) > HEADER:
            raise ValueError(f"a generator's state of {len(rng)} bytes does not fit a header of {HEADER}")
        fields = FIELDS.pack(MAGIC, self.step, self.position, self.state_bytes, len(rng))
        return (fields + rng).ljust(HEADER, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """What `pack` made. ValueError for anything else."""
        magic, step, position, state_bytes, rng_bytes = FIELDS.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("this is no snapshot of a training state")
        rng = bytearray(data[FIELDS.size : FIELDS.size + rng_bytes])
        return cls(step, position, state_bytes, torch.frombuffer(rng, dtype=torch.uint8).clone())


def flat(fragments: Sequence[Fragment]) -> FlatState:
    """Weights and both moments of a rank's fragments; views of the live tensors."""
    return FlatState([tensor for f in fragments for tensor in (f.weight, f.exp_avg, f.exp_avg_sq)])


def payload_bytes(state_bytes: int, shards: int) -> int:
    """Bytes that hold any rank's header and shard."""
    return HEADER + -(-state_bytes // shards)
