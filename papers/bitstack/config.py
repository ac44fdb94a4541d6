"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    scaling: str = "activations"  # "permuted": the scales on the wrong channels
    absolute: bool = True  # False: singular vectors of the residual itself, without signs
    sign_only: bool = False  # True: one number in place of singular vectors
    residual: bool = True  # False: every block is made of the matrix itself
    shuffle: bool = False  # True: blocks of other matrices of the same shape are added
    order: str = "average"  # "reversed": the stack is loaded from its wrong end
    whole_levels: bool = False  # True: a block of every matrix is loaded at a time, or none
    packed: bool = True  # False: a byte a sign
    fused: bool = True  # False: the plain kernel in place of the fused one
    # sizes
    k: int = 8  # singular values a block; the paper's 16 at 4096 x 4096 would cost 0.9 bits a parameter here
    blocks: int = 4  # of each matrix; the paper has 16
    layers: int = 30  # the model's last so many are compressed, the others stay as they are
    calibration_windows: int = 3  # of 512 tokens, for BitStack's scales and AWQ's alike
    gptq_windows: int = 12  # of GPTQ, which estimates 1,536 x 1,536 numbers where the others estimate 1,536
    calibration_tokens: int = 512
    sort_tokens: int = 128
    sort_by: str = "block"  # of the model; "matrix": each alone, as in the paper
    test_tokens: int = 96  # of one window a seed
    budgets: int = 11  # evenly spaced memory sizes at which perplexity is measured; an odd number
    rivals: list[str] = field(
        default_factory=lambda: [
            *("rtn-2-64", "rtn-3-64", "rtn-4-64", "rtn-3-0"),
            *("gptq-2-64", "gptq-3-64", "gptq-3-0", "awq-2-64", "awq-3-64", "awq-4-64", "nf4-4-64"),
        ]
    )  # method, bits, group (0: a row)
    levels: list[int] = field(default_factory=lambda: [2, 4])  # blocks everywhere, for the ablations
    ablations: list[str] = field(
        default_factory=lambda: ["no scaling", "no absolute values"]
    )  # also "neither"
    greedy_layers: int = 6  # the last so many are sorted greedily; 0 leaves it out
    greedy_tokens: int = 96
    random_orders: int = 3  # of these layers
    shuffles: list[str] = field(default_factory=lambda: ["random"])  # also "random within levels"
    kernel: list[int] = field(default_factory=lambda: [4096, 4096, 16, 4])  # rows, columns, k, blocks
    kernel_rounds: int = 2
    ticks: int = 100  # of the memory trace
    few: int = 1  # tasks that are done without processes of their own, which take a while to begin
