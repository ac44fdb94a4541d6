"""The Bloom filter of tenants in every node: does this sub-tree hold a vector of tenant t?

All filters have the same size and the same hash functions, so that a tenant's places are computed once a query and
filters of children can be joined by OR (Bloom, CACM 1970; double hashing as in Kirsch and Mitzenmacher, 2006).
"""

import math
from typing import Any

import numpy as np

from papers.curator.compiled import inner


def filter_bits(capacity: int, false_positives: float) -> int:
    """Bits of the smallest filter with this share of false positives at `capacity` members, in whole words of 64.

    ValueError for a share outside (0, 1) or a capacity below 1.
    """
    if capacity < 1 or not 0 < false_positives < 1:
        raise ValueError(
            f"a filter needs a capacity >= 1 and a share in (0, 1), not {capacity}, {false_positives}"
        )
    bits = math.ceil(-capacity * math.log(false_positives) / math.log(2) ** 2)
    return -(-bits // 64) * 64


def hash_functions(capacity: int, bits: int) -> int:
    """How many hash functions make false positives rarest at this capacity."""
    return max(1, round(bits / capacity * math.log(2)))


def empty_filters(nodes: int, capacity: int, false_positives: float) -> tuple[np.ndarray, np.ndarray]:
    """Filters uint64 (nodes, words), all empty, and an int64 array for a tenant's places (one a hash function)."""
    bits = filter_bits(capacity, false_positives)
    return np.zeros((nodes, bits // 64), dtype=np.uint64), np.zeros(
        hash_functions(capacity, bits), dtype=np.int64
    )


@inner
def places_of(tenant: int, bits: int, places: Any) -> None:
    """The bit numbers of a tenant, written into `places`."""
    mixed = (tenant + 1) * 0x1B873593CC9E2D51
    mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653
    mixed = (mixed ^ (mixed >> 32)) & 0x7FFFFFFFFFFFFFFF
    first, step = mixed & 0x7FFFFFFF, (mixed >> 31) | 1
    for i in range(len(places)):
        places[i] = (first + i * step) % bits


@inner
def contains(filters: Any, node: int, places: Any) -> bool:
    """Whether all of a tenant's bits are set: False is certain, True may be wrong."""
    for i in range(len(places)):
        place = places[i]
        if (filters[node, place >> 6] >> np.uint64(place & 63)) & np.uint64(1) == np.uint64(0):
            return False
    return True


@inner
def insert(filters: Any, node: int, places: Any) -> None:
    """Set a tenant's bits."""
    for i in range(len(places)):
        place = places[i]
        filters[node, place >> 6] |= np.uint64(1) << np.uint64(place & 63)
