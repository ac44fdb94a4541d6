"""How far an approximation is from what it stands for."""

import math

from torch import Tensor


def relative_error(exact: Tensor, approximate: Tensor) -> float:
    """||exact - approximate|| / ||exact|| (Frobenius), in float64; 0 where both are zero, inf where only one is."""
    wide = exact.double()
    distance, size = float((wide - approximate.double()).norm()), float(wide.norm())
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / size


def signal_to_noise_db(exact: Tensor, approximate: Tensor) -> float:
    """-20 log10 of the relative error, dB; inf for an exact copy."""
    error = relative_error(exact, approximate)
    return math.inf if error == 0 else -20 * math.log10(error)
