"""Rules and policies on the same shops with the same shutdowns, and how they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.rl.graph_ppo import choose
from common.scheduling.dispatching import RULES, dispatch, random_rule
from common.scheduling.job_shop import Instance, Shop
from common.scheduling.machine_failures import Failures, draw_failures
from papers.isbjssp.disjunctive_graph import Graphs, fixed

LONGEST_SHUTDOWN = (
    50  # ticks, as long as a mean operation of the classical instances; the paper's is not known
)
MOST_CELLS = 4_000  # operations in a batch of graphs, so that its embeddings stay in the caches
RANDOM = "RANDOM"
AGAINST = ("best", "mean", "random", "portfolio")  # the ratios of a comparison


@dataclass(frozen=True, eq=False)
class Case:
    """An instance with its shutdowns."""

    instance: Instance
    failures: Failures | None = None

    def shop(self, kind: str = "swap") -> Shop:
        return Shop(self.instance, kind, self.failures)


def cases(
    instances: Sequence[Instance], probability: float, seeds: Sequence[int], mode: str = "on take"
) -> list[Case]:
    """Every instance under every failure seed (once without failures). A machine's shutdowns depend on instance, seed
    and tick alone, and those of a lower probability are among those of a higher one."""
    if probability == 0:
        return [Case(instance) for instance in instances]
    made = []
    for place, instance in enumerate(instances):
        for seed in seeds:
            rng = np.random.default_rng([seed, place])
            ticks = 3 * int(instance.durations.sum()) // instance.stations + 1000
            drawn = draw_failures(rng, instance.stations, ticks, probability, LONGEST_SHUTDOWN, mode)
            made.append(Case(instance, drawn))
    return made


def by_rules(given: Sequence[Case], rng: np.random.Generator, kind: str = "swap") -> dict[str, np.ndarray]:
    """Makespan of every case under every rule, (cases,) each; RANDOM draws from `rng`."""
    rules = {**RULES, RANDOM: random_rule(rng)}
    return {
        name: np.array([dispatch(one.shop(kind), rule).makespan for one in given])
        for name, rule in rules.items()
    }


@torch.no_grad()
def by_policy(
    policy: nn.Module,
    given: Sequence[Case],
    kind: str = "swap",
    shuffle: np.random.Generator | None = None,
) -> np.ndarray:
    """Makespan of every case by the policy's likeliest choices, (cases,).

    shuffle: permute the features among the operations of each graph, so that they say nothing of where they stand.
    """
    made = np.zeros(len(given))
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(given):
        groups.setdefault(one.instance.durations.shape, []).append(place)
    for shape, members in groups.items():
        size = max(1, MOST_CELLS // (shape[0] * shape[1]))
        for begin in range(0, len(members), size):
            part = members[begin : begin + size]
            shops = [given[place].shop(kind) for place in part]
            _finish(policy, shops, shuffle)
            made[part] = [shop.makespan for shop in shops]
    return made


def _finish(policy: nn.Module, shops: Sequence[Shop], shuffle: np.random.Generator | None) -> None:
    """Play shops of one size side by side to their ends."""
    known = [fixed(shop.instance) for shop in shops]
    graphs = Graphs(len(shops), *shops[0].instance.durations.shape)
    while True:
        rows = [row for row, shop in enumerate(shops) if not shop.done]
        if not rows:
            return
        for row in rows:
            graphs.write(row, shops[row], known[row])
            if shuffle is not None:
                alive = graphs.alive[row]
                graphs.features[row][alive] = shuffle.permutation(graphs.features[row][alive])
        seen = {name: tensor[rows] for name, tensor in graphs.tensors().items()}
        scores, _ = policy(seen)
        for row, job in zip(rows, choose(scores, seen["allowed"]).tolist(), strict=True):
            shops[row].take(job)


@dataclass(frozen=True)
class Comparison:
    """Ratios of mean stretches (makespan over the instance's lower bound), learned over rule; below 1 is better.

    best: over the one rule that is best on these cases, known with hindsight; mean: over the mean of all rules;
    random: over RANDOM; portfolio: over the best rule of each case. beaten: share of the rules with a longer mean.
    """

    best: float
    mean: float
    random: float
    portfolio: float
    beaten: float
    best_rule: str
    learned: float
    by_rule: Mapping[str, float]


def compare(learned: np.ndarray, rules: Mapping[str, np.ndarray], given: Sequence[Case]) -> Comparison:
    """How a policy's makespans (cases,) compare with those of the rules. ValueError where the cases don't fit."""
    if any(len(made) != len(given) for made in (learned, *rules.values())):
        raise ValueError("one makespan a case is needed of the policy and of every rule")
    bounds = np.array([one.instance.lower_bound for one in given])
    ours = float((learned / bounds).mean())
    stretch = {name: float((made / bounds).mean()) for name, made in rules.items()}
    proper = [value for name, value in stretch.items() if name != RANDOM]
    best = min(stretch, key=lambda name: stretch[name])
    closest = float((np.min(list(rules.values()), axis=0) / bounds).mean())
    return Comparison(
        best=ours / stretch[best],
        mean=ours / float(np.mean(proper)),
        random=ours / stretch[RANDOM],
        portfolio=ours / closest,
        beaten=float(np.mean([value > ours for value in stretch.values()])),
        best_rule=best,
        learned=ours,
        by_rule=stretch,
    )
