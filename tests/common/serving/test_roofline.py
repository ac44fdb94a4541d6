"""The roofline latency against closed forms, and its exact decode lines."""

from dataclasses import replace

import numpy as np
import pytest

from common.hardware.roofline import Efficiency
from common.hardware.specs import GPUS, gpu
from common.serving.latency import INFINITY, LatencyModel
from common.serving.measured import MeasuredLatency, tables
from common.serving.models import MODELS, model
from common.serving.roofline import RooflineLatency

PERFECT = Efficiency(1, 1, 1, 0)
A100 = gpu("a100-80gb-sxm")


def test_a_perfect_device_decodes_one_token_in_the_time_of_its_weights_and_context() -> None:
    """All bytes read once: linear layers, output head, keys and values, and the activations beside them."""
    shape, context = model("llama-2-7b"), 2000
    read = 2 * (shape.layers * sum(k * n for _, k, n in shape.linears()) + shape.hidden * shape.vocab)
    read += shape.kv_bytes_per_token() * context
    seconds = RooflineLatency(A100, shape, efficiency=PERFECT).iteration([], 1, context)[0]
    assert read / A100.bandwidth < seconds < 1.005 * read / A100.bandwidth


def test_a_perfect_device_prefills_at_its_peak_but_for_elementwise_traffic() -> None:
    shape, tokens = model("opt-175b"), 2048
    weights = shape.layers * sum(k * n for _, k, n in shape.linears())
    flops = 2 * tokens * weights + 2 * tokens**2 * shape.hidden * shape.layers
    seconds = RooflineLatency(A100, shape, efficiency=PERFECT).iteration([(tokens, 0)], 0, 0)[0]
    assert flops / A100.flops < seconds < 1.03 * flops / A100.flops


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("card", GPUS)
def test_decode_line_gives_every_iteration_exactly(name: str, card: str) -> None:
    latency = RooflineLatency(gpu(card), model(name))
    rng = np.random.default_rng(1)
    for decodes in (1, 9, 128):
        for context in rng.integers(decodes, 4096 * decodes, 5):
            line = latency.decode_line(decodes, int(context))
            assert line.intercept + line.slope * context == pytest.approx(
                latency.iteration([], decodes, int(context))[0], rel=1e-12
            )


def test_decode_line_bends_where_computing_overtakes_reading() -> None:
    """A device slow enough at computing leaves the bandwidth line for the compute line at a context of its own."""
    shape = model("llama-2-70b")
    queries = 4 * 64 * 128 * 32  # bytes of queries and outputs of 32 sequences
    slow = replace(A100, flops=A100.bandwidth * 7.5)  # a key of 8 grouped queries brings 8 FLOP a byte
    latency = RooflineLatency(slow, shape, efficiency=PERFECT)
    bend = queries / slow.bandwidth / (4 * 64 * 128 / slow.flops - 4 * 8 * 128 / slow.bandwidth)
    line = latency.decode_line(32, 32)
    assert line.until == pytest.approx(bend) and 32 < bend < 100_000
    after = latency.decode_line(32, int(bend) + 1)
    assert after.until == INFINITY and after.slope > line.slope
    for context in (32, int(bend) - 1, int(bend), int(bend) + 1, 2 * int(bend)):
        now = line if context < line.until else after
        expected = latency.iteration([], 32, context)[0]
        assert now.intercept + now.slope * context == pytest.approx(expected, rel=1e-12)


def test_stages_and_parallelism_shorten_an_iteration() -> None:
    shape = model("opt-66b")
    one = RooflineLatency(A100, shape).iteration([(512, 0)], 16, 8000)[0]
    split = RooflineLatency(A100, shape, tensor_parallel=4).iteration([(512, 0)], 16, 8000)[0]
    first, later = RooflineLatency(A100, shape, stages=4).iteration([(512, 0)], 16, 8000)
    assert one / 4 < split < one
    assert first == pytest.approx(one / 4, rel=0.02) and first < later < 1.1 * first


def test_measured_and_roofline_h100_agree_where_both_should() -> None:
    """Large batches, where neither kernel starts nor sequence lengths of a single kernel matter."""
    for name in ("opt-13b", "llama-2-7b", "llama-2-70b"):
        shape = model(name)
        for batch in (([(2048, 0)], 0, 0), ([], 128, 128_000), ([(512, 512)], 64, 64_000)):
            measured = MeasuredLatency(tables(), shape).iteration(*batch)[0]
            assert RooflineLatency(gpu("h100-sxm"), shape).iteration(*batch)[0] == pytest.approx(
                measured, rel=0.15
            )


def test_both_are_latency_models() -> None:
    for latency in (
        RooflineLatency(A100, model("opt-13b"), 2),
        MeasuredLatency(tables(), model("opt-13b"), 2),
    ):
        checked: LatencyModel = latency
        assert checked.stages == 1
