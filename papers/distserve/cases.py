"""Which scenarios and systems a run compares, and on which requests."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from common.lab.runtime import Runtime
from common.serving.metrics import SLO
from common.serving.workload import QUANTILES, SYNTHETIC, Workload, draw_lengths, poisson
from papers.distserve.config import Config
from papers.distserve.scenarios import OTHER_LENGTHS, SCENARIOS, Scenario

# The registry's data sets behind the traces.
TRACES = {
    "sharegpt": "nanoflow-sharegpt-lengths",
    "azure-conversation": "azure-2023-conversation",
    "arxiv-summarisation": "arxiv-summarisation-lengths",
}
PLANNING = -1  # in place of a seed: requests that only the searches see


@dataclass(frozen=True)
class Case:
    """A scenario under a config; `name` has "/lengths" behind it where the lengths are not its own."""

    name: str
    scenario: Scenario
    systems: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def slug(self) -> str:
        return self.name.replace("-", "_")


def chosen(config: Config, lab: Runtime) -> list[Case]:
    """The configured scenarios with the systems that are asked for, and their variants on other lengths."""
    cases = []
    for name in config.scenarios:
        slug = name.replace("-", "_")
        placements = name == "chat-opt-13b"  # where the paper compares its algorithms (Section 6.4)
        asked = {
            "vllm": lab.wants(f"rate_gain_{slug}", f"slo_gain_{slug}"),
            "same-engine": lab.wants(f"same_engine_rate_gain_{slug}"),
            "high": placements and config.disaggregate and lab.wants("high_over_low"),
            "vllm++": lab.wants("low_over_vllm_plus" if placements else f"over_vllm_plus_{slug}"),
        }
        systems = tuple(system for system, wanted in asked.items() if wanted)
        transfers = name == "chat-opt-66b" and lab.wants("transfer_share", "transfer_p95_seconds")
        scenario = SCENARIOS[name]
        if name.startswith("chat"):
            scenario = replace(scenario, lengths=config.chat_lengths)
        if name == "chat-opt-13b":
            scenario = replace(scenario, slo=SLO(config.chat_13b_ttft, scenario.slo.tpot))
        if systems or transfers:
            cases.append(Case(name, scenario, ("low", *systems), lab.seeds))
        if config.other_lengths and lab.wants("goodput_by_lengths"):
            for lengths in OTHER_LENGTHS.get(name, ()):
                if lengths != scenario.lengths:
                    other = replace(scenario, lengths=lengths)
                    seeds = lab.seeds[: config.other_lengths]
                    cases.append(Case(f"{name}/{lengths}", other, ("low", "vllm", "same-engine"), seeds))
    return cases


def draw(config: Config, lab: Runtime, case: Case, seed: int) -> Workload:
    """Poisson arrivals at one request a second, with lengths from the real trace where it can be had."""
    scenario = case.scenario
    path: Path | None = None
    if scenario.lengths not in SYNTHETIC:
        path = lab.data(TRACES[scenario.lengths.removesuffix("-joined")])
        if path is None:
            lab.used("embedded length quantiles", hashlib.sha256(QUANTILES.read_bytes()).hexdigest())
    rng = lab.rng(0, "planning", case.name) if seed == PLANNING else lab.rng(seed, case.name)
    lengths = draw_lengths(scenario.lengths, rng, config.most_requests, path)
    return Workload(poisson(rng, config.most_requests), lengths.prompt, lengths.output)
