"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from common.serving.profiled import HOST_SECONDS


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    system: str = "sarathi"  # what stands for the paper's method: a name of deployments.SYSTEMS
    models: list[str] = field(default_factory=lambda: ["mistral", "yi"])  # names in deployments.py
    kinds: list[str] = field(default_factory=lambda: ["chat", "arxiv"])  # of lengths
    every_setting: bool = False  # both objectives and rivals for every model, not for Yi-34B alone
    requests: int = 300  # of each run of the models above
    pipeline_requests: int = 200  # of each run of Falcon-180B; 0 leaves it out
    objective: float = 0.0  # seconds of P99 TBT instead of every deployment's own; 0: their own
    host_seconds: float = HOST_SECONDS  # fixed cost of an iteration
    equal_work: bool = False  # True: every micro-batch takes equally long
    between_nodes: bool = True  # False: the eight GPUs of tensor parallelism share one node
    load_rates: list[float] = field(default_factory=list)  # requests/s at which P99 TBT is shown, Yi-34B chat
    chunk: int = 512  # tokens, of the chunking overhead
    prompt: int = 8192  # tokens, the longest that joins a decode batch
    real_prompt: int = 1024  # tokens, of the real prefills on the CPU; 0 leaves out all that is timed
    live_requests: int = 10  # of each run of the real engine; 0 leaves it out
    pretrained_prompt: int = 64  # tokens that SmolLM2-135M prefills in chunks; 0 leaves it out
    keeps_past: bool = True  # False: a chunk does not see the chunks before it
    gpu_prompt: int = 0  # tokens, of hybrid batches timed on a GPU, and of nothing else then; 0: none
