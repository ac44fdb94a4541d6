"""KV-cache memory of an instance, counted in blocks of tokens.

`PagedMemory` gives blocks as a sequence grows (PagedAttention); `ReservedMemory` gives a sequence at
admission all that it will ever need (request-level systems and Orca). A paper with another layout implements
`KVMemory`.
"""

from typing import Protocol

from common.serving.sequence import Sequence


class KVMemory(Protocol):
    """Blocks of an instance. `free` counts the ones that nobody holds."""

    block_tokens: int
    capacity: int
    free: int
    grows: bool  # whether decoding takes further blocks

    def needs(self, sequence: Sequence) -> int:
        """Blocks that `sequence` takes at admission."""

    def admits(self, blocks: int) -> bool:
        """Whether a newly admitted sequence may take `blocks` now."""

    def check(self, sequence: Sequence) -> None:
        """Raise ValueError if `sequence` could never run to its end here."""


def blocks_of(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


class PagedMemory:
    """PagedAttention: a block at a time, with a watermark that admissions leave free.

    kv_tokens: capacity in tokens. watermark: share of the blocks kept from new admissions (vLLM: 0.01).
    """

    grows = True

    def __init__(self, kv_tokens: int, block_tokens: int = 16, watermark: float = 0.01) -> None:
        if kv_tokens < block_tokens or block_tokens < 1 or not 0 <= watermark < 1:
            raise ValueError(
                f"paged memory of {kv_tokens} tokens in blocks of {block_tokens} with watermark {watermark}: "
                "give at least one block, and a watermark in [0, 1)"
            )
        self.block_tokens = block_tokens
        self.capacity = kv_tokens // block_tokens
        self.reserve = int(watermark * self.capacity)
        self.free = self.capacity

    def needs(self, sequence: Sequence) -> int:
        return -(-sequence.goal // self.block_tokens)

    def admits(self, blocks: int) -> bool:
        return self.free - blocks >= self.reserve

    def check(self, sequence: Sequence) -> None:
        tokens = sequence.prompt + sequence.stop
        if blocks_of(tokens, self.block_tokens) + self.reserve > self.capacity:
            raise ValueError(
                f"a request of {tokens} tokens never fits into {self.capacity} KV blocks of "
                f"{self.block_tokens} tokens ({self.reserve} of them kept free); use more GPUs or filter the workload"
            )


class ReservedMemory(PagedMemory):
    """The whole of prompt and output is reserved at admission, so that decoding never takes a block.

    Orca's "oracle" reservation. longest: reserve so many tokens for every sequence instead, as a system does that does
    not know its output's length.
    """

    grows = False

    def __init__(self, kv_tokens: int, block_tokens: int = 1, longest: int | None = None) -> None:
        super().__init__(kv_tokens, block_tokens, watermark=0.0)
        self.longest = longest

    def needs(self, sequence: Sequence) -> int:
        tokens = sequence.prompt + sequence.stop if self.longest is None else self.longest
        return -(-tokens // self.block_tokens)

    def check(self, sequence: Sequence) -> None:
        super().check(sequence)
        if self.longest is not None:
            if sequence.prompt + sequence.stop > self.longest:
                raise ValueError(
                    f"a request of {sequence.prompt + sequence.stop} tokens exceeds the {self.longest} reserved"
                )
            if self.needs(sequence) > self.capacity:
                raise ValueError(f"{self.longest} reserved tokens never fit into {self.capacity} KV blocks")
