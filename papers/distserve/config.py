"""Sizes and switches of a run. A control changes one switch; the profiles change the sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from papers.distserve.placement import Cluster, low_affinity_units
from papers.distserve.scenarios import CHAT_LENGTHS, LINKS, SCENARIOS, Serving, profile

REAL_LEVELS = (0.5, 0.7, 0.9, 1.1)


@dataclass(frozen=True)
class Config:
    """What is compared, on how much, and which part of the method is switched off."""

    scenarios: Annotated[list[str], Length(1), Choice(*SCENARIOS)] = field(
        default_factory=lambda: list(SCENARIOS)
    )
    # Fewest requests of each trial of a rate: the 90% quantile needs ten beyond it.
    requests: Annotated[int, At(100, 100_000)] = 600
    # Of arrivals in each trial, where that takes more requests than `requests`.
    seconds: Annotated[float, At(0, 3600)] = 120.0
    most_requests: Annotated[int, At(100, 200_000)] = 20_000  # of each trial, whatever the rate
    # `steady`: as above. `artifact`: at every rate as many requests a GPU as the authors' scripts send.
    load: Annotated[str, Choice("steady", "artifact")] = "steady"
    target: Annotated[float, At(0.5, 0.99)] = 0.9  # share of requests that must meet both objectives
    resolution: Annotated[float, At(0.001, 0.5)] = 0.02  # relative, of every goodput
    tensor: Annotated[list[int], Length(1), Choice(1, 2, 3, 4, 8)] = field(
        default_factory=lambda: [1, 2, 3, 4, 8]
    )  # degrees of tensor parallelism to search: those with published latencies
    stages: Annotated[list[int], Length(1), Choice(1, 2, 3, 4, 8)] = field(
        default_factory=lambda: [1, 2, 4]
    )  # pipeline stages to search

    # The operating point.
    chat_lengths: Annotated[str, Choice(*CHAT_LENGTHS)] = "sharegpt-joined"
    chat_13b_ttft: Annotated[float, At(0.05, 60)] = 0.25  # seconds; the artifact's, where the text says 0.2
    objectives: Annotated[float, At(0.05, 1e6)] = 1.0  # times both objectives of every scenario
    slo_load: Annotated[float, At(0.001, 4)] = 1.0  # times the rate at which objectives are tightened
    # A rival that sustains less than this share of the rate at which the paper tightens objectives stands on a floor:
    # the ratio is then a bound, says so (capped), and only its direction is judged.
    floor_share: Annotated[float, Inferred(0.02, 0.5, "no source; it decides no number")] = 0.1
    # Seeds on which the goodputs are repeated with other lengths.
    other_lengths: Annotated[int, At(0, 1000)] = 3

    # The method, and what of it is switched off.
    disaggregate: bool = True  # False: both phases on the same GPUs, in turn; nothing is placed or moved
    # Whose coefficients its instances run on.
    engine: Annotated[str, Choice("distserve", "vllm")] = "distserve"
    link: Annotated[str, Choice(*LINKS)] = "nvlink"  # between the phases
    # `random`: a placement with as many GPUs, one draw a seed.
    placement: Annotated[str, Choice("search", "random")] = "search"
    prefill_tokens: Annotated[
        int, Inferred(256, 8192, "L_m: Section 3.1 names 512 for a 13B model, the artifact starts with 8,192")
    ] = 512
    overlap: Annotated[
        float,
        Inferred(0.0, 1.0, "share of a prefill that hides its copy; the paper says layers may be streamed"),
    ] = 0.0
    swap_gbytes_per_s: Annotated[
        float,
        Inferred(12.0, 31.5, "PCIe 4.0 x16 between its rate in practice and on paper; decode swaps over it"),
    ] = 25.0

    # The rival.
    vllm_prefill_tokens: Annotated[
        int, Inferred(2048, 16_384, "the artifact starts vLLM with 16,384; vLLM's own default was 2,560")
    ] = 16_384
    # `fill`: replicas on as many GPUs as DistServe may use. `one`: a single instance.
    vllm_instances: Annotated[str, Choice("fill", "one")] = "fill"

    # The real run.
    # Of each run of the two real processes; 0 leaves them out.
    real_requests: Annotated[int, At(0, 5000)] = 20
    real_levels: Annotated[list[float], Length(1), At(0.05, 1.5)] = field(
        default_factory=lambda: list(REAL_LEVELS)
    )  # rates of the real runs over each system's capacity; the paper's reach past the knee too
    perturb: Annotated[float, At(0.1, 10)] = 1.0  # times the fitted prefill slope that predicts the real runs


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    if config.most_requests < config.requests:
        raise ValueError(
            f"most_requests: {config.most_requests} is below requests ({config.requests}); raise it or lower that"
        )
    if round((1 - config.target) * config.requests) < 10:
        raise ValueError(
            f"requests: {config.requests} leave fewer than ten beyond a target of {config.target}; raise them"
        )
    if 0 < config.real_requests < 20:
        raise ValueError(
            f"real_requests: {config.real_requests} are too few for a fit; 20 or more, or 0 for none"
        )
    if not config.disaggregate:
        for name, off in (("placement", "search"), ("link", "nvlink"), ("overlap", 0.0)):
            if getattr(config, name) != off:
                raise ValueError(
                    f"{name}: {getattr(config, name)!r} means nothing with disaggregate=false; leave it"
                )
    if not config.real_requests and config.real_levels != list(REAL_LEVELS):
        raise ValueError("real_levels: means nothing with real_requests=0; leave it, or serve 20 or more")
    chats = [name for name in config.scenarios if name.startswith("chat")]
    if not chats and config.chat_lengths != "sharegpt-joined":
        raise ValueError(f"chat_lengths: {config.chat_lengths!r} means nothing without a chat scenario")
    if "chat-opt-13b" not in config.scenarios and config.chat_13b_ttft != 0.25:
        raise ValueError("chat_13b_ttft: means nothing without the scenario chat-opt-13b")
    for name in config.scenarios:
        scenario = SCENARIOS[name]
        cluster = Cluster(1, scenario.gpus, tuple(config.tensor), tuple(config.stages))
        if not any(low_affinity_units(profile(scenario.model, Serving()), cluster)):
            raise ValueError(
                f"tensor, stages: {config.tensor} x {config.stages} hold no placement of {scenario.model} on "
                f"{scenario.gpus} GPUs that has published latencies; add other degrees"
            )
