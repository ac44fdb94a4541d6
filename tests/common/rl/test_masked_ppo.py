"""The library's MaskablePPO behind a thin wrapper: it runs, it masks, the same seed gives the same weights."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("sb3_contrib")

from common.rl.masked_ppo import play, train_masked  # noqa: E402


class Corridor(gymnasium.Env):
    """Ten steps; three actions of which one is forbidden at each step and ends the episode with an error."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.at = 0
        return self._seen(), {}

    def _seen(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.at % 3]

    def action_masks(self) -> np.ndarray:
        return np.arange(3) != self.at % 3

    def step(self, action: int) -> tuple:
        assert self.action_masks()[action], "a forbidden action was taken"
        reward = float(action == (self.at + 1) % 3)
        self.at += 1
        return self._seen(), reward, self.at == 10, False, {"at": self.at}


def test_forbidden_actions_are_never_taken_and_it_learns() -> None:
    model = train_masked(Corridor(), 600, 0, (16,), n_steps=100, batch_size=50, learning_rate=0.01)
    episode = play(model, Corridor())
    assert episode.steps == 10 and episode.total >= 9 and episode.info == {"at": 10}


def test_the_same_seed_gives_the_same_weights() -> None:
    models = [train_masked(Corridor(), 64, 3, (8,), n_steps=32, batch_size=32) for _ in range(2)]
    first, second = (dict(model.policy.state_dict()) for model in models)
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_an_environment_without_masks_is_refused() -> None:
    with pytest.raises(TypeError, match="action_masks"):
        train_masked(object(), 1, 0)  # type: ignore[arg-type]
