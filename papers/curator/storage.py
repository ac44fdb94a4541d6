"""Where all indexes keep what grows: lists of ids in one array, and a table of integers.

A list owns a block of 2^c places and moves to the next larger one when it is full; blocks that fall free are used
again. The table is an open-addressing hash map. Both are plain arrays, so that compiled code can change them and their
bytes can be counted. Compiled code cannot enlarge them: `room` and `reserve` do so beforehand.
"""

from typing import Any, NamedTuple

import numpy as np

from papers.curator.compiled import inner, kernel

TOP, NUMBERS, FREE_NUMBER, FREE_BLOCK = 0, 1, 2, 3  # places of Lists.state; blocks of class c: FREE_BLOCK + c
START, SIZE, CLASS = 0, 1, 2  # columns of Lists.head
CLASSES = 31


class Lists(NamedTuple):
    """Growable lists of int32 by number. class -1: a list without a block."""

    data: np.ndarray  # int32 (capacity,)
    head: np.ndarray  # int32 (lists, 3): start, size, class
    state: (
        np.ndarray
    )  # int64 (FREE_BLOCK + CLASSES,): next unused place, next unused number, chains of free ones


class Table(NamedTuple):
    """A map from non-negative int64 keys to int32 values."""

    keys: np.ndarray  # int64 (a power of two,), -1 where empty
    values: np.ndarray  # int32, same shape
    state: np.ndarray  # int64 (1,): entries


def empty_lists(numbers: int, places: int, used: int = 0) -> Lists:
    """Room for `numbers` lists and `places` ids; the first `used` numbers are lists already, all empty."""
    head = np.zeros((numbers, 3), dtype=np.int32)
    head[:, CLASS] = -1
    state = np.full(FREE_BLOCK + CLASSES, -1, dtype=np.int64)
    state[TOP], state[NUMBERS] = 0, used
    return Lists(np.zeros(places, dtype=np.int32), head, state)


def empty_table(slots: int = 64) -> Table:
    """A table of a power of two slots."""
    return Table(
        np.full(slots, -1, dtype=np.int64), np.zeros(slots, dtype=np.int32), np.zeros(1, dtype=np.int64)
    )


def touched(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Zeros whose pages are there already, so that no later write has to wait for one."""
    made: np.ndarray = np.empty(shape, dtype=kind)
    made.fill(0)
    return made


def room(lists: Lists, places: int, numbers: int) -> Lists:
    """The same lists with at least so many unused places and numbers."""
    data, head = lists.data, lists.head
    if lists.state[TOP] + places > len(data):
        grown = touched((max(2 * len(data), int(lists.state[TOP]) + places),), np.int32)
        grown[: len(data)] = data
        data = grown
    if lists.state[NUMBERS] + numbers > len(head):
        more = np.zeros((max(2 * len(head), int(lists.state[NUMBERS]) + numbers), 3), dtype=np.int32)
        more[:, CLASS] = -1
        more[: len(head)] = head
        head = more
    return Lists(data, head, lists.state)


def trimmed(lists: Lists) -> Lists:
    """The same lists without unused places at the end; those inside blocks stay."""
    top, numbers = int(lists.state[TOP]), int(lists.state[NUMBERS])
    return Lists(lists.data[:top].copy(), lists.head[:numbers].copy(), lists.state)


def reserve(table: Table, more: int) -> Table:
    """The same table with room for `more` entries at a load of at most 0.7."""
    slots = len(table.keys)
    while table.state[0] + more > 0.7 * slots:
        slots *= 2
    return table if slots == len(table.keys) else _resized(table, slots)


def fitted(table: Table) -> Table:
    """The same entries in the smallest table."""
    slots = 64
    while table.state[0] > 0.7 * slots:
        slots *= 2
    return _resized(table, slots)


def _resized(table: Table, slots: int) -> Table:
    grown = empty_table(slots)
    refill(table, grown)
    return grown


def bytes_of(*parts: Any) -> int:
    """Bytes of arrays and of tuples of them."""
    return sum(part.nbytes if isinstance(part, np.ndarray) else bytes_of(*part) for part in parts)


@inner
def _take(lists: Lists, size_class: int) -> int:
    """Start of a block of 2^size_class places."""
    state = lists.state
    block = state[FREE_BLOCK + size_class]
    if block >= 0:
        state[FREE_BLOCK + size_class] = lists.data[block]  # a free block holds the next one of its chain
        return block
    block = state[TOP]
    state[TOP] += 1 << size_class
    return block


@inner
def new_list(lists: Lists) -> int:
    """The number of an empty list."""
    state = lists.state
    number = int(state[FREE_NUMBER])
    if number >= 0:
        state[FREE_NUMBER] = lists.head[number, START]
    else:
        number = state[NUMBERS]
        state[NUMBERS] += 1
    lists.head[number, SIZE] = 0
    lists.head[number, CLASS] = -1
    return number


@inner
def drop_list(lists: Lists, number: int) -> None:
    """Give back a list's block and its number."""
    clear_list(lists, number)
    lists.head[number, START] = lists.state[FREE_NUMBER]
    lists.state[FREE_NUMBER] = number


@inner
def clear_list(lists: Lists, number: int) -> None:
    """Give back a list's block; the list is empty then."""
    size_class = lists.head[number, CLASS]
    if size_class >= 0:
        start = lists.head[number, START]
        lists.data[start] = lists.state[FREE_BLOCK + size_class]
        lists.state[FREE_BLOCK + size_class] = start
    lists.head[number, SIZE] = 0
    lists.head[number, CLASS] = -1


@inner
def append(lists: Lists, number: int, value: int) -> int:
    """Append a value; where the list had to move, the start of its old block (-1 otherwise)."""
    head, data = lists.head, lists.data
    size, size_class, moved = head[number, SIZE], head[number, CLASS], -1
    if size_class < 0 or size == 1 << size_class:
        start = _take(lists, size_class + 1)
        if size_class >= 0:
            moved = head[number, START]
            for i in range(size):
                data[start + i] = data[moved + i]
            data[moved] = lists.state[FREE_BLOCK + size_class]
            lists.state[FREE_BLOCK + size_class] = moved
        head[number, START] = start
        head[number, CLASS] = size_class + 1
    data[head[number, START] + size] = value
    head[number, SIZE] = size + 1
    return moved


@inner
def insert_sorted(lists: Lists, number: int, value: int) -> bool:
    """Put a value into an ascending list; False where it is there already."""
    if contains_sorted(lists, number, value):
        return False
    append(lists, number, value)
    start = lists.head[number, START]
    place = start + lists.head[number, SIZE] - 1
    while place > start and lists.data[place - 1] > value:
        lists.data[place] = lists.data[place - 1]
        place -= 1
    lists.data[place] = value
    return True


@inner
def contains_sorted(lists: Lists, number: int, value: int) -> bool:
    """Whether an ascending list holds a value. With vectors' sorted tenants this is every index's access test."""
    low = lists.head[number, START]
    end = low + lists.head[number, SIZE]
    high = end
    while low < high:
        middle = (low + high) >> 1
        if lists.data[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < end and lists.data[low] == value


@inner
def remove(lists: Lists, number: int, value: int, keep_order: bool) -> bool:
    """Take a value out of a list; False where it is not there."""
    start, size = lists.head[number, START], lists.head[number, SIZE]
    for i in range(start, start + size):
        if lists.data[i] == value:
            if keep_order:
                for j in range(i, start + size - 1):
                    lists.data[j] = lists.data[j + 1]
            else:
                lists.data[i] = lists.data[start + size - 1]
            lists.head[number, SIZE] = size - 1
            return True
    return False


@inner
def slot_of(table: Table, key: int) -> int:
    """The slot that holds a key, or the empty one where it belongs."""
    mask = len(table.keys) - 1
    slot = ((key * 0x1E3779B97F4A7C15) >> 20) & mask
    while table.keys[slot] >= 0 and table.keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@inner
def look_up(table: Table, key: int) -> int:
    """The value of a key, -1 where there is none."""
    slot = slot_of(table, key)
    return int(table.values[slot]) if table.keys[slot] >= 0 else -1


@inner
def store(table: Table, key: int, value: int) -> None:
    """Set the value of a key."""
    slot = slot_of(table, key)
    if table.keys[slot] < 0:
        table.keys[slot] = key
        table.state[0] += 1
    table.values[slot] = value


@inner
def erase(table: Table, key: int) -> None:
    """Remove a key that is there, moving later ones of its run up."""
    mask = len(table.keys) - 1
    hole = slot_of(table, key)
    table.keys[hole] = -1
    table.state[0] -= 1
    slot = (hole + 1) & mask
    while table.keys[slot] >= 0:
        moving, value = table.keys[slot], table.values[slot]
        table.keys[slot] = -1
        place = slot_of(table, moving)
        table.keys[place] = moving
        table.values[place] = value
        slot = (slot + 1) & mask


@kernel
def refill(table: Table, grown: Table) -> None:
    """Copy all entries of one table into another."""
    for slot in range(len(table.keys)):
        if table.keys[slot] >= 0:
            store(grown, table.keys[slot], int(table.values[slot]))
