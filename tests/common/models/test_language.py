"""Perplexity, multiple choice, texts and capture, against closed forms on models of known logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.capture import Channels, Grams, watching
from common.models.choices import Choice, accuracy, ag_news, picked, sst2
from common.models.perplexity import from_losses, perplexity, token_losses, window_losses, windows
from common.models.texts import encoded, learn_vocabulary, random_windows

TEXT = "the cat sat on the mat. the dog sat on the log.\n" * 40 + "a naïve café\n"


def uniform(tokens):
    return torch.zeros(*tokens.shape, 11)


def bigram(tokens):
    """Logits that depend on the token before alone, so that no window's length matters."""
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(3))
    return table[tokens]


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity():
    cut = windows(torch.arange(40) % 11, 8)
    assert perplexity(uniform, cut, batch=3) == pytest.approx(11)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(9, 40), st.integers(1, 4))
def test_windows_that_overlap_score_each_token_once(context, stride, length, batch):
    stride = min(stride, context)
    tokens = torch.randint(11, (length,), generator=torch.Generator().manual_seed(length))
    cut = windows(tokens, context, stride)
    covered = context + (len(cut.tokens) - 1) * stride
    sums, counts = window_losses(bigram, cut, batch)
    if stride < context:
        assert int(counts.sum()) == covered - 1
        every = token_losses(bigram(tokens[None, :covered]), tokens[None, :covered]).double()
        assert float(sums.sum()) == pytest.approx(float(every.sum()), rel=1e-5)
    else:
        assert int(counts.sum()) == len(cut.tokens) * (context - 1)
    one_by_one, _ = window_losses(bigram, cut, batch=1)
    torch.testing.assert_close(sums, one_by_one)


def test_perplexity_weighs_tokens_and_not_windows():
    assert from_losses(torch.tensor([2.0, 30.0]), torch.tensor([1, 9])) == pytest.approx(math.exp(3.2))
    assert from_losses(torch.tensor([9000.0]), torch.tensor([9])) == math.inf


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(5, 8, None), (20, 8, 9), (20, 8, 0), (5, 1, None)]
)
def test_windows_that_cannot_be_cut_are_refused(length, context, stride):
    with pytest.raises(ValueError, match=r"window of|stride lies"):
        windows(torch.zeros(length, dtype=torch.int64), context, stride)


def test_losses_equal_the_log_likelihood_by_hand():
    tokens = torch.tensor([[1, 4, 2]])
    logits = bigram(tokens)
    chosen = [float(logits[0, i].log_softmax(0)[token]) for i, token in enumerate((4, 2))]
    torch.testing.assert_close(token_losses(logits, tokens), -torch.tensor([chosen]))


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text):
        return type("Encoded", (), {"ids": [ord(letter) - 97 for letter in text]})()


def test_the_likeliest_option_is_picked_by_the_sum_over_its_tokens():
    def model(tokens):
        return bigram(tokens % 11)

    options = ("bc", "k", "dae")
    scores = []
    for option in options:
        ids = [0, *Letters().encode(option).ids]
        likely = model(torch.tensor([ids]))[0].log_softmax(-1)
        scores.append(sum(float(likely[i, ids[i + 1]]) for i in range(len(ids) - 1)))
    choice = Choice("fga", options, 0)
    assert picked(model, Letters(), [choice]) == [scores.index(max(scores))]
    assert picked(model, Letters(), [choice], longest=4) == [scores.index(max(scores))], (
        "only its end matters"
    )


def test_accuracy_is_a_share_and_refuses_missing_answers():
    choices = [Choice("", ("a", "b"), 0), Choice("", ("a", "b"), 1)]
    assert accuracy([0, 0], choices) == 0.5
    with pytest.raises(ValueError, match="1 answers to 2 choices"):
        accuracy([0], choices)


def test_files_of_questions_are_read_with_their_answers(tmp_path):
    (tmp_path / "sst2.tsv").write_text("a fine film\t1\nso dull\t0\n")
    (one, other) = sst2(tmp_path / "sst2.tsv")
    assert (one.options[one.answer], other.options[other.answer]) == (" positive", " negative")
    assert "a fine film" in one.prompt
    (tmp_path / "news.csv").write_text('"2","A, title","He said ""no""."\n')
    (news,) = ag_news(tmp_path / "news.csv")
    assert news.options[news.answer] == " sports" and 'A, title He said "no".' in news.prompt


def test_a_learnt_vocabulary_has_its_size_and_loses_nothing():
    made = learn_vocabulary(TEXT, 275)
    assert made.get_vocab_size() == 275
    assert made.decode(made.encode(TEXT).ids) == TEXT
    assert made.decode(made.encode("unseen: ß€").ids) == "unseen: ß€"
    assert len(made.encode(" the").ids) == 1
    assert learn_vocabulary(TEXT, 275).to_str() == made.to_str()


def test_a_vocabulary_larger_than_the_text_yields_is_refused():
    with pytest.raises(ValueError, match="not 100000"):
        learn_vocabulary(TEXT, 100_000)


def test_a_file_is_encoded_whole_or_in_part(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    made = learn_vocabulary(TEXT, 275)
    assert made.decode(encoded(file, made).tolist()) == TEXT
    assert made.decode(encoded(file, made, 11).tolist()) == TEXT[:11]


def test_random_windows_are_parts_of_the_text():
    tokens = torch.arange(50)
    drawn = random_windows(tokens, 7, 200, np.random.default_rng(0))
    assert drawn.shape == (200, 7)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(7).expand(200, 7))
    assert (int(drawn.min()), int(drawn.max())) == (0, 49), "the first and the last token are reached"
    with pytest.raises(ValueError, match="window of 51"):
        random_windows(tokens, 51, 1, np.random.default_rng(0))


def test_what_enters_a_layer_is_summed_up_as_it_passes():
    layer = torch.nn.Linear(6, 2)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 5, 6, generator=generator) for _ in range(3)]
    rows = torch.cat(batches).reshape(-1, 6)
    for sums in (Channels(), Grams()):
        with watching({"layer": layer}, sums):
            for batch in batches:
                layer(batch)
        layer(batches[0])  # outside the block nothing is seen
        assert sums.tokens["layer"] == 30
        if isinstance(sums, Channels):
            torch.testing.assert_close(sums.root_mean_square("layer"), rows.double().square().mean(0).sqrt())
            torch.testing.assert_close(sums.largest["layer"], rows.double().abs().amax(0))
            torch.testing.assert_close(sums.magnitudes["layer"], rows.double().abs().sum(0))
        else:
            torch.testing.assert_close(sums.sums["layer"], rows.T @ rows)


def test_hooks_are_gone_after_an_error():
    layer = torch.nn.Linear(2, 2)
    seen = []
    with pytest.raises(RuntimeError), watching({"layer": layer}, lambda name, _: seen.append(name)):
        layer(torch.zeros(1, 2))
        raise RuntimeError
    layer(torch.zeros(1, 2))
    assert seen == ["layer"]
