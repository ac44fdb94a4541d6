"""How an iteration is put together from operators, with operators whose times are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from common.hardware.specs import link
from common.serving.layer import LayeredLatency, elementwise, experts_reached
from common.serving.models import MODELS, ModelShape, model


@dataclass(frozen=True)
class Counting:
    """Every operator takes as many seconds as the weight given to what it counts."""

    flops: float = 0.0
    moved: float = 0.0
    pairs: float = 0.0
    context: float = 0.0

    def linear_seconds(self, m: int, k: int, n: int) -> float:
        return self.flops * 2 * m * k * n

    def elementwise_seconds(self, moved_bytes: float) -> float:
        return self.moved * moved_bytes

    def prefill_seconds(
        self, heads: int, kv_heads: int, head_dim: int, chunks: Sequence[tuple[int, int]]
    ) -> float:
        return self.pairs * sum(heads * head_dim * new * (new + before) for new, before in chunks)

    def decode_lines(
        self, heads: int, kv_heads: int, head_dim: int, batch: int
    ) -> tuple[tuple[float, float], ...]:
        return ((0.0, self.context * kv_heads * head_dim),)


def latency(
    operators: Counting, shape: ModelShape, tensor_parallel: int = 1, stages: int = 1
) -> LayeredLatency:
    return LayeredLatency(operators, shape, tensor_parallel, stages, link("nvlink-4"))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "mixtral-8x7b"])
def test_linear_work_of_an_iteration_is_two_flop_a_weight_and_token(name: str) -> None:
    shape = model(name)
    weights = shape.layers * sum(k * n for _, k, n in shape.linears())
    head = shape.hidden * shape.vocab
    flops = latency(Counting(flops=1.0), shape).iteration([(100, 0)], 7, 700)[0]
    assert flops == 2 * (107 * weights + 8 * head)  # one row of the head for each of 8 sequences


@pytest.mark.parametrize("name", ["opt-66b", "llama-2-70b", "llama-2-7b"])
def test_tensor_parallelism_divides_linear_and_attention_work(name: str) -> None:
    for counted in (Counting(flops=1.0), Counting(pairs=1.0), Counting(context=1.0)):
        whole = latency(counted, model(name)).iteration([(64, 64)], 8, 800)[0]
        communication = 2 * model(name).layers * _all_reduce(72 * model(name).hidden * 2)
        split = latency(counted, model(name), tensor_parallel=4).iteration([(64, 64)], 8, 800)[0]
        assert split - communication == pytest.approx(whole / 4, rel=1e-6)


def test_a_layer_reduces_its_activations_twice() -> None:
    latency_of_nothing_else = latency(Counting(), model("llama-2-7b"), tensor_parallel=4)
    assert latency_of_nothing_else.layer_seconds([(68, 0)], 4, 100) == 2 * _all_reduce(72 * 4096 * 2)


def _all_reduce(reduce_bytes: int) -> float:
    from common.hardware.collective import all_reduce_seconds

    return all_reduce_seconds(link("nvlink-4"), reduce_bytes, 4)


def test_two_stages_hold_half_the_layers_each() -> None:
    shape = model("opt-13b")
    whole, _ = latency(Counting(context=1.0), shape).iteration([], 4, 1000)
    first, later = latency(Counting(context=1.0), shape, stages=2).iteration([], 4, 1000)
    assert first == pytest.approx(whole / 2)
    assert later == pytest.approx(first)


def test_later_stages_receive_the_activations_of_every_token() -> None:
    first, later = latency(Counting(), model("opt-13b"), stages=2).iteration([(100, 0)], 4, 1000)
    assert first == 0
    assert later == pytest.approx(104 * 5120 * 2 / (450e9 * 20.6 / 25))


def test_later_stages_pay_for_the_output_head() -> None:
    shape = model("opt-13b")
    first, later = latency(Counting(flops=1.0), shape, stages=2).iteration([], 4, 1000)
    assert later - first == pytest.approx(2 * 4 * shape.hidden * shape.vocab)


def test_the_fullest_stage_sets_the_time_of_an_uneven_cut() -> None:
    assert latency(Counting(), model("opt-13b"), stages=3).stage_layers == 14


def test_attention_of_a_layer_counts_cached_tokens() -> None:
    shape = model("llama-2-7b")
    seconds = latency(Counting(pairs=1.0), shape).layer_seconds([(128, 2048), (64, 0)], 0, 0)
    assert seconds == 4096 * (128 * 2176 + 64 * 64)


def test_decode_reads_grouped_keys_and_values_only() -> None:
    assert latency(Counting(context=1.0), model("llama-3-8b")).layer_seconds([], 4, 500) == 8 * 128 * 500


def test_elementwise_traffic_of_a_llama_2_7b_layer_by_hand() -> None:
    # In units of hidden: two norms 2 each, two rotations 2 each, two appends 2 each, two residuals 3 each;
    # of the MLP's width: activation 2, gate 3.
    assert sum(elements for _, elements in elementwise(model("llama-2-7b"))) == 18 * 4096 + 5 * 11008


def test_opt_rotates_nothing_and_gates_nothing() -> None:
    names = [name for name, _ in elementwise(model("opt-13b"))]
    assert not {"rotate_queries", "rotate_keys", "gate"} & set(names)
    assert sum(elements for _, elements in elementwise(model("opt-13b"))) == (14 + 2 * 4) * 5120


def test_tensor_parallelism_splits_elementwise_work_except_norms_and_residuals() -> None:
    whole, half = (dict(elementwise(model("llama-2-13b"), degree)) for degree in (1, 2))
    for name, elements in whole.items():
        assert half[name] == (elements if "norm" in name or "residual" in name else elements // 2)


def test_one_token_reaches_its_active_experts_and_many_reach_all() -> None:
    shape = model("mixtral-8x7b")
    assert experts_reached(shape, 0) == 0
    assert experts_reached(shape, 1) == pytest.approx(2)
    assert experts_reached(shape, 1000) == pytest.approx(8)


def test_experts_compute_for_active_weights_only() -> None:
    shape = model("mixtral-8x7b")
    attention, expert = shape.linears()[:2], shape.linears()[2:]
    weights = sum(k * n for _, k, n in attention) + 2 * sum(k * n for _, k, n in expert) + 4096 * 8
    flops = latency(Counting(flops=1.0), shape).layer_seconds([(8000, 0)], 0, 0)
    assert flops == pytest.approx(2 * 8000 * weights, rel=1e-3)


def test_splits_that_a_model_does_not_allow_are_refused() -> None:
    with pytest.raises(ValueError, match="valid degrees"):
        latency(Counting(), model("opt-13b"), tensor_parallel=3)
    with pytest.raises(ValueError, match="41 stages do not fit"):
        latency(Counting(), model("opt-13b"), stages=41)
