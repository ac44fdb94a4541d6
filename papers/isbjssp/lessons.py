"""What a config trains a policy on, and the training of one on a seed."""

import numpy as np
import torch

from common.lab.runtime import Runtime
from common.rl.graph_ppo import Settings
from papers.isbjssp.config import Config
from papers.isbjssp.training import Lessons, Trained, trained


def lessons_of(config: Config, messages: bool = True) -> Lessons:
    """What a config trains a policy on."""
    return Lessons(
        jobs=(config.jobs[0], config.jobs[1]),
        machines=(config.machines[0], config.machines[1]),
        mode=config.mode,
        reward=config.reward,
        environments=config.environments,
        layers=config.layers,
        width=config.width,
        hidden=config.hidden,
        messages=messages,
        ppo=Settings(updates=config.updates, steps=config.steps, rate=config.rate),
    )


def generators(seed: int) -> tuple[np.random.Generator, torch.Generator]:
    """Of the instances and failures of a training seed, and of its weights and choices."""
    lab = Runtime([seed])
    return lab.rng(seed, "instances"), lab.torch_generator(seed, "policy")


def train_one(task: tuple[Lessons, int]) -> Trained:
    """Train one policy; the same task gives the same weights."""
    lessons, seed = task
    return trained(lessons, *generators(seed))
