"""The pretrained model in our decoder is the one that transformers loads from the same file."""

import logging

import pytest
import torch

from common.data import DataError, fetch
from common.models.decoder import KVCache
from common.models.smollm2 import CONFIG, DATASET, load_smollm2

PROMPT = (504, 3575, 282, 4649, 314, 260, 2240, 282)  # "The capital of France is the city of"
PARIS = 7042  # the token " Paris"


@pytest.fixture(scope="module")
def file():
    try:
        return fetch(DATASET)
    except DataError as error:
        pytest.skip(f"the model's file can't be had here: {error}")


@pytest.fixture(scope="module")
def model(file):
    return load_smollm2(positions=128)


def logits(model, tokens, cache):
    return model.head(model.hidden([torch.tensor(tokens)], [cache]))


def test_logits_equal_those_of_transformers(model, file):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.inference_mode():
        theirs = peer(torch.tensor([PROMPT])).logits[0]
    ours = logits(model, PROMPT, KVCache(model.config, 16))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_it_knows_the_capital_of_france(model):
    every = logits(model, PROMPT, KVCache(model.config, 16)).argmax(-1).tolist()
    assert every[4] == every[-1] == PARIS, "after 'The capital of France is' and after '... the city of'"


def test_chunks_of_a_prompt_give_the_logits_of_the_whole(model):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CONFIG.vocab, (96,), generator=generator).tolist()
    whole = logits(model, tokens, KVCache(model.config, 96))
    cache = KVCache(model.config, 96)
    pieces = torch.cat([logits(model, tokens[start : start + 40], cache) for start in (0, 40, 80)])
    torch.testing.assert_close(pieces, whole, rtol=1e-3, atol=1e-3)


def test_it_loads_within_three_seconds_once_it_was_unpacked(model):
    import time

    start = time.process_time()
    load_smollm2(positions=16)
    assert time.process_time() - start < 3
