"""The experiment in parts: what shops do by fixed rules, training, and policies against rules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.scheduling.dispatching import RULES, dispatch
from common.scheduling.job_shop import Shop
from common.scheduling.job_shop_check import violations
from papers.isbjssp import evaluation, references
from papers.isbjssp.carried_weights import carried
from papers.isbjssp.config import Config
from papers.isbjssp.evaluation import AGAINST, Comparison, cases, compare
from papers.isbjssp.instances import DATA_SET, named, published
from papers.isbjssp.lessons import generators, lessons_of, train_one
from papers.isbjssp.training import Lessons, Trained, arrays, restored, untrained

MAIN = tuple(f"ratio_{name}" for name in AGAINST)
INTERRUPTED = tuple(f"ratio_{name}_interrupted" for name in AGAINST)
TRANSFER = tuple(f"ratio_{name}_larger" for name in AGAINST)
_trained: dict[tuple[Lessons, int], Trained] = {}  # of this process, so that controls need not train again
_by_rules: dict[tuple, dict[str, np.ndarray]] = {}


# what shops do by fixed rules


def shops(config: Config, lab: Runtime, seen: Observations) -> None:
    """Deadlocks, swaps and the price of blocking, over all instances and rules; every schedule is verified."""
    if published():
        lab.data(DATA_SET)
    if not lab.wants("deadlocks", "swaps_per_job", "blocking_price", "invalid_schedules"):
        return
    kind = "ordinary" if not config.blocking else "swap" if config.swap else "blocking"
    stuck, swaps, price, invalid, count, longest = 0, 0, [], 0, 0, 0
    for name in config.benchmarks:
        instance = named(name)
        for rule in RULES.values():
            shop, open_shop = Shop(instance, kind), Shop(instance, "ordinary")
            made, free = dispatch(shop, rule), dispatch(open_shop, rule)
            count += 1
            stuck += shop.deadlocked
            swaps += shop.swaps
            longest = max(longest, shop.longest_swap)
            if not shop.deadlocked:
                price.append(shop.makespan / free.makespan)
                table = (instance.durations, instance.machines, made.starts, made.releases)
                invalid += bool(violations(*table, kind))
    seen.add("deadlocks", stuck / count)
    jobs = float(np.mean([named(name).jobs for name in config.benchmarks]))
    seen.add("swaps_per_job", swaps / count / jobs)
    seen.add("longest_swap", longest)
    seen.add("invalid_schedules", invalid)
    if price:
        seen.add("blocking_price", float(np.mean(price)))


# training


def weights_of(config: Config, lab: Runtime, tasks: Sequence[tuple[Lessons, int]]) -> dict[tuple, Trained]:
    """The policy of each task: as it begins, as carried, or trained (once a process)."""
    if not config.trained:
        made = {}
        for lessons, seed in tasks:
            begins = untrained(lessons, generators(seed)[1])
            made[lessons, seed] = Trained(arrays(begins), (), 0)
        return made
    if config.carried:
        return {task: carried()[0] for task in tasks}
    missing = [task for task in tasks if task not in _trained]
    _trained.update(zip(missing, lab.map(train_one, missing, "training"), strict=True))
    return {task: _trained[task] for task in tasks}


# policies against rules


@dataclass(frozen=True, eq=False)
class Trial:
    """What one process evaluates: a policy's weights on a set of instances at one probability."""

    seed: int
    names: tuple[str, ...]
    probability: float
    mode: str
    failure_seeds: int
    lessons: Lessons
    weights: dict
    shuffled: bool
    rules: bool  # whether the rules are to be run, too

    @property
    def key(self) -> tuple:
        """What the rules' makespans depend on."""
        return (self.seed, self.names, self.probability, self.mode, self.failure_seeds)


def given(trial: Trial) -> list[evaluation.Case]:
    """The cases of a test; each training seed has failure seeds of its own."""
    seeds = range(1000 * trial.seed, 1000 * trial.seed + trial.failure_seeds)
    return cases([named(name) for name in trial.names], trial.probability, seeds, trial.mode)


def evaluate(trial: Trial) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
    """Makespans by the policy, and by the rules if asked for."""
    rng = Runtime([trial.seed]).rng(trial.seed, "evaluation")
    on = given(trial)
    rules = evaluation.by_rules(on, rng) if trial.rules else None
    policy = restored(trial.lessons, trial.weights)
    return evaluation.by_policy(policy, on, shuffle=rng if trial.shuffled else None), rules


def tested(lab: Runtime, trials: Sequence[Trial], label: str) -> list[tuple[np.ndarray, Comparison]]:
    """Makespans and comparison of each test; the rules are run once a process."""
    asked: set[tuple] = set()
    todo = []
    for trial in trials:
        todo.append(replace(trial, rules=trial.key not in _by_rules and trial.key not in asked))
        asked.add(trial.key)
    found = lab.map(evaluate, todo, label)
    for trial, (_, rules) in zip(trials, found, strict=True):
        if rules is not None:
            _by_rules[trial.key] = rules
    return [
        (learned, compare(learned, _by_rules[trial.key], given(trial)))
        for trial, (learned, _) in zip(trials, found, strict=True)
    ]


def policies(config: Config, lab: Runtime, seen: Observations) -> None:
    """Train, evaluate on all sets and probabilities, and time decisions."""
    wants_main = lab.wants(*MAIN, "slowdown_gap", "message_gain")
    wants_interrupted = lab.wants(*INTERRUPTED, "slowdown_gap")
    wants_transfer = lab.wants(*TRANSFER)
    wants_messages = config.ablation and not config.carried and lab.wants("message_gain")
    wants_time = lab.wants("decision_ms", "plans_per_decision")
    if not (wants_main or wants_interrupted or wants_transfer or wants_time):
        return
    graph, plain = lessons_of(config, config.messages), lessons_of(config, False)
    tasks = [(graph, seed) for seed in lab.seeds]
    if wants_messages:
        tasks += [(plain, seed) for seed in lab.seeds if (plain, seed) not in tasks]
    made = weights_of(config, lab, tasks)
    for (lessons, seed), one in made.items():
        for update, ratio in enumerate(one.curve):
            seen.add("training_ratio", ratio, seed, update=update, messages=lessons.messages)

    trials: dict[tuple, Trial] = {}

    def add(part: str, seed: int, names: Sequence[str], probability: float, lessons: Lessons) -> None:
        weights = made[lessons, seed].weights
        trials[part, seed, probability] = Trial(
            seed,
            tuple(names),
            probability if config.failures else 0.0,
            config.mode,
            config.failure_seeds,
            lessons,
            weights,
            config.shuffled,
            True,
        )

    for seed in lab.seeds:
        if wants_main:
            add("main", seed, config.benchmarks, 0.0, graph)
        if wants_messages:
            add("plain", seed, config.benchmarks, 0.0, plain)
        if wants_interrupted:
            for probability in config.probabilities:
                add("main", seed, config.benchmarks, probability, graph)
        if wants_transfer and config.larger:
            add("larger", seed, config.larger, 0.0, graph)
    if trials:
        found = dict(zip(trials, tested(lab, list(trials.values()), "evaluation"), strict=True))
        for seed in lab.seeds:
            _compared(config, seen, seed, {key: one for key, one in found.items() if key[1] == seed})
    if lab.wants():  # nothing of these is read by a claim
        references.references(config, lab, seen, graph, made)
    if wants_time:
        references.times(config, lab, seen, graph, made)


def _compared(config: Config, seen: Observations, seed: int, found: dict[tuple, tuple]) -> None:
    """The rows of one seed."""
    at = {(part, probability): one for (part, _, probability), one in found.items()}
    for (part, probability), (learned, one) in at.items():
        if part == "plain":
            continue
        for name in AGAINST:
            seen.add(f"ratio_{name}_at", getattr(one, name), seed, set=part, q=probability)
        seen.add("rules_beaten", one.beaten, seed, set=part, q=probability)
        seen.add("stretch", one.learned, seed, set=part, q=probability, rule="learned")
        for rule, value in one.by_rule.items():
            seen.add("stretch", value, seed, set=part, q=probability, rule=rule)
        if probability == 0:
            names = config.benchmarks if part == "main" else config.larger
            for instance, makespan in zip(names, learned, strict=True):
                seen.add("makespan", makespan, seed, set=part, instance=instance)
    calm = at.get(("main", 0.0))
    stormy = [one for (part, q), (_, one) in at.items() if part == "main" and q > 0]
    larger = at.get(("larger", 0.0))
    for name in AGAINST:
        if calm:
            seen.add(f"ratio_{name}", getattr(calm[1], name), seed)
        if stormy:
            seen.add(f"ratio_{name}_interrupted", max(getattr(one, name) for one in stormy), seed)
        if larger:
            seen.add(f"ratio_{name}_larger", getattr(larger[1], name), seed)
    if calm and stormy:
        worst = at["main", max(config.probabilities)][1]
        slower = [worst.by_rule[rule] / calm[1].by_rule[rule] for rule in RULES]
        seen.add("slowdown_gap", float(np.mean(slower)) - worst.learned / calm[1].learned, seed)
    if calm and ("plain", 0.0) in at:
        seen.add("message_gain", at["plain", 0.0][1].learned / calm[1].learned, seed)
