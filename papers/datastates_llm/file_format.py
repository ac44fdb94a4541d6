"""The checkpoint file: tensors back to back behind a header that says where, and what is left of the state last.

    8 bytes, little endian: length of the header
    JSON header: for every tensor, by its path joined with "|", dtype, shape and data_offsets [start, end)
    the tensors' bytes
    the lean state: the nested state in which "TENSOR|path" stands for each tensor

Offsets follow from shapes alone, so tensors can be written before anything else is. The layout is that of the
authors' engine, with two differences: the lean state is JSON (they pickle it, and who unpickles a file runs what is in
it), and its entry in the header has dtype and shape like a tensor's, which makes the file a valid safetensors file.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LENGTH = 8  # bytes in front of the header
METADATA = "datastates_metadata"
MARK = "TENSOR|"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
NAMES = {name: dtype for dtype, name in DTYPES.items()}


class Damaged(ValueError):
    """A file that is cut short or was never one of these."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the state, and where its bytes begin in the file."""

    key: str
    tensor: Tensor
    offset: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True)
class Plan:
    """What goes where: `head` (with its length) at 0, the entries' bytes, `lean` at `lean_offset`. No copies."""

    head: bytes
    entries: tuple[Entry, ...]
    lean: bytes
    lean_offset: int


def plan(state: Mapping[str, Any]) -> Plan:
    """Lay out a nested state of dicts, lists, tensors and what JSON knows, in one pass and without copying.

    TypeError for anything else, ValueError for a tensor that is not contiguous or a name that could be misread; both
    say where.
    """
    skeleton, found = apart(state)
    lean = json.dumps(skeleton).encode()
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in found.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    header[METADATA] = {"dtype": "U8", "shape": [len(lean)], "data_offsets": [end, end + len(lean)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where any dtype may
    first = LENGTH + len(text)
    entries = tuple(
        Entry(key, tensor, first + header[key]["data_offsets"][0]) for key, tensor in found.items()
    )
    return Plan(len(text).to_bytes(LENGTH, "little") + text, entries, lean, first + end)


def raw(tensor: Tensor) -> Tensor:
    """A contiguous tensor's own memory, uint8 of one dimension."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the offset at which tensors begin. Damaged where the file is not as long as it says."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        if not 0 < length <= size - LENGTH:
            raise Damaged(f"{path}: no header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length))
            whole = LENGTH + length + header[METADATA]["data_offsets"][1]
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{path}: the header is not whole") from None
    if whole != size:
        raise Damaged(f"{path}: {size} bytes where the header says {whole}")
    return header, LENGTH + length


def load(path: Path) -> Any:
    """The state that was saved: same nesting, same bits. Damaged for a file that is not whole."""
    header, first = read_header(path)
    with path.open("rb") as file:

        def part(name: str) -> bytes:
            start, end = header[name]["data_offsets"]
            file.seek(first + start)
            return file.read(end - start)

        tensors = {}
        for key, entry in header.items():
            if key == METADATA:
                continue
            dtype, size = NAMES[entry["dtype"]], entry["shape"]
            content = bytearray(part(key))
            if len(content) != math.prod(size) * dtype.itemsize:
                raise Damaged(f"{path}: {key} has {len(content)} bytes for shape {size}")
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            tensors[key] = flat.view(size)
        return together(json.loads(part(METADATA)), tensors)


def apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """The lean state, and the tensors by their keys in the file. Errors as in `plan`."""
    found: dict[str, Tensor] = {}
    return _lean(state, (), found), found


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors of a nested state by their keys in the file."""
    return apart(state)[1]


def together(lean: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state again: `apart`, backwards."""
    if isinstance(lean, dict):
        return {name: together(child, tensors) for name, child in lean.items()}
    if isinstance(lean, list):
        return [together(child, tensors) for child in lean]
    if isinstance(lean, str) and lean.startswith(MARK):
        return tensors[lean.removeprefix(MARK)]
    return lean


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and memory (so that NaN equals itself)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def _lean(node: Any, path: tuple[str, ...], found: dict[str, Tensor]) -> Any:
    place = "|".join(path)
    if isinstance(node, Tensor):
        if not node.is_contiguous():
            raise ValueError(f"{place}: a tensor that is not contiguous has no stretch of memory to copy")
        if node.dtype not in DTYPES:
            raise TypeError(f"{place}: no name for {node.dtype} in the file")
        found[place] = node
        return MARK + place
    if isinstance(node, Mapping):
        return {name: _lean(child, (*path, _checked(name, place)), found) for name, child in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, (str, bytes, tuple)):
        return [_lean(child, (*path, str(index)), found) for index, child in enumerate(node)]
    if isinstance(node, str) and node.startswith(MARK):
        raise ValueError(f"{place}: the text {node!r} would be read as a tensor")
    if node is None or isinstance(node, (str, bool, int, float)):
        return node
    raise TypeError(f"{place}: {type(node).__name__} is neither a tensor nor known to JSON")


def _checked(name: Any, place: str) -> str:
    if not isinstance(name, str) or "|" in name or name == METADATA:
        raise ValueError(f"{place}: {name!r} can't name a part of a state (a text without '|')")
    return name


def pieces(nbytes: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Bounds of the chunks of so many bytes."""
    for start in range(0, nbytes, chunk):
        yield start, min(nbytes, start + chunk)
