"""The law of stage 3, checked: how often a planted false edge survives t sampled rows.

A container of unique values, and for each eps a table of which a share eps of the rows pairs values of two container
rows: column by column everything exists there, row by row that share does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.parquet import footer, write
from papers.r2d2.content import Engine, Probe


@dataclass(frozen=True)
class Survival:
    """Of `trials` independent samples of t rows, how many left the false edge standing."""

    eps: float
    t: int
    survived: int
    trials: int

    @property
    def law(self) -> float:
        """(1 - eps)^t."""
        return float((1 - self.eps) ** self.t)

    def outside(self, error: float) -> bool:
        """Whether the count lies outside the binomial interval of the law that errs with this probability."""
        from scipy.stats import binom

        low, high = binom.ppf([error / 2, 1 - error / 2], self.trials, self.law)
        return not low <= self.survived <= high


def plant(rows: int, eps: float, folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Files of a container and of a table of which round(eps x rows) rows are not in it. ValueError for under two."""
    import pyarrow

    changed = round(eps * rows)
    if changed < 2:
        raise ValueError(f"{eps:g} of {rows} rows are too few to swap")
    first, second = (rng.permutation(rows) for _ in range(2))
    container = pyarrow.table({"x": first, "y": second, "z": pyarrow.array(first.astype(str))})
    places = rng.choice(rows, changed, replace=False)
    swapped = second.copy()
    swapped[places] = second[np.roll(places, 1)]
    contained = container.set_column(1, "y", pyarrow.array(swapped))
    name = f"{eps:g}".replace(".", "_")
    return write(container, folder / f"in_{name}.parquet"), write(contained, folder / f"of_{name}.parquet")


def survivals(
    engine: Engine,
    shares: Sequence[float],
    samples: Sequence[int],
    trials: int,
    rows: int,
    folder: Path,
    rng: np.random.Generator,
) -> list[Survival]:
    """One a share and sample size, each from `trials` samples without replacement."""
    found = []
    for eps in shares:
        container, contained = plant(rows, eps, folder, rng)
        columns = footer(contained).columns
        for t in samples:
            probes = [
                Probe(
                    container, contained, columns, tuple(np.sort(rng.choice(rows, t, replace=False)).tolist())
                )
                for _ in range(trials)
            ]
            found.append(Survival(eps, t, sum(engine.matched(probes)), trials))
    return found
