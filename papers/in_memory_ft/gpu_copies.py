"""What a copy to the host costs a step on a GPU, from times that this project measured on an H100 on 2026-11-23.

overlap.csv holds a product and a pinned copy of 256 MiB alone and on concurrent streams; that copy goes to the device.
copies.csv holds copies both ways alone.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import common.hardware
from common.hardware.copies import TO_DEVICE, TO_HOST, h100

TABLES = Path(common.hardware.__file__).parent / "tables" / "h100"


def _rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Overlap:
    """Seconds: of a product alone, of a copy alone, of both at once."""

    product: float
    copy: float
    both: float

    @property
    def hidden(self) -> float:
        """Share of the shorter of the two that ran while the other did."""
        return (self.product + self.copy - self.both) / min(self.product, self.copy)


def measured() -> Overlap:
    """The table's."""
    seconds = {row["ops"]: float(row["seconds"]) for row in _rows("overlap.csv")}
    return Overlap(seconds["gemm"], seconds["h2d"], seconds["gemm+h2d"])


def directions_ratio(nbytes: float) -> float:
    """Seconds of a pinned copy to the host over one to the device, which is what was timed beside products."""
    return h100(TO_HOST).seconds(1, nbytes) / h100(TO_DEVICE).seconds(1, nbytes)
