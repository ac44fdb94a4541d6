"""What the experiment can be told: switches and sizes, each with its bounds."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from papers.nanoflow.cost_model import DEPLOYMENTS

TRACES = {
    "splitwise": "nanoflow-azure-conversation",
    "lmsys": "nanoflow-lmsys-lengths",
    "sharegpt": "nanoflow-sharegpt-lengths",
}
MODELS = [one.model for one in DEPLOYMENTS]  # beside LLaMA-2-70B, which always runs
PAIRS = ("gemm+decode_attention", "decode_attention+h2d", "gemm+h2d")  # of overlap.csv


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; `profile` files change the sizes."""

    # What is planned for, and how hard the search looks.
    models: Annotated[list[str], Length(1, 5), Choice(*MODELS)] = field(default_factory=lambda: list(MODELS))
    exponents: Annotated[list[float], Length(0, 8), At(0.3, 1.0)] = field(
        default_factory=lambda: [0.4, 0.65, 0.8]
    )  # of the network, swept for a figure
    splits: Annotated[int, At(1, 4)] = 3  # sizes that Stage I tries
    walks: Annotated[int, At(1, 64)] = 6  # of Stage II
    evaluations: Annotated[int, At(20, 100_000)] = 2500  # of a walk
    refined: Annotated[int, At(20, 200_000)] = 4000  # evaluations of the two walks that go on from the best
    nodes: Annotated[int, At(1, 5000)] = 20  # of a branch and bound

    # Curves from a share of the execution units to performance.
    attention_exponent: Annotated[
        float, Inferred(0.65, 0.86, "a power law through R = 0.2 -> P = 0.3, read to a tenth (0.25 to 0.35)")
    ] = 0.75
    network_exponent: Annotated[
        float, Inferred(0.4, 0.9, "no point is published; the range that the brief of the paper sweeps")
    ] = 0.5
    copy_share: Annotated[
        float,
        Inferred(
            0.05, 0.3, "of units that gather pages for the copy engine; no source is known for either end"
        ),
    ] = 0.05
    mean_rounds: Annotated[
        float,
        Inferred(
            1.5,
            3.5,
            "geometric; LMSYS-Chat-1M has 2.0, of those served nothing is said: no source is known for either end",
        ),
    ] = 2.0

    # Serving the length traces.
    requests: Annotated[int, At(20, 100_000)] = 2000  # fewest of each online run
    seconds: Annotated[float, At(0, 3600)] = 120.0  # of arrivals in each, where that takes more requests
    conversations: Annotated[int, At(20, 1_000_000)] = 2000  # with several rounds
    traces: Annotated[list[str], Length(1, 3), Choice(*TRACES)] = field(default_factory=lambda: list(TRACES))
    resolution: Annotated[float, At(0.005, 0.5)] = 0.01  # relative, of the highest rate
    late: Annotated[int, At(0, 16)] = 1  # iterations after which an end of sequence is noticed

    # The method, and what of it is switched off.
    overlap: bool = True  # False: the nano-batches run one after another
    # `random`: a feasible schedule drawn blindly, one a seed; `naive`: streams that nobody gives shares.
    search: Annotated[str, Choice("two-stage", "random", "naive")] = "two-stage"
    duplication: bool = True  # False: a further nano-batch reads no weights again, starts no collective
    dependencies: bool = True  # False: the search forgets what waits for what
    one_resource: bool = False  # True: all operators need the same resource
    gemms_only: bool = False  # True: no attention, no network
    hide_copies: bool = True  # False: the copies of offloading stop everything else
    reuse: bool = True  # False: earlier rounds are computed again

    # Where it is looked at.
    batch: Annotated[int, At(0, 16_384)] = 0  # dense batch of the models' pipelines; 0: the paper's
    map_batch: Annotated[int, At(0, 1_000_000)] = 0  # dense batch of the T_R map; 0: what fills the memory
    pair: Annotated[str, Choice(*PAIRS)] = PAIRS[0]  # kernels on two streams of an H100
    # Decodes of a layer on a GPU's streams, and then nothing else is observed; 0: none.
    gpu_batch: Annotated[int, At(0, 16_384)] = 0
    gpu_context: Annotated[int, At(1, 4096)] = 1024  # tokens of each


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if 0 < config.batch < 16:
        raise ValueError(
            f"batch: {config.batch} tokens are too few to split; 16 or more, or 0 for the paper's"
        )
    if 0 < config.gpu_batch < 4:
        raise ValueError(
            f"gpu_batch: {config.gpu_batch} decodes cannot be split in four; 4 or more, or 0 for none"
        )
    if not config.gpu_batch and config.gpu_context != 1024:
        raise ValueError("gpu_context: means nothing with gpu_batch=0; leave it")
    if not config.overlap:
        for name, off in (("search", "two-stage"), ("dependencies", True)):
            if getattr(config, name) != off:
                raise ValueError(
                    f"{name}: {getattr(config, name)!r} means nothing with overlap=false; leave it"
                )
    if config.search != "two-stage" and not config.dependencies:
        raise ValueError(f"dependencies: search={config.search} keeps them always; leave it")
    if config.one_resource and config.gemms_only:
        raise ValueError("one_resource: GEMMs alone need one resource already; leave one of the two")
