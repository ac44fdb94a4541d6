"""A rank's training state as one stretch of bytes: weights and moments, which peers share, and a header of its own."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.distributed.flat_state import FlatState
from common.training.sharded.zero import Fragment

MAGIC = b"in-mem-1"
FIELDS = struct.Struct("<8sQQQQ")  # magic, step, data position, bytes of the whole state and of the generator
HEADER = 5120  # bytes: the fields and torch's CPU generator (5,056 bytes)


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
