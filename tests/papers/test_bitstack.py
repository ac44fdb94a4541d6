"""Decomposition against a full SVD, exact folding, files and budgets against counting, kernels, and the experiment."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.data import DataError, fetch
from common.lab.runtime import Observations, Runtime
from common.models.llama import linears, new_llama
from common.quant import packing
from common.quant.groups import round_to_nearest
from papers.bitstack import baselines, kernels
from papers.bitstack.block_files import BlockFiles, Shape, write, write_index
from papers.bitstack.config import Config
from papers.bitstack.decomposition import (
    Block,
    block_bytes,
    decompose,
    largest_singular,
    pack_signs,
    rank_without_signs,
    restored,
    signs_of,
)
from papers.bitstack.evaluation import shuffled
from papers.bitstack.experiment import run
from papers.bitstack.memory_trace import follow, free_memory, swap
from papers.bitstack.resident import Resident
from papers.bitstack.scaling import channel_scales, explicit_divisions, fold, permuted
from papers.bitstack.universal_stack import (
    Stack,
    average_order,
    from_the_bottom,
    greedy_order,
    random_order,
)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(seed: int, rows: int, columns: int) -> Tensor:
    """Weights some of whose channels are much larger than others, as scaled ones are."""
    return drawn(seed, rows, columns) * drawn(seed + 1, columns).exp() * drawn(seed + 2, rows, 1).exp()


# Decomposition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 8, 16])
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (64, 64)])
def test_subspace_iteration_is_within_one_percent_of_a_full_decomposition(
    k: int, shape: tuple[int, int]
) -> None:
    left = uneven(k, *shape)
    for block in decompose(left.clone(), k, 4):
        matrix = left.abs().double()
        values = torch.linalg.svdvals(matrix)
        least = float(values[k:].square().sum().sqrt())
        u, s, vt = largest_singular(matrix.float(), k)
        assert least <= float((matrix - (u * s) @ vt).norm()) * (1 + 1e-6)
        assert float((matrix - (u * s) @ vt).norm()) < 1.01 * least
        assert torch.allclose(s, values[:k], rtol=0.03)
        left -= restored([block])


def test_signs_are_those_of_what_is_left_and_zero_counts_as_plus() -> None:
    matrix = drawn(0, 16, 24)
    matrix[3, 5] = 0.0
    left = matrix.clone()
    for block in decompose(matrix, 2, 3):
        assert torch.equal(signs_of(block.signs), torch.where(left >= 0, 1.0, -1.0))
        assert block.left.dtype == block.right.dtype == torch.float16
        left = left - restored([block])


def test_what_is_subtracted_is_what_is_kept() -> None:
    matrix = uneven(0, 48, 64)
    blocks = list(decompose(matrix, 4, 5))
    exact = matrix.clone()
    for index in range(1, 5):
        exact = exact - restored(blocks[index - 1 : index])
        assert torch.equal(signs_of(blocks[index].signs), torch.where(exact >= 0, 1.0, -1.0))
        assert (matrix - restored(blocks[:index])).allclose(exact, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 6), blocks=st.integers(1, 5))
def test_each_block_lowers_the_error(seed: int, k: int, blocks: int) -> None:
    matrix = uneven(seed, 24, 32)
    parts = list(decompose(matrix, k, blocks))
    errors = [float(matrix.norm())]
    errors += [float((matrix - restored(parts[: i + 1])).norm()) for i in range(blocks)]
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False))


def test_blocks_that_ignore_what_came_before_make_it_worse() -> None:
    matrix = drawn(0, 32, 48)
    parts = list(decompose(matrix, 4, 3, residual=False))
    errors = [float((matrix - restored(parts[:n])).norm()) for n in (1, 2, 3)]
    assert errors[0] < errors[1] < errors[2]


def test_absolute_values_are_nearer_to_low_rank_than_the_matrix_in_equal_bytes() -> None:
    matrix = drawn(0, 256, 384)
    signed = restored(list(decompose(matrix, 4, 1)))
    plain = restored(list(decompose(matrix, 4, 1, absolute=False)))
    assert block_bytes(256, 384, 4) == pytest.approx(block_bytes(256, 384, 4, absolute=False), rel=0.06)
    assert (matrix - signed).norm() < 0.8 * (matrix - plain).norm()


def test_signs_alone_keep_the_mean_magnitude() -> None:
    matrix = drawn(0, 16, 32)
    (block,) = decompose(matrix, 0, 1)
    assert restored([block]).abs().allclose(matrix.abs().mean().expand(16, 32), rtol=2e-3)
    assert block.nbytes == 16 * 32 // 8 + 4 == block_bytes(16, 32, 0)


def test_a_block_costs_what_the_paper_says() -> None:
    # Section 4: 1 + 16 k (m + n) / (m n) bits a parameter; 1.125 at 4096 x 4096 with k = 16
    assert 8 * block_bytes(4096, 4096, 16) / 4096**2 == 1.125
    (block,) = decompose(drawn(0, 64, 96), 3, 1)
    assert block.nbytes == block_bytes(64, 96, 3) == 64 * 96 // 8 + 2 * 3 * (64 + 96)
    assert rank_without_signs(4096, 4096, 16) == 16 + 128


def test_signs_are_packed_as_the_shared_packing_does_it() -> None:
    matrix = drawn(0, 24, 40)
    packed = pack_signs(matrix)
    assert packed.flatten().tolist() == packing.pack((matrix >= 0).int(), 1).tolist()
    codes = packing.unpack(packed.flatten(), 1, matrix.numel()).view(24, 40)
    assert torch.equal(signs_of(packed), codes.float() * 2 - 1)


def test_bad_matrices_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="30 columns are no multiple of eight"):
        list(decompose(torch.zeros(4, 30), 2, 1))
    with pytest.raises(ValueError, match="has no 9 singular values"):
        list(decompose(torch.zeros(8, 16), 9, 1))
    with pytest.raises(ValueError, match="keeps at least its first one"):
        restored([])


# Scaling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_folding_leaves_the_output_as_it_was(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    model = new_llama(generator, vocab=96, hidden=64, layers=3, kv_heads=kv_heads, spread=0.2).eval()
    tokens = torch.randint(96, (3, 20), generator=generator)
    with torch.inference_mode():
        before = model(tokens).logits
    scales = channel_scales(model, tokens)
    weights = {name: layer.weight.clone() for name, layer in linears(model).items()}
    fold(model, scales)
    with torch.inference_mode():
        after = model(tokens).logits
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    assert all(not torch.equal(layer.weight, weights[name]) for name, layer in linears(model).items())
    assert explicit_divisions(model) == (0 if kv_heads == 4 else 3 * 64)


def test_scales_are_norms_over_tokens_averaged_over_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    model = new_llama(generator, vocab=50, hidden=32, layers=1).eval()
    tokens = torch.randint(50, (4, 10), generator=generator)
    block = model.model.layers[0]
    with torch.inference_mode():
        entering = block.input_layernorm(model.model.embed_tokens(tokens))  # (4, 10, 32)
    expected = entering.norm(dim=1).mean(dim=0) + 1e-3  # the repository's get_act_scale
    assert channel_scales(model, tokens)["0.q_proj"].allclose(expected, rtol=1e-5)


def test_permuted_scales_are_the_same_numbers_elsewhere() -> None:
    scales = {"0.q_proj": torch.arange(1.0, 65.0)}
    mixed = permuted(scales, torch.Generator().manual_seed(0))["0.q_proj"]
    assert not torch.equal(mixed, scales["0.q_proj"])
    assert torch.equal(mixed.sort().values, scales["0.q_proj"])


# Files, budgets, memory ---------------------------------------------------------------------------------------------


def store(
    folder: Path, k: int = 2, blocks: int = 4, packed: bool = True, absolute: bool = True
) -> BlockFiles:
    shapes = {}
    for i, (rows, columns) in enumerate([(16, 32), (32, 16), (16, 32), (24, 8)]):
        name = f"{i}.q_proj"
        shapes[name] = Shape(rows, columns, k, absolute, packed)
        assert (
            write(
                folder, name, shapes[name], decompose(uneven(i, rows, columns), k, blocks, absolute=absolute)
            )
            == blocks
        )
    write_index(folder, shapes, blocks)
    return BlockFiles(folder)


def stack_of(files: BlockFiles, order: tuple[str, ...] | None = None, grain: int = 1) -> Stack:
    nbytes = {name: shape.nbytes for name, shape in files.shapes.items()}
    chosen = tuple(files.shapes) * (files.blocks - 1) if order is None else order
    return Stack(chosen, nbytes, 1000 + sum(nbytes.values()), grain)


def same(a: Block, b: Block) -> bool:
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("signs", "left", "right"))


@pytest.mark.parametrize(
    ("k", "packed", "absolute"), [(2, True, True), (2, False, True), (2, True, False), (0, True, True)]
)
def test_a_block_read_from_disk_is_the_one_written(
    tmp_path: Path, k: int, packed: bool, absolute: bool
) -> None:
    files = store(tmp_path, k, 3, packed, absolute)
    for i, (name, shape) in enumerate(files.shapes.items()):
        parts = decompose(uneven(i, shape.rows, shape.columns), k, 3, absolute=absolute)
        assert (tmp_path / f"{name}.blocks").stat().st_size == 3 * shape.nbytes
        assert all(same(files.read(name, index), block) for index, block in enumerate(parts))


def test_missing_blocks_and_cut_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no index\.json"):
        BlockFiles(tmp_path)
    files = store(tmp_path)
    with pytest.raises(ValueError, match="has 4 blocks, so none of number 4"):
        files.read("0.q_proj", 4)
    whole = (tmp_path / "1.q_proj.blocks").read_bytes()
    (tmp_path / "1.q_proj.blocks").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="block 3 has"):
        files.read("1.q_proj", 3)


def test_every_budget_holds_the_longest_prefix_that_fits(tmp_path: Path) -> None:
    files = store(tmp_path)
    stack = stack_of(files, random_order([(n,) for n in files.shapes], 4, np.random.default_rng(0)))
    resident = Resident(files)
    rng = np.random.default_rng(1)
    rest = stack.base - sum(stack.nbytes.values())
    for budget in rng.uniform(stack.base, stack.memory()[-1] + 500, 60):
        before = rest + resident.nbytes
        move = resident.follow(stack, budget)
        used = rest + resident.nbytes
        prefix = sum(resident.counts().values()) - len(files.shapes)
        assert used == stack.memory()[prefix] <= budget
        assert prefix == len(stack.order) or stack.memory()[prefix + 1] > budget
        assert used - before == move.bytes_read - (before + move.bytes_read - used)
        assert move.bytes_read == 0 or move.dropped == 0  # one prefix contains the other
    with pytest.raises(ValueError, match="do not hold one block everywhere"):
        resident.follow(stack, stack.base - 1)


def test_the_weights_after_any_moves_are_those_of_a_fresh_load(tmp_path: Path) -> None:
    files = store(tmp_path)
    layers = {n: torch.nn.Linear(s.columns, s.rows, bias=False) for n, s in files.shapes.items()}
    resident, stack = Resident(files), stack_of(files)
    for prefix in (12, 3, 7, 0, 9):
        resident.follow(stack, stack.memory()[prefix])
        resident.restore_into(layers)
    counts = stack.counts(9)
    for name, layer in layers.items():
        expected = restored([files.read(name, i) for i in range(counts[name])])
        assert torch.equal(layer.weight, expected)
    with pytest.raises(ValueError, match="keeps its first block"):
        [resident.pop("0.q_proj") for _ in range(5)]


def test_whole_levels_are_loaded_together_or_not_at_all(tmp_path: Path) -> None:
    files = store(tmp_path)
    fine, coarse = stack_of(files), stack_of(files, grain=4)
    assert coarse.memory() == fine.memory()[::4]
    assert coarse.fitting(fine.memory()[7]) == 4
    assert coarse.fitting(fine.memory()[8]) == 8


def test_shuffled_blocks_are_a_permutation_among_equal_shapes_and_spare_the_first(tmp_path: Path) -> None:
    files = store(tmp_path)
    other = shuffled(files, 1)
    for index in (1, 2, 3):
        chosen = [other(name, index) for name in files.shapes]
        assert sorted(chosen) == sorted(files.shapes)
        assert all(files.shapes[a] == files.shapes[b] for a, b in zip(files.shapes, chosen, strict=True))
    assert same(Resident(files, other).blocks["2.q_proj"][0], files.read("2.q_proj", 0))


def test_following_memory_reads_exactly_the_blocks_that_come(tmp_path: Path) -> None:
    files = store(tmp_path)
    stack = stack_of(files)
    sizes = stack.memory()
    followed = follow(
        Resident(files), stack, np.array([sizes[2], sizes[5] + 1, sizes[5], sizes[1], sizes[4]])
    )
    assert followed.used.tolist() == [sizes[2], sizes[5], sizes[5], sizes[1], sizes[4]]
    assert followed.bytes_read() == (sizes[5] - sizes[2]) + (sizes[4] - sizes[1])


def test_swapping_reads_a_whole_model_whenever_another_one_fits() -> None:
    used, read = swap([100, 200, 300], 50, np.array([150.0, 210, 290, 310, 120, 90, 110]))
    assert used.tolist() == [100, 200, 200, 300, 100, 0, 100]
    assert read == (200 - 50) + (300 - 50) + (100 - 50) + (100 - 50)


def test_free_memory_stays_within_its_bounds() -> None:
    free = free_memory(np.random.default_rng(0), 500, 10.0, 20.0, 7.0)
    assert free.min() >= 10 and free.max() <= 20 and free.std() > 1


# The stack ----------------------------------------------------------------------------------------------------------

GROUPS = (("a", "b"), ("c",), ("d",))


def test_average_goes_level_by_level_and_fills_what_is_no_number() -> None:
    first = {GROUPS[0]: 5.0, GROUPS[1]: math.nan, GROUPS[2]: 4.0}
    second = {GROUPS[0]: 3.0, GROUPS[1]: 1.0, GROUPS[2]: 2.0}
    # c stands at 1.0 + 5.0 in the first level: the last there, the first in the second
    assert average_order([first, second]) == ("d", "a", "b", "c", "c", "d", "a", "b")


def test_greedy_finds_the_best_order_where_gains_add_up() -> None:
    gains = {"a": [9.0, 1.0], "b": [0.0, 0.0], "c": [5.0, 4.0], "d": [3.0, 2.0]}

    def loss(counts: dict[str, int]) -> float:
        return -sum(sum(gains[name][: count - 1]) for name, count in counts.items())

    assert greedy_order(GROUPS, 3, loss) == ("a", "b", "c", "c", "d", "d", "a", "b")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(2, 6), within=st.booleans())
def test_every_order_has_every_block_once(seed: int, blocks: int, within: bool) -> None:
    order = random_order(GROUPS, blocks, np.random.default_rng(seed), within)
    assert all(order.count(name) == blocks - 1 for name in "abcd")
    stack = Stack(order, {"a": 3, "b": 3, "c": 5, "d": 7}, 18)
    assert stack.counts(len(order)) == dict.fromkeys("abcd", blocks)
    assert stack.memory()[-1] == 18 * blocks
    if within:
        assert all(sorted(order[i : i + 4]) == list("abcd") for i in range(0, len(order), 4))
        assert len(from_the_bottom(order)) == len(order)


def test_a_stack_from_its_wrong_end_takes_the_least_important_matrix_whole() -> None:
    assert from_the_bottom(("a", "b", "c", "b", "a", "c")) == ("c", "c", "a", "a", "b", "b")


# Rivals and kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 64), (4, 64), (3, 0)])
def test_a_rivals_bytes_are_those_of_its_packed_codes(bits: int, group: int) -> None:
    made = round_to_nearest(drawn(0, 48, 128), bits, group)
    counted = len(packing.pack(made.codes, bits)) + made.scales.nbytes + len(packing.pack(made.zeros, bits))
    assert baselines.packed_bytes(48, 128, bits, group) == counted


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_rivals_change_outputs_less_than_round_to_nearest(method: str) -> None:
    def tried(name: str) -> float:
        generator = torch.Generator().manual_seed(0)
        model = new_llama(
            generator, vocab=80, hidden=64, layers=2, kv_heads=2, intermediate=192, spread=0.3
        ).eval()
        tokens = torch.randint(80, (4, 64), generator=generator)
        with torch.inference_mode():
            before = model(tokens).logits
            baselines.quantise(model, name, 3, 32, tokens)
            return float((model(tokens).logits - before).norm())

    assert tried(method) < tried("rtn")


def test_awq_favours_the_channels_with_large_inputs() -> None:
    weight, inputs = drawn(0, 32, 64), drawn(1, 200, 64)
    inputs[:, :4] *= 30
    rounded, exponent = baselines.awq(weight, inputs.abs().mean(dim=0), inputs, 3, 64)
    plain, zero = baselines.awq(weight, inputs.abs().mean(dim=0), inputs, 3, 64, (0.0,))
    assert exponent > 0 == zero
    assert (inputs @ (rounded - weight).T).norm() < 0.8 * (inputs @ (plain - weight).T).norm()


def test_nf4_is_that_of_bitsandbytes_and_counts_its_scales() -> None:
    model = new_llama(
        torch.Generator().manual_seed(0), vocab=40, hidden=64, layers=1, intermediate=128
    ).eval()
    elements = sum(layer.weight.numel() for layer in linears(model).values())
    assert baselines.quantise(model, "nf4", 4, 64, torch.zeros(1, 4).long()) == elements // 2 + 4 * (
        elements // 64
    )
    values = linears(model)["0.q_proj"].weight.view(-1, 64)
    assert all(len(row.unique()) <= 16 for row in values)


def test_unknown_rivals_are_refused() -> None:
    model = new_llama(torch.Generator().manual_seed(0), vocab=40, hidden=64, layers=1)
    with pytest.raises(ValueError, match="unknown method 'squeeze'; one of rtn"):
        baselines.quantise(model, "squeeze", 4, 64, torch.zeros(1, 4).long())
    with pytest.raises(ValueError, match="NF4 has 4 bits"):
        baselines.quantise(model, "nf4", 3, 64, torch.zeros(1, 4).long())


@pytest.mark.parametrize(("rows", "columns", "k", "blocks"), [(32, 64, 4, 3), (17, 40, 6, 1), (8, 8, 1, 5)])
def test_every_kernel_restores_the_sum_of_the_blocks(rows: int, columns: int, k: int, blocks: int) -> None:
    made = kernels.random_blocks(np.random.default_rng(0), rows, columns, k, blocks)
    signs, left, right = (torch.from_numpy(part) for part in made)
    expected = restored([Block(*parts) for parts in zip(signs, left, right, strict=True)]).numpy()
    assert kernels.plain_numpy(*made) == pytest.approx(expected, abs=1e-4)
    for run_torch in (kernels.plain_torch, kernels.batched_torch):
        assert run_torch(signs, left.float(), right.float()).numpy() == pytest.approx(expected, abs=1e-4)
    pytest.importorskip("numba")
    assert kernels.fused_numba(*made) == pytest.approx(expected, abs=1e-4)


def test_what_a_gpu_would_time_runs_on_a_cpu() -> None:
    from papers.bitstack.measurements import batched_on

    seen = Observations()
    batched_on(Config(kernel=[64, 64, 4, 3], kernel_rounds=1), Runtime((0,)), seen, 0)
    assert seen.values("batched_gain_gpu")[0] > 0


# The experiment -----------------------------------------------------------------------------------------------------

TINY = Config(
    blocks=2, layers=1, calibration_windows=1, gptq_windows=2, calibration_tokens=32, sort_tokens=16,
    test_tokens=24, budgets=5,
    rivals=["rtn-2-64", "gptq-3-64", "nf4-4-64"], levels=[2], greedy_layers=1, random_orders=1, kernel_rounds=0,
    ticks=5,
)  # fmt: skip


def test_two_runs_agree_but_for_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    try:
        fetch("smollm2-135m-gguf")
        fetch("wikitext2-valid")
        fetch("wikitext2-test")
    except DataError as error:
        pytest.skip(str(error))
    from papers.bitstack import kept, study

    found = []
    for turn in range(2):
        place = tmp_path / str(turn)
        monkeypatch.setattr(
            study.kept, "place_of", lambda name, parts, place=place: place / kept.key_of(name, parts)
        )
        monkeypatch.setattr(study, "_done", {})
        seen = run(TINY, Runtime((0,), workers=1))
        found.append([row for row in seen if row.metric != "load_ms"])
    assert found[0] == found[1]
    assert {"orders_rtn_2", "orders_gptq_3", "ratio_nf4", "scaling_gain", "greedy_gain", "sorting_gain"} <= {
        row.metric for row in found[0]
    }
