"""Blocks on disk: a file a matrix, its blocks one after another, each at a place that follows from its shape.

A block is read alone, so that what moves when memory changes by a megabyte is a megabyte.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papers.bitstack.decomposition import Block, block_bytes, rank_without_signs

INDEX = "index.json"


@dataclass(frozen=True)
class Shape:
    """Of the blocks of one matrix; see decomposition.decompose."""

    rows: int
    columns: int
    k: int
    absolute: bool = True
    packed: bool = True  # False: a byte for each sign (a negative control)

    @property
    def parameters(self) -> int:
        return self.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Of one block in its file."""
        unpacked = 0 if self.packed or not self.absolute else 7 * (self.parameters // 8)
        return block_bytes(self.rows, self.columns, self.k, self.absolute) + unpacked

    def parts(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Shapes of signs, left and right of a block."""
        rank = self.k if self.absolute else rank_without_signs(self.rows, self.columns, self.k)
        signs = (self.rows, self.columns // 8) if self.absolute else (0, 0)
        return (signs, (self.rows, rank), (rank, self.columns)) if rank else (signs, (1, 1), (1, 1))


def write(folder: Path, name: str, shape: Shape, blocks: Iterable[Block]) -> int:
    """Write a matrix's blocks into `folder`; how many there were."""
    count = 0
    with (folder / f"{name}.blocks").open("wb") as file:
        for block in blocks:
            signs = block.signs.numpy()
            if shape.absolute and not shape.packed:
                signs = np.unpackbits(signs, axis=1)
            for part in (signs, block.left.numpy(), block.right.numpy()):
                file.write(np.ascontiguousarray(part).tobytes())
            count += 1
    return count


def write_index(folder: Path, shapes: dict[str, Shape], blocks: int) -> None:
    """Name the matrices, in the order of the model, and how many blocks each has."""
    rows = {name: asdict(shape) for name, shape in shapes.items()}
    (folder / INDEX).write_text(json.dumps({"blocks": blocks, "matrices": rows}, indent=1))


class BlockFiles:
    """A folder that `write` and `write_index` filled. ValueError where it is none."""

    def __init__(self, folder: Path) -> None:
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder} holds no blocks: it has no {INDEX}")
        index = json.loads((folder / INDEX).read_text())
        self.folder = folder
        self.blocks: int = index["blocks"]
        self.shapes = {name: Shape(**fields) for name, fields in index["matrices"].items()}

    def read(self, name: str, index: int) -> Block:
        """Block `index` of a matrix, from its file. ValueError for a block that is not there."""
        shape = self.shapes[name]
        if not 0 <= index < self.blocks:
            raise ValueError(f"{name} has {self.blocks} blocks, so none of number {index}")
        with (self.folder / f"{name}.blocks").open("rb", buffering=0) as file:
            file.seek(index * shape.nbytes)
            raw = bytearray(file.read(shape.nbytes))
        if len(raw) != shape.nbytes:
            raise ValueError(f"{name}: block {index} has {len(raw)} bytes in its file, not {shape.nbytes}")
        signs, left, right = shape.parts()
        at_right = shape.nbytes - 2 * right[0] * right[1]
        at_left = at_right - 2 * left[0] * left[1]
        packed = np.frombuffer(raw, dtype=np.uint8, count=at_left)
        if at_left and not shape.packed:
            packed = np.packbits(packed.reshape(shape.rows, -1), axis=1)
        kept = torch.from_numpy(packed).view(signs)
        return Block(kept, _half(raw, at_left, left), _half(raw, at_right, right))


def _half(raw: bytearray, offset: int, shape: tuple[int, int]) -> Tensor:
    return torch.frombuffer(raw, dtype=torch.float16, count=shape[0] * shape[1], offset=offset).view(shape)
