"""What the claims of Infinite-LLM read: loans under load, attention over several processes, and the longest context."""

from common.lab.runtime import Observations, Runtime
from papers.infinite_llm.cluster import Setup, longest_served
from papers.infinite_llm.comparison import compare_systems, mean_ratio
from papers.infinite_llm.config import Config
from papers.infinite_llm.decode_step import GPUS, attention_seconds
from papers.infinite_llm.planning import Rules

BLOCKS = 1000  # that the real creditor has


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    seen = Observations()
    compare_systems(config, lab, seen)
    if lab.wants("longest_context_gain"):
        rules = Rules(most_lent=config.most_lent if config.lends else 0.0, most_parts=config.most_parts)
        for instances in config.instances:
            setup = Setup(instances, rules)
            longest, alone = longest_served(setup, "infinite"), longest_served(setup, "vllm-multi")
            seen.add("alone_context", alone, instances=instances)
            seen.add("longest_context", longest, instances=instances)
            seen.add("longest_context_gain", longest / alone, instances=instances)
    if lab.wants("ring_over_dist_a100_typical"):
        seen.add("ring_gpus", GPUS)
        ours = "dist" if config.attends == "remote" else "fetch"
        ratios = []
        for tokens in (65_536, 131_072, 262_144):
            ratios.append(attention_seconds("ring", tokens) / attention_seconds(ours, tokens))
            seen.add("ring_over_dist_a100", ratios[-1], tokens=tokens)
        seen.add("ring_over_dist_a100_typical", mean_ratio(ratios))
    if lab.wants("attention_error", "ring_over_dist", "same_tokens", "over_commitment"):
        run_processes(config, lab, seen)
    return seen


def run_processes(config: Config, lab: Runtime, seen: Observations) -> None:
    """Attention, a decoder and the lending protocol in real processes, started once a seed."""
    from common.distributed.launch import launch  # brings torch, which the simulations do without
    from papers.infinite_llm.processes import Shape, attention_steps, in_turn, lend_concurrently
    from papers.infinite_llm.remote_cache import serve_shared

    ours = "dist" if config.attends == "remote" else "fetch"
    dtypes = ("float32", "float64", "bfloat16")
    exact = [Shape(8, groups, 64, 1000, dtype) for groups in (8, 2, 1) for dtype in dtypes]
    shapes = [Shape(8, 8, 128, tokens) for tokens in config.contexts]
    for seed in lab.progress(lab.seeds, "processes"):
        tasks = {
            "attention_error": (attention_steps, (exact, ("dist",), seed, config.merging)),
            "ring_over_dist": (
                attention_steps,
                (shapes, tuple(dict.fromkeys((ours, "ring", "fetch"))), seed),
            ),
            "same_tokens": (serve_shared, (400, 32, config.remote, seed, config.merging)),
            "over_commitment": (lend_concurrently, (BLOCKS, config.loan_requests, seed, config.refuses)),
        }
        wanted = {metric: task for metric, task in tasks.items() if lab.wants(metric)}
        answers = launch(in_turn, config.processes, (list(wanted.values()),), seconds=400)[0]
        found = dict(zip(wanted, answers, strict=True))
        if "attention_error" in found:
            seen.add("attention_error", max(step["dist"].error for step in found["attention_error"]), seed)
        if "ring_over_dist" in found:
            for shape, by_method in zip(shapes, found["ring_over_dist"], strict=True):
                for method, step in by_method.items():
                    seen.add("step_seconds", step.seconds, seed, method=method, tokens=shape.tokens)
                    seen.add("step_bytes", step.sent, seed, method=method, tokens=shape.tokens)
            last = found["ring_over_dist"][-1]
            seen.add("ring_over_dist", last["ring"].seconds / last[ours].seconds, seed)
        if "same_tokens" in found:
            served = found["same_tokens"]
            same = sum(a == b for a, b in zip(served.local, served.remote, strict=True))
            seen.add("same_tokens", same / len(served.local), seed)
        if "over_commitment" in found:
            most, granted, refused = found["over_commitment"]
            seen.add("over_commitment", max(0, most - BLOCKS), seed)
            seen.add("loans_refused", refused / (granted + refused), seed)
