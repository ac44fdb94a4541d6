"""What the claims of BitStack read: perplexities of SmolLM2-135M under a budget of bytes, files, moves and kernels."""

from common.lab.runtime import Observations, Runtime
from papers.bitstack.config import Config


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    from papers.bitstack import comparisons, measurements  # bring torch
    from papers.bitstack.study import prepared

    seen = Observations()
    if config.kernel_rounds:
        measurements.kernels(config, lab, seen)
    if config.layers:
        made = prepared(config, lab)
        if made is not None:
            comparisons.perplexities(made, seen)
            measurements.files(made, seen)
            measurements.trace(made, seen)
    return seen
