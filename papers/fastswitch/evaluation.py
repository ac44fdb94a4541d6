"""One simulated run of one system, and what is read off it."""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from common.serving.engine import simulate
from common.serving.loop import EventLoop
from common.serving.metrics import token_gaps
from papers.fastswitch.async_swaps import KVLayout, measured_cost
from papers.fastswitch.config import Config
from papers.fastswitch.conversations import Conversations
from papers.fastswitch.deployments import DEPLOYMENTS, SYSTEMS, Setup
from papers.fastswitch.ledger import Swap, granularity, saving
from papers.fastswitch.priorities import PATTERNS
from papers.fastswitch.priority_switching import PrioritySwitching
from papers.fastswitch.server import SwitchingInstance

TAILS = {"ttft_p95": 0.95, "ttft_p99": 0.99, "tbt_p99": 0.99, "tbt_p999": 0.999}
STALL_QUANTILE = 0.99
UNITS = {"switch_gain_32kib": 32 << 10, "switch_gain_128kib": 128 << 10}  # bytes of a copy call of one block


@dataclass(frozen=True)
class Job:
    """A system on one seed's conversations under one pattern of priorities."""

    config: Config
    system: str
    pattern: str
    frequency: float
    seed: int
    conversations: Conversations
    priorities: np.random.Generator

    def setup(self) -> Setup:
        """The system's own switches, and the config's where they mean something to it."""
        config = self.config
        deployment = DEPLOYMENTS[config.deployment]
        if config.kv_tokens:
            deployment = replace(deployment, kv_tokens=config.kv_tokens)
        whole = replace(deployment.setup(config.host_seconds, config.free_calls), **SYSTEMS[self.system])
        longest = (config.longest_group or None) if whole.groups else None
        waits = whole.asynchronous and config.wait_for_all
        kept = min(config.kept_tokens, whole.kept_tokens) if config.keep_copies else 0
        return replace(whole, longest_group=longest, kept_tokens=kept, wait_for_all=waits)

    @property
    def decided_by(self) -> Hashable:
        """All that decides what `serve` gives: what means nothing to a system leaves its run the same."""
        config = self.config
        drawn = (self.seed, config.conversations, config.rate, config.mean_turns, config.longest)
        chain = (config.kept_priority, config.zipf_exponent) if self.pattern == "markov" else ()
        priorities = (self.pattern, self.frequency, *chain)
        return config.deployment, self.setup(), drawn, priorities, config.free_calls


def serve(job: Job) -> dict[str, float]:
    """Serve the conversations, and say what came out: see the keys."""
    built: list[SwitchingInstance] = []
    conversations = job.conversations

    def build(loop: EventLoop) -> SwitchingInstance:
        chain = (job.config.kept_priority, job.config.zipf_exponent)
        update = PATTERNS[job.pattern](job.priorities, conversations.count, *chain)
        policy = PrioritySwitching(update, job.frequency)
        latency = DEPLOYMENTS[job.config.deployment].latency()
        built.append(SwitchingInstance(loop, latency, job.setup(), conversations, policy))
        return built[0]

    trace = simulate(conversations.workload, build, conversations.clients())
    ledger, gaps = built[0].ledger, token_gaps(trace)
    begun = float(conversations.workload.arrival[-1])  # from then on the load ebbs
    tokens = sum(int(np.searchsorted(times, begun, side="right")) for times in trace.token_times)
    seconds, stall = ledger.iterations()
    late = seconds >= np.quantile(seconds, STALL_QUANTILE)
    seen = {name: tail(trace.ttft if "ttft" in name else gaps, quantile) for name, quantile in TAILS.items()}
    for name, unit in UNITS.items():
        seen[name] = switch_gain(ledger.swaps, unit, free_calls=job.config.free_calls)
    return seen | {
        "tokens_per_s": tokens / begun if begun else 0.0,
        "tokens": float(len(gaps)),
        "turns": float(len(trace.ttft)),
        "turns_per_s": len(trace.ttft) / float(trace.finish.max()),
        "swapped_share": ledger.swapped_share,
        "preemptions": float(trace.preemptions.sum()),
        "stall_share": float(stall.sum() / seconds.sum()),
        "stall_share_p99": 100 * float(stall[late].sum() / seconds[late].sum()),
        "granularity": granularity(ledger.swaps),
        "saving": saving(ledger.swaps),
        "out_blocks": float(sum(swap.blocks for swap in ledger.swaps if swap.out)),
        "evicted_blocks": float(built[0].host.evicted_blocks),
    }


def tail(values: np.ndarray, quantile: float) -> float:
    """A quantile as an order statistic: the smallest value that so many of them do not exceed."""
    return float(np.quantile(values, quantile, method="inverted_cdf")) if len(values) else 0.0


def switch_gain(swaps: list[Swap], unit_bytes: int, layers: int = 32, free_calls: bool = False) -> float:
    """Seconds of these swaps with a copy call a block, over those with a call a piece, on the measured H100.

    unit_bytes: of a block, for K or V of one layer. free_calls: as if only bytes cost. 1 where nothing was copied.
    """
    layout = KVLayout(layers, unit_bytes)
    by_block = by_piece = 0.0
    for swap in swaps:
        cost, size = measured_cost("d2h" if swap.out else "h2d"), layout.size(swap.blocks)
        if free_calls:
            cost = cost.without_calls()
        by_block += cost.seconds(layout.calls(swap.blocks), size)
        by_piece += cost.seconds(layout.calls(swap.pieces), size)
    return by_block / by_piece if by_piece else 1.0
