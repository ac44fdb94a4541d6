"""What the claims of DistServe read: goodput, SLO scales, transfers and placements, simulated on A100 coefficients.

Every scenario is planned once, on requests that no seed evaluates, and then evaluated seed by seed on fresh requests.
All systems see the same requests, may use the same number of GPUs, and are divided by the GPUs they do use.
"""

from collections.abc import Iterable
from dataclasses import fields

from common.lab.runtime import Observations, Runtime
from common.serving.workload import Workload
from papers.distserve.cases import PLANNING, Case, chosen, draw
from papers.distserve.config import Config
from papers.distserve.evaluation import Answer, Job, Plan, answer, ratio, search

# Fields that decide nothing of an answer, so that arms which differ in them alone share it.
ELSEWHERE = {"scenarios", "floor_share", "other_lengths", "real_requests", "real_levels", "perturb"}
RIVALS = {"vllm_prefill_tokens", "vllm_instances"}
OURS = {"disaggregate", "engine", "link", "placement", "prefill_tokens", "overlap", "swap_gbytes_per_s"}
IGNORED = {
    "low": ELSEWHERE | RIVALS,
    "high": ELSEWHERE | RIVALS,
    "vllm": ELSEWHERE | OURS | {"tensor", "stages"},
    "same-engine": ELSEWHERE | OURS | {"tensor", "stages"},
    "vllm++": ELSEWHERE | OURS | {"stages"},
}


def run(config: Config, lab: Runtime) -> Observations:
    """Plan every scenario, evaluate every seed, and collect what the claims and figures read."""
    seen = Observations()
    if config.real_requests and lab.wants(
        "simulator_bias", "repeat_scatter", "wrong_fit_bias", "constant_guess_bias"
    ):
        from papers.distserve.simulator_check import check_simulator  # brings torch; simulations do without

        check_simulator(config, lab, seen)
    cases = chosen(config, lab)
    plans = planned(config, lab, cases)
    for case in cases:
        for system in case.systems:
            if plan := plans.get((case.name, system)):
                seen.add("gpus", plan.gpus, scenario=case.name, system=system, placement=str(plan))
    answers = answered(config, lab, cases, plans)
    for case in cases:
        for seed in case.seeds:
            found = {system: answers[case.name, seed, system] for system in case.systems}
            if "/" in case.name:
                observe_lengths(seen, case, seed, found)
            else:
                observe(seen, case, seed, found, config.floor_share * case.scenario.slo_rate)
                observe_requests(seen, case, seed, draw(config, lab, case, seed), config)
    return seen


def planned(config: Config, lab: Runtime, cases: list[Case]) -> dict[tuple[str, str], Plan]:
    """What the searches choose, by scenario and system; each search once for all arms that share it."""
    searched = ("low", "high", "vllm++") if config.disaggregate else ("vllm++",)
    jobs = {}
    for case in cases:
        for system in case.systems:
            if system in searched:
                workload = draw(config, lab, case, PLANNING)
                jobs[case.name, system] = Job(config, case.scenario, workload, PLANNING, system)
    without = {"placement", "slo_load"}
    known = lab.once("distserve: plans", dict)
    keys = {at: (*at, decisive(job, without)) for at, job in jobs.items()}
    missing = [at for at, key in keys.items() if key not in known]
    for at, plan in zip(missing, lab.map(search, [jobs[at] for at in missing], "placements"), strict=True):
        known[keys[at]] = plan
    return {at: known[key] for at, key in keys.items()}


def answered(
    config: Config, lab: Runtime, cases: list[Case], plans: dict[tuple[str, str], Plan]
) -> dict[tuple[str, int, str], Answer]:
    """What each system does on each seed's requests, by scenario, seed and system."""
    jobs = {}
    for case in cases:
        curves = lab.wants("attainment") and "/" not in case.name
        for seed in case.seeds:
            workload = draw(config, lab, case, seed)
            for system in case.systems:
                plan = plans.get((case.name, system))
                jobs[case.name, seed, system] = Job(
                    config, case.scenario, workload, seed, system, plan, curves
                )
    known = lab.once("distserve: answers", dict)
    keys = {at: (*at, job.curves, decisive(job)) for at, job in jobs.items()}
    missing = [at for at, key in keys.items() if key not in known]
    for at, found in zip(missing, lab.map(answer, [jobs[at] for at in missing], "goodputs"), strict=True):
        known[keys[at]] = found
    return {at: known[key] for at, key in keys.items()}


def decisive(job: Job, without: Iterable[str] = ()) -> str:
    """All of a config that decides a job."""
    ignored = IGNORED[job.system] | set(without)
    return repr(
        [(one.name, getattr(job.config, one.name)) for one in fields(Config) if one.name not in ignored]
    )


def observe(seen: Observations, case: Case, seed: int, found: dict[str, Answer], floor: float) -> None:
    """A scenario's rows of one seed: every system's own, and DistServe's gains over the others."""
    slug, low = case.slug, found["low"]
    for system, one in found.items():
        at = {"scenario": case.name, "system": system}
        seen.add("goodput", one.goodput, seed, **at)
        seen.add("slo_scale", one.scale, seed, **at)
        for metric, value, where in one.rows:
            seen.add(metric, value, seed, **at, **where)
    pairs = {f"rate_gain_{slug}": ("low", "vllm"), f"same_engine_rate_gain_{slug}": ("low", "same-engine")}
    placements = case.name == "chat-opt-13b"  # where the paper compares its algorithms (Section 6.4)
    plus = "low_over_vllm_plus" if placements else f"over_vllm_plus_{slug}"
    pairs |= {"high_over_low": ("high", "low"), plus: ("low", "vllm++")}
    for metric, (better, rival) in pairs.items():
        if better in found and rival in found:
            gain, capped = ratio(found[better].goodput, found[rival].goodput, floor)
            seen.add(metric, gain, seed, **({"capped": True} if capped else {}))
    if "vllm" in found:
        seen.add(f"slo_gain_{slug}", found["vllm"].scale / low.scale, seed)
    if case.name == "chat-opt-66b":  # the claims on transfers read this scenario
        for metric, value, where in low.rows:
            if metric == "transfers":
                seen.add("transfer_share", value, seed)
            elif where.get("quantile") == 0.95:
                seen.add("transfer_p95_seconds", value, seed)


def observe_lengths(seen: Observations, case: Case, seed: int, found: dict[str, Answer]) -> None:
    """What remains of the goodputs when the lengths are others."""
    name, _, lengths = case.name.partition("/")
    for system, one in found.items():
        seen.add("goodput_by_lengths", one.goodput, seed, scenario=name, lengths=lengths, system=system)


def observe_requests(seen: Observations, case: Case, seed: int, requests: Workload, config: Config) -> None:
    """The operating point: what is served, and under which objectives."""
    seen.add(f"mean_prompt_tokens_{case.slug}", float(requests.prompt.mean()), seed)
    seen.add(f"mean_output_tokens_{case.slug}", float(requests.output.mean()), seed)
    seen.add(f"ttft_objective_{case.slug}", case.scenario.slo.ttft * config.objectives, seed)
    seen.add(f"tpot_objective_{case.slug}", case.scenario.slo.tpot * config.objectives, seed)
    seen.add(f"slo_rate_{case.slug}", case.scenario.slo_rate * config.slo_load, seed)
