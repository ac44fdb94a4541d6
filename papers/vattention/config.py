"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

MODELS = ("yi-6b", "llama-3-8b", "yi-34b")  # deployments.py has their shapes


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    overlap: bool = True  # False: wait for the mapping thread before compute
    deferred: bool = True  # False: unmap a request's pages when it ends
    alias: bool = False  # True: two slots share a physical page
    aligned: bool = False  # True: every request ends exactly where a large page ends
    block_tokens: Annotated[int, Choice(0, 16, 256)] = (
        16  # of a paged layout; 0: one block for the whole context
    )
    kernel_ratio: Annotated[
        float,
        Inferred(
            1.0,
            1.37,
            "paged over contiguous prefill attention: our kernel on a CPU sees no difference, FlashAttention-2 in the "
            "paper 1.37 at most (published.csv); 1.13 is at most what gathering costs an H100 (driver_calls.py)",
        ),
    ] = 1.13
    # sizes
    simulate: bool = True
    requests: Annotated[int, At(160, 10_000)] = (
        300  # of the decode series and of each fragmentation run times four
    )
    iterations: Annotated[int, At(50, 10_000)] = 500  # of the decode series and of each fragmentation run
    series: Annotated[int, At(1, 20)] = 4  # decode series of a seed, whose highest spikes are averaged
    call_us: Annotated[float, At(0, 1000)] = (
        0.0  # to map a page of the decode series; 0: as measured on an H100
    )
    length_scale: Annotated[float, At(0.75, 8)] = 1.0  # times the chat lengths of the fragmentation runs
    long_requests: Annotated[int, At(8, 2000)] = 200  # of each run on a trace of long prompts
    online_load: Annotated[
        float, Inferred(0.5, 0.95, "arrivals over the paged server's capacity; the paper has its rates")
    ] = 0.9
    models: Annotated[list[str], Length(1), Choice(*MODELS)] = field(default_factory=lambda: list(MODELS))
    prefills: Annotated[list[int], Length(1), At(64, 131_072)] = field(
        default_factory=lambda: [2048, 8192, 16384, 65536]
    )  # tokens; of the picture
    prefill: Annotated[
        int,
        Inferred(
            2048, 65_536, "tokens of the prompt whose gain the claim reads; Figure 13's length is not at hand"
        ),
    ] = 16_384
    layers: Annotated[int, At(0, 32)] = 6  # of the small decoder; 0 leaves out all that is measured
    live_requests: Annotated[int, At(2, 200)] = 8
    live_iterations: Annotated[int, At(64, 1500)] = 120
    context: Annotated[int, Choice(256, 512, 1024, 2048, 4096)] = 2048  # of the attention kernels, tokens
    rounds: Annotated[int, At(3, 1000)] = 15


def check(config: Config) -> None:
    """ValueError in one line for what a run would ignore."""
    if len(set(config.models)) < len(config.models):
        raise ValueError(f"models: one of them is named twice: {config.models}")
    if config.layers and config.block_tokens >= config.context:
        raise ValueError(
            f"block_tokens={config.block_tokens} holds the whole context of {config.context}, as 0 says it, the control"
        )
