"""What the claims of Infinite-LLM read: loans under load, attention over several processes, and the longest context."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.workload import Lengths, draw_lengths
from papers.infinite_llm.cluster import Outcome, Setup, longest_served
from papers.infinite_llm.cluster import run as serve
from papers.infinite_llm.config import Config
from papers.infinite_llm.decode_step import attention_seconds, movement_loss
from papers.infinite_llm.planning import Rules
from papers.infinite_llm.traces import draw

CHAT = "nanoflow-sharegpt-lengths"


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    seen = Observations()
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
        seen.add("ring_over_dist_a100_typical", _mean_ratio(ratios))
    if lab.wants("movement_loss"):
        for tokens in config.moved_tokens:
            seen.add("movement_loss_at", movement_loss(tokens, config.link_bytes_per_s), tokens=tokens)
        seen.add("movement_loss", movement_loss(16, config.link_bytes_per_s))
    if lab.wants("attention_error", "ring_over_dist", "same_tokens", "over_commitment"):
        run_processes(config, lab, seen)
    return seen


@dataclass(frozen=True)
class Case:
    """A trace, and how its requests are dealt out. requests: how many; spread: of their lengths."""

    longest: int
    requests: int
    spread: float
    dispatch: str = "in turn"
    cancels: bool = True


@dataclass(frozen=True)
class Job:
    """One system on one seed's requests of a case. chat: lengths that requests are drawn from."""

    config: Config
    case: Case
    system: str  # a name of cluster.SYSTEMS
    chat: Lengths
    rng: np.random.Generator

    def __call__(self) -> Outcome:
        config, case = self.config, self.case
        rules = Rules(cancels=case.cancels, moved_per_step=config.moved_per_step)
        setup = Setup(config.model, config.gpus, rules, prefills=config.prefills, dispatch=case.dispatch)
        workload = draw(self.rng, case.requests, self.chat, case.longest, case.spread)
        return serve(workload, self.system, setup)


def serve_job(job: Job) -> Outcome:
    """Picklable, as work for other processes must be."""
    return job()


def cases_of(config: Config) -> dict[str, list[Case]]:
    """The cases that each metric reads."""
    traces = {n: Case(n, config.requests, config.spread) for n in [*config.short, *config.long]}
    short, long = [traces[n] for n in config.short], [traces[n] for n in config.long]
    last, longest = short[-1], long[-1]
    return {
        "gain_typical": short + long,
        "gain_by_tokens": [replace(case, dispatch="by tokens") for case in short],
        "gain_over_multi": short,
        "gain_over_single_short": short[:1],
        "gain_over_single_long": [longest],
        "served_more": [longest],
        "gain_growth": [last, *(replace(last, spread=spread) for spread in config.spreads)],
        "gain_at": [replace(last, requests=requests) for requests in config.sizes],
        "remote_share_saved": [replace(longest, cancels=cancels) for cancels in (config.cancels, False)],
    }


def compare_systems(config: Config, lab: Runtime, seen: Observations) -> None:
    """Throughput of lending instances, the same without lending, and one instance over all GPUs."""
    wanted = {metric: cases for metric, cases in cases_of(config).items() if lab.wants(metric)}
    if not wanted:
        return
    chat = draw_lengths("sharegpt", lab.rng(0, "chat"), 20_000, lab.data(CHAT))
    runs = dict.fromkeys(one for metric, cases in wanted.items() for one in _runs(metric, cases, config))
    jobs = [
        Job(config, case, system, chat, lab.rng(seed, "trace", str(case.longest)))
        for seed in lab.seeds
        for case, system in runs
    ]
    outcomes = iter(lab.map(serve_job, jobs, "clusters"))
    for seed in lab.seeds:
        found = Comparison({one: next(outcomes) for one in runs}, config)
        for (case, system), outcome in found.outcomes.items():
            at = _place(case) | {"system": system}
            seen.add("throughput", outcome.throughput, seed, **at)
            seen.add("served", outcome.served, seed, **at)
            seen.add("batch", outcome.mean_batch, seed, **at)
            if system == "infinite":
                for counted in ("loans", "refused", "dropped", "placed_blocks", "moved_blocks", "cancelled"):
                    seen.add(counted, float(getattr(outcome, counted)), seed, **_place(case))
                seen.add("remote_share", outcome.remote_share, seed, **_place(case))
        for metric, cases in wanted.items():
            add_metric(metric, cases, found, seen, seed)


@dataclass(frozen=True)
class Comparison:
    """One seed's outcomes by case and system."""

    outcomes: dict[tuple[Case, str], Outcome]
    config: Config

    def over(self, case: Case, rival: str) -> float:
        """Our throughput over a rival's."""
        ours = _ours(case, self.config)
        mine = self.outcomes[_rival(case, ours), ours]
        return mine.throughput / self.outcomes[_rival(case, rival), rival].throughput

    def over_best(self, case: Case) -> float:
        """Our throughput over the better of vLLM's layouts, of those that serve every request."""
        rivals = ("vllm-multi", "vllm-single")
        able = [one for one in rivals if self.outcomes[_rival(case, one), one].served == 1.0]
        return min(self.over(case, one) for one in able)


def add_metric(metric: str, cases: list[Case], found: Comparison, seen: Observations, seed: int) -> None:
    """One seed's value of a metric, and what it is made of."""
    if metric in ("gain_typical", "gain_by_tokens"):
        gains = [found.over_best(case) for case in cases]
        for case, gain in zip(cases, gains, strict=True):
            seen.add("gain", gain, seed, **_place(case))
        seen.add(metric, _mean_ratio(gains), seed)
    elif metric == "gain_over_multi":
        seen.add(metric, _mean_ratio([found.over(case, "vllm-multi") for case in cases]), seed)
    elif metric in ("gain_over_single_short", "gain_over_single_long"):
        seen.add(metric, found.over(cases[0], "vllm-single"), seed)
    elif metric in ("gain_growth", "gain_at"):
        gains = [found.over(case, "vllm-multi") for case in cases]
        for case, gain in zip(cases, gains, strict=True):
            seen.add("gain_over_multi_at", gain, seed, **_place(case))
        if metric == "gain_growth":
            seen.add(metric, gains[0] / gains[1], seed)
    elif metric == "served_more":
        (case,) = cases
        mine, multi = (found.outcomes[case, one].served for one in (_instances(found.config), "vllm-multi"))
        seen.add(metric, mine - multi, seed)
    elif metric == "remote_share_saved":
        with_, without = (found.outcomes[case, "infinite"].remote_share for case in cases)
        seen.add(metric, without - with_, seed)


def _ours(case: Case, config: Config) -> str:
    """The system in the place of Infinite-LLM; without lending it is vLLM, in a layout that serves the trace."""
    if config.one_instance or (not config.lends and case.longest in config.long):
        return "vllm-single"
    return _instances(config)


def _instances(config: Config) -> str:
    return "infinite" if config.lends else "vllm-multi"


def _runs(metric: str, cases: list[Case], config: Config) -> Iterator[tuple[Case, str]]:
    """What has to be run for a metric."""
    rivals = {
        "gain_typical": ("vllm-multi", "vllm-single"),
        "gain_by_tokens": ("vllm-multi", "vllm-single"),
        "gain_over_single_short": ("vllm-single",),
        "gain_over_single_long": ("vllm-single",),
        "remote_share_saved": (),
    }.get(metric, ("vllm-multi",))
    for case in cases:
        ours = _ours(case, config)
        if metric == "remote_share_saved":
            ours = "infinite"
        elif metric == "served_more":
            ours = _instances(config)
        yield _rival(case, ours), ours
        for rival in rivals:
            yield _rival(case, rival), rival


def _rival(case: Case, system: str) -> Case:
    """One instance takes all requests, however they are dealt out."""
    return replace(case, dispatch="in turn") if system == "vllm-single" else case


def _place(case: Case) -> dict[str, str | float]:
    return {
        "longest": case.longest,
        "requests": case.requests,
        "spread": case.spread,
        "dispatch": case.dispatch,
        "cancels": case.cancels,
    }


def _mean_ratio(ratios: list[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))


def observe_longest(config: Config, instances: int, seen: Observations) -> None:
    """The longest request that an idle cluster really serves, over what one of its instances does."""
    setup = Setup(config.model, instances * Setup(config.model).instance_gpus)
    longest, alone = longest_served(setup, "infinite"), longest_served(setup, "vllm-multi")
    seen.add("longest_context", longest, instances=instances)
    seen.add("longest_context_gain", longest / alone, instances=instances)


def run_processes(config: Config, lab: Runtime, seen: Observations) -> None:
    """Attention, a decoder and the lending protocol in real processes, started once a seed."""
    from common.distributed.launch import launch  # brings torch, which the simulations do without
    from papers.infinite_llm.lending_protocol import lend_concurrently
    from papers.infinite_llm.processes import Shape, attention_steps, in_turn
    from papers.infinite_llm.remote_cache import serve_shared

    dtypes = ("float32", "float64", "bfloat16")
    exact = [Shape(8, groups, 64, 1000, dtype) for groups in (8, 2, 1) for dtype in dtypes]
    shapes = [Shape(8, 8, 128, tokens) for tokens in config.contexts]
    methods = tuple(dict.fromkeys((config.method, "ring", "fetch")))
    for seed in lab.progress(lab.seeds, "processes"):
        tasks = {
            "attention_error": (attention_steps, (exact, (config.method,), seed, config.merging)),
            "ring_over_dist": (attention_steps, (shapes, methods, seed)),
            "same_tokens": (serve_shared, (400, 32, config.remote, seed, config.merging)),
            "over_commitment": (lend_concurrently, (1000, config.loan_requests, seed, config.refuses)),
        }
        wanted = {metric: task for metric, task in tasks.items() if lab.wants(metric)}
        answers = launch(in_turn, config.processes, (list(wanted.values()),), seconds=400)[0]
        found = dict(zip(wanted, answers, strict=True))
        if "attention_error" in found:
            error = max(step[config.method].error for step in found["attention_error"])
            seen.add("attention_error", error, seed)
        if "ring_over_dist" in found:
            steps = found["ring_over_dist"]
            for shape, by_method in zip(shapes, steps, strict=True):
                for method, step in by_method.items():
                    seen.add("step_seconds", step.seconds, seed, method=method, tokens=shape.tokens)
                    seen.add("step_bytes", step.sent, seed, method=method, tokens=shape.tokens)
            last = steps[-1]
            seen.add("ring_over_dist", last["ring"].seconds / last[config.method].seconds, seed)
        if "same_tokens" in found:
            served = found["same_tokens"]
            same = sum(a == b for a, b in zip(served.local, served.remote, strict=True))
            seen.add("same_tokens", same / len(served.local), seed)
        if "over_commitment" in found:
            most, granted, refused = found["over_commitment"]
            seen.add("over_commitment", max(0, most - 1000), seed)
            seen.add("loans_refused", refused / (granted + refused), seed)
