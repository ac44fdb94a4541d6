"""SmolLM2-135M in transformers' class, and small models of the same class."""

import time

import pytest
import torch

from common.data import DataError, fetch
from common.models.llama import embed, linears, load_smollm2, logits, new_llama, through, tokenizer
from common.models.smollm2 import DATASET

PROMPT = "The capital of France is the city of"


@pytest.fixture(scope="module")
def file():
    try:
        return fetch(DATASET)
    except DataError as error:
        pytest.skip(f"the model's file can't be had here: {error}")


@pytest.fixture(scope="module")
def model(file):
    return load_smollm2()


@pytest.fixture
def small():
    return new_llama(
        torch.Generator().manual_seed(0), vocab=64, hidden=32, layers=3, heads=4, kv_heads=2
    ).eval()


def test_weights_and_logits_are_those_that_transformers_reads_from_the_file(model, file):
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs = peer.state_dict()
    for name, ours in model.state_dict().items():
        assert torch.equal(ours, theirs[name]), name
    tokens = torch.tensor([tokenizer().encode(PROMPT).ids])
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, peer(tokens).logits, rtol=1e-5, atol=1e-4)


def test_the_tokenizer_is_the_models_and_the_model_knows_the_capital_of_france(model):
    tokens = tokenizer().encode(PROMPT).ids
    with torch.inference_mode():
        likeliest = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
    assert tokenizer().decode([likeliest]) == " Paris"


def test_a_second_load_takes_less_than_three_seconds(model):
    fastest = min(_seconds_to_load() for _ in range(2))
    assert fastest < 3.0, fastest


def _seconds_to_load():
    start = time.perf_counter()
    load_smollm2()
    return time.perf_counter() - start


def test_the_first_layers_are_those_of_the_whole_model(model):
    cut = load_smollm2(layers=2)
    tokens = torch.tensor([tokenizer().encode(PROMPT).ids])
    with torch.inference_mode():
        assert torch.equal(through(cut, embed(cut, tokens)), through(model, embed(model, tokens), stop=2))


@pytest.mark.parametrize("layers", [0, 31])
def test_a_number_of_layers_that_it_does_not_have_is_refused(layers):
    with pytest.raises(ValueError, match="1 to 30"):
        load_smollm2(layers)


def test_the_three_steps_are_the_forward_pass_and_can_be_taken_from_any_block(small):
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    entering = {}
    with torch.inference_mode():
        whole = small(tokens).logits
        hidden = through(small, embed(small, tokens), before=lambda index, x: entering.__setitem__(index, x))
        torch.testing.assert_close(logits(small, hidden), whole)
        assert list(entering) == [0, 1, 2]
        for start, x in entering.items():
            torch.testing.assert_close(logits(small, through(small, x, start)), whole)


def test_a_model_of_the_same_generator_has_the_same_weights_and_one_embedding(small):
    same = new_llama(torch.Generator().manual_seed(0), vocab=64, hidden=32, layers=3, heads=4, kv_heads=2)
    other = new_llama(torch.Generator().manual_seed(1), vocab=64, hidden=32, layers=3, heads=4, kv_heads=2)
    ours = small.state_dict()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in ours.items())
    assert not torch.equal(ours["lm_head.weight"], other.state_dict()["lm_head.weight"])
    assert small.lm_head.weight is small.model.embed_tokens.weight


def test_a_new_model_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_llama(torch.Generator().manual_seed(0), vocab=64, hidden=32, layers=1)
    assert torch.equal(torch.rand(3), expected)


def test_seven_linear_layers_a_block_hold_all_weights_but_embedding_and_norms(small):
    found = linears(small)
    assert list(found)[:7] == [
        f"0.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    assert len(found) == 21
    rest = 64 * 32 + (2 * 3 + 1) * 32
    total = sum(parameter.numel() for parameter in small.parameters())
    assert sum(layer.weight.numel() for layer in found.values()) == total - rest
