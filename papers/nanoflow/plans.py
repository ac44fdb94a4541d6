"""Which pipelines a run needs, each found once for every seed: the other ones start from LLaMA-2-70B's own."""

from typing import NamedTuple

from common.lab.runtime import Runtime
from papers.nanoflow.config import Config
from papers.nanoflow.cost_model import DEPLOYMENTS, LLAMA_2_70B, Deployment, Workload
from papers.nanoflow.pipelines import CONSTANT, PREFILL_ONLY, Case, Result, Switches, case_operators, solve
from papers.nanoflow.search import Effort, structures

BASE = CONSTANT[1]  # 1,024 in, 512 out: the lengths of the paper's shares of the optimum
ONLINE = ("online_rate_gain", "online_requests")
OF_TRACES = ("over_tensorrt_traces", "sequential_over_tensorrt_traces")
OF_BASE = ("replay_violations", "numerics_wrong", "offload_slowdown")
SHOWN = ("llama-3-70b", "qwen2-72b", "mixtral-8x7b")  # nearly LLaMA-2-70B's operators, or nothing to overlap


class Plan(NamedTuple):
    """A pipeline to be found: what for, and on which exponent of the network (None: the config's)."""

    deployment: Deployment
    workload: Workload
    exponent: float | None = None

    @property
    def share(self) -> str:
        return f"share_of_optimum_{self.deployment.model.replace('-', '_')}"

    @property
    def gain(self) -> str:
        return f"gain_{self.workload.prompt}_{self.workload.output}"


HOME = Plan(LLAMA_2_70B, BASE)


def wanted(config: Config, lab: Runtime, means: dict[str, Workload]) -> list[Plan]:
    """The pipelines that this arm's claims read, the one that the others start from first."""
    plans = [Plan(LLAMA_2_70B, one) for one in (CONSTANT[0], CONSTANT[2], PREFILL_ONLY)]
    plans = [plan for plan in plans if lab.wants(plan.gain)]
    models = [Plan(one, BASE) for one in DEPLOYMENTS if one.model in config.models]
    plans += [plan for plan in models if lab.wants(plan.share)]
    if lab.wants("gain_by_exponent"):
        plans += [Plan(LLAMA_2_70B, BASE, exponent) for exponent in config.exponents]
    for name, mean in means.items():
        if lab.wants(*OF_TRACES) or (name == "lmsys" and lab.wants(*ONLINE)):
            plans.append(Plan(LLAMA_2_70B, mean))
    if plans or lab.wants(*OF_BASE, HOME.share, HOME.gain):
        plans.insert(0, HOME)
    return list(dict.fromkeys(plans))


def solved(config: Config, lab: Runtime, plans: list[Plan]) -> dict[tuple[Plan, int], Result]:
    """Every plan's pipeline for every seed, once for all arms that share it; of figures for the first seed alone."""
    base = keyed(lab, [case(config, HOME, seed) for seed in lab.seeds] if plans else [])
    found = {(HOME, seed): result for seed, result in zip(lab.seeds, base, strict=False)}
    at = [
        (plan, seed)
        for plan in plans
        for seed in (lab.seeds[:1] if shown_only(plan) else lab.seeds)
        if plan != HOME
    ]
    rest = keyed(lab, [case(config, plan, seed, found[HOME, seed]) for plan, seed in at])
    return found | dict(zip(at, rest, strict=True))


def shown_only(plan: Plan) -> bool:
    """Whether a figure reads the pipeline and no claim does."""
    return plan.exponent is not None or plan.workload == CONSTANT[0] or plan.deployment.model in SHOWN


def keyed(lab: Runtime, cases: list[Case]) -> list[Result]:
    """The results of cases, known ones from earlier arms; only searches are worth other processes."""
    known: dict[str, Result] = lab.once("nanoflow: pipelines", dict)
    missing = {repr(one): one for one in cases if repr(one) not in known}
    hard = {key: with_stage_one(lab, one) for key, one in missing.items() if one.searched}
    known.update(zip(hard, lab.map(solve, hard.values(), "pipelines"), strict=True))
    known.update((key, solve(one)) for key, one in missing.items() if not one.searched)
    return [known[repr(one)] for one in cases]


def with_stage_one(lab: Runtime, one: Case) -> Case:
    """The case with what Stage I makes of its operators: once for all seeds and curves, which it does not know."""
    if one.start is not None:
        return one
    ops, dependent = case_operators(one), one.switches.dependencies
    key = ("nanoflow: stage I", tuple(ops.items()), one.batch, one.effort, dependent)
    tried = lab.once(key, lambda: tuple(structures(ops, one.batch, one.effort, dependent=dependent)))
    return one._replace(tried=tried)


def case(config: Config, plan: Plan, seed: int, base: Result | None = None) -> Case:
    """What is to be solved; with `base`, from its pipeline where the operators are the same."""
    effort = Effort(config.splits, config.walks, config.evaluations, config.refined, config.nodes)
    curves = (config.attention_exponent, plan.exponent or config.network_exponent)
    switches = Switches(
        config.overlap,
        config.duplication,
        config.dependencies,
        config.one_resource,
        config.gemms_only,
        *((1.0, 1.0) if config.gemms_only else curves),
        config.search,
    )
    start = None
    if (
        base
        and base.pipeline.cuts
        and plan.deployment.gpus == LLAMA_2_70B.gpus
        and config.search == "two-stage"
    ):
        start = (base.pipeline.cuts, base.pipeline.found.choice)
    batch = config.batch or plan.deployment.dense_batch
    return Case(plan.deployment, plan.workload, batch, switches, effort, start, seed)
