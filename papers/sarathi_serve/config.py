"""Sizes and switches of a run. A control changes one switch; the profiles change the sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from papers.sarathi_serve.deployments import SYSTEMS
from papers.sarathi_serve.lengths import KINDS, REAL


@dataclass(frozen=True)
class Config:
    """What is compared, on how much, and which part of the method is switched off."""

    # What stands for the paper's method.
    system: Annotated[str, Choice(*SYSTEMS)] = "sarathi"
    models: Annotated[list[str], Length(1), Choice("mistral", "yi", "llama-70b")] = field(
        default_factory=lambda: ["mistral", "yi"]
    )
    kinds: Annotated[list[str], Length(1), Choice(*KINDS, *REAL)] = field(
        default_factory=lambda: ["chat", "arxiv"]
    )  # of lengths
    every_setting: bool = False  # both objectives and rivals for every model, not for Yi-34B alone
    # Of each run of the models above: the 99th percentile needs many, and so does a queue that grows.
    requests: Annotated[int, At(50, 100_000)] = 400
    # Of each run of Falcon-180B in a pipeline; 0 leaves it out.
    pipeline_requests: Annotated[int, At(0, 100_000)] = 1000
    # Seconds of P99 TBT instead of every deployment's own; 0: their own.
    objective: Annotated[float, At(0, 1e6)] = 0.0
    # `paper`: the budgets that the authors chose. `strict`: theirs for the strict objective, under both. `random`: one
    # of the grid, drawn once a seed.
    budget: Annotated[str, Choice("paper", "strict", "random")] = "paper"
    host_seconds: Annotated[
        float,
        Inferred(
            0.002, 0.021, "DistServe's simulator says 2 ms; the authors' decode of one sequence leaves 21 ms"
        ),
    ] = 0.002  # fixed cost of an iteration
    equal_work: bool = False  # True: every micro-batch takes equally long, whatever is in it
    fused: bool = (
        True  # False: a hybrid batch runs its chunks and its decodes in two passes, one after the other
    )
    # requests/s at which tensor parallelism is compared with a pipeline; 0.75 in osdi-experiments/figure-8
    tp8_rate: Annotated[float, At(0.01, 100)] = 0.75
    between_nodes: bool = True  # False: the eight GPUs of tensor parallelism share one node
    # requests/s at which P99 TBT is shown, Yi-34B on chat; empty: not at all.
    load_rates: Annotated[list[float], At(0.01, 100)] = field(default_factory=list)
    chunk: Annotated[int, At(8, 8192)] = 512  # tokens, of the chunking overhead
    # Prompt tokens beside a decode batch; 8 is the brief's control.
    prompt: Annotated[int, At(8, 8192)] = 1021
    live_requests: Annotated[int, At(0, 5000)] = 36  # of each run of the real engine; 0 leaves it out
    # Tokens that SmolLM2-135M prefills in chunks; 0 leaves it out.
    pretrained_prompt: Annotated[int, At(0, 4096)] = 64
    keeps_past: bool = True  # False: a chunk does not see the chunks before it


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if 0 < config.pipeline_requests < 50:
        raise ValueError(
            f"pipeline_requests: {config.pipeline_requests} are too few for a queue; 50 or more, or 0 for none"
        )
    if 0 < config.pretrained_prompt < 14:
        raise ValueError(
            f"pretrained_prompt: {config.pretrained_prompt} cannot be cut into sevenths; 14 or more, or 0 for none"
        )
    if 0 < config.live_requests < 4:
        raise ValueError(
            f"live_requests: {config.live_requests} are too few for a queue; 4 or more, or 0 for none"
        )
    if config.budget != "paper" and config.system != "sarathi":
        raise ValueError(f"budget: {config.budget!r} means nothing with system={config.system}; leave it")
    if not config.between_nodes and not config.pipeline_requests:
        raise ValueError(
            "between_nodes: false means nothing without pipelines; set pipeline_requests, or leave it"
        )
