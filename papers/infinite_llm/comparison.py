"""One trace, three systems: which runs a metric needs, and what it makes of their throughputs and of who was refused.

Prompts cost time, unless a metric says `decode`: then requests arrive prefilled, and what is left is what lending
changes, the decode batch.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.workload import Lengths, draw_lengths
from papers.infinite_llm.cluster import COUNTERS, Outcome, Setup
from papers.infinite_llm.cluster import run as serve
from papers.infinite_llm.config import Config
from papers.infinite_llm.planning import Rules
from papers.infinite_llm.traces import draw

CHAT = "nanoflow-sharegpt-lengths"
OURS, MULTI, SINGLE = "infinite", "vllm-multi", "vllm-single"


@dataclass(frozen=True)
class Case:
    """One system on one trace. spread: of lengths, see traces.py; moved: tokens that may leave in a decode step."""

    longest: int
    system: str = OURS
    prefills: bool = True
    spread: float = 1.0
    dispatch: str = "in turn"
    moved: int = 16
    cancels: bool = True


@dataclass(frozen=True)
class Job:
    """A case on one seed's requests. chat: lengths that requests are drawn from."""

    config: Config
    case: Case
    chat: Lengths
    seed: int
    rng: np.random.Generator


def serve_job(job: Job) -> Outcome:
    """Picklable, as work for other processes must be."""
    config, case = job.config, job.case
    rules = Rules(
        cancels=case.cancels,
        moved_per_step=case.moved,
        most_lent=config.most_lent if config.lends else 0.0,
        most_parts=config.most_parts,
        period=config.period,
        batch=config.batch,
        busy=config.busy,
        drawn=job.seed if config.creditors == "random" else None,
    )
    setup = Setup(
        config.gpus,
        rules,
        prefills=case.prefills,
        dispatch=case.dispatch,
        fetches=config.attends == "fetch",
    )
    workload = draw(
        job.rng,
        config.requests,
        job.chat,
        case.longest,
        case.spread,
        config.long_share,
        config.shortest_long,
    )
    return replace(serve(workload, case.system, setup), trace=None)


def pairs_of(config: Config) -> dict[str, list[tuple[Case, list[Case]]]]:
    """By metric: our cases, each with its rivals. The gain is over the better of those that serve every request.

    It is taken on traces that both layouts of vLLM serve whole: where one refuses a few requests it would drop out, and
    the slower one alone would be compared with.
    """
    here = Case(0, prefills=config.prompts_cost, moved=config.moved_per_step, cancels=config.cancels)

    def against(longest: int, *systems: str, **changes: object) -> tuple[Case, list[Case]]:
        ours = replace(here, longest=longest, **changes)  # type: ignore[arg-type]
        return ours, [replace(ours, system=one) for one in systems]

    last, longest = config.short[-1], config.long[-1]
    still = replace(here, longest=last, moved=0)
    stays = replace(here, longest=longest, cancels=False)
    return {
        "gain_end_to_end": [against(n, MULTI, SINGLE) for n in config.short],
        "gain_decode_only": [against(n, MULTI, SINGLE, prefills=False) for n in config.short],
        "by_tokens_end_to_end": [against(n, MULTI, SINGLE, dispatch="by tokens") for n in config.short],
        "gain_equal_lengths": [against(last, MULTI, spread=0.0)],
        "single_gain": [against(n, SINGLE) for n in [*config.short, *config.long]],
        "gain_over_refusing": [against(longest, MULTI)],
        "gain_of_moving": [(replace(here, longest=last), [still])],
        "remote_share_saved": [(replace(here, longest=longest), [stays])],
    }


def compare_systems(config: Config, lab: Runtime, seen: Observations) -> None:
    """Throughput of lending instances, the same without lending, and one instance over all GPUs."""
    pairs = pairs_of(config)
    wanted = {metric: found for metric, found in pairs.items() if lab.wants(metric)}
    if lab.wants("served_share"):
        wanted.setdefault("gain_over_refusing", pairs["gain_over_refusing"])
    if not wanted:
        return
    chat = draw_lengths("sharegpt", lab.rng(0, "chat"), 20_000, lab.data(CHAT))
    cases = dict.fromkeys(
        case for found in wanted.values() for ours, rivals in found for case in (ours, *rivals)
    )
    jobs = {
        (seed, case): Job(config, case, chat, seed, lab.rng(seed, "trace", str(case.longest)))
        for seed in lab.seeds
        for case in cases
    }
    known: dict[object, Outcome] = lab.once("infinite_llm: outcomes", dict)
    keys = {at: (*at, decisive(config, at[1])) for at in jobs}
    missing = [at for at, key in keys.items() if key not in known]
    answers = lab.map(serve_job, [jobs[at] for at in missing], "clusters")
    known.update({keys[at]: answer for at, answer in zip(missing, answers, strict=True)})
    for seed in lab.seeds:
        outcomes = {case: known[keys[seed, case]] for case in cases}
        seen.add("requests_served", min(o.finished for c, o in outcomes.items() if c.system == OURS), seed)
        for case, outcome in outcomes.items():
            where = asdict(case)
            for name in ("throughput", "served", "mean_batch"):
                seen.add(name, getattr(outcome, name), seed, **where)
            if case.system == OURS:
                for name in (*COUNTERS, "remote_share"):
                    seen.add(name, float(getattr(outcome, name)), seed, **where)
        for metric, found in wanted.items():
            add_metric(metric, found, outcomes, seen, seed)


def decisive(config: Config, case: Case) -> str:
    """All of a config that decides an outcome; vLLM knows nothing of the method's switches."""
    at: list[object] = [config.gpus, config.requests, config.long_share, config.shortest_long]
    if case.system == OURS:
        at += [config.lends, config.most_lent, config.most_parts, config.creditors, config.attends]
        at += [config.period, config.batch, config.busy]
    return repr(at)


def add_metric(
    metric: str,
    pairs: list[tuple[Case, list[Case]]],
    outcomes: dict[Case, Outcome],
    seen: Observations,
    seed: int,
) -> None:
    """One seed's value of a metric, and what it is made of."""
    ours, rivals = pairs[0]
    if metric == "remote_share_saved":
        seen.add(metric, outcomes[rivals[0]].remote_share - outcomes[ours].remote_share, seed)
        return
    if metric == "gain_over_refusing":
        seen.add("served_share", outcomes[ours].served, seed)
        seen.add(metric, outcomes[ours].throughput / outcomes[rivals[0]].throughput, seed)
        return
    gains = []
    for ours, rivals in pairs:
        able = [outcomes[one].throughput for one in rivals if outcomes[one].served == 1.0]
        gains.append(outcomes[ours].throughput / max(able))
        seen.add("gain", gains[-1], seed, of=metric, longest=ours.longest)
    seen.add(metric, mean_ratio(gains), seed)


def mean_ratio(ratios: list[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))
