"""What the claims of Universal Checkpointing read: states and curves of real runs, seconds on throttled storage, and
seconds of large models by a formula.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from common.data import DataError, fetch
from common.distributed.fleet import Fleet
from common.lab.runtime import Observations, Runtime
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from common.training.sharded.zero import Adam
from papers.universal_checkpointing import costs
from papers.universal_checkpointing.averaging import averaged_apart
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import How
from papers.universal_checkpointing.native import Schedule
from papers.universal_checkpointing.patterns import Rule
from papers.universal_checkpointing.reconfiguration import Outcome, reconfigured, trained
from papers.universal_checkpointing.scenarios import SCENARIOS, by_dcp, by_mcp, by_universal, passed
from papers.universal_checkpointing.training import LETTERS, Job, fleet

TEXT = "tiny-shakespeare"


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed or one row at all."""
    seen = Observations()
    with fleet() as processes:
        _trainings(config, lab, processes, seen)
        for seed in lab.progress(lab.seeds, "storage"):
            first = seed == lab.seeds[0]
            if lab.wants("save_ratio"):
                costs.saves(config, processes, seed, seen)
            if lab.wants("conversion_speedup"):
                costs.conversions(config, processes, seed, seen, first)
            if lab.wants("load_ratio"):
                costs.loads(config, processes, seed, seen)
            if lab.wants("bypass_gain"):
                costs.bypasses(config, processes, seed, seen, first)
            if lab.wants("straggler_gain"):
                costs.assignments(config, lab, seed, seen)
    costs.at_scale(config, seen)
    return seen


def _trainings(config: Config, lab: Runtime, processes: Fleet, seen: Observations) -> None:
    """All that trains, two groups of processes at a time: ranks of one wait for each other more than they compute."""
    text = _text(lab)
    parts: list[Callable[[Observations], None]] = []
    for seed in lab.seeds:
        if lab.wants("state_differs_one_to_many", "loss_gap_one_to_many"):
            parts.append(partial(one_to_many, config, lab, processes, text, seed))
        if lab.wants("state_differs_many_to_one", "loss_gap_many_to_one"):
            parts.append(partial(many_to_one, config, lab, processes, text, seed))
    if lab.wants("models_resumed") and config.models:
        parts.append(partial(architectures, config, processes, text))
    if lab.wants("scenarios_ucp", "scenarios_dcp", "scenarios_mcp"):
        parts.append(partial(scenarios, config, lab, processes, text))
    if lab.wants("padding_differs"):
        parts.append(partial(padding, config, processes, text))
    if lab.wants("average_differs"):
        parts.append(partial(averaging, config, processes, text))
    if lab.wants("needless_conversions"):
        parts.append(partial(needless, config, processes, text, lab.seeds[0]))

    def observe(part: Callable[[Observations], None]) -> Observations:
        own = Observations()
        part(own)
        return own

    with ThreadPoolExecutor(min(2, lab.workers)) as pool:
        for found in lab.progress(pool.map(observe, parts), "trainings", len(parts)):
            seen.extend(found)


def _text(lab: Runtime) -> str | None:
    """Tiny Shakespeare where it can be had; else the chain of letters."""
    try:
        fetch(TEXT)
    except DataError:
        return None
    path = lab.data(TEXT)
    return None if path is None else str(path)


def _shape(config: Config, **other: Any) -> Shape:
    sizes = (LETTERS, config.hidden, config.layers, config.heads, config.kv_heads, config.mlp, config.context)
    return replace(Shape(*sizes), **other)


def _job(config: Config, text: str | None, layout: Layout, seed: int, shape: Shape | None = None) -> Job:
    recipe = Recipe(seed=seed, adam=Adam(rate=config.rate), rate_at=Schedule(warmup=10, total=400))
    return Job(shape or _shape(config), layout, recipe, config.rows, text)


def _rules(config: Config, shape: Shape) -> tuple[Rule, ...]:
    return decoder_rules(shape, config.fused, config.row_parallel)


def _how(config: Config) -> How:
    return How(config.lazy, config.strip_pad, config.optimiser)


def _name(layout: Layout) -> str:
    return f"TP{layout.tensor} PP{layout.pipeline} DP{layout.data} ZeRO-{layout.zero}"


def one_to_many(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seed: int, seen: Observations
) -> None:
    """One source, every target: the worst of them (Figure 7a)."""
    job = _job(config, text, Layout(*config.source), seed)
    source = trained(processes, job, config.steps, config.further)
    if seed == lab.seeds[0]:
        for step, loss in enumerate(source.losses):
            seen.add("curve", loss, seed, run="source", layout=_name(job.layout), step=step)
    outcomes = []
    for target in config.targets:
        layout = Layout(*target)
        slow = layout.zero == 3 or layout.tensor > 2
        steps = min(config.further, config.slow_steps) if slow else config.further
        outcome = reconfigured(processes, source, layout, _rules(config, job.shape), steps, _how(config))
        outcomes.append(outcome)
        _resumed(outcome, source.until, layout, "one to many", seed, seen, seed == lab.seeds[0])
    seen.add("state_differs_one_to_many", max(outcome.differing for outcome in outcomes), seed)
    seen.add("loss_gap_one_to_many", max(outcome.gap for outcome in outcomes), seed)


def many_to_one(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seed: int, seen: Observations
) -> None:
    """Every source, one target: the worst of them (Figure 7b)."""
    outcomes = []
    for layout in (Layout(*source) for source in config.sources):
        job = _job(config, text, layout, seed)
        source = trained(processes, job, config.sources_steps, config.sources_further)
        rules = _rules(config, job.shape)
        target = Layout(*config.target)
        outcome = reconfigured(processes, source, target, rules, config.sources_further, _how(config))
        outcomes.append(outcome)
        if seed == lab.seeds[0]:
            for step, loss in enumerate(source.losses):
                seen.add("curve", loss, seed, run="sources", layout=_name(layout), step=step)
        _resumed(outcome, source.until, layout, "many to one", seed, seen, seed == lab.seeds[0])
    seen.add("state_differs_many_to_one", max(outcome.differing for outcome in outcomes), seed)
    seen.add("loss_gap_many_to_one", max(outcome.gap for outcome in outcomes), seed)


def _resumed(
    outcome: Outcome, until: int, layout: Layout, run: str, seed: int, seen: Observations, curve: bool
) -> None:
    """Rows for figures."""
    seen.add("resumed_gap", outcome.gap, seed, run=run, layout=_name(layout), error=outcome.error)
    for step, loss in enumerate(outcome.losses if curve else ()):
        seen.add("curve", loss, seed, run=run, layout=_name(layout), step=until + step)


def architectures(config: Config, processes: Fleet, text: str | None, seen: Observations) -> None:
    """Kinds of decoders, and a run that loses half of its data ranks: the share that goes on exactly."""
    cases = {
        "gpt": (_shape(config, kv_heads=config.heads, gated=False, layers=2), [2, 2, 1, 0], [1, 1, 2, 1]),
        "grouped": (_shape(config, tied=False, layers=2), [2, 1, 2, 1], [1, 2, 2, 2]),
        "experts": (_shape(config, experts=4, layers=2), [2, 1, 2, 2], [4, 1, 1, 0]),
        "half_the_nodes": (_shape(config, layers=2), [2, 2, 2, 1], [2, 2, 1, 1]),
    }
    good = 0
    for name in config.models:
        shape, before, after = cases[name]
        source = trained(
            processes,
            _job(config, text, Layout(*before), 0, shape),
            config.models_steps,
            config.models_further,
        )
        rules = _rules(config, shape)
        outcome = reconfigured(processes, source, Layout(*after), rules, config.models_further, _how(config))
        seen.add("model_gap", outcome.gap, model=name, error=outcome.error)
        seen.add("model_differs", outcome.differing, model=name)
        good += outcome.continues and outcome.differing == 0
    seen.add("models_resumed", good / len(config.models))


def padding(config: Config, processes: Fleet, text: str | None, seen: Observations) -> None:
    """ZeRO-3 on three data ranks, whose slices need padding, to two."""
    shape = _shape(config, layers=1, hidden=32, heads=4, kv_heads=2)
    source = trained(processes, _job(config, text, Layout(1, 1, 3, 3), 0, shape), 2, 0)
    outcome = reconfigured(processes, source, Layout(1, 1, 2, 3), _rules(config, shape), 0, _how(config))
    seen.add("padding_differs", outcome.differing, error=outcome.error)


def averaging(config: Config, processes: Fleet, text: str | None, seen: Observations) -> None:
    """Replicas that trained apart."""
    seen.add("average_differs", averaged_apart(processes, _job(config, text, Layout(), 0), config.average))


def needless(config: Config, processes: Fleet, text: str | None, seed: int, seen: Observations) -> None:
    """Conversions in a resumption under the layout that saved."""
    job = _job(config, text, Layout(*config.source), seed)
    source = trained(processes, job, config.steps, config.further)
    outcome = reconfigured(processes, source, job.layout, _rules(config, job.shape), 0, _how(config))
    seen.add("needless_conversions", int(outcome.converted))
    seen.add("same_layout_differs", outcome.differing)


def scenarios(config: Config, lab: Runtime, processes: Fleet, text: str | None, seen: Observations) -> None:
    """Who goes on in which scenario."""
    found: dict[str, list[Outcome]] = {"ucp": [], "dcp": [], "mcp": []}
    for scenario in (scenario for scenario in SCENARIOS if scenario.name in config.scenarios):
        shape = _shape(config, layers=2, experts=scenario.experts)
        source = trained(
            processes,
            _job(config, text, scenario.source, 0, shape),
            config.scenarios_steps,
            config.models_further,
        )
        target = scenario.source if config.same_layout else scenario.target
        steps = config.models_further
        if lab.wants("scenarios_ucp"):
            found["ucp"].append(by_universal(processes, source, target, _rules(config, shape), steps))
        if lab.wants("scenarios_dcp"):
            found["dcp"].append(by_dcp(processes, source, target, steps))
        if lab.wants("scenarios_mcp"):
            found["mcp"].append(by_mcp(processes, source, target, steps))
        for system, outcomes in found.items():
            if outcomes:
                last = outcomes[-1]
                seen.add("scenario_gap", last.gap, system=system, scenario=scenario.name, error=last.error)
    for system, outcomes in found.items():
        if outcomes:
            seen.add(f"scenarios_{system}", passed(outcomes))
    if config.tensor_dcp and lab.wants("scenario_gap"):
        tensor_dcp(config, processes, text, seen)


def tensor_dcp(config: Config, processes: Fleet, text: str | None, seen: Observations) -> None:
    """DCP told of tensor ranks as well: with a padded vocabulary, and with one that needs no padding."""
    for vocab in (LETTERS, 16 * -(-LETTERS // 16)):
        shape = _shape(config, layers=2, vocab=vocab)
        source = trained(
            processes,
            _job(config, text, Layout(2, 1, 1, 0), 0, shape),
            config.scenarios_steps,
            config.models_further,
        )
        outcome = by_dcp(processes, source, Layout(1, 2, 1, 0), config.models_further, tensors=True)
        scenario = f"TP 2 to PP 2, {vocab} rows"
        seen.add("scenario_gap", outcome.gap, system="dcp tensors", scenario=scenario, error=outcome.error)
