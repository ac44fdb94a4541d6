"""PPO over masked candidates: advantages in closed form, masks, forced moves, a problem with a known answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.rl.graph_ppo import Settings, advantages, choose, masked, train


class Bandits:
    """Five candidates with random features, some not allowed; the best allowed one has the largest first feature.

    Every second observation has one candidate only, whose reward is noise.
    """

    def __init__(self, count: int, seed: int, forced: bool = True) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.count, self.forced, self.steps = count, forced, 0
        self.wrong = 0
        self._draw()

    def _draw(self) -> None:
        self.features = torch.rand(self.count, 5, 2, generator=self.generator)
        self.allowed = torch.rand(self.count, 5, generator=self.generator) < 0.6
        self.allowed[:, 0] = True
        if self.forced and self.steps % 2:
            self.allowed[:] = False
            self.allowed[:, 3] = True
        self.steps += 1

    def observe(self) -> dict[str, Tensor]:
        return {"features": self.features, "allowed": self.allowed}

    def step(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self.count)
        self.wrong += int((~self.allowed[rows, choices]).sum())
        rewards = self.features[rows, choices, 0]
        self._draw()
        return rewards, torch.ones(self.count, dtype=torch.bool)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        self.value = nn.Linear(1, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.score(seen["features"])[..., 0], self.value(seen["features"][:, 0, :1])[:, 0]


def trained(seed: int, **changed: object) -> Linear:
    policy = Linear()
    options = Settings(updates=30, steps=8, rate=0.05, entropy=0.0)
    options = Settings(**{**vars(options), **changed})  # type: ignore[arg-type]
    train(policy, Bandits(16, seed), options, torch.Generator().manual_seed(seed))
    return policy


def test_the_policy_learns_which_candidate_pays() -> None:
    pays, noise = trained(0).score.weight[0].tolist()
    assert pays > 2 and abs(noise) < pays / 2


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = trained(0, updates=4), trained(0, updates=4), trained(1, updates=4)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)


def test_what_is_not_allowed_is_never_chosen() -> None:
    shops = Bandits(16, 0)
    train(Linear(), shops, Settings(updates=3, steps=8), torch.Generator().manual_seed(0))
    assert shops.wrong == 0


class Forced(Bandits):
    def _draw(self) -> None:
        super()._draw()
        self.allowed[:] = False
        self.allowed[:, 1] = True


def test_forced_moves_teach_the_actor_nothing() -> None:
    policy = Linear()
    train(policy, Forced(8, 0), Settings(updates=3, steps=8, rate=0.1), torch.Generator().manual_seed(0))
    assert torch.equal(policy.score.weight, torch.zeros_like(policy.score.weight))
    assert not torch.equal(policy.value.weight, torch.zeros_like(policy.value.weight))


@given(st.integers(0, 1000), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_advantages_are_the_weighted_sum_of_errors(seed: int, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    ended, last = rng.random((6, 3)) < 0.3, rng.normal(size=3)
    found = advantages(*map(torch.from_numpy, (rewards, values, ended, last)), gamma, lam).numpy()
    following = np.vstack([values[1:], last[None]])
    errors = rewards + gamma * np.where(ended, 0, following) - values
    for step in range(6):
        for row in range(3):
            total, weight = 0.0, 1.0
            for later in range(step, 6):
                total += weight * errors[later, row]
                if ended[later, row]:
                    break
                weight *= gamma * lam
            assert found[step, row] == pytest.approx(total, abs=1e-9)


def test_with_lambda_one_an_advantage_is_the_return_less_the_value() -> None:
    rewards = torch.tensor([[1.0], [2.0], [4.0]])
    values = torch.tensor([[0.5], [0.25], [0.125]])
    ended = torch.tensor([[False], [False], [True]])
    found = advantages(rewards, values, ended, torch.tensor([9.0]), 1.0, 1.0)
    assert found[:, 0].tolist() == [6.5, 5.75, 3.875]


def test_masked_chances_are_zero_and_the_rest_sums_to_one() -> None:
    scores, allowed = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.eye(6)[:4] > 0
    allowed[:, 5] = True
    chances = masked(scores, allowed).exp()
    assert torch.all(chances[~allowed] == 0) and torch.allclose(chances.sum(dim=1), torch.ones(4))
    assert torch.all(allowed.gather(1, choose(scores, allowed)[:, None]))


def test_a_state_without_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        masked(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
