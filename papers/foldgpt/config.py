"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    other_tokens: bool = False  # True: similarity of a block's input to its output at another token
    shuffled_text: bool = False  # True: gates are trained on tokens in random order
    scattered: bool = False  # True: children run the matrices of random blocks that are no neighbours
    copies: bool = False  # True: children have copies of their parent's matrices
    shuffled_teacher: bool = False  # True: the teacher's states belong to other windows
    depths: list[int] = field(default_factory=lambda: [4, 8, 16])  # of the decoders trained here; []: none
    # folding
    folding: bool = True  # False: nothing is removed, shared or healed (a GPU run measures latency alone)
    blocks: int = 30  # of SmolLM2-135M that are used; 0: no pretrained model
    removals: list[int] = field(
        default_factory=lambda: [3, 6, 9]
    )  # blocks removed when rankings are compared
    ranked_at: int = 6  # of these, where the claim on rankings is judged
    folded_at: int = 9  # unique blocks fewer where removal, sharing and both are compared after healing
    folds: list[int] = field(default_factory=lambda: [6, 9, 12])  # the same before healing
    healed_folds: list[int] = field(default_factory=lambda: [9])  # of these, healed
    group_size: int = 2
    parent: str = "first"  # or closest
    # gates
    gate_steps: int = 20
    gate_rate: float = 0.1
    pressure: float = 2.0  # the first lambda
    pressure_factor: float = 1.1
    # healing
    heal_steps: int = 6
    heal_rate: float = 5e-3
    rank: int = 4
    tail: int = 3
    beta: float = 1.0
    gamma: float = 1.0
    # texts
    letters: int = 250_000  # of each text that are encoded
    rows: int = 2  # windows of a training batch
    length: int = 40  # tokens of such a window
    calibration: int = 3  # windows for isolated scores
    looked: int = 64  # tokens of such a window
    test_windows: int = 3
    test_length: int = 96
    sentences: int = 16  # SST-2 questions a seed
    stories: int = 6  # AG News questions a seed
    # for figures alone
    extras: bool = True  # rows that no claim reads, of the first seed
    coupled: int = 6  # middle blocks whose pairwise removal is tried, first seed
    greedy: bool = False  # the greedy search too
    laco_at: int = (
        0  # blocks that LaCo merges away, first seed; 0: left out (a pass tries some thirty merges)
    )
    untrained: bool = True  # the profile of a model that has learnt nothing, too
    every_seed: bool = False  # also the healed rows that no claim reads
    ladder_steps: int = 30
    decode_steps: int = 12
    decode_rounds: int = 2
    parallel: bool = True  # False: tasks too small for processes of their own
