"""What the claims of Universal Checkpointing read: states and curves of real runs, seconds on throttled storage, and
minutes of large models by a formula.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from common.data import DataError, fetch
from common.distributed.rooms import Room
from common.lab.runtime import Observations, Runtime
from papers.universal_checkpointing import throttled
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.conversion import Sharing, nested, straggler
from papers.universal_checkpointing.minutes import MODELS, Hosts, minutes, sequential
from papers.universal_checkpointing.reconfiguration import RUNS, Bench
from papers.universal_checkpointing.scenarios import resume_cases, resume_scenarios
from papers.universal_checkpointing.training import fleet

TEXT = "tiny-shakespeare"
AT_SCALE = ("nested_gain", "transform_minutes", "end_to_end_minutes", "balanced_gain")


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed or one row at all."""
    seen = Observations()
    with fleet(a_core_each=True) as processes:
        resume(Bench(config, lab, processes, text_of(lab)), seen)
    with fleet() as processes, Room("paperlab-ucp-") as room:
        stored = throttled.Stored(config, processes, room, lab, seen)
        for metric, timed in throttled.STUDIES.items():
            if lab.wants(metric):
                timed(stored)
    if lab.wants(*AT_SCALE):
        at_scale(config, lab, seen)
    return seen


def resume(bench: Bench, seen: Observations) -> None:
    """All that trains, a group of processes on each core."""
    lab = bench.lab
    wanted = [run for run in RUNS if lab.wants("state_differs", f"loss_gap_{run.replace(' ', '_')}")]
    losses = lab.wants("loss_gap_one_to_many", "loss_gap_many_to_one")
    seeds = (lab.seeds if losses else lab.seeds[:1]) if wanted else []  # equal bits are so with any seed

    def curves(seed: int, own: Observations) -> None:
        for run in wanted:  # in turn: both may resume the same source
            bench.curves(run, seed, own)

    parts = [partial(curves, seed) for seed in seeds]
    if lab.wants("cases_resumed"):
        parts.append(partial(resume_cases, bench))
    if lab.wants("scenarios_ucp", "scenarios_dcp"):
        parts.append(partial(resume_scenarios, bench))
    with ThreadPoolExecutor(lab.workers) as pool:
        for found in lab.progress(pool.map(observed, parts), "trainings", len(parts)):
            seen.extend(found)
    if seen.rows("resumed_differs"):
        seen.add("state_differs", max(seen.values("resumed_differs")))
    if lab.wants("needless_conversions"):
        bench.unchanged(seen)


def observed(part: Callable[[Observations], None]) -> Observations:
    own = Observations()
    part(own)
    return own


def text_of(lab: Runtime) -> str | None:
    """Tiny Shakespeare where it can be had; else the chain of letters."""
    try:
        fetch(TEXT)
    except DataError:
        return None
    path = lab.data(TEXT)
    return None if path is None else str(path)


def at_scale(config: Config, lab: Runtime, seen: Observations) -> None:
    """The five models of Table 3, the gain over one process, and over parameters that are given out in turn."""
    rates = 1e9 * config.node_gb_per_s, 1e9 * config.process_gb_per_s
    hosts, largest = Hosts(*rates, config.extracting, config.merging), MODELS[-1]
    work = largest.parameters()

    def slowest(sharing: Sharing) -> float:
        shares = nested(work, largest.nodes, hosts.merging, sharing)
        return straggler(work, [core for node in shares for core in node])

    for seed in lab.seeds if config.assignment == "random" else (None,):
        sharing = Sharing(config.parallel, config.assignment, seed or 0)
        found = {model: minutes(model, hosts, sharing) for model in MODELS}
        for model, one in found.items():
            for phase, each in one.items():
                seen.add("minutes", each, seed, model=model.name, phase=phase)
            seen.add("nested_gain", sequential(model, hosts) / one["transform"], seed, model=model.name)
        seen.add("transform_minutes", max(one["transform"] for one in found.values()), seed)
        seen.add("end_to_end_minutes", max(one["total"] for one in found.values()), seed)
        seen.add("balanced_gain", slowest(Sharing(assignment="in order")) / slowest(sharing), seed)
    seen.add("nodes_1t", largest.nodes)
    seen.add("parameters_1t", float(sum(work.values())))
