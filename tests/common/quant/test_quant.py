"""Code books and blocks against bitsandbytes, shared exponents against exact rationals, packing against integers."""

import math
from fractions import Fraction

import bitsandbytes.functional as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quant.blockwise import WHOLE, dequantise, quantise
from common.quant.codebooks import dynamic, linear, normal_float4
from common.quant.errors import relative_error, signal_to_noise_db
from common.quant.groups import WHOLE_ROW, restored, round_to_nearest
from common.quant.packing import pack, unpack
from common.quant.shared_exponent import decode, encode

BOOKS = {
    "signed": dynamic(),
    "unsigned": dynamic(False),
    "linear": linear(),
    "linear, unsigned": linear(False),
}


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_books_are_bitsandbytes_own(signed):
    assert torch.equal(dynamic(signed), reference.create_dynamic_map(signed=signed))
    assert torch.equal(linear(signed), reference.create_linear_map(signed=signed))
    assert len(set(dynamic(signed).tolist())) == 256


@pytest.mark.parametrize("bits", range(2, 9))
def test_linear_code_books_ascend_and_hold_zero(bits):
    for signed in (True, False):
        code = linear(signed, bits)
        assert len(code) == 2**bits and bool((code[1:] >= code[:-1]).all()) and 0.0 in code


def test_nf4_is_bitsandbytes_own():
    assert torch.equal(normal_float4(), reference.get_4bit_type("nf4", device="cpu"))


def adversarial():
    """Tensors on which quantisers go wrong: outliers, zeros, one element, a short last block, seven decades."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(5000, generator=generator) * 10 ** torch.empty(5000).uniform_(
        -7, 0, generator=generator
    )
    outlier = torch.randn(4097, generator=generator)
    outlier[17] = 1e6
    return [torch.randn(20_000, generator=generator), spread, outlier, torch.zeros(300), torch.tensor([-3.0])]


@pytest.mark.parametrize("block", [64, 256, 2048])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_bitsandbytes_own_to_the_width_of_its_table(block, signed):
    """bitsandbytes' CPU kernel looks codes up in a table of 2^16 entries: it is off by as much as an entry is wide.

    Between the smallest codes, which lie closer together, it may miss by several.
    """
    code = dynamic(signed)
    for tensor in adversarial():
        tensor = tensor if signed else tensor.abs()
        ours = quantise(tensor, code, block)
        codes, state = reference.quantize_blockwise(tensor.clone(), code=code.clone(), blocksize=block)
        assert torch.equal(ours.scales, state.absmax)
        scales = ours.scales.repeat_interleave(block)[: len(tensor)]
        scaled = tensor / torch.where(scales > 0, scales, 1.0)
        error = (code[ours.codes.long()] - scaled).abs()
        theirs = (code[codes.long()] - scaled).abs()
        assert torch.all(error <= theirs + 1e-9)
        assert torch.all((theirs <= error + 2.0**-14) | (scales == 0))  # where all is zero any code is right
        ordinary = scaled.abs() > 0.01
        assert (ours.codes != codes)[ordinary].float().mean() < 0.01 or not ordinary.any()


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    book=st.sampled_from(sorted(BOOKS)),
    block=st.sampled_from([WHOLE, 1, 7, 64]),
)
@settings(max_examples=150, deadline=None)
def test_every_code_is_the_nearest_and_the_largest_of_a_block_is_exact(values, book, block):
    code, tensor = BOOKS[book], torch.tensor(values)
    if "unsigned" in book:
        tensor = tensor.abs()
    found = quantise(tensor, code, block)
    restored_ = dequantise(found, code)
    size = block or len(values)
    for first in range(0, len(values), size):
        part, back = tensor[first : first + size], restored_[first : first + size]
        scale = part.abs().max()
        error = (part - back).abs()
        nearest = (part[:, None] / (scale if scale else 1.0) - code[None]).abs().amin(dim=1) * scale
        assert torch.all(error <= nearest + 1e-6 * scale)
        if part.max() == scale:
            assert back[part.argmax()] == scale


@pytest.mark.parametrize("book", sorted(BOOKS))
def test_looking_codes_up_by_first_bits_is_searching_all_bounds(book):
    """At the bounds, next to them, at denormals and signed zeros, and at random."""
    code = BOOKS[book]
    bounds = (code[1:] + code[:-1]) / 2
    beside = [torch.nextafter(bounds, torch.full_like(bounds, far)) for far in (-9.0, 9.0)]
    generator = torch.Generator().manual_seed(2)
    spread = torch.randn(40_000, generator=generator).clamp(-1, 1)
    spread *= 10 ** torch.empty(40_000).uniform_(-45, 0, generator=generator)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0])
    scaled = torch.cat([spread, bounds, *beside, code, special])
    found = quantise(scaled, code, WHOLE)
    assert float(found.scales) == 1.0
    assert torch.equal(found.codes.long(), torch.bucketize(scaled, bounds))


def test_an_outlier_costs_its_own_block_alone():
    tensor = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    spoilt = tensor.clone()
    spoilt[5] = 1e4
    code = linear()
    errors = [
        (dequantise(quantise(spoilt, code, block), code) - spoilt).abs()[2048:].mean()
        for block in (WHOLE, 2048)
    ]
    clean = (dequantise(quantise(tensor, code, 2048), code) - tensor).abs()[2048:].mean()
    assert errors[1] == clean and errors[0] > 50 * clean


def test_the_bytes_are_those_of_the_tensors():
    found = quantise(torch.randn(100_000), dynamic(), 2048)
    assert found.nbytes == 100_000 + 4 * 49


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_no_code_stands_for_is_refused(wrong):
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise(torch.tensor([1.0, wrong]), dynamic())
    with pytest.raises(ValueError, match="ascending"):
        quantise(torch.ones(3), dynamic().flip(0))


@given(bits=st.integers(1, 16), data=st.data())
@settings(max_examples=100, deadline=None)
def test_packed_bits_are_the_digits_of_one_large_integer(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    digits = "".join(format(code, f"0{bits}b") for code in codes)
    assert len(packed) == -(-len(digits) // 8)
    assert bytes(packed.tolist()) == bytes(
        int(digits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(digits), 8)
    )
    assert unpack(packed, bits, len(codes)).tolist() == codes


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="between 0 and 7"):
        pack(torch.tensor([8]), 3)
    with pytest.raises(ValueError, match="hold no 3 codes"):
        unpack(torch.zeros(1, dtype=torch.uint8), 4, 3)


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
    bits=st.integers(2, 8),
    block=st.sampled_from([1, 2, 4, 8]),
    clips=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_shared_exponents_against_exact_rationals(values, bits, block, clips):
    shared = encode(torch.tensor(values), bits, block, clips)
    found = decode(shared).tolist()
    for first in range(0, 8, block):
        part = [Fraction(value) for value in torch.tensor(values[first : first + block]).tolist()]
        largest = max(abs(value) for value in part)
        if largest < Fraction(2) ** -100:
            assert all(value == 0.0 or abs(value) <= 2.0**-90 for value in found[first : first + block])
            continue
        exponent = 0
        while Fraction(2) ** (exponent + 1) <= largest:
            exponent += 1
        while Fraction(2) ** exponent > largest:
            exponent -= 1
        step = Fraction(2) ** (exponent - (bits - 2) + (not clips))
        top = 2 ** (bits - 1)
        for value, back in zip(part, found[first : first + block], strict=True):
            expected = max(-top, min(top - 1, round(value / step)))  # Python rounds ties to even
            assert Fraction(back) == expected * step


def test_one_outlier_crushes_its_neighbours_in_a_block():
    tensor = torch.tensor([[1.0, 1.25, -1.5, 0.75, 64.0, 1.0, 1.0, 1.0]])
    assert torch.equal(decode(encode(tensor, 4, 4))[0, :4], tensor[0, :4])
    assert torch.equal(decode(encode(tensor, 4, 4))[0, 5:], torch.zeros(3))


@pytest.mark.parametrize("group", [WHOLE_ROW, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_to_nearest_errs_by_half_a_step_and_keeps_zero(bits, group):
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(2))
    weight[3] = weight[3].abs() + 1
    weight[4, 5] = 0.0
    found = round_to_nearest(weight, bits, group)
    back = restored(found)
    steps = found.scales.float().repeat_interleave(64 // found.scales.shape[1], dim=1)
    assert torch.all((weight - back).abs() <= 1.01 * steps)  # half for the code, half for the zero point
    assert back[4, 5] == 0.0
    assert int(found.codes.max()) <= 2**bits - 1


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="no multiple"):
        round_to_nearest(torch.ones(2, 10), 4, 4)
    with pytest.raises(ValueError, match="no multiple"):
        encode(torch.ones(2, 10), 4, 4)


def test_errors_are_relative_and_in_decibels():
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(exact, torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert signal_to_noise_db(exact, torch.tensor([3.0, 4.5])) == pytest.approx(20.0)
    assert relative_error(exact, exact) == 0 and signal_to_noise_db(exact, exact) == math.inf
    assert (
        relative_error(torch.zeros(2), exact) == math.inf
        and relative_error(torch.zeros(2), torch.zeros(2)) == 0
    )
