"""The paper's load on a simulated replica: C clients that each send their next request when the last one ended.

Section 4.A: 512 requests in all, prompt and generation lengths normal with a spread of 30% about their means.
Latencies are Vidur's measurements on A100 and H100 (common/serving/profiled.py), the same for every policy: the paper's
comparison also holds faster kernels, which no schedule can reproduce.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import ClosedLoop
from common.serving.cluster import Dispatcher, LeastLoad, Replicas, RoundRobin
from common.serving.engine import Instance, simulate
from common.serving.latency import INFINITY, LatencyModel, Line
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.schedulers import IterationLevel, PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.fastgen.splitfuse import (
    BUDGET,
    MAX_SEQUENCES,
    WHOLE,
    DynamicSplitFuse,
    RandomFill,
    SplitWithoutFuse,
)

SPREAD = 0.3  # standard deviation over the mean (Section 4.A says "30% variance")
BLOCK_TOKENS = 16  # vLLM's default
VLLM_TOKENS = 4096  # prompt tokens of one pass: vLLM of November 2023, max(2048, the model's length)
VLLM_SEQUENCES = 256  # vLLM's default max_num_seqs

POLICIES: dict[str, Callable[[int], Scheduler]] = {
    "fastgen": lambda budget: DynamicSplitFuse(budget, MAX_SEQUENCES),
    "vllm": lambda _: PrefillFirst(VLLM_TOKENS, VLLM_SEQUENCES),
    "orca": lambda _: IterationLevel(VLLM_SEQUENCES),
    "no-fuse": lambda budget: SplitWithoutFuse(budget, MAX_SEQUENCES),
    "no-split": lambda _: DynamicSplitFuse(WHOLE, MAX_SEQUENCES),
}


@dataclass(frozen=True, order=True)
class Load:
    """Lengths in tokens: means of the prompt and of what is generated. ValueError for less than a token."""

    prompt: float
    output: float

    def __post_init__(self) -> None:
        if not (self.prompt >= 1 and self.output >= 1):
            raise ValueError(f"a request has a token each way at least, not {self.prompt} and {self.output}")

    def __str__(self) -> str:
        return f"{self.prompt:g}/{self.output:g}"


def draw(rng: np.random.Generator, n: int, load: Load) -> Workload:
    """`n` requests with normal lengths of at least one token; the clients decide when they are sent."""
    if n < 1:
        raise ValueError(f"{n} requests were asked for; ask for at least one")
    prompt, output = (rng.normal(mean, SPREAD * mean, n) for mean in (load.prompt, load.output))
    return Workload(np.zeros(n), *(np.maximum(1, np.rint(x)).astype(np.int64) for x in (prompt, output)))


@dataclass
class OneByOne(ClosedLoop):
    """A closed loop whose clients don't begin at once: each sends its first request `apart` seconds after the last."""

    apart: float = 0.0

    def first(self, workload: Workload) -> list[tuple[float, int]]:
        """See Clients."""
        return [(self.apart * index, index) for _, index in super().first(workload)]


def serve(
    workload: Workload,
    clients: int,
    policy: Scheduler,
    latencies: Sequence[LatencyModel],
    kv_tokens: int,
    balancer: str = "round robin",
    apart: float = 0.0,
) -> Trace:
    """Simulate the clients on one replica for each latency model, behind a balancer, with the time of every token.

    balancer: a name of BALANCERS. apart: seconds between the clients' first requests.
    """
    if balancer not in BALANCERS or not latencies or not 0 <= apart < np.inf:
        raise ValueError(
            f"replicas need a latency each, clients begin 0 s apart or more (not {apart}), and a balancer is one of "
            f"{', '.join(BALANCERS)} (not {balancer!r})"
        )

    def build(loop: EventLoop) -> Replicas:
        replicas = [
            Instance(loop, latency, PagedMemory(kv_tokens, BLOCK_TOKENS, 0.0), policy, records_tokens=True)
            for latency in latencies
        ]
        return Replicas(replicas, BALANCERS[balancer]())

    return simulate(workload, build, OneByOne(clients, apart))


class First:
    """The load balancer switched off: everything goes to the first replica."""

    def choose(self, instances: Sequence[Instance], sequence: object) -> Instance:
        """See Dispatcher."""
        return instances[0]


BALANCERS: dict[str, Callable[[], Dispatcher]] = {
    "round robin": RoundRobin,  # the authors' (Section 4.E)
    "least loaded": LeastLoad,
    "first": First,
}


@dataclass(frozen=True)
class Slower:
    """The same replica, `times` slower."""

    fast: LatencyModel
    times: float
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        first, later = self.fast.iteration(chunks, decodes, context)
        return self.times * first, self.times * later

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        line = self.fast.decode_line(decodes, context)
        return Line(self.times * line.intercept, self.times * line.slope, line.until)


@dataclass(frozen=True)
class WithoutKnee:
    """A device on which a pass takes time for its tokens alone: no weights to read, no fixed part, no context."""

    seconds_per_token: float
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        return self.seconds_per_token * (decodes + sum(new for new, _ in chunks)), 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        return Line(self.seconds_per_token * decodes, 0.0, INFINITY)


class PassSizes:
    """A policy that is asked at every pass, and notes how many tokens each one has: (prompt, generation)."""

    head_only = False

    def __init__(self, policy: Scheduler) -> None:
        self.policy = policy
        self.passes: list[tuple[int, int]] = []

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        plan = self.policy.plan(slot)
        decodes = len(slot.group) if plan.decode else 0
        if plan.chunks or decodes:
            self.passes.append((sum(tokens for _, tokens in plan.chunks), decodes))
        return plan._replace(steady=False)


def pass_seconds(latency: LatencyModel, tokens: int) -> float:
    """Seconds of a pass over `tokens` tokens of a prompt."""
    return latency.iteration([(tokens, 0)], 0, 0)[0]


def default_policy(
    name: str, budget: int = BUDGET, fill: str = "budget", rng: np.random.Generator | None = None
) -> Scheduler:
    """A policy of POLICIES; KeyError naming them for another.

    fill: "random" gives SplitFuse a budget for every pass that `rng` draws; the others have none to draw.
    """
    if name == "fastgen" and fill == "random":
        if rng is None:
            raise ValueError("a budget drawn at random needs a generator")
        return RandomFill(rng, budget, MAX_SEQUENCES)
    if name not in POLICIES:
        raise KeyError(f"no policy {name!r}; there is {', '.join(POLICIES)}")
    return POLICIES[name](budget)
