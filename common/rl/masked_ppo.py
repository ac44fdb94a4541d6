"""MaskablePPO of sb3-contrib over a Gymnasium environment with masks (the extra `rl`): the library's own PPO.

The environment needs `action_masks() -> bool array (actions,)`. Used as a reference beside policies of our own.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class MaskedEnvironment(Protocol):
    """A Gymnasium environment with a discrete action space that says which actions there are."""

    action_space: Any
    observation_space: Any

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]: ...

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]: ...

    def action_masks(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Episode:
    """One episode: sum of rewards, decisions, and the `info` of the last step."""

    total: float
    steps: int
    info: dict


def train_masked(
    environment: MaskedEnvironment, steps: int, seed: int, hidden: tuple[int, ...] = (64, 64), **settings: Any
) -> Any:
    """A MaskablePPO trained for about `steps` steps on one thread of the CPU; settings are the library's.

    The same seed gives the same weights. TypeError for an environment without `action_masks`.
    """
    if not callable(getattr(environment, "action_masks", None)):
        raise TypeError("the environment has no action_masks(): nothing would be masked")
    from sb3_contrib import MaskablePPO

    model = MaskablePPO(
        "MlpPolicy",
        environment,  # type: ignore[arg-type]
        seed=seed,
        device="cpu",
        verbose=0,
        policy_kwargs={"net_arch": list(hidden)},
        **settings,
    )
    model.learn(steps)
    return model


def play(model: Any, environment: MaskedEnvironment, seed: int | None = None) -> Episode:
    """One episode by the likeliest allowed action."""
    seen, info = environment.reset(seed=seed)
    total, steps, ended = 0.0, 0, bool(info.get("done", False))
    while not ended:
        action, _ = model.predict(seen, deterministic=True, action_masks=environment.action_masks())
        seen, reward, terminated, truncated, info = environment.step(int(action))
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    return Episode(total, steps, info)
