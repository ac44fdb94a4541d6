"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

NETWORKS = (  # of common/models/dynamic/zoo.py, all of them
    "early_exit_vgg",
    "early_exit_resnet",
    "gated_resnet",
    "policy_resnet",
    "resolution_cascade",
    "patient_encoder",
    "greedy_decoder",
    "pondering_rnn",
    "expert_stack",
)


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    cut: bool = True  # False: branches as the first sample takes them, as a trace has them
    merge: bool = True  # False: a sub-network for every tensor operation
    compile: bool = True  # False: sub-networks stay eager modules, only the host program is new
    one_path: bool = False  # True: rivals are tested on inputs that take the traced sample's path
    # sizes
    networks: list[str] = field(default_factory=lambda: list(NETWORKS))
    narrower: int = 1  # divides the width of every network
    wider: int = 1  # multiplies it
    calibration: int = 200  # inputs on which thresholds are set
    inputs: int = 500  # on which outputs and paths are compared
    timed_inputs: int = 70
    rounds: int = 5  # times each of them
    threads: list[int] = field(
        default_factory=lambda: [1, 2]
    )  # claims read the first; others: first seed only
    rivals: bool = True  # scripting and graph breaks, first seed
    backends: list[str] = field(
        default_factory=lambda: ["onnxruntime", "openvino"]
    )  # every network, first seed
    inductor: list[str] = field(default_factory=lambda: ["greedy_decoder"])  # networks that go through it too
    ablations: list[str] = field(
        default_factory=lambda: ["fold", "prune", "merge", "fuse_conditions", "share"]
    )
