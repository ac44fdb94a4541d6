"""What the claims read: makespans of learned and fixed rules on the same shops and shutdowns, and decision times."""

from common.lab.runtime import Observations, Runtime
from papers.isbjssp.config import Config


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    from papers.isbjssp import study  # brings torch

    seen = Observations()
    study.shops(config, lab, seen)
    study.policies(config, lab, seen)
    return seen
