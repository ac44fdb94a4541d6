"""The packed key cache inside transformers, its rivals, decode steps, long contexts, and the whole experiment."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from common.data import DataError, fetch
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.models.llama import new_llama
from papers.bfp_outliers import experiment, ksort
from papers.bfp_outliers.baselines import PerChannelCache, PerChannelLayer, RotatedRows, hadamard
from papers.bfp_outliers.block_cache import CodedCache, CodedLayer, Half
from papers.bfp_outliers.config import Config
from papers.bfp_outliers.decode_latency import gathered_cache, step_seconds
from papers.bfp_outliers.exercises import EXERCISES, least_of_all, sum_of_steps
from papers.bfp_outliers.experiment import run
from papers.bfp_outliers.packed_attention import Shape, attend, measure, time_ratio
from papers.bfp_outliers.packed_rows import BlockRows
from papers.bfp_outliers.settings import Setting, new_cache, prepared

TOKENS = torch.randint(48, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    """Four query heads on two KV heads of 16 channels, three layers."""
    made = new_llama(
        torch.Generator().manual_seed(0), vocab=48, hidden=64, layers=3, heads=4, kv_heads=2, spread=0.2
    )
    return made.eval().requires_grad_(False)


def logits(model, tokens, cache):
    with torch.inference_mode():
        return model(tokens, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("sorts", [False, True])
def test_a_prompt_and_its_tokens_one_by_one_leave_the_same_bytes_and_logits(model, bits, sorts):
    used = ksort.fold(model, ksort.ksort(ksort.row_norms(model))) if sorts else model
    whole, steps = CodedCache(3, BlockRows(bits, 8)), CodedCache(3, BlockRows(bits, 8))
    at_once = logits(used, TOKENS, whole)
    one_by_one = torch.cat([logits(used, TOKENS[:, i : i + 1], steps) for i in range(24)], dim=1)
    assert whole.get_seq_length() == steps.get_seq_length() == 24
    # a rounding error of a float may tip a code over, so that the stored bytes are compared by their number
    same = [
        (a == b).double().mean()
        for x, y in zip(whole.layers, steps.layers, strict=True)
        for a, b in zip(x.stored_keys, y.stored_keys, strict=True)
    ]
    assert min(same) > 0.995
    assert float((at_once - one_by_one).abs().max() / at_once.abs().max()) < (5e-2 if min(same) < 1 else 1e-4)


def test_the_first_layers_bytes_do_not_depend_on_how_tokens_came():
    keys, values = torch.randn(2, 1, 2, 20, 16, generator=torch.Generator().manual_seed(1))
    whole, steps = (CodedLayer(BlockRows(4, 8), Half()) for _ in range(2))
    read, _ = whole.update(keys, values)
    for i in range(20):
        last, _ = steps.update(keys[:, :, i : i + 1], values[:, :, i : i + 1])
    assert torch.equal(read, last)
    assert all(torch.equal(a, b) for a, b in zip(whole.stored_keys, steps.stored_keys, strict=True))


def test_attention_sees_exactly_what_the_codes_stand_for(model):
    """Independent: transformers' own cache, filled with keys that were rounded outside, gives the same next logits."""
    code = BlockRows(4, 8)
    coded = CodedCache(3, code)
    logits(model, TOKENS[:, :-1], coded)

    class Rounding(DynamicCache):
        def update(self, key_states, value_states, layer_idx, *args, **kwargs):
            rounded = code.decode(code.encode(key_states))
            return super().update(rounded, value_states.half().float(), layer_idx)

    rounding = Rounding()
    for index, layer in enumerate(coded.layers):
        past = code.decode(layer.stored_keys), layer.stored_values[0].float()
        DynamicCache.update(rounding, *past, index)
    assert torch.equal(logits(model, TOKENS[:, -1:], coded), logits(model, TOKENS[:, -1:], rounding))


def test_bytes_are_those_of_the_tensors_and_half_of_bfp16s(model):
    sizes = {}
    for bits in (4, 8):
        cache = CodedCache(3, BlockRows(bits, 16))
        logits(model, TOKENS, cache)
        sizes[bits] = cache.key_bytes
    elements = 3 * 2 * 2 * 24 * 16  # layers, batch, KV heads, tokens, channels
    assert sizes == {4: elements * 4.5 / 8, 8: elements * 8.5 / 8}


def test_a_packed_cache_can_be_cropped_reordered_repeated_and_reset(model):
    cache = CodedCache(3, BlockRows(4, 8))
    logits(model, TOKENS, cache)
    before = cache.layers[0].stored_keys[0].clone()
    cache.crop(-4)
    assert cache.get_seq_length() == 20
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0].stored_keys[0], before[[1, 0], :, :20])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    assert torch.equal(cache.layers[0].stored_keys[0], before[1:, :, :20])
    cache.reset()
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="minus"):
        cache.layers[0].crop(3)


def test_generation_by_transformers_runs_on_it(model):
    cache = CodedCache(3, BlockRows(8, 16))
    made = model.generate(
        TOKENS[:1], past_key_values=cache, use_cache=True, max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert made.shape == (1, 29)
    assert cache.get_seq_length() == 28


def test_eight_bits_are_close_to_full_precision_and_three_are_not(model):
    exact = logits(model, TOKENS, DynamicCache())
    error = {
        bits: float((logits(model, TOKENS, CodedCache(3, BlockRows(bits, 16))) - exact).norm() / exact.norm())
        for bits in (3, 8)
    }
    assert error[8] < 0.02 < error[3]


def test_queries_may_be_coded_too(model):
    exact = logits(model, TOKENS, DynamicCache())
    coded = prepared(model, Setting(order="original", query_bits=8, block=16))
    difference = float((logits(coded, TOKENS, DynamicCache()) - exact).abs().max())
    assert 0 < difference < 0.1 * float(exact.abs().max())


# Rivals -------------------------------------------------------------------------------------------------------------


def test_the_hadamard_matrix_is_scipys_and_its_own_inverse():
    from scipy.linalg import hadamard as reference

    assert hadamard(16).numpy() == pytest.approx(reference(16) / 4)
    assert (hadamard(64) @ hadamard(64)).numpy() == pytest.approx(np.eye(64), abs=1e-6)
    with pytest.raises(ValueError, match="power of two"):
        hadamard(24)


def test_rotation_spreads_an_outlier_over_its_head():
    row = torch.full((1, 16), 0.1)
    row[0, 3] = 6.4
    plain = BlockRows(4, 16)
    error = {
        name: float((code.decode(code.encode(row)) - row)[0, torch.arange(16) != 3].norm())
        for name, code in (("plain", plain), ("rotated", RotatedRows(plain, 16)))
    }
    assert error["rotated"] != error["plain"]
    assert RotatedRows(BlockRows(8, 16), 16).decode(
        RotatedRows(BlockRows(8, 16), 16).encode(row)
    ).numpy() == (pytest.approx(row.numpy(), abs=0.05))


def test_per_channel_keys_are_within_half_a_step_and_take_five_bits():
    keys = torch.randn(1, 2, 70, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 17)
    layer = PerChannelLayer(32)
    read, _ = layer.update(keys[:, :, :50], keys[:, :, :50])
    read, _ = layer.update(keys[:, :, 50:], keys[:, :, 50:])
    assert layer.get_seq_length() == 70
    groups = keys[:, :, :64].unflatten(2, (2, 32))
    step = (groups.amax(dim=3) - groups.amin(dim=3)) / 15
    error = (read[:, :, :64] - keys[:, :, :64]).unflatten(2, (2, 32)).abs().amax(dim=3)
    assert bool((error <= 0.51 * step + 0.02).all())
    assert torch.equal(read[:, :, 64:], keys[:, :, 64:].half().float())  # tokens that wait for a full group
    assert layer.key_bytes * 8 == 2 * 16 * (64 * 5 + 6 * 16)


@pytest.mark.parametrize("keys", ["fp16", "bfp", "hadamard", "per-channel"])
def test_every_format_is_a_cache_that_the_model_can_use(model, keys):
    cache = new_cache(Setting(keys=keys, block=8, bits=8), 3, 16)
    exact = logits(model, TOKENS, DynamicCache())
    found = logits(model, TOKENS, cache)
    assert float((found - exact).norm() / exact.norm()) < (0.3 if keys == "per-channel" else 0.03)
    assert isinstance(cache, CodedCache | PerChannelCache)
    assert cache.key_bytes > 0


# Clocks -------------------------------------------------------------------------------------------------------------


def test_keys_rearranged_at_run_time_give_the_same_logits_with_unsorted_weights(model):
    cache = gathered_cache(ksort.ksort(ksort.row_norms(model)))
    torch.testing.assert_close(logits(model, TOKENS, cache), logits(model, TOKENS, DynamicCache()))


def test_decode_steps_leave_the_cache_as_long_as_it_was(model):
    made = []

    def make():
        made.append(DynamicCache())
        return made[-1]

    seconds = step_seconds({"a": (model, make), "b": (model, make)}, 30, 4)
    assert {name: len(series) for name, series in seconds.items()} == {"a": 4, "b": 4}
    assert [cache.get_seq_length() for cache in made] == [30, 30]
    assert min(seconds["a"] + seconds["b"]) > 0


def test_long_contexts_are_measured_on_a_cpu_too_and_bytes_are_counted():
    shape = Shape(heads=4, kv_heads=2, head_dim=128)
    found = measure(shape, 64, BlockRows(4, 32), 3, torch.Generator().manual_seed(0))
    elements = 2 * 64 * 128
    assert found.key_bytes == {"fp16": 2 * elements, "bfp": elements * 4.25 / 8, "bfp16": elements * 8.25 / 8}
    assert {name: len(series) for name, series in found.seconds.items()} == dict.fromkeys(
        ("fp16", "original", "sorted", "gathered"), 3
    )
    assert time_ratio(found, "sorted", "sorted") == 1.0


def test_one_tokens_attention_is_the_softmax_formula():
    queries, keys, values = (
        torch.randn(2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 5, 5)
    )
    weights = torch.softmax(queries @ keys.transpose(1, 2) / 8**0.5, dim=-1)
    torch.testing.assert_close(attend(queries, keys, values), weights @ values)


# The experiment -----------------------------------------------------------------------------------------------------


def test_the_experiment_repeats_itself_and_measures_what_was_not_timed_the_same():
    try:
        for name in (experiment.MODEL, experiment.TEXT, experiment.CALIBRATION, experiment.SECOND):
            fetch(name)
    except DataError as error:
        pytest.skip(f"the model's file or a text can't be had here: {error}")
    config = Config(
        layers=2, context=24, table_windows=1, letters=5000, blocks=[64, 32], strengths=[], comparisons=False,
        key_tokens=16, exact_tokens=16, decode_context=32, rounds=1,
    )  # fmt: skip

    def observed():
        return [row for row in run(config, Runtime((0, 1), workers=1)) if not row.metric.startswith("step")]

    first = observed()
    assert first == observed()
    by_metric = {row.metric: row.value for row in first}
    assert by_metric["differing_scores"] == by_metric["differing_codes"] == 0.0
    assert by_metric["bytes_saving"] == pytest.approx(8.25 / 4.25)


def test_controls_only_run_what_their_claims_read():
    config = Config(layers=0, long_tokens=[32], long_heads=2, long_rounds=2)
    seen = run(config, Runtime((0, 1)))
    assert set(seen.metrics) == {"long_ms", "long_key_bytes", "long_time_ratio"}
    assert len(run(dataclasses.replace(config, gather=True), Runtime((0,), wanted=["bytes_saving"]))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("key_tokens=1", "out of range"),
        ("planted=0", "out of range"),
        ("planted_share=5", "out of range"),
        ("rounds=0", "out of range"),
        ("context=2", "out of range"),
        ("context=48", "shorter than key_tokens"),
        ("blocks=[64]", "has 1 items"),
        ("order=sorted", "none of ksort"),
        ("layers=0", "nothing to run"),
    ],
)
def test_bad_settings_get_one_line(changes: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as refused:
        compose(Project.current(), "bfp_outliers", "smoke", [f"paper.{changes}"])
    assert "\n" not in str(refused.value)


def test_exercises_have_answers_and_no_order_beats_the_sorted_one() -> None:
    assert EXERCISES["exercise-1"].answer(None) == least_of_all() < sum_of_steps(tuple(range(8)))
    assert EXERCISES["exercise-2"].answer(None) == pytest.approx(8.25 / 4.25)


def test_coding_twice_may_change_what_was_coded_once() -> None:
    rows = BlockRows(4, 8)
    values = torch.tensor([[-1.99, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    once = rows.decode(rows.encode(values))
    twice = rows.decode(rows.encode(once))
    assert once[0, 0] == -2.0 and not torch.equal(once, twice)
