"""What learned decisions are held against: proven optima, solving the rest at each decision, the library's PPO."""

from functools import partial

import numpy as np

from common.lab.runtime import Observations, Runtime, one_thread
from common.scheduling.dispatching import dispatch, most_work
from common.scheduling.job_shop import Shop
from common.scheduling.job_shop_check import violations
from common.scheduling.job_shop_optimum import releases_of, solve
from papers.isbjssp import decision_time, evaluation
from papers.isbjssp.config import Config
from papers.isbjssp.evaluation import AGAINST, cases, compare
from papers.isbjssp.instances import named
from papers.isbjssp.training import Lessons, Trained, restored


def references(
    config: Config, lab: Runtime, seen: Observations, graph: Lessons, made: dict[tuple, Trained]
) -> None:
    """Optima with and without blocking where CP-SAT proves them, replanning, and the library's own PPO."""
    tasks: list[tuple] = [("solve", name, kind) for name in config.solved for kind in ("swap", "ordinary")]
    first = lab.seeds[0]
    tasks += [("replan", name, made[graph, first].weights) for name in config.replanned]
    if config.library_steps:
        tasks += [("library", seed) for seed in lab.seeds]
    for part in lab.map(partial(_reference, config, graph, first), tasks, "references"):
        seen.extend(part)
    solved = [named(name) for name in config.solved]
    published = [one for one in solved if one.optimum]
    best = {str(row.at["instance"]): row.value for row in seen.rows("optimum", kind="swap", proven=True)}
    proven = [named(name) for name in best]
    for seed in lab.seeds:
        policy = restored(graph, made[graph, seed].weights)
        alone = evaluation.by_policy(policy, cases(solved, 0.0, []))
        for name, makespan in zip(config.solved, alone, strict=True):
            seen.add("beside_optimum", makespan, seed, instance=name)
        if proven:
            ours = evaluation.by_policy(policy, cases(proven, 0.0, []))
            seen.add("optimum_gap", float(np.mean(ours / np.array(list(best.values())) - 1)), seed)
        if published:  # the same policy where nothing blocks: no operation has the status "holding"
            ours = evaluation.by_policy(policy, cases(published, 0.0, []), "ordinary")
            optima = np.array([float(one.optimum or 0) for one in published])
            seen.add("ordinary_gap", float(np.mean(ours / optima - 1)), seed)


def _reference(config: Config, graph: Lessons, seed: int, task: tuple) -> Observations:
    seen = Observations()
    if task[0] == "solve":
        _, name, kind = task
        instance = named(name)
        hint = dispatch(Shop(instance, kind), most_work).starts
        best = solve(instance, kind, work=config.solver_work, hint=hint)
        at = {"instance": name, "kind": kind, "proven": best.proven}
        seen.add("optimum", best.makespan, **at)
        seen.add("optimum_bound", best.bound, **at)
        if best.starts is not None:
            releases = releases_of(instance, best.starts, kind)
            wrong = violations(instance.durations, instance.machines, best.starts, releases, kind)
            seen.add("optimum_violations", len(wrong), **at)
    elif task[0] == "replan":
        _, name, weights = task
        q = sorted(config.probabilities)[len(config.probabilities) // 2] if config.probabilities else 0.0
        (one,) = cases([named(name)], q, [1000 * seed], config.mode)
        replan = decision_time.by_replanning(work=config.replanning_work)
        policy = restored(graph, weights)
        seen.add("replanned", decision_time.finish(one.shop(), replan), seed, instance=name, by="CP-SAT")
        learned = float(evaluation.by_policy(policy, [one])[0])
        seen.add("replanned", learned, seed, instance=name, by="learned")
        rules = evaluation.by_rules([one], np.random.default_rng(seed))
        shortest = min(float(made[0]) for made in rules.values())
        seen.add("replanned", shortest, seed, instance=name, by="best rule of this case")
    else:
        from papers.isbjssp.library_reference import library_makespans

        _, number = task
        on = cases([named(name) for name in config.benchmarks], 0.0, [])
        made = library_makespans(graph, on, config.library_steps, number)
        rules = evaluation.by_rules(on, np.random.default_rng(number))
        for name in AGAINST:
            seen.add(f"library_ratio_{name}", getattr(compare(made, rules, on), name), number)
    return seen


def times(
    config: Config, lab: Runtime, seen: Observations, graph: Lessons, made: dict[tuple, Trained]
) -> None:
    """Milliseconds of a decision on this machine, alone in this process."""
    instance = named(config.timed)
    replan = decision_time.by_replanning(seconds=config.plan_seconds)
    plans = decision_time.timed(Shop(instance), replan, config.timed_plans)
    for seed in lab.seeds:
        if config.replanning:
            took = plans
        else:
            policy, shop = restored(graph, made[graph, seed].weights), Shop(instance)
            with one_thread():
                took = decision_time.timed(shop, decision_time.by_policy(policy, shop))
        seen.add("decision_ms", float(np.median(took)), seed)
        seen.add("plans_per_decision", float(np.median(plans) / np.median(took)), seed)
    seen.add("plan_ms", float(np.median(plans)))
