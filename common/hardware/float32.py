"""What the data sheets say about float32 on CUDA cores: peak, clock, device memory, L2 and power limit of a board.

`specs.py` holds dense bfloat16 rates of tensor cores; this file adds the limits that a kernel without them meets.
"""

import difflib
from dataclasses import dataclass

from common.hardware.specs import A100_SHEET, GPU, H100_SHEET, gpu

MIB = 2**20


@dataclass(frozen=True)
class Float32Board:
    """A board's float32 limits. Rates in FLOP/s, bytes/s, Hz; a fused multiply-add counts as two FLOP."""

    gpu: GPU
    compute_capability: str
    lanes: int  # float32 lanes ("CUDA cores") of the whole board
    boost_hz: float
    l2_bytes: int
    power_limit_watt: float
    source: str

    @property
    def flops(self) -> float:
        """Peak FLOP/s: every lane starts a fused multiply-add in each cycle of the boost clock."""
        return 2.0 * self.lanes * self.boost_hz

    @property
    def sms(self) -> int:
        """Streaming multiprocessors."""
        return self.gpu.sms

    @property
    def bandwidth(self) -> float:
        """Of device memory, bytes/s."""
        return self.gpu.bandwidth

    @property
    def ridge(self) -> float:
        """FLOP a byte of device memory above which computing takes longer than moving."""
        return self.flops / self.bandwidth


BOARDS: dict[str, Float32Board] = {
    board.gpu.name: board
    for board in (
        # 29.15 TFLOP/s, 504 GB/s; 36 MB of AD104's 48 MB of L2 are enabled.
        Float32Board(
            gpu("rtx-4070"), "8.9", 5888, 2.475e9, 36 * MIB, 200.0,
            "GeForce RTX 4070 product page; NVIDIA Ada GPU architecture white paper v2.1",
        ),
        # 19.5 TFLOP/s.
        Float32Board(gpu("a100-80gb-sxm"), "8.0", 6912, 1.41e9, 40 * MIB, 400.0, A100_SHEET),
        # 66.9 TFLOP/s. The clock of tables/h100/gemm_energy.csv where nothing throttles is 1,980 MHz as well.
        Float32Board(gpu("h100-sxm"), "9.0", 16896, 1.98e9, 50 * MIB, 700.0, H100_SHEET),
    )
}  # fmt: skip


def board(name: str) -> Float32Board:
    """The board called `name` in BOARDS; KeyError with the nearest names otherwise."""
    if name in BOARDS:
        return BOARDS[name]
    near = difflib.get_close_matches(name.lower(), BOARDS, n=3, cutoff=0.4)
    raise KeyError(f"no float32 limits of {name!r}; nearest: {', '.join(near or sorted(BOARDS))}")
