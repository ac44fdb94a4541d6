"""What a link of two NV centres can do: fidelities, and the rates at which pairs of each fidelity come."""

import json
from dataclasses import dataclass
from pathlib import Path

SLOT = 0.01  # seconds (the paper's evaluation)


@dataclass(frozen=True)
class Capability:
    """Pairs of a fidelity come at a rate (pairs per second, ebit/s)."""

    fidelity: float
    rate: float


# 5 km of fibre: code/device_characteristics/data.json of mdskrzypczyk/LinkScheduling (MIT), rounded as in the paper's
# table of links to three digits of fidelity and one of rate; the authors simulated validated NV hardware for it.
NV_5KM = tuple(
    Capability(fidelity, rate)
    for fidelity, rate in (
        (0.488, 75.7), (0.531, 61.6), (0.574, 57.7), (0.618, 51.3), (0.661, 45.6),
        (0.704, 39.2), (0.747, 34.0), (0.791, 27.8), (0.834, 20.8), (0.877, 14.2),
    )
)  # fmt: skip
FUTURE = (Capability(0.999, 1400.0),)  # the authors' choice for SURFnet, beyond today's hardware
PERFECT = (Capability(1.0, 1e6),)  # of a negative control


def read_capabilities(path: Path, km: int = 5) -> tuple[Capability, ...]:
    """The capabilities of a link length in the authors' data.json, by rising fidelity.

    ValueError naming the lengths there are for any other.
    """
    data = json.loads(path.read_text("utf-8"))
    if str(km) not in data["rates"]:
        known = ", ".join(sorted(data["rates"], key=int))
        raise ValueError(f"{path.name} has no links of {km} km; it has {known}")
    pairs = zip(data["fidelities"][str(km)], data["rates"][str(km)], strict=True)
    return tuple(Capability(fidelity, rate) for fidelity, rate in sorted(pairs))
