"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.vattention.deployments import DEPLOYMENTS
from papers.vattention.driver_calls import LARGE_PAGE

SMALL_PAGE = 64 << 10  # bytes: the smallest page of the paper's patched driver


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    overlap: bool = True  # False: wait for the mapping thread before compute
    deferred: bool = True  # False: unmap a request's pages when it ends
    alias: bool = False  # True: two slots share a physical page
    aligned: bool = False  # True: every request ends exactly where a large page ends
    block_tokens: int = 16  # of the paged kernel; 0: one block holds the whole context
    kernel_ratio: float = (
        0.0  # paged over contiguous prefill attention; 0: as measured (paged_over_contiguous.csv)
    )
    batches: list[int] = field(default_factory=lambda: [1, 8, 32, 64, 128])  # whose block tables are built
    # sizes
    simulate: bool = True
    requests: int = 300  # of the decode series and of each fragmentation run times four
    iterations: int = 500  # of the decode series
    long_requests: int = 200  # of each run on a trace of long prompts
    models: list[str] = field(default_factory=lambda: list(DEPLOYMENTS))
    pages: list[int] = field(default_factory=lambda: [SMALL_PAGE, 128 << 10, 256 << 10, LARGE_PAGE])
    prefills: list[int] = field(default_factory=lambda: [2048, 8192, 16384, 65536])  # tokens
    layers: int = 6  # of the small decoder; 0 leaves out all that is measured
    live_requests: int = 8
    live_iterations: int = 120
    contexts: list[int] = field(default_factory=lambda: [2048])  # of the attention kernels, tokens
    rounds: int = 15
    pretrained_requests: int = 3  # to SmolLM2-135M; 0 leaves it out
