"""FoldGPT: removal, sharing, gates, groups, healing and baselines against closed forms and transformers."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.runtime import Runtime
from common.models.llama import linears, logits, new_llama
from common.models.perplexity import token_losses
from common.training.language import language_batches
from papers.foldgpt.baselines import (
    block_influence,
    greedy_removals,
    laco,
    magnitudes,
    ranked,
    single_removals,
)
from papers.foldgpt.config import Config
from papers.foldgpt.depth_ladder import rung
from papers.foldgpt.experiment import run
from papers.foldgpt.gates import Gated, Pressure, block_flops, gate, train_gates
from papers.foldgpt.grouping import best_groups, folded, scattered
from papers.foldgpt.healing import Recipe, adapt, divergence, heal, rms, teach
from papers.foldgpt.latency import paired_decoding
from papers.foldgpt.similarity import cosines, mutual, states
from papers.foldgpt.study import retained
from papers.foldgpt.tasks import Outcome, forget
from papers.foldgpt.virtual_blocks import Fold, fold, size_of, unfolded, unique_bytes, without

PAIRS = Fold(6, (0, 1, 2, 3, 5), (0, 1, 1, 3, 3))


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    made = new_llama(
        torch.Generator().manual_seed(0), vocab=96, hidden=32, layers=6, heads=4, kv_heads=2, spread=0.2
    )
    with torch.no_grad():
        for block in made.model.layers:  # gains that tell the blocks apart
            block.input_layernorm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(96, (3, 16), generator=torch.Generator().manual_seed(2))


# Virtual blocks -----------------------------------------------------------------------------------------------------


def test_nothing_folded_is_the_original(model, tokens) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(fold(model, unfolded(6))(tokens).logits, model(tokens).logits)


def test_shared_blocks_are_one_storage_and_copies_compute_the_same(model, tokens) -> None:  # type: ignore[no-untyped-def]
    shared, copied = fold(model, PAIRS), fold(model, PAIRS, copies=True)
    layers = shared.model.layers
    assert (
        layers[1].mlp.up_proj.weight
        is layers[2].mlp.up_proj.weight
        is model.model.layers[1].mlp.up_proj.weight
    )
    assert layers[1].input_layernorm.weight is not layers[2].input_layernorm.weight
    assert torch.equal(shared(tokens).logits, copied(tokens).logits)
    size = size_of(model, PAIRS)
    assert unique_bytes(layers.parameters()) == 4 * (size.matrices + size.norms)
    assert unique_bytes(copied.model.layers.parameters()) == 4 * (5 * size.matrices // 3 + size.norms)


def test_a_child_runs_its_parents_matrices_behind_its_own_norms(model, tokens) -> None:  # type: ignore[no-untyped-def]
    shared = fold(model, PAIRS)
    by_hand = fold(model, without([4], 6), copies=True)
    for child, parent in ((2, 1), (4, 3)):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            linears(by_hand)[f"{child}.{name}"].weight = linears(by_hand)[f"{parent}.{name}"].weight
    torch.testing.assert_close(shared(tokens).logits, by_hand(tokens).logits)


def test_generation_with_a_cache_of_one_entry_a_virtual_block_equals_that_without(model, tokens) -> None:  # type: ignore[no-untyped-def]
    from transformers import DynamicCache

    shared = fold(model, PAIRS)
    cache = DynamicCache(config=shared.config)
    with torch.inference_mode():
        shared(tokens[:, :10], past_key_values=cache, use_cache=True)
        last = shared(tokens[:, 10:], past_key_values=cache, use_cache=True).logits
    assert len(cache.layers) == len(PAIRS.kept)
    assert not torch.equal(cache.layers[1].keys, cache.layers[2].keys)  # children have keys of their own
    torch.testing.assert_close(last, shared(tokens).logits[:, 10:], rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        shared.generate(tokens, use_cache=True, **options),
        shared.generate(tokens, use_cache=False, **options),
    )


def test_rates_and_sizes_are_counted_once(model) -> None:  # type: ignore[no-untyped-def]
    assert PAIRS.removal_rate == pytest.approx(1 / 6)
    assert PAIRS.sharing_rate == pytest.approx(2 / 6)
    assert PAIRS.shared == (1, 2, 3, 4)
    whole, small = size_of(model, unfolded(6)), size_of(model, PAIRS, rank=2)
    assert small.matrices * 2 == whole.matrices
    assert small.adapters == 4 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 85))
    assert 0 < small.compression(whole, embedding=True) < small.compression(whole) < 0.5


@pytest.mark.parametrize(
    ("kept", "parents"), [((1, 0), (1, 0)), ((0, 9), (0, 9)), ((0, 1), (0,)), ((0, 2), (0, 1)), ((), ())]
)
def test_impossible_plans_are_refused(kept: tuple[int, ...], parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"kept|parent"):
        Fold(6, kept, parents)


def test_wrong_numbers_are_named(model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\[7\]"):
        without([7], 6)
    with pytest.raises(ValueError, match="a plan for 4 blocks"):
        fold(model, unfolded(4))
    with pytest.raises(ValueError, match="not 6"):
        train_gates(model, language_batches(torch.arange(96), 1, 8, 0), 2, 6, 0.1)
    with pytest.raises(ValueError, match="closest"):
        folded(6, (), 1, np.ones((6, 6)).tolist(), parent="last")


# Similarity and scores ----------------------------------------------------------------------------------------------


def test_the_last_state_has_not_met_the_final_norm(model, tokens) -> None:  # type: ignore[no-untyped-def]
    entered = states(model, tokens)
    assert len(entered) == 7
    torch.testing.assert_close(logits(model, entered[-1]), model(tokens).logits)
    ours = cosines(entered)
    byhand = [
        np.mean([np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)])
        for x, y in pairwise(state.flatten(0, 1).numpy() for state in entered)
    ]
    assert ours == pytest.approx(byhand, rel=1e-4)
    assert block_influence(entered) == pytest.approx([1 - cosine for cosine in byhand], rel=1e-3)
    alike = mutual(entered)
    assert [float(alike[i, i + 1]) for i in range(5)] == pytest.approx(byhand[1:], rel=1e-4)


def test_single_removals_equal_whole_forward_passes(model, tokens) -> None:  # type: ignore[no-untyped-def]
    def loss(removed: list[int]) -> float:
        return float(token_losses(fold(model, without(removed, 6))(tokens).logits, tokens).mean())

    assert single_removals(model, tokens) == pytest.approx(
        {block: loss([block]) - loss([]) for block in range(6)}, abs=1e-5
    )
    assert single_removals(model, tokens, (2,), [4]) == pytest.approx({4: loss([2, 4]) - loss([2])}, abs=1e-5)
    first, second = greedy_removals(model, tokens, 2, 6)
    assert loss([first]) == min(loss([block]) for block in range(6))
    assert loss([first, second]) == pytest.approx(
        min(loss([first, b]) for b in range(6) if b != first), abs=1e-5
    )


def test_magnitudes_rank_a_shrunken_block_first(model) -> None:  # type: ignore[no-untyped-def]
    shrunken = fold(model, unfolded(6), copies=True)
    with torch.no_grad():
        for name, linear in linears(shrunken).items():
            linear.weight.mul_(0.5 if name.startswith("3.") else 1.0)
    assert ranked(magnitudes(shrunken))[0] == 3


def test_laco_takes_up_differences_and_leaves_the_original_alone(model, tokens) -> None:  # type: ignore[no-untyped-def]
    before = {name: linear.weight.clone() for name, linear in linears(model).items()}
    merged, plan = laco(model, tokens, 2, merge=3, threshold=-1.0)
    assert plan.kept == (0, 1, 2, 3)
    expected = before["3.up_proj"] + (before["4.up_proj"] - before["3.up_proj"]) + (
        before["5.up_proj"] - before["3.up_proj"]
    )  # fmt: skip
    torch.testing.assert_close(linears(merged)["3.up_proj"].weight, expected)
    assert all(torch.equal(linear.weight, before[name]) for name, linear in linears(model).items())


# Gates --------------------------------------------------------------------------------------------------------------


def test_the_gate_polarises() -> None:
    phi = torch.tensor([0.0, 0.1, 1.0])
    assert gate(phi, 1e-1).tolist() == pytest.approx([0.0, 0.01 / 0.11, 1 / 1.1])
    assert gate(phi, 1e-6).tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-3)


def test_gates_of_one_and_zero_are_the_original_and_removal(model, tokens) -> None:  # type: ignore[no-untyped-def]
    gated = Gated(model)
    gated.eps = 0.0
    torch.testing.assert_close(gated(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    gated.eps = 1e-12
    gated.phi.data[[1, 4]] = 0.0
    torch.testing.assert_close(
        gated(tokens), fold(model, without([1, 4], 6))(tokens).logits, rtol=1e-4, atol=1e-4
    )
    assert [name for name, _ in gated.named_parameters()] == ["phi"]


def test_flops_count_two_a_weight_and_the_attention(model) -> None:  # type: ignore[no-untyped-def]
    weights = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 85
    assert block_flops(model, 10).tolist() == [2 * 10 * weights + 2 * 100 * 32] * 6


def test_joint_training_closes_a_useless_block_and_no_weight_moves() -> None:
    generator = torch.Generator().manual_seed(3)
    model = new_llama(generator, vocab=32, hidden=16, layers=4, heads=2, spread=0.3)
    text = torch.arange(4000) % 7  # a cycle: the model learns it at once
    batches = language_batches(text, 4, 16, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        (batch,) = batches(step)
        loss = token_losses(model(batch).logits, batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    block = model.model.layers[2]
    block.self_attn.o_proj.weight.zero_()
    block.mlp.down_proj.weight.zero_()  # block 2 now passes its input through
    before = [parameter.clone() for parameter in model.parameters()]
    trained = train_gates(model, batches, 30, 1, 0.1, Pressure(0.2, 1.1))
    assert trained.ranking()[0] == 2
    assert trained.gates[2] == min(trained.gates) < 0.5
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert trained.history[0] == pytest.approx([1 / 1.1] * 4)


# Groups -------------------------------------------------------------------------------------------------------------


def every_cut(kept: tuple[int, ...], size: int) -> list[list[tuple[int, ...]]]:
    found = []
    for breaks in product([False, True], repeat=len(kept) - 1):
        groups: list[list[int]] = [[kept[0]]]
        for block, new in zip(kept[1:], breaks, strict=True):
            groups.append([block]) if new else groups[-1].append(block)
        if all(len(group) <= size for group in groups):
            found.append([tuple(group) for group in groups])
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=8, unique=True), st.integers(2, 3), st.integers(0, 4),
    st.integers(0, 99), st.sets(st.integers(0, 20), max_size=3),
)  # fmt: skip
def test_groups_are_the_best_of_all_cuts(
    blocks: list[int], size: int, children: int, seed: int, alone: set[int]
) -> None:
    kept = tuple(sorted(blocks))
    similarity = np.random.default_rng(seed).random((21, 21)).tolist()

    def score(cut: list[tuple[int, ...]]) -> float:
        return sum(similarity[group[0]][member] for group in cut for member in group[1:])

    allowed = [
        score(cut)
        for cut in every_cut(kept, size)
        if sum(len(group) - 1 for group in cut) == children
        and all(len(group) == 1 or alone.isdisjoint(group) for group in cut)
    ]
    if not allowed:
        with pytest.raises(ValueError, match="children"):
            best_groups(kept, children, similarity, size, frozenset(alone))
        return
    found = best_groups(kept, children, similarity, size, frozenset(alone))
    assert sum(len(group) - 1 for group in found) == children
    assert score(list(found)) == pytest.approx(max(allowed))


def test_the_closest_parent_is_the_middle_of_three() -> None:
    at = np.array([0.0, 1.0, 2.0])
    similarity = (1 - 0.1 * np.abs(at[:, None] - at)).tolist()
    assert folded(3, (), 2, similarity, size=3).parents == (0, 0, 0)
    assert folded(3, (), 2, similarity, size=3, parent="closest").parents == (1, 1, 1)


def test_scattered_children_have_parents_far_away() -> None:
    plan = folded(20, (3, 4), 4, np.ones((20, 20)).tolist(), alone=(0, 19))
    away = scattered(plan, np.random.default_rng(0), (0, 19))
    assert away.kept == plan.kept
    assert len(set(away.parents)) == len(set(plan.parents))
    children = [
        (block, parent) for block, parent in zip(away.kept, away.parents, strict=True) if block != parent
    ]
    assert len(children) == 4
    assert all(abs(block - parent) > 2 for block, parent in children)


# Healing ------------------------------------------------------------------------------------------------------------


def test_untrained_adapters_change_nothing_and_leave_sharing_as_it_is(model, tokens) -> None:  # type: ignore[no-untyped-def]
    shared = fold(model, PAIRS)
    before = shared(tokens).logits
    chosen = adapt(shared, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shared(tokens).logits, before)
    layers = shared.model.layers
    assert layers[1].mlp.up_proj.base_layer.weight is layers[2].mlp.up_proj.base_layer.weight
    assert sum(p.numel() for p in chosen) == 5 * 2 * (size_of(model, PAIRS, 1).adapters // 4) + 5 * 2 * 32


def test_healing_trains_adapters_and_norms_alone_and_its_loss_falls(model, tokens) -> None:  # type: ignore[no-untyped-def]
    shared = fold(model, PAIRS)
    before = [parameter.clone() for parameter in model.parameters()]
    known = teach(model, tokens, 2).transpose(0, 1).clone()
    losses = heal(
        shared,
        model,
        lambda _: (tokens, known),
        Recipe(12, 2, 1e-2, tail=2),
        torch.Generator().manual_seed(0),
    )
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in shared.parameters())


def test_a_student_that_is_its_teacher_is_taught_nothing(model, tokens) -> None:  # type: ignore[no-untyped-def]
    known = teach(model, tokens, 3).transpose(0, 1).clone()
    same = fold(model, unfolded(6))
    language = float(token_losses(model(tokens).logits, tokens).mean())
    (loss,) = heal(
        same, model, lambda _: (tokens, known), Recipe(1, 2, 0.0), torch.Generator().manual_seed(0)
    )
    assert loss == pytest.approx(language, abs=1e-5)


def test_divergence_and_norm_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    p, q = a.softmax(-1), b.softmax(-1)
    assert float(divergence(a, b)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert float(rms(a).square().mean(-1).max()) == pytest.approx(1.0, rel=1e-4)


# Experiment ---------------------------------------------------------------------------------------------------------


def test_retained_accuracy_is_beyond_guessing() -> None:
    original, kept = Outcome(3.0, 0.4, 0.8, 0.65), Outcome(3.5, 0.2, 0.65, 0.45)
    assert retained(kept, original) == pytest.approx((0.2 + 0.15 + 0.2) / (0.4 + 0.3 + 0.4))
    assert retained(kept, original, guessing=False) == pytest.approx(1.3 / 1.85)
    assert retained(Outcome(9.0, 0.0, 0.5, 0.25), original) == 0.0


def test_latency_is_measured_of_models_that_agree(model, tokens) -> None:  # type: ignore[no-untyped-def]
    plain, shared = fold(model, PAIRS, copies=True), fold(model, PAIRS)
    assert min(paired_decoding(plain, shared, tokens[:1], 3, 1)) > 0


def test_a_decoder_of_the_ladder_learns() -> None:
    text = torch.arange(6000) % 11
    short, long = (rung(text, 2, steps, 0) for steps in (1, 30))
    assert long.loss < short.loss
    assert long.untrained == short.untrained
    assert -1 <= long.cosine <= 1


def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The experiment on a model of four small blocks and a made-up text."""
    from papers.foldgpt import experiment, study, tasks

    made = new_llama(torch.Generator().manual_seed(0), vocab=300, hidden=32, layers=4, heads=4, spread=0.2)
    made.eval().requires_grad_(False)
    words = " ".join(f"w{i * i % 37}" for i in range(3000))
    file = tmp_path / "text.txt"
    file.write_text(words)
    for module in (tasks, study):
        monkeypatch.setattr(module, "pretrained", lambda blocks: made)
    monkeypatch.setattr(tasks.Text, "windows", lambda self, file, stream, seed, n, length: torch.randint(
        300, (n, length), generator=torch.Generator().manual_seed(10 * seed + stream)))  # fmt: skip
    monkeypatch.setattr(tasks, "encoded", lambda *_: torch.arange(3000) * 7 % 300)
    monkeypatch.setattr(tasks, "tokenizer", lambda: None)
    monkeypatch.setattr(experiment, "_file", lambda lab, name: None if "tiny" in name else file)
    return Config(
        blocks=4, depths=[], removals=[1], ranked_at=1, folded_at=2, folds=[2], healed_folds=[2], gate_steps=2,
        heal_steps=2, length=12, calibration=1, looked=12, test_windows=2, test_length=12, coupled=2,
        decode_steps=1, decode_rounds=1, untrained=True, parallel=False, greedy=True, laco_at=1,
    )  # fmt: skip


def test_the_same_seeds_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, monkeypatch)
    runs = []
    for _ in range(2):
        forget()
        wanted = {"gates_gain", "both_gain", "heal_gain"}
        runs.append(run(config, Runtime((0, 1), workers=1, wanted=wanted)).to_json())
    forget()
    assert runs[0] == runs[1]
    assert '"gates_gain"' in runs[0] and '"both_gain"' in runs[0]
