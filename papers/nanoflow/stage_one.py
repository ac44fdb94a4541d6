"""Stage I of the search: order of the nano-operations without interference, as a mixed-integer program (Section 4.1.2).

Starts are measured in periods, sigma = s / T, and phi = 1 / T is maximised, which makes everything linear; an integer
says how many layers apart two operations of a stream follow each other (the order binaries of a periodic schedule):

    sigma_j + lag >= sigma_i + phi * d_i                          j needs i
    sigma_i + phi * d_i <= sigma_j + k,  sigma_j + k + phi * d_j <= sigma_i + 1     i and j share a stream, k an integer

Sizes are outside the program (a size times phi would not be linear): the search tries splits one after another.
"""

from itertools import combinations

import numpy as np

from papers.nanoflow.nano_batches import STREAMS, Layer
from papers.nanoflow.polish import Schedule, silent

_FAR = 3  # layers apart, at most; a token's own chain spans one period


def best_order(layer: Layer, nodes: int = 5000, gap: float = 1e-3) -> Schedule:
    """The shortest period when overlapping costs nothing, every op at the whole GPU's speed (shares of 1).

    nodes, gap: limits of the branch and bound. RuntimeError without a solution.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    ops = layer.ops
    n = len(ops)
    pairs = [(i, j) for i, j in combinations(range(n), 2) if ops[i].stream == ops[j].stream]
    columns = n + 1 + len(pairs)  # sigma, phi, k
    unit = max(layer.work.values())  # phi in units of the busiest stream, so that it is about 1
    rows, low = [], []

    def at_least(bound: float) -> np.ndarray:
        row = np.zeros(columns)
        rows.append(row)
        low.append(bound)
        return row

    for edge in layer.dependencies:
        row = at_least(-float(edge.lag))
        row[edge.after] += 1
        row[edge.before] -= 1
        row[n] = -ops[edge.before].work / unit
    for place, (i, j) in enumerate(pairs):
        row = at_least(0.0)
        row[[j, i, n, n + 1 + place]] = 1, -1, -ops[i].work / unit, 1
        row = at_least(-1.0)
        row[[i, j, n, n + 1 + place]] = 1, -1, -ops[j].work / unit, -1
    high_phi = min(unit / layer.work[s] for s in STREAMS if layer.work[s])
    cost = np.zeros(columns)
    cost[n] = -1.0
    lower = np.concatenate([np.full(n, -float(_FAR)), [0.0], np.full(len(pairs), -float(_FAR))])
    upper = np.concatenate([np.full(n, float(_FAR)), [high_phi], np.full(len(pairs), float(_FAR))])
    lower[0] = upper[0] = 0.0
    with silent():
        result = milp(
            cost,
            integrality=np.concatenate([np.zeros(n + 1), np.ones(len(pairs))]),
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(np.array(rows), np.array(low), np.inf),
            options={"node_limit": nodes, "mip_rel_gap": gap},
        )
    if result.x is None:
        raise RuntimeError(f"stage I found no schedule of {n} nano-operations within {nodes} nodes")
    period = unit / float(result.x[n])
    return Schedule(period, tuple(float(s) * period for s in result.x[:n]), (1.0,) * n)
