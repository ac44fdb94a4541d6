"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

BFP12, BFP16 = 4, 8  # mantissa bits


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    order: str = "ksort"  # of the rearranged model; random: the negative control
    sort_queries: bool = True  # False: W_k rearranged, W_q not
    saving_bits: int = BFP12  # mantissa of the small format; 8: BFP16 against itself
    null_block: int = 0  # of the null case; 0: the whole head
    gather: bool = False  # True: rearrange at run time instead of in the weights
    shuffle: bool = False  # True: every token's channels in an order of its own
    planted_share: float = (
        1 / 16
    )  # of the rotary pairs that become outliers; 1: all of them, so none stands out
    equal: bool = False  # True: all rotary pairs of a head have one norm
    # sizes
    layers: int = 30  # of SmolLM2-135M
    context: int = 160  # tokens of a window
    table_windows: int = 6  # of the table of all settings; claims read every seed's window
    letters: int = 400_000  # of each text
    blocks: list[int] = field(default_factory=lambda: [64, 32, 16, 8])  # of the table
    comparisons: bool = True  # rivals, calibrated order, values and queries in BFP, the step that never clips
    strengths: list[float] = field(default_factory=lambda: [4.0, 64.0])  # of more planted outliers
    planted: float = 16.0  # whose gain the claim compares with that of no outliers
    key_tokens: int = 64  # of each text and seed, whose keys are looked at
    exact_tokens: int = 64
    decode_context: int = 2048
    rounds: int = 3  # decode steps a seed and system
    long_tokens: list[int] = field(default_factory=list)  # cached, for attention with 128 channels
    long_heads: int = 32
    long_rounds: int = 20
