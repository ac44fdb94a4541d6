"""Float32 limits against the numbers that data sheets print."""

import pytest

from common.hardware.float32 import BOARDS, board
from common.hardware.occupancy import LIMITS


@pytest.mark.parametrize(
    ("name", "tflops", "ridge"),
    [("rtx-4070", 29.15, 57.8), ("a100-80gb-sxm", 19.5, 9.56), ("h100-sxm", 66.9, 19.97)],
)
def test_lanes_and_boost_clock_give_the_data_sheets_peak(name: str, tflops: float, ridge: float) -> None:
    assert board(name).flops / 1e12 == pytest.approx(tflops, rel=2e-3)
    assert board(name).ridge == pytest.approx(ridge, rel=2e-3)


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_names_its_source_and_a_known_compute_capability(name: str) -> None:
    assert board(name).source
    assert board(name).compute_capability in LIMITS
    assert board(name).lanes % board(name).sms == 0
    assert board(name).lanes // board(name).sms in (64, 128)  # A100 has half the float32 lanes of an SM


def test_an_unknown_board_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="h100-sxm"):
        board("h100")
