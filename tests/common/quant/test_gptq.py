"""GPTQ against round to nearest, its own closed form for two columns, and exhaustive search."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.quant.gptq import gptq
from common.quant.groups import restored, round_to_nearest


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int, tokens: int, columns: int) -> Tensor:
    """Inputs whose channels depend on each other, as those of a language model do."""
    return drawn(seed, tokens, columns) @ (torch.eye(columns) + 0.3 * drawn(seed + 1, columns, columns))


def output_error(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (weight - rounded).T).norm())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(1, 8), group=st.sampled_from([0, 8, 16]))
def test_inputs_that_do_not_depend_on_each_other_leave_round_to_nearest(
    seed: int, bits: int, group: int
) -> None:
    weight = drawn(seed, 5, 48)
    spread = torch.diag(drawn(seed + 1, 48).square() + 0.1)
    ours, plain = gptq(weight, spread, bits, group), round_to_nearest(weight, bits, group)
    assert torch.equal(ours.codes, plain.codes)
    assert torch.equal(ours.scales, plain.scales)
    assert torch.equal(ours.zeros, plain.zeros)


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 64), (4, 64), (3, 0), (2, 32)])
def test_outputs_change_less_than_under_round_to_nearest(bits: int, group: int) -> None:
    weight, inputs = drawn(0, 40, 192), correlated(1, 500, 192)
    ours = restored(gptq(weight, inputs.T @ inputs, bits, group))
    plain = restored(round_to_nearest(weight, bits, group))
    assert output_error(weight, ours, inputs) < 0.9 * output_error(weight, plain, inputs)


def test_the_second_of_two_columns_makes_up_for_the_first() -> None:
    # With G = [[a, b], [b, c]] the best second weight after an error e of the first is w2 + e b / c
    weight = torch.tensor([[0.37, -0.9, 0.0, 1.0]])  # the last two fix the scale of the row
    gram = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    gram[0, 1] = gram[1, 0] = 1.5
    found = gptq(weight, gram, 2, damping=0.0)
    plain = round_to_nearest(weight, 2)
    scale, zero = float(plain.scales), float(plain.zeros)

    def nearest(value: float) -> float:
        return min(max(round(value / scale) + zero, 0), 3)

    first = nearest(0.37)
    error = 0.37 - (first - zero) * scale
    assert found.codes[0, :2].tolist() == [first, nearest(-0.9 + error * 1.5 / 3.0)]


def test_no_codes_are_better_than_the_best_and_on_the_whole_it_comes_near_them() -> None:
    choices = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float32)
    best = ours = plain = 0.0
    for seed in range(30):
        inputs, weight = correlated(seed, 60, 4), drawn(seed + 2, 6, 4)
        found = gptq(weight, inputs.T @ inputs, 2, damping=0.0)
        values = (choices - found.zeros.float()[:, None]) * found.scales.float()[:, None]
        changes = (values - weight[:, None]) @ inputs.T  # (rows, choices, tokens)
        least = float(changes.square().sum(dim=2).amin(dim=1).sum())
        error = output_error(weight, restored(found), inputs) ** 2
        assert error >= least * (1 - 1e-5)
        best, ours = best + least, ours + error
        plain += output_error(weight, restored(round_to_nearest(weight, 2)), inputs) ** 2
    assert ours - best < 0.6 * (plain - best)


def test_rows_do_not_depend_on_each_other() -> None:
    weight, inputs = drawn(0, 12, 64), correlated(1, 100, 64)
    gram = inputs.T @ inputs
    whole = gptq(weight, gram, 3, 32)
    parts = [gptq(part, gram, 3, 32) for part in weight.split(4)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))


def test_more_inputs_than_tokens_and_inputs_never_seen_are_no_error() -> None:
    weight, inputs = drawn(0, 8, 64), correlated(1, 20, 64)
    inputs[:, 7] = 0.0
    found = restored(gptq(weight, inputs.T @ inputs, 4, 64))
    assert torch.isfinite(found).all()
    assert (found[:, 7] == 0).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="gram matrix of 8 x 8, not"):
        gptq(torch.zeros(2, 8), torch.eye(4), 4)
    with pytest.raises(ValueError, match="no multiple of a group of 5"):
        gptq(torch.zeros(2, 8), torch.eye(8), 4, group=5)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        gptq(torch.zeros(2, 8), torch.eye(8), 9)
