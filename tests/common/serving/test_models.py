"""Model shapes against published parameter counts and KV sizes worked out by hand."""

from dataclasses import replace

import pytest

from common.serving.models import MODELS, ModelShape, model

# Sizes by which the papers name the models (OPT: arXiv:2205.01068, table 1; Falcon: arXiv:2311.16867), or the
# Hub's model cards where the name is rounded too far for this tolerance (Llama 2 and 3, Mistral, Mixtral).
PUBLISHED = {
    "opt-13b": 13.0e9,
    "opt-66b": 66.0e9,
    "opt-175b": 175.0e9,
    "llama-2-7b": 6.74e9,
    "llama-2-13b": 13.0e9,
    "llama-2-70b": 69.0e9,
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "mistral-7b": 7.24e9,
    "mixtral-8x7b": 46.7e9,
    "falcon-180b": 180.0e9,
}

# Elements in the checkpoints, from the Hugging Face Hub's safetensors metadata of each repository.
CHECKPOINTS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
}


def test_every_model_has_a_published_total() -> None:
    assert PUBLISHED.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_match_the_published_total(name: str) -> None:
    assert model(name).parameters == pytest.approx(PUBLISHED[name], rel=0.015)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_match_the_checkpoint_exactly(name: str) -> None:
    assert model(name).parameters == CHECKPOINTS[name]


def test_falcon_with_its_stored_output_head_matches_the_checkpoint_exactly() -> None:
    assert replace(model("falcon-180b"), tied=False).parameters == 179_522_565_120


def test_mixtral_activates_about_13b_parameters() -> None:
    assert model("mixtral-8x7b").active_parameters == pytest.approx(12.9e9, rel=0.01)  # arXiv:2401.04088


def test_dense_model_activates_all_parameters() -> None:
    assert model("llama-2-7b").active_parameters == model("llama-2-7b").parameters


def test_weights_of_opt_13b_are_26_gb_in_half_precision() -> None:
    assert model("opt-13b").weight_bytes() == 2 * model("opt-13b").parameters
    assert model("opt-13b").weight_bytes() == pytest.approx(26e9, rel=0.015)  # vLLM, SOSP '23, figure 1


def test_kv_of_a_512_token_request_of_opt_66b() -> None:
    # A key and a value of 9216 elements, two bytes each, in 64 layers: 1.13 GiB (DistServe, section 3.3).
    assert 512 * model("opt-66b").kv_bytes_per_token() == 64 * 9216 * 4 * 512
    assert 512 * model("opt-66b").kv_bytes_per_token() / 2**30 == pytest.approx(1.13, abs=0.005)


def test_kv_of_a_token_of_opt_13b_is_800_kib() -> None:
    assert model("opt-13b").kv_bytes_per_token() == 800 * 1024  # vLLM, SOSP '23, section 3


@pytest.mark.parametrize("name", MODELS)
def test_grouped_queries_shrink_kv_by_the_group_size(name: str) -> None:
    shape = model(name)
    ungrouped = replace(shape, kv_heads=shape.heads)
    assert shape.heads % shape.kv_heads == 0
    group = shape.heads // shape.kv_heads
    assert ungrouped.kv_bytes_per_token() == group * shape.kv_bytes_per_token()


def test_llama_70b_groups_eight_queries_to_a_key() -> None:
    shape = model("llama-2-70b")
    assert shape.heads // shape.kv_heads == 8  # arXiv:2307.09288, appendix A.2.1


@pytest.mark.parametrize("name", MODELS)
def test_query_heads_span_the_hidden_width(name: str) -> None:
    assert model(name).heads * model(name).head_dim == model(name).hidden


def test_linears_of_llama_2_70b_on_four_gpus() -> None:
    # 64 query and 2 * 8 key and value heads of 128 over 4 GPUs; gate and up of 28672 / 4 each.
    assert model("llama-2-70b").linears(4) == (
        ("qkv", 8192, 20 * 128),
        ("attention_output", 16 * 128, 8192),
        ("mlp_up", 8192, 2 * 7168),
        ("mlp_down", 7168, 8192),
    )


@pytest.mark.parametrize("shape", MODELS.values(), ids=MODELS)
def test_tensor_parallelism_splits_each_matrix_and_copies_only_scarce_kv_heads(shape: ModelShape) -> None:
    whole = sum(k * n for _, k, n in shape.linears(1))
    for degree in shape.tensor_parallel_degrees():
        split = degree * sum(k * n for _, k, n in shape.linears(degree))
        copied = 2 * max(0, degree - shape.kv_heads) * shape.head_dim * shape.hidden
        assert split == whole + copied


@pytest.mark.parametrize("degree", [0, -1, 5, 128])
def test_tensor_parallelism_that_does_not_divide_the_heads_is_refused(degree: int) -> None:
    with pytest.raises(ValueError, match="valid degrees: 1, 2, 4, 8, 16, 32, 64$"):
        model("llama-3-70b").linears(degree)


def test_unknown_model_names_the_nearest_in_one_line() -> None:
    with pytest.raises(KeyError, match="llama-2-70b") as raised:
        model("llama2-70b")
    assert "\n" not in str(raised.value)
    with pytest.raises(KeyError, match="opt-13b"):
        model("zzz")
