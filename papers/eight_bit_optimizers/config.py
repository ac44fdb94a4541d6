"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Switches and sizes. A control changes switches; profiles change the sizes."""

    # switches of the mechanism
    bits: int = 8  # 32: states are not quantised
    code: str = "dynamic"  # linear: equally spaced values; linear4: 16 of them
    block: int = 2048  # 0: one scale for a whole tensor
    stable: bool = True  # False: the standard embedding, its states as all others
    adafactor_momentum: bool = True  # False: Adafactor without beta1
    # sizes
    measure: bool = True  # False: leaves out all but the timing on a device
    language_steps: int = 80
    language_hidden: int = 64
    language_layers: int = 2
    language_rows: int = 4
    language_scored: int = 48  # windows of the held-out text
    sensitivity_points: int = 4  # hyper-parameters changed, one at a time
    ablation_points: int = 1  # of them for the settings with the standard embedding
    image_steps: int = 150  # 0 leaves a task out
    sentence_steps: int = 40
    sentences_tested: int = 500
    translation_steps: int = 80
    timed_elements: int = 1 << 21
    timed_rounds: int = 7
    memory_rows: int = 1024  # of the matrix whose states are counted; as many columns
    gpu_elements: list[int] = field(default_factory=lambda: [1 << 24, 1 << 26, 1 << 28, 1 << 30])
