"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Length

BFP12, BFP16 = 4, 8  # mantissa bits
GAINS = ((32, 4), (16, 4), (32, 3), (16, 3))  # (block, mantissa bits) whose gain is observed
BLOCKS = (64, 32, 16, 8)  # channels that share an exponent; a head has 64


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # Switches of the mechanism.
    order: Annotated[str, Choice("ksort", "random", "foreign", "original")] = (
        "ksort"  # of the rearranged model
    )
    sort_queries: bool = True  # False: W_k rearranged, W_q not
    saving_bits: Annotated[int, Choice(BFP12, 5, 6, BFP16)] = BFP12  # mantissa of the small format
    null_block: Annotated[int, Choice(*BLOCKS)] = 64  # of the null case: the whole head
    gather: bool = False  # True: rearrange at run time instead of in the weights
    shuffle: bool = False  # True: every token's channels in an order of its own
    # Of the rotary pairs that become outliers; 1: all of them, so that none stands out.
    planted_share: Annotated[float, At(1 / 32, 1)] = 1 / 16
    equal: bool = False  # True: all rotary pairs of a head have one norm
    # Sizes.
    layers: Annotated[int, At(0, 30)] = 30  # of SmolLM2-135M; 0: only attention over long packed caches
    context: Annotated[int, At(32, 4096)] = 256  # tokens of a window
    table_windows: Annotated[int, At(1, 1000)] = (
        4  # of the table of all settings; claims read every seed's window
    )
    letters: Annotated[int, At(20_000, 5_000_000)] = 400_000  # of each text
    blocks: Annotated[list[int], Length(2), Choice(*BLOCKS)] = field(
        default_factory=lambda: list(BLOCKS)
    )  # of the table
    comparisons: bool = True  # rivals, calibrated order, values and queries in BFP, the step that never clips
    strengths: Annotated[list[float], At(1, 1000, above=True)] = field(
        default_factory=lambda: [4.0, 64.0]
    )  # of more planted outliers
    planted: Annotated[float, At(1, 1000, above=True)] = (
        16.0  # whose gain the claim compares with no outliers
    )
    key_tokens: Annotated[int, At(16, 4096)] = 64  # of each text and seed, whose keys are looked at
    exact_tokens: Annotated[int, At(8, 4096)] = 64
    decode_context: Annotated[int, At(16, 8192)] = 2048
    rounds: Annotated[int, At(1, 1000)] = 3  # decode steps a seed and system
    long_tokens: Annotated[list[int], At(16, 1_000_000)] = field(
        default_factory=list
    )  # cached, for attention with 128 channels
    long_heads: Annotated[int, At(1, 128)] = 32
    long_rounds: Annotated[int, At(1, 10_000)] = 20


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if config.layers and max(config.key_tokens, config.exact_tokens) > config.context:
        raise ValueError(
            f"context: a window of {config.context} tokens is shorter than key_tokens {config.key_tokens} or "
            f"exact_tokens {config.exact_tokens}"
        )
    if not config.layers and not config.long_tokens:
        raise ValueError("layers: 0 leaves nothing to run; set it, or long_tokens")
