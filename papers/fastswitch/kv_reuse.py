"""The copies of KV caches in host memory: how much of each is valid, what a swap must still copy, who is evicted.

vLLM frees a request's host copy when it is swapped in, and copies all of it out again the next time. KV of past tokens
never changes, so a copy stays right for as long as its host blocks are its own: with reuse it is kept, and a swap-out
copies only the blocks that were written since. Under pressure copies lose their last blocks first ("contaminated" from
the overwritten token on), those of the lowest priority before others.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from papers.fastswitch.block_groups import BLOCK_TOKENS, BlockTables, Run


@dataclass
class HostCopy:
    """One conversation's copy on the host. valid: its first tokens that may be read; needed: nobody else holds them."""

    valid: int = 0  # tokens
    needed: bool = False  # the GPU has no copy, and its request is under way: never evicted
    readers: int = 0  # copies under way, which pin it


class HostCopies:
    """Host copies by conversation, in `tables`.

    priority: of a conversation, the lowest is evicted first. kept_tokens: how many of its first tokens stay valid in a
    copy that was swapped in (reuse); 0: it is freed then, as vLLM's is.
    """

    def __init__(self, tables: BlockTables, priority: Callable[[Hashable], float], kept_tokens: int) -> None:
        self.tables = tables
        self.kept_tokens = kept_tokens
        self.priority = priority
        self.evicted_blocks = 0
        self._copies: dict[Hashable, HostCopy] = {}

    def valid(self, key: Hashable) -> int:
        """The first tokens of a conversation that the host holds, 0 for none."""
        copy = self._copies.get(key)
        return copy.valid if copy else 0

    def runs(self, key: Hashable) -> list[Run]:
        """Where they are."""
        return self.tables.runs(key)

    def make_room(self, key: Hashable, tokens: int) -> int | None:
        """Blocks for the first `tokens` tokens of `key`; the first block that must be copied out, or None.

        None: even with every copy evicted that may be, host memory is too small. Blocks behind the valid tokens are
        not valid until `written`; the block that holds the last valid token is copied again where it is partly filled.
        """
        more = -(-tokens // BLOCK_TOKENS) - self.tables.used(key)
        copy = self._copies.setdefault(key, HostCopy())
        copy.readers += 1  # not to be evicted by its own needs
        missing = more - self.tables.free
        if missing > 0:
            self._evict(missing)
        copy.readers -= 1
        if more > self.tables.free:
            return None
        if more > 0:
            self.tables.allocate(key, more)
        return copy.valid // BLOCK_TOKENS

    def begin(self, key: Hashable) -> None:
        """A copy to or from these blocks is under way: they stay where they are until `end`."""
        self._copies[key].readers += 1

    def end(self, key: Hashable) -> None:
        self._copies[key].readers -= 1

    def written(self, key: Hashable, tokens: int, needed: bool) -> None:
        """The first `tokens` tokens are on the host now. needed: and nowhere else, for a request under way."""
        copy = self._copies[key]
        copy.valid = tokens
        copy.needed = needed

    def need(self, key: Hashable) -> None:
        """A request waits for this copy: it must not be evicted."""
        if key in self._copies:
            self._copies[key].needed = True

    def read(self, key: Hashable) -> None:
        """The copy has been brought back to the GPU: kept as a valid copy with reuse, freed without."""
        if self.kept_tokens:
            copy = self._copies[key]
            copy.needed = False
            copy.valid = min(copy.valid, self.kept_tokens)
        else:
            self.drop(key)

    def drop(self, key: Hashable) -> None:
        """Forget a conversation. Raises ValueError while a copy is under way."""
        copy = self._copies.pop(key, None)
        if copy is not None and copy.readers:
            raise ValueError(f"the host copy of {key!r} is being read or written")
        self.tables.give_back(self.tables.detach(key))

    def _evict(self, blocks: int) -> None:
        """Free `blocks` host blocks, from the ends of copies that nobody needs, lowest priority first."""
        spare = [
            key
            for key, copy in self._copies.items()
            if not copy.needed and not copy.readers and self.tables.used(key)
        ]
        for key in sorted(spare, key=lambda key: (self.priority(key), key)):
            held = self.tables.used(key)
            freed = min(held, blocks)
            self.tables.truncate(key, held - freed)
            copy = self._copies[key]
            copy.valid = min(copy.valid, (held - freed) * BLOCK_TOKENS)
            self.evicted_blocks += freed
            blocks -= freed
            if not blocks:
                return
