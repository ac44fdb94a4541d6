"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.nanoflow.cost_model import DEPLOYMENTS

TRACES = {
    "splitwise": "nanoflow-azure-conversation",
    "lmsys": "nanoflow-lmsys-lengths",
    "sharegpt": "nanoflow-sharegpt-lengths",
}


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; `profile` files change the sizes."""

    models: list[str] = field(default_factory=lambda: [one.model for one in DEPLOYMENTS])
    exponents: list[float] = field(default_factory=lambda: [0.4, 0.5, 0.65, 0.8])  # of the network, swept
    chain: str = "reduce"  # or "gather": all-gathers around O instead of an all-reduce behind it
    splits: int = 3  # sizes that Stage I tries
    walks: int = 10  # of Stage II
    evaluations: int = 2500  # of a walk
    refined: int = 4000  # evaluations of the two walks that go on from the best
    nodes: int = 20  # of a branch and bound
    batches: list[int] = field(default_factory=list)  # further dense batches of LLaMA-2-70B to plan for
    requests: int = 2000  # fewest of each online run, and what means of the traces are taken over
    seconds: float = 120.0  # of arrivals in each online run, where that takes more requests
    conversations: int = 2000  # with several rounds
    traces: list[str] = field(default_factory=lambda: list(TRACES))
    resolution: float = 0.01  # relative, of the highest rate
    overlap: bool = True  # False: the nano-batches run one after another
    duplication: bool = (
        True  # False: another nano-batch costs no second read of the weights, no second collective
    )
    dependencies: bool = True  # False: the search forgets what waits for what
    one_resource: bool = False  # True: all operators need the same resource
    gemms_only: bool = False  # True: no attention, no network; P = R
    batch: int = 0  # dense batch of the models' pipelines; 0: the paper's
    map_batch: int = 0  # dense batch of the T_R map; 0: what fills the memory
    search: str = (
        "two-stage"  # or "random": feasible schedules drawn blindly; "exhaustive": count what there is
    )
    hide_copies: bool = True  # False: the copies of offloading stop everything else
    reuse: bool = True  # False: earlier rounds are computed again
    late: int = 1  # iterations after which an end of sequence is noticed
    pair: str = "gemm+decode_attention"  # kernels on two streams of an H100
    gpu_batch: int = 0  # decodes of a layer on a GPU's streams, and then nothing else is observed; 0: none
    gpu_context: int = 1024  # tokens of each
