"""Training on random instances: shops that begin anew, rewards between decisions, weights from a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.rl.graph_ppo import Settings, Update, train
from common.scheduling import job_shop_events as events
from common.scheduling.dispatching import RULES, dispatch
from common.scheduling.job_shop import Shop, random_instance
from common.scheduling.machine_failures import draw_failures
from papers.isbjssp.disjunctive_graph import Fixed, Graphs, fixed
from papers.isbjssp.graph_policy import GraphPolicy

REFERENCE = ("SPT", "MWKR", "MOR", "FIFO")  # rules whose mean makespan is the unit of rewards
TICKS_A_JOB = 200  # of a table of failures; beyond its end it begins again


@dataclass(frozen=True)
class Lessons:
    """What the policy is trained on, and how; sizes of the network."""

    jobs: tuple[int, int] = (5, 10)  # least and most; machines are never more than jobs
    machines: tuple[int, int] = (5, 10)
    probabilities: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)  # of a shutdown; one is drawn for each episode
    mode: str = "on take"
    reward: str = (
        "makespan"  # or "idle" (machine time without processing), "waiting" (jobs that wait for a machine)
    )
    environments: int = 20
    layers: int = 3
    width: int = 16
    hidden: int = 64
    messages: bool = True
    ppo: Settings = Settings()


def cost(shop: Shop, reward: str, reference: float) -> float:
    """Minus the sum of rewards up to now, in units of `reference` (a makespan).

    makespan: the time that has passed. idle: machine time without processing a machine, whose total falls as the
    makespan does. waiting: the time that jobs have waited, a job (pyjssp's sum of queue lengths).
    """
    instance, now = shop.instance, shop.time
    if reward == "makespan":
        return now / reference
    started, until = shop.jobs[events.STARTED], shop.jobs[events.UNTIL]
    processed = instance.work_left[:, 0] - instance.work_left[np.arange(instance.jobs), started]
    running = shop.jobs[events.STATE] == events.PROCESSING
    processed = processed - np.where(running, until - now, 0)
    if reward == "idle":
        return float(instance.stations * now - processed.sum()) / (instance.stations * reference)
    if reward != "waiting":
        raise ValueError(f'reward is "makespan", "idle" or "waiting", not {reward!r}')
    here = np.where(shop.jobs[events.STATE] == events.FINISHED, until, now)
    return float((here - processed).sum()) / (instance.jobs * reference)


def reference_makespan(shop: Shop) -> float:
    """What a few rules need on average for the same instance with the same failures.

    Rewards in this unit differ little from instance to instance, so that less of their variance is luck.
    """
    made = []
    for name in REFERENCE:
        shop.reset()
        made.append(dispatch(shop, RULES[name]).makespan)
    shop.reset()
    return float(np.mean(made))


def sampled(lessons: Lessons, rng: np.random.Generator) -> Shop:
    """A random shop with random failures, in which there is something to decide."""
    while True:
        jobs = int(rng.integers(lessons.jobs[0], lessons.jobs[1] + 1))
        machines = int(rng.integers(lessons.machines[0], lessons.machines[1] + 1))
        instance = random_instance(rng, jobs, min(jobs, machines))
        q = float(rng.choice(lessons.probabilities))
        ticks = TICKS_A_JOB * instance.jobs
        failures = draw_failures(rng, instance.stations, ticks, q, mode=lessons.mode) if q else None
        shop = Shop(instance, "swap", failures)
        if not shop.done:
            return shop


class RandomShops:
    """Blocking shops with random instances and failures that step together (common.rl.graph_ppo.Environments)."""

    def __init__(self, lessons: Lessons, rng: np.random.Generator) -> None:
        self.lessons = lessons
        self.rng = rng
        self.graphs = Graphs(lessons.environments, lessons.jobs[1], lessons.machines[1])
        self.ratios: list[float] = []  # makespan over reference of the episodes since it was last emptied
        self.shops: list[Shop] = []
        self.known: list[Fixed] = []
        self.references: list[float] = []
        self.costs: list[float] = []
        for _ in range(lessons.environments):
            shop, reference = self._new()
            self.shops.append(shop)
            self.known.append(fixed(shop.instance))
            self.references.append(reference)
            self.costs.append(cost(shop, lessons.reward, reference))

    def _new(self) -> tuple[Shop, float]:
        shop = sampled(self.lessons, self.rng)
        return shop, reference_makespan(shop)

    def observe(self) -> dict[str, Tensor]:
        for row, (shop, known) in enumerate(zip(self.shops, self.known, strict=True)):
            self.graphs.write(row, shop, known)
        return self.graphs.tensors()

    def step(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        rewards, ended = np.zeros(len(self.shops), dtype=np.float32), np.zeros(len(self.shops), dtype=bool)
        for row, choice in enumerate(choices.tolist()):
            shop = self.shops[row]
            shop.take(choice)
            now = cost(shop, self.lessons.reward, self.references[row])
            rewards[row], self.costs[row] = self.costs[row] - now, now
            if shop.done:
                ended[row] = True
                self.ratios.append(shop.makespan / self.references[row])
                shop, reference = self._new()
                self.shops[row], self.references[row] = shop, reference
                self.known[row] = fixed(shop.instance)
                self.costs[row] = cost(shop, self.lessons.reward, reference)
        return torch.from_numpy(rewards), torch.from_numpy(ended)


@dataclass(frozen=True, eq=False)
class Trained:
    """Weights by name (arrays of a torch state dict); at each update the makespan over the reference rules'."""

    weights: dict[str, np.ndarray]
    curve: tuple[float, ...]
    decisions: int


def untrained(lessons: Lessons, generator: torch.Generator) -> GraphPolicy:
    """A policy as training begins."""
    return GraphPolicy(generator, lessons.layers, lessons.width, lessons.hidden, lessons.messages)


def trained(lessons: Lessons, rng: np.random.Generator, generator: torch.Generator) -> Trained:
    """Train a policy from its initial weights; the same generators give the same weights."""
    policy = untrained(lessons, generator)
    shops = RandomShops(lessons, rng)
    curve: list[float] = []
    decisions = 0

    def watch(number: int, update: Update) -> None:
        nonlocal decisions
        if shops.ratios:
            curve.append(float(np.mean(shops.ratios)))
        elif curve:
            curve.append(curve[-1])
        shops.ratios.clear()
        decisions += update.decisions

    train(policy, shops, lessons.ppo, generator, watch)
    return Trained(arrays(policy), tuple(curve), decisions)


def arrays(policy: GraphPolicy) -> dict[str, np.ndarray]:
    """A copy of a policy's weights."""
    return {name: tensor.detach().numpy().copy() for name, tensor in policy.state_dict().items()}


def restored(lessons: Lessons, weights: Mapping[str, np.ndarray]) -> GraphPolicy:
    """A policy with these weights. ValueError where they belong to another network."""
    policy = untrained(lessons, torch.Generator().manual_seed(0))
    try:
        policy.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as error:
        raise ValueError("these weights belong to a network of another shape") from error
    return policy.eval()


def window_means(curve: Sequence[float], window: int) -> np.ndarray:
    """Means over consecutive windows; the rest at the end is left out."""
    whole = len(curve) // window * window
    return np.asarray(curve[:whole]).reshape(-1, window).mean(axis=1)
