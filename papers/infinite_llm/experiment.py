"""What the claims of Infinite-LLM read: attention over several processes, loans under load, and the longest context."""

from dataclasses import dataclass, field

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.workload import Lengths, Workload, draw_lengths
from papers.infinite_llm.cluster import Outcome, Setup
from papers.infinite_llm.cluster import run as serve
from papers.infinite_llm.decode_step import attention_seconds, movement_loss
from papers.infinite_llm.lending import Rules
from papers.infinite_llm.traces import draw

CHAT = "nanoflow-sharegpt-lengths"


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    model: str = "llama-2-7b"
    gpus: int = 32
    requests: int = 1500  # of each run, all there at once
    # longest prompts of the traces that an instance alone can serve, and of those that it cannot
    short: list[int] = field(default_factory=lambda: [60_000, 100_000])
    long: list[int] = field(default_factory=lambda: [200_000])
    equal: bool = False  # True: all requests have the mean lengths
    lends: bool = True  # False: the instances keep their memory to themselves
    one_instance: bool = False  # True: all GPUs form one instance in place of ours
    cancels: bool = True  # False: debts along cycles stay
    prefills: bool = False  # True: prompts cost time too
    instances: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])  # of the longest context
    processes: int = 4
    contexts: list[int] = field(default_factory=lambda: [1024, 4096, 16_384])  # tokens, of the real attention
    method: str = "dist"  # of the real attention; a name of processes.METHODS
    merging: bool = True  # False: partial results are averaged
    remote: float = 0.75  # share of a real request's prompt that other processes hold
    loan_requests: int = 100  # of each borrower of the real protocol
    refuses: bool = True  # False: a creditor grants what the ledger promised
    moved_tokens: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])  # a decode step
    link_bytes_per_s: float = 0.0  # of the moves; 0: NVLink


CLUSTER = (
    "gain_typical",
    "gain_over_multi",
    "gain_over_single_short",
    "gain_over_single_long",
    "remote_share_saved",
)


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    seen = Observations()
    if lab.wants(*CLUSTER):
        compare_systems(config, lab, seen)
    if lab.wants("longest_context_gain"):
        for instances in config.instances:
            observe_longest(config, instances, seen)
    if lab.wants("ring_over_dist_a100_typical"):
        ratios = []
        for tokens in (65_536, 131_072, 262_144):
            dist, ring = (attention_seconds(method, tokens) for method in (config.method, "ring"))
            ratios.append(ring / dist)
            seen.add("ring_over_dist_a100", ratios[-1], tokens=tokens)
        seen.add("ring_over_dist_a100_typical", float(np.exp(np.mean(np.log(ratios)))))
    if lab.wants("movement_loss"):
        for tokens in config.moved_tokens:
            seen.add("movement_loss_at", movement_loss(tokens, config.link_bytes_per_s), tokens=tokens)
        seen.add("movement_loss", movement_loss(16, config.link_bytes_per_s))
    if lab.wants("attention_error", "ring_over_dist", "same_tokens", "over_commitment"):
        run_processes(config, lab, seen)
    return seen


@dataclass(frozen=True)
class Job:
    """One system on one trace."""

    system: str
    workload: Workload
    setup: Setup
    seed: int
    longest: int
    ours: bool = True  # False: as a rival


def serve_job(job: Job) -> Outcome:
    """Picklable, as work for other processes must be."""
    return serve(job.workload, job.system, job.setup)


def compare_systems(config: Config, lab: Runtime, seen: Observations) -> None:
    """Throughput of lending instances, the same without lending, and one instance over all GPUs."""
    path = lab.data(CHAT)
    chat = draw_lengths("sharegpt", lab.rng(0, "chat"), 20_000, path)
    setup = Setup(config.model, config.gpus, Rules(cancels=config.cancels), prefills=config.prefills)
    ours = "vllm-single" if config.one_instance else "infinite" if config.lends else "vllm-multi"
    asked = {
        "gain_typical": config.short,
        "gain_over_multi": config.short,
        "gain_over_single_short": config.short[:1],
        "gain_over_single_long": config.long,
        "remote_share_saved": config.short[-1:],
    }
    lengths = sorted({longest for metric, each in asked.items() if lab.wants(metric) for longest in each})
    jobs = []
    for seed in lab.seeds:
        for longest in lengths:
            workload = trace(config, lab, chat, seed, longest)
            jobs.append(Job(ours, workload, setup, seed, longest))
            if longest in config.short:
                jobs.append(Job("vllm-multi", workload, setup, seed, longest, ours=False))
            jobs.append(Job("vllm-single", workload, setup, seed, longest, ours=False))
        if lab.wants("remote_share_saved"):
            workload = trace(config, lab, chat, seed, config.short[-1])
            for cancels in (config.cancels, False):
                kept = Setup(config.model, config.gpus, Rules(cancels=cancels), prefills=config.prefills)
                jobs.append(Job("infinite", workload, kept, seed, -int(cancels)))
    outcomes = lab.map(serve_job, jobs, "clusters")
    for seed in lab.seeds:
        found = {
            (job.longest, job.ours, job.system): outcome
            for job, outcome in zip(jobs, outcomes, strict=True)
            if job.seed == seed and job.longest > 0
        }
        for (longest, mine, system), outcome in found.items():
            at: dict[str, str | int] = {"longest": longest, "system": "ours" if mine else system}
            seen.add("throughput", outcome.throughput, seed, **at)
            seen.add("served", outcome.served, seed, **at)
            seen.add("batch", outcome.mean_batch, seed, **at)
            if mine:
                seen.add("loans", outcome.loans, seed, longest=longest)
                seen.add("refused", outcome.refused, seed, longest=longest)
                seen.add("remote_share", outcome.remote_share, seed, longest=longest)
        add_gains(config, found, seen, seed, ours)
        shares = [
            outcome.remote_share
            for job, outcome in zip(jobs, outcomes, strict=True)
            if job.seed == seed and job.longest <= 0
        ]
        if shares:
            seen.add("remote_share_saved", shares[1] - shares[0], seed)


def add_gains(
    config: Config, found: dict[tuple[int, bool, str], Outcome], seen: Observations, seed: int, ours: str
) -> None:
    """Ratios of one seed's throughputs. Only systems that serve every request of a trace are compared on it."""
    over_multi, over_best = [], []
    for longest in sorted({key[0] for key in found}):
        mine = found[longest, True, ours].throughput
        single = found[longest, False, "vllm-single"].throughput
        if longest in config.short:
            multi = found[longest, False, "vllm-multi"].throughput
            over_multi.append(mine / multi)
            over_best.append(mine / max(multi, single))
            seen.add("gain", over_best[-1], seed, longest=longest)
            seen.add("gain_over_multi_at", mine / multi, seed, longest=longest)
            if longest == config.short[0]:
                seen.add("gain_over_single_short", mine / single, seed)
        elif longest == config.long[-1]:
            seen.add("gain_over_single_long", mine / single, seed)
    if len(over_multi) == len(config.short):
        seen.add("gain_over_multi", float(np.exp(np.mean(np.log(over_multi)))), seed)
        seen.add("gain_typical", float(np.exp(np.mean(np.log(over_best)))), seed)


def trace(config: Config, lab: Runtime, chat: Lengths, seed: int, longest: int) -> Workload:
    """The requests of a seed with prompts up to `longest` tokens."""
    return draw(lab.rng(seed, "trace", str(longest)), config.requests, chat, longest, config.equal)


def observe_longest(config: Config, instances: int, seen: Observations) -> None:
    """The longest request of an idle cluster, over what one of its instances holds: as many instances as may lend."""
    setup = Setup(config.model)
    alone = setup.kv_tokens(setup.instance_gpus)
    lenders = instances - 1
    longest = alone + int(lenders * Rules().most_lent * alone)
    seen.add("longest_context", longest, instances=instances)
    seen.add("longest_context_gain", longest / alone, instances=instances)


def run_processes(config: Config, lab: Runtime, seen: Observations) -> None:
    """Attention, a decoder and the lending protocol in real processes."""
    from common.distributed.launch import launch  # brings torch, which the simulations do without
    from papers.infinite_llm.lending_protocol import lend_concurrently
    from papers.infinite_llm.processes import Shape, attention_steps
    from papers.infinite_llm.remote_cache import serve_shared

    world = config.processes
    exact = [Shape(8, groups, 64, 1000, dtype) for groups in (8, 2, 1) for dtype in ("float32", "float64")]
    for seed in lab.progress(lab.seeds, "processes"):
        if lab.wants("attention_error"):
            attention = (exact, (config.method,), seed, config.merging)
            (steps, *_) = launch(attention_steps, world, attention, seconds=120)
            seen.add("attention_error", max(step[config.method].error for step in steps), seed)
        if lab.wants("ring_over_dist"):
            shapes = [Shape(8, 8, 128, tokens) for tokens in config.contexts]
            methods = tuple(dict.fromkeys((config.method, "ring", "fetch")))
            (steps, *_) = launch(attention_steps, world, (shapes, methods, seed), seconds=200)
            for shape, found in zip(shapes, steps, strict=True):
                for method, step in found.items():
                    seen.add("step_seconds", step.seconds, seed, method=method, tokens=shape.tokens)
                    seen.add("step_bytes", step.sent, seed, method=method, tokens=shape.tokens)
            last = steps[-1]
            seen.add("ring_over_dist", last["ring"].seconds / last[config.method].seconds, seed)
        if lab.wants("same_tokens"):
            request = (400, 32, config.remote, seed, config.merging)
            served = launch(serve_shared, max(2, world - 1), request, seconds=120)[0]
            same = sum(a == b for a, b in zip(served.local, served.remote, strict=True))
            seen.add("same_tokens", same / len(served.local), seed)
        if lab.wants("over_commitment"):
            loans = (1000, config.loan_requests, seed, config.refuses)
            most, granted, refused = launch(lend_concurrently, world, loans, seconds=120)[0]
            seen.add("over_commitment", max(0, most - 1000), seed)
            seen.add("loans_refused", refused / (granted + refused), seed)
