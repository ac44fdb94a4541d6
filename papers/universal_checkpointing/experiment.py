"""What the claims of Universal Checkpointing read: states and curves of real runs, seconds on throttled storage, and
minutes of large models by a formula.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from common.data import DataError, fetch
from common.distributed.fleet import Fleet
from common.distributed.rooms import Room
from common.lab.runtime import Observations, Runtime
from papers.universal_checkpointing import throttled
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.conversion import Sharing, nested, straggler
from papers.universal_checkpointing.minutes import MODELS, Hosts, minutes, sequential
from papers.universal_checkpointing.reconfiguration import resume_all, resume_cases, resume_unchanged
from papers.universal_checkpointing.scenarios import resume_scenarios
from papers.universal_checkpointing.training import fleet

TEXT = "tiny-shakespeare"
RUNS = ("one to many", "many to one")
AT_SCALE = ("nested_gain", "transform_minutes", "end_to_end_minutes", "balanced_gain")


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed or one row at all."""
    seen = Observations()
    with fleet() as processes, Room("paperlab-ucp-") as room:
        resume(config, lab, processes, seen)
        if lab.wants("save_gain", "saved_mb"):
            throttled.saves(config, processes, lab.seeds, seen)
        if lab.wants("conversion_gain"):
            throttled.conversions(config, processes, room, lab.seeds, seen)
        if lab.wants("load_ratio"):
            throttled.loads(config, processes, room, lab.seeds, seen)
        if lab.wants("bypass_gain"):
            throttled.bypasses(config, processes, room, lab.seeds, seen)
        if lab.wants("packing_gb_per_s"):
            seen.add("packing_gb_per_s", throttled.packing_rate(room) / 1e9)
    if lab.wants(*AT_SCALE):
        at_scale(config, lab, seen)
    return seen


def resume(config: Config, lab: Runtime, processes: Fleet, seen: Observations) -> None:
    """All that trains, two groups of processes at a time: ranks of one wait for each other more than they compute."""
    text = text_of(lab)
    parts: list[Callable[[Observations], None]] = []
    for name in RUNS:
        losses, states = lab.wants(f"loss_gap_{name.replace(' ', '_')}"), lab.wants("state_differs")
        for seed in (
            lab.seeds if losses else lab.seeds[:states]
        ):  # what is equal to the last bit is so with any seed
            parts.append(lambda own, s=seed, n=name: resume_all(config, lab, processes, text, s, n, own))  # type: ignore[misc]
    if lab.wants("cases_resumed"):
        parts.append(lambda own: resume_cases(config, lab, processes, text, own))
    if lab.wants("scenarios_ucp", "scenarios_dcp"):
        parts.append(lambda own: resume_scenarios(config, lab, processes, text, own))
    with ThreadPoolExecutor(min(2, lab.workers)) as pool:
        for found in lab.progress(pool.map(observed, parts), "trainings", len(parts)):
            seen.extend(found)
    if seen.rows("resumed_differs"):
        seen.add("state_differs", max(seen.values("resumed_differs")))
    if lab.wants("needless_conversions"):
        resume_unchanged(config, lab, processes, text, seen)


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
    hosts = Hosts(
        1e9 * config.node_gb_per_s, 1e9 * config.process_gb_per_s, config.extracting, config.merging
    )
    drawn = config.assignment == "random"
    for seed in lab.seeds if drawn else (None,):
        sharing = Sharing(config.parallel, config.assignment, seed or 0)
        found = {model: minutes(model, hosts, sharing) for model in MODELS}
        for model, one in found.items():
            for phase in ("save", "transform", "load", "total"):
                seen.add("minutes", getattr(one, phase), seed, model=model.name, phase=phase)
            seen.add("nested_gain", sequential(model, hosts) / one.transform, seed, model=model.name)
        seen.add("transform_minutes", max(one.transform for one in found.values()), seed)
        seen.add("end_to_end_minutes", max(one.total for one in found.values()), seed)
        largest = MODELS[-1]
        work = largest.parameters()
        in_turn, ours = (
            straggler(
                work, [core for node in nested(work, largest.nodes, hosts.merging, how) for core in node]
            )
            for how in (Sharing(assignment="in order"), sharing)
        )
        seen.add("straggler", in_turn, seed, assignment="in order")
        seen.add("straggler", ours, seed, assignment="ours")
        seen.add("balanced_gain", in_turn / ours, seed)
    seen.add("nodes_1t", MODELS[-1].nodes)
    seen.add("parameters_1t", float(sum(MODELS[-1].parameters().values())))
