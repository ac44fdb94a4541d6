"""UcpInfo: which part of a whole tensor a rank holds, as cells that are copied one way (Union) or the other (Load).

A rank of a layout has a tensor rank's piece of a parameter, and with ZeRO a stretch of that piece flattened. `cells`
names the rectangular blocks of the piece and of the whole that belong together, all or those of a stretch alone.
"""

from collections.abc import Iterator
from itertools import product
from math import prod

from torch import Tensor

from papers.universal_checkpointing.patterns import Box, Pattern, PatternError, Size

Cell = tuple[tuple[slice, ...], tuple[slice, ...]]  # in the piece, and in the whole


def cells(box: Box, rows: tuple[int, int] | None = None) -> Iterator[Cell]:
    """Blocks of a piece and where they lie in the whole; rows: (first, last) of the piece's, counted from first."""
    choices = []
    for dim, stretches in enumerate(box):
        low, high = rows if rows is not None and dim == 0 else (0, sum(b - a for a, b in stretches))
        found, at = [], 0
        for a, b in stretches:
            first, last = max(low, at), min(high, at + b - a)
            if first < last:
                found.append((slice(first - low, last - low), slice(a + first - at, a + last - at)))
            at += b - a
        choices.append(found)
    for chosen in product(*choices):
        yield tuple(own for own, _ in chosen), tuple(theirs for _, theirs in chosen)


def put(whole: Tensor, piece: Tensor, box: Box) -> None:
    """Copy a rank's piece into the whole tensor, in place."""
    for own, theirs in cells(box):
        whole[theirs] = piece[own]


def rows_of(size: Size, start: int, numel: int) -> tuple[int, int]:
    """First and last row (exclusive) of a tensor of this size that `numel` elements from `start`, flattened, touch."""
    width = prod(size[1:])
    return start // width, -(-(start + numel) // width)


def padded_size(pattern: Pattern, whole: Size, local: Size, ranks: int) -> Size:
    """The whole's size under a layout in which a rank holds a tensor of size `local`: a vocabulary may be padded.

    PatternError where the layout's size is another one than the parameter's.
    """
    theirs = pattern.whole(local, ranks)
    rows = getattr(pattern, "rows", None)
    real = theirs if rows is None else (rows, *theirs[1:])
    if real != whole or (rows is not None and theirs[0] < rows):
        raise PatternError(
            f"a tensor of size {whole} does not fit {ranks} tensor ranks that hold {local} each"
        )
    return theirs
