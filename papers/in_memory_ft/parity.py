"""XOR parity rotated over the m nodes of a sharding group (as in RAID 5; the brief's erasure code).

Node i's shard is cut into m - 1 blocks. Block k of node i is covered by the parity at node (i + k + 1) mod m, so that

    P_j = XOR over i != j of block (j - i - 1) mod m of node i

and node j holds no block that its own parity covers. Any one node can be lost: each of its blocks is its parity XORed
with the m - 2 other blocks that this parity covers. A node sends its m - 1 blocks once and receives m - 1 others.
"""

import numpy as np

WORD = 8  # bytes that one XOR takes


def block_bytes(shard_bytes: int, nodes: int) -> int:
    """Bytes of a block: shards are padded with zeros to nodes - 1 blocks of whole words.

    ValueError for fewer than two nodes: there is nobody to keep a parity.
    """
    if nodes < 2:
        raise ValueError(f"erasure coding needs at least 2 nodes, not {nodes}")
    if shard_bytes < 1:
        raise ValueError(f"a shard of {shard_bytes} bytes can't be cut into blocks")
    each = -(-shard_bytes // (nodes - 1))
    return -(-each // WORD) * WORD


def holder(node: int, block: int, nodes: int) -> int:
    """The node whose parity covers a block of a node."""
    return (node + block + 1) % nodes


def covered(parity: int, nodes: int) -> dict[int, int]:
    """What a node's parity covers: the block's number by the node that holds it."""
    return {node: (parity - node - 1) % nodes for node in range(nodes) if node != parity}


def xor_into(target: np.ndarray, block: np.ndarray | bytes) -> None:
    """target ^= block, as 64-bit words. ValueError for other sizes: a short block would leave its rest uncovered."""
    words = np.frombuffer(block, np.uint64)
    if words.nbytes != target.nbytes:
        raise ValueError(f"a block of {words.nbytes} bytes does not fit a parity of {target.nbytes}")
    view = target.view(np.uint64)
    np.bitwise_xor(view, words, out=view)


def encode(shards: list[np.ndarray]) -> list[np.ndarray]:
    """All parities of a group whose shards lie in one process: what the processes compute together, for comparison.

    shards: uint8, (nodes - 1) blocks of whole words each.
    """
    nodes = len(shards)
    size = block_bytes(len(shards[0]), nodes)
    if any(len(shard) != size * (nodes - 1) for shard in shards):
        raise ValueError("shards of one group are padded to the same number of whole blocks")
    parities = [np.zeros(size, np.uint8) for _ in shards]
    for parity, target in enumerate(parities):
        for node, block in covered(parity, nodes).items():
            xor_into(target, shards[node][block * size : (block + 1) * size])
    return parities


def rebuild_sources(lost: int, block: int, nodes: int) -> tuple[int, dict[int, int]]:
    """To rebuild a block of a lost node: whose parity, and which block of each other survivor."""
    parity = holder(lost, block, nodes)
    return parity, {node: one for node, one in covered(parity, nodes).items() if node != lost}


def rebuild(
    lost: int, nodes: int, shards: dict[int, np.ndarray], parities: dict[int, np.ndarray]
) -> np.ndarray:
    """The lost node's padded shard from the survivors' of a group of `nodes`; uint8, whole blocks of whole words.

    ValueError where the survivors are not all others (two losses can't be told apart from a smaller group by what is
    left), and for shards and parities whose sizes do not fit each other.
    """
    others = set(range(nodes)) - {lost}
    if not 0 <= lost < nodes or nodes < 2 or set(shards) != others or set(parities) != others:
        raise ValueError(
            f"one node of {nodes} can be rebuilt from all others, not {lost} from shards of {sorted(shards)} and "
            f"parities of {sorted(parities)}"
        )
    size = len(next(iter(parities.values())))
    if {len(one) for one in parities.values()} != {size} or size % WORD or not size:
        raise ValueError("parities of one group have as many whole words each")
    if {len(one) for one in shards.values()} != {size * (nodes - 1)}:
        raise ValueError(f"shards have {nodes - 1} blocks of as many whole words as the parities")
    found = np.zeros((nodes - 1, size), np.uint8)
    for block in range(nodes - 1):
        parity, rest = rebuild_sources(lost, block, nodes)
        xor_into(found[block], parities[parity])
        for node, one in rest.items():
            xor_into(found[block], shards[node][one * size : (one + 1) * size])
    return found.reshape(-1)
