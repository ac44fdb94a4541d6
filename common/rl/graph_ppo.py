"""PPO with masks for policies over graphs whose candidates vary, in plain torch.

    curve = train(policy, environments, Settings(updates=200), generator)

Observations are dictionaries of tensors with the environment as first axis, so that a policy may read whatever graph it
needs; one entry, "allowed", says which candidates there are. Schulman et al., arXiv 1707.06347 (clipped surrogate) and
1506.02438 (generalised advantages). A step with a single candidate is no decision: the policy is never trained on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Observation = Mapping[str, Tensor]


class Environments(Protocol):
    """Several environments that step together; one that ends begins anew by itself."""

    def observe(self) -> Observation:
        """Tensors of shape (environments, ...), among them "allowed", bool (environments, candidates)."""
        ...

    def step(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Take a candidate each, int (environments,); rewards (environments,) and whether the episode ended, bool."""
        ...


class Policy(Protocol):
    """Scores of candidates and the value of a state; a torch module."""

    def __call__(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """Scores (environments, candidates), read only where allowed, and values (environments,)."""
        ...


@dataclass(frozen=True)
class Settings:
    """Sizes and constants of PPO; the defaults of clip, lam and epochs are those of the paper on PPO."""

    updates: int = 100
    steps: int = 32  # of each environment between two updates
    epochs: int = 3
    batches: int = 4  # of each epoch
    rate: float = 2.5e-4  # of Adam, falling linearly to a tenth
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5  # weight of the critic's loss
    largest_gradient: float = 0.5


@dataclass(frozen=True)
class Update:
    """What one update saw: mean reward of a step, returns of the episodes that ended, entropy of the policy (nats)."""

    reward: float
    returns: tuple[float, ...]
    entropy: float
    decisions: int


def masked(scores: Tensor, allowed: Tensor) -> Tensor:
    """Log probabilities of the candidates; -1e9 of what is not allowed. ValueError where nothing is allowed."""
    if not bool(allowed.any(dim=-1).all()):
        raise ValueError("an environment has no candidate: it must ask only where there is one")
    return torch.log_softmax(scores.masked_fill(~allowed, -1e9), dim=-1)


def choose(scores: Tensor, allowed: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A candidate each, int (environments,): drawn from the policy, or the likeliest without a generator."""
    chances = masked(scores, allowed)
    if generator is None:
        return chances.argmax(dim=-1)
    return torch.multinomial(chances.exp(), 1, generator=generator)[:, 0]


def advantages(
    rewards: Tensor, values: Tensor, ended: Tensor, last: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantages (steps, environments). last: values of the states after the last step (environments,)."""
    found = torch.zeros_like(rewards)
    running = torch.zeros_like(last)
    for step in reversed(range(len(rewards))):
        following = last if step == len(rewards) - 1 else values[step + 1]
        goes_on = (~ended[step]).to(rewards.dtype)
        error = rewards[step] + gamma * goes_on * following - values[step]
        running = error + gamma * lam * goes_on * running
        found[step] = running
    return found


def train(
    policy: nn.Module,
    environments: Environments,
    settings: Settings,
    generator: torch.Generator,
    watch: Callable[[int, Update], None] | None = None,
) -> list[Update]:
    """Train a policy in place; one entry an update. `watch` is called after each.

    The number of updates alone says how long it trains, so that the same generator gives the same weights.
    """
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate, eps=1e-5)
    curve = []
    running = None  # rewards so far of the episodes at hand
    for number in range(settings.updates):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (1 - 0.9 * number / settings.updates)
        gathered, running, returns = _gather(policy, environments, settings.steps, generator, running)
        entropy = _improve(policy, optimizer, gathered, settings, generator)
        decisions = int(gathered["counts"].sum())
        update = Update(float(gathered["rewards"].mean()), tuple(returns), entropy, decisions)
        curve.append(update)
        if watch is not None:
            watch(number, update)
    return curve


@torch.no_grad()
def _gather(
    policy: nn.Module,
    environments: Environments,
    steps: int,
    generator: torch.Generator,
    running: Tensor | None,
) -> tuple[dict, Tensor, list[float]]:
    """Play; all that learning needs, flattened to (steps * environments, ...)."""
    seen, choices, chances, values, rewards, ended = [], [], [], [], [], []
    returns: list[float] = []
    for _ in range(steps):
        now = environments.observe()
        scores, value = policy(now)
        choice = choose(scores, now["allowed"], generator)
        seen.append(now)
        choices.append(choice)
        chances.append(masked(scores, now["allowed"]).gather(1, choice[:, None])[:, 0])
        values.append(value)
        reward, end = environments.step(choice)
        rewards.append(reward)
        ended.append(end)
        running = reward.clone() if running is None else running + reward
        returns += running[end].tolist()
        running[end] = 0.0
    assert running is not None
    return (
        {
            "seen": {name: torch.cat([one[name] for one in seen]) for name in seen[0]},
            "choices": torch.cat(choices),
            "chances": torch.cat(chances),
            "values": torch.stack(values),
            "rewards": torch.stack(rewards),
            "ended": torch.stack(ended),
            "last": policy(environments.observe())[1],
            "counts": torch.cat([one["allowed"].sum(dim=1) > 1 for one in seen]),
        },
        running,
        returns,
    )


def _improve(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    gathered: dict,
    settings: Settings,
    generator: torch.Generator,
) -> float:
    """A few epochs of clipped policy gradients; the mean entropy over decisions."""
    gained = advantages(
        gathered["rewards"],
        gathered["values"],
        gathered["ended"],
        gathered["last"],
        settings.gamma,
        settings.lam,
    )
    targets = (gained + gathered["values"]).flatten()
    counts = gathered["counts"]
    gained = gained.flatten()
    if bool(counts.any()):
        real = gained[counts]
        gained = (gained - real.mean()) / (real.std(unbiased=False) + 1e-8)
    entropies = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(gained), generator=generator)
        for rows in order.chunk(settings.batches):
            seen = {name: tensor[rows] for name, tensor in gathered["seen"].items()}
            scores, values = policy(seen)
            chances = masked(scores, seen["allowed"])
            chance = chances.gather(1, gathered["choices"][rows][:, None])[:, 0]
            ratio = (chance - gathered["chances"][rows]).exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            weight = counts[rows].to(ratio.dtype)
            share = weight / weight.sum().clamp(min=1)
            surrogate = (torch.minimum(ratio * gained[rows], clipped * gained[rows]) * share).sum()
            entropy = (-(chances.exp() * chances).sum(dim=1) * share).sum()
            critic = ((values - targets[rows]) ** 2).mean()
            loss = -surrogate - settings.entropy * entropy + settings.value * critic
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), settings.largest_gradient)
            optimizer.step()
            entropies.append(float(entropy.detach()))
    return sum(entropies) / len(entropies)
