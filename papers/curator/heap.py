"""A binary min-heap of (key, item) in two arrays: queue of the descent, order of buckets, k best results."""

from typing import Any

from papers.curator.compiled import inner


@inner
def push(keys: Any, items: Any, size: int, key: float, item: int) -> int:
    """Add a pair; the new size."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if keys[parent] <= key:
            break
        keys[place] = keys[parent]
        items[place] = items[parent]
        place = parent
    keys[place] = key
    items[place] = item
    return size + 1


@inner
def drop_first(keys: Any, items: Any, size: int) -> int:
    """Remove the pair at place 0, the least; the new size."""
    size -= 1
    key, item = keys[size], items[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[place] = keys[child]
        items[place] = items[child]
        place = child
    keys[place] = key
    items[place] = item
    return size


@inner
def keep_nearest(keys: Any, items: Any, size: int, k: int, distance: float, item: int) -> int:
    """Offer an item to the k nearest, kept with negated distances so that the farthest is first; the new size."""
    if size == k:
        if distance >= -keys[0]:
            return size
        size = drop_first(keys, items, size)
    return push(keys, items, size, -distance, item)
