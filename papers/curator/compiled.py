"""Compilation by numba (the extra `kernels`), a clock for compiled code, and the one distance of all indexes."""

import hashlib
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

numba: Any
try:
    numba = import_module("numba")
except ImportError:  # then this can be imported, but not run
    numba = None

FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be vectorised; NaN and infinity keep their meaning


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function of numpy arrays and tuples of them that Python calls, and keep its machine code in a file.

    A call raises ModuleNotFoundError where numba is missing.
    """
    function.__qualname__ += f"_{_digest()}"  # names the file; numba itself sees changes of one source only
    return _compiled(function, cache=True)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call: no way in from Python, which would take most of the time."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    if (
        numba is not None
    ):  # kernels make no arrays, so that nothing need be counted (_nrt): a fifth less to compile
        return numba.njit(fastmath=FAST, error_model="numpy", _nrt=False, **options)(function)

    def missing(*arguments: Any) -> Any:
        raise ModuleNotFoundError(f"{function.__name__} needs numba: pip install -e '.[kernels]'")

    return missing


@cache
def _digest() -> str:
    """Of all sources with kernels or their types, so that no machine code outlives the code that it came from."""
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    kernels = [text for text in sources if b"@kernel" in text or b"@inner" in text or b"NamedTuple" in text]
    return hashlib.sha256(b"".join(kernels)).hexdigest()[:12]


def kept() -> bool:
    """Whether machine code of these sources lies beside them, so that nothing has to be compiled."""
    return any((Path(__file__).parent / "__pycache__").glob(f"*search_tree_{_digest()}*.nbc"))


if numba is not None:
    _clock = numba.types.ExternalFunction(
        "clock_gettime", numba.types.int32(numba.types.int32, numba.types.uintp)
    )
_MONOTONIC = int(time.CLOCK_MONOTONIC)


@inner
def nanoseconds(buffer: Any) -> int:
    """Time of a monotonic clock; `buffer` is int64 (2,), overwritten. A call takes some 20 ns."""
    _clock(_MONOTONIC, buffer.ctypes.data)
    return buffer[0] * 1_000_000_000 + buffer[1]


@inner
def squared_distance(a: Any, i: int, b: Any, j: int) -> Any:
    """Squared Euclidean distance of row i of a and row j of b, float32; the one that every index uses."""
    total = np.float32(0)
    for c in range(a.shape[1]):
        difference = a[i, c] - b[j, c]
        total += difference * difference
    return total
