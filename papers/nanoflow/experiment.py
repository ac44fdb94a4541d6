"""What is measured: the mechanism against its baselines, once a seed."""

from dataclasses import dataclass

from common.lab.runtime import Observations, Runtime


@dataclass(frozen=True)
class Config:
    """Sizes and switches. Profiles change the sizes, a control changes one switch."""

    requests: int = 1_000  # of each run
    mechanism: bool = True  # False: the paper's idea is switched off inside its own code


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    for seed in lab.progress(lab.seeds, "seeds"):
        gaps = lab.rng(seed, "arrivals").exponential(1.0, config.requests)
        # A placeholder, so that notebook and tests have something to show: seen.add("gain", ours / theirs, seed)
        seen.add("mean_gap", gaps.mean(), seed)
    return seen
