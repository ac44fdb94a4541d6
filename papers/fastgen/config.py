"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length
from common.serving.profiled import HOST_SECONDS
from papers.fastgen.deployments import DEPLOYMENTS
from papers.fastgen.splitfuse import BUDGET

ABLATIONS = ("orca", "no-fuse", "no-split")
FLEET_REQUESTS = 50_000  # of all replicas together


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # The method, and what of it is switched off.
    system: Annotated[str, Choice("fastgen", "vllm")] = "fastgen"  # what stands for the method
    budget: Annotated[int, At(64, 65_536)] = BUDGET  # tokens of a pass
    split: bool = True  # False: prompts are never split, the budget is infinite
    fill: Annotated[str, Choice("budget", "random")] = "budget"  # random: another budget for every pass
    balancer: Annotated[str, Choice("round robin", "first")] = (
        "round robin"  # first: one replica gets everything
    )

    # The agreement and the load.
    alpha: Annotated[
        float,
        Inferred(
            0.1, 0.5, "weight of the newest gap in the generation rate; the paper averages and gives none"
        ),
    ] = 0.2
    prompt_tokens: Annotated[int, At(1, 8192)] = 2600  # mean of a prompt (Section 4)
    requests: Annotated[int, At(32, 10_000)] = 512  # of each closed loop (Section 4.A)
    clients: Annotated[list[int], Length(1), At(1, 256)] = field(
        default_factory=lambda: [1, 2, 4, 8, 12, 16, 24, 32]
    )  # Section 4.A: 1 to 32
    tail_clients: Annotated[int, At(1, 256)] = 16  # where the time between tokens is compared (Section 4.D)
    start: Annotated[str, Choice("together", "one by one")] = "together"  # the clients' first requests

    # The rival, and what is compared besides.
    rival_host_seconds: Annotated[float, At(0, 1)] = HOST_SECONDS  # of each of vLLM's passes
    ablations: Annotated[list[str], Choice(*ABLATIONS)] = field(default_factory=lambda: list(ABLATIONS))
    budgets: Annotated[list[int], At(64, 65_536)] = field(default_factory=list)  # also tried
    gain: Annotated[float, At(1, 16)] = 2.0  # whose slowdown of the rival is looked for
    models: Annotated[int, At(1, len(DEPLOYMENTS))] = len(DEPLOYMENTS)  # how many of DEPLOYMENTS to try
    knee: bool = True  # False: the deployments' passes take time for their tokens alone
    replicas: Annotated[list[int], Length(2), At(1, 64)] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    replica_requests: Annotated[int, At(32, 10_000)] = 192  # for each replica
    slow_replica: bool = False  # one replica is slower than the others

    # What really runs on this machine.
    live_requests: Annotated[int, At(0, 1000)] = 24  # of each run of the real engine; 0 leaves it out
    pass_tokens: Annotated[int, At(0, 512)] = 128  # of the real passes; 0 leaves out all that is timed
    turns: Annotated[int, At(1, 100)] = 3  # of each timing
    wrong: Annotated[float, At(0, 0.9)] = 0.0  # share of a pass's tokens that ends up in another pass
    # Made-up curves instead of the measured ones: throughput that grows with the square of the tokens, seconds that
    # grow with their root, or a roof that bends at the budget.
    curve: Annotated[str, Choice("measured", "square throughput", "root seconds", "roof")] = "measured"


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    most = max(*config.clients, config.tail_clients)
    if config.requests < most:
        raise ValueError(f"requests: {config.requests} leave some of {most} clients without one")
    if len({config.budget, *config.budgets}) <= len(config.budgets):
        raise ValueError(
            f"budgets: each is tried once, and {config.budget} is tried anyway: {config.budgets}"
        )
    if max(config.replicas) * config.replica_requests > FLEET_REQUESTS:
        raise ValueError(
            f"replica_requests: {config.replica_requests} for each of {max(config.replicas)} replicas are "
            f"more than {FLEET_REQUESTS:,}, which take minutes"
        )
    if sorted(set(config.clients)) != config.clients:
        raise ValueError(
            f"clients: must rise, for latency and throughput are read between them: {config.clients}"
        )
    if config.replicas[0] != 1 or sorted(set(config.replicas)) != config.replicas:
        raise ValueError(f"replicas: must rise from 1, to which the others are compared: {config.replicas}")
    if 0 < config.pass_tokens < 32:
        raise ValueError(f"pass_tokens: half of {config.pass_tokens} do not fill 16 sequences; take 32 or 0")
    if config.live_requests and not config.pass_tokens:
        raise ValueError(
            "live_requests: the engine's budget is read off the timed passes; set pass_tokens or 0 here"
        )
    if config.fill == "random" and not (config.split and config.system == "fastgen"):
        raise ValueError("fill: only a budget of SplitFuse can be drawn; leave system and split as they are")
    if config.system == "vllm" and not config.split:
        raise ValueError("split: vLLM's schedule splits nothing anyway; leave it, or leave system")
    if config.system == "vllm" and config.rival_host_seconds != HOST_SECONDS:
        raise ValueError("rival_host_seconds: with vLLM on both sides there is no rival to be slower")
