"""However a decoder is laid out over processes, it trains as a plain model in one process does."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.distributed.launch import launch
from common.training.sharded.layout import Layout, Place, form_groups
from common.training.sharded.parameters import Shape, Split, held_by, padded_vocab, parameters
from common.training.sharded.trainer import Recipe, Trainer
from common.training.sharded.zero import Adam

DENSE = Shape()  # grouped queries, gated MLP, tied embeddings, a vocabulary that needs padding
MIXED = Shape(layers=3, experts=3, gated=False, tied=False)
STEPS, ROWS = 3, 8
EXACT = Recipe(dtype=torch.float64, adam=Adam(rate=1e-2))
TWO = [Layout(2, 1, 1), Layout(1, 2, 1), *(Layout(1, 1, 2, zero) for zero in range(4))]
FOUR = [
    *(Layout(2, 1, 2, zero) for zero in range(4)),
    *(Layout(1, 2, 2, zero) for zero in range(4)),
    *(Layout(1, 1, 4, zero) for zero in (1, 2, 3)),
    Layout(2, 2, 1),
]
EIGHT = [Layout(2, 2, 2, 1), Layout(2, 2, 2, 3)]
FOUR_WITH_EXPERTS = [Layout(2, 1, 2, 2), Layout(1, 2, 2, 3), Layout(2, 2, 1)]


def batch_at(step, shape=DENSE):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, shape.vocab, (ROWS, shape.context + 1), generator=generator)


def plain_loss(weights, batch, shape):
    """A decoder written out without any of the trainer's code."""
    given, targets = batch[:, :-1], batch[:, 1:]
    x = weights["embedding.weight"][given] + weights["positions.weight"][: given.shape[1]]

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    d = shape.head_dim
    sizes = [n * d for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
    for i in range(shape.layers):
        name = f"blocks.{i}"
        fused = norm(f"{name}.norm1", x) @ weights[f"{name}.attention.qkv.weight"].T
        fused = fused + weights[f"{name}.attention.qkv.bias"]
        q, k, v = (part.unflatten(-1, (-1, d)).transpose(1, 2) for part in fused.split(sizes, dim=-1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        seen = seen.transpose(1, 2).flatten(2)
        x = x + seen @ weights[f"{name}.attention.out.weight"].T + weights[f"{name}.attention.out.bias"]
        y = norm(f"{name}.norm2", x)
        copies = max(1, shape.experts)
        ups = weights[f"{name}.mlp.up.weight"].unflatten(0, (copies, -1))
        up_biases = weights[f"{name}.mlp.up.bias"].unflatten(0, (copies, -1))
        downs = weights[f"{name}.mlp.down.weight"].unflatten(0, (copies, -1))
        down_biases = weights[f"{name}.mlp.down.bias"].unflatten(0, (copies, -1))
        answers = []
        for expert in range(copies):
            up = y @ ups[expert].T + up_biases[expert]
            if shape.gated:
                gate, values = up.chunk(2, dim=-1)
                up = F.silu(gate) * values
            else:
                up = F.gelu(up)
            answers.append(up @ downs[expert].T + down_biases[expert])
        if shape.experts:
            likes = (y @ weights[f"{name}.mlp.router.weight"].T).softmax(dim=-1)
            best = likes.max(dim=-1, keepdim=True)
            every = torch.stack(answers, dim=-2)
            index = best.indices[..., None].expand(*best.indices.shape, shape.hidden)
            x = x + best.values * every.gather(-2, index).squeeze(-2)
        else:
            x = x + answers[0]
    table = weights["embedding.weight"] if shape.tied else weights["head.weight"]
    logits = norm("norm", x) @ table[: shape.vocab].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_training(shape):
    """Losses and final weights of the plain model under torch's AdamW."""
    weights = {
        p.name: p.first_values(EXACT.seed, torch.float64).requires_grad_()
        for p in parameters(shape, Layout())
    }
    optimiser = EXACT.adam.over(list(weights.values()))
    losses = []
    for step in range(STEPS):
        loss = plain_loss(weights, batch_at(step, shape), shape)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, weights


def whole_weights(trainer):
    """Whole tensors by name, from all ranks' fragments; padding of the vocabulary off. Asserts that copies agree."""
    groups = trainer.groups
    mine = [(dataclasses.astuple(groups.place), f) for f in trainer.state().fragments]
    everyone = [None] * groups.layout.world
    if groups.layout.world > 1:
        dist.all_gather_object(everyone, mine)
    else:
        everyone = [mine]
    found = {}
    for parameter in parameters(trainer.shape, groups.layout):
        pieces = {}
        for (tensor, _, stage), fragment in (one for rank in everyone for one in rank):
            if fragment.name == parameter.name:
                shared = pieces.setdefault((stage, tensor), torch.full(fragment.size, torch.nan).double())
                shared.view(-1)[fragment.start : fragment.start + len(fragment.weight)] = fragment.weight
        stages = {stage for stage, _ in pieces}
        wholes = [
            parameter.split.join([pieces[stage, t] for t in range(groups.layout.tensor)]) for stage in stages
        ]
        assert all(torch.equal(wholes[0], other) for other in wholes[1:])
        if parameter.split.dim is None:
            assert all(torch.equal(wholes[0], piece) for piece in pieces.values())
        assert not wholes[0].isnan().any()
        assert parameter.rows is None or not wholes[0][parameter.rows :].any()
        found[parameter.name] = wholes[0][: parameter.rows]
    return found


def train_layouts(rank, world, layouts, shape):
    """Losses and final weights of each layout."""
    found = []
    for layout in layouts:
        trainer = Trainer(shape, form_groups(layout, rank), dataclasses.replace(EXACT, micro=2))
        losses = [trainer.step(batch_at(step, shape)) for step in range(STEPS)]
        found.append((losses, whole_weights(trainer)))
    return found if rank == 0 else None


def assert_equals_plain(found, shape):
    losses, weights = plain_training(shape)
    moved = (weights["norm.weight"] - 1).abs().max()
    assert moved > 1e-2  # so that agreement means something
    for theirs, trained in found:
        assert theirs == pytest.approx(losses, rel=1e-10)
        for name, tensor in weights.items():
            rows = trained[name].shape[0]
            torch.testing.assert_close(trained[name], tensor.detach()[:rows], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [DENSE, MIXED], ids=["dense", "experts"])
def test_one_process_trains_as_the_plain_model(shape):
    assert_equals_plain(train_layouts(0, 1, [Layout(), Layout(zero=1), Layout(zero=3)], shape), shape)


@pytest.mark.parametrize("shape", [DENSE, MIXED], ids=["dense", "experts"])
def test_two_processes_train_as_the_plain_model(shape):
    assert_equals_plain(launch(train_layouts, 2, (TWO, shape), seconds=120)[0], shape)


@pytest.mark.parametrize(
    "shape, layouts", [(DENSE, FOUR), (MIXED, FOUR_WITH_EXPERTS)], ids=["dense", "experts"]
)
def test_four_processes_train_as_the_plain_model(shape, layouts):
    assert_equals_plain(launch(train_layouts, 4, (layouts, shape), seconds=200)[0], shape)


def test_eight_processes_train_as_the_plain_model():
    assert_equals_plain(launch(train_layouts, 8, (EIGHT, DENSE), seconds=200)[0], DENSE)


def go_on(rank, world, layouts):
    """For each layout a run of four steps beside one that is stopped after two, and how many numbers a rank keeps."""
    found = []
    for layout in layouts:
        groups, recipe = form_groups(layout, rank), Recipe(micro=2, dropout=0.2)
        straight = Trainer(DENSE, groups, recipe)
        losses = [straight.step(batch_at(step)) for step in range(4)]
        ended = straight.state()
        first = Trainer(DENSE, groups, recipe)
        for step in range(2):
            first.step(batch_at(step))
        state = first.state()
        second = Trainer(DENSE, groups, dataclasses.replace(recipe, seed=9))
        second.load(state)
        again = [second.step(batch_at(step)) for step in range(second.steps, 4)]
        same = all(
            torch.equal(getattr(a, part), getattr(b, part))
            for a, b in zip(ended.fragments, second.state().fragments, strict=True)
            for part in ("weight", "exp_avg", "exp_avg_sq")
        ) and torch.equal(ended.rng, second.state().rng)
        kept = sum(f.weight.numel() for f in ended.fragments)
        found.append((losses[2:] == again, same, kept))
    return found


def test_a_run_that_goes_on_from_its_state_is_the_run_that_never_stopped():
    layouts = [Layout(1, 1, 2, zero) for zero in range(4)]
    ranks = launch(go_on, 2, (layouts,), seconds=120)
    for layout, found in zip(layouts, zip(*ranks, strict=True), strict=True):
        assert [ended[:2] for ended in found] == [(True, True)] * 2
        whole = sum(torch.Size(p.size).numel() for p in parameters(DENSE, layout))
        kept = [numbers for _, _, numbers in found]
        # really sharded, and nothing twice
        assert kept == [whole, whole] if layout.zero == 0 else sum(kept) == whole and min(kept) > 0


def drop(rank, world, layouts, dropout):
    """Losses of each layout."""
    found = []
    for layout in layouts:
        trainer = Trainer(DENSE, form_groups(layout, rank), dataclasses.replace(EXACT, dropout=dropout))
        found.append([trainer.step(batch_at(step)) for step in range(STEPS)])
    return found


def test_dropout_draws_the_same_masks_on_all_tensor_ranks_and_on_the_way_back():
    plain = drop(0, 1, [Layout()], 0.2)[0]
    split, whole, sliced = launch(
        drop, 2, ([Layout(tensor=2), Layout(data=2), Layout(data=2, zero=3)], 0.2), seconds=60
    )[0]
    assert split == pytest.approx(plain, rel=1e-10)  # one data rank: the masks of one process
    assert sliced == pytest.approx(whole, rel=1e-10)  # layers computed again for their gradients
    assert plain != drop(0, 1, [Layout()], 0.0)[0]


def test_a_state_of_another_layout_is_refused():
    trainer = Trainer(DENSE, form_groups(Layout()), Recipe())
    other = Trainer(dataclasses.replace(DENSE, mlp=128), form_groups(Layout()), Recipe())
    with pytest.raises(ValueError, match="convert them first"):
        trainer.load(other.state())


def test_what_is_called_before_an_update_sees_gradients_and_old_weights():
    trainer = Trainer(DENSE, form_groups(Layout()), Recipe())
    before = trainer.held.tensors["norm.weight"].detach().clone()
    seen = []

    def look(step):
        held = trainer.held
        seen.append(
            (step, float(held.gradient("norm.weight").norm()), held.tensors["norm.weight"].detach().clone())
        )

    trainer.step(batch_at(0), look)
    assert seen[0][0] == 0 and seen[0][1] > 0 and torch.equal(seen[0][2], before)
    assert not torch.equal(trainer.held.tensors["norm.weight"], before)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_and_places_are_one_to_one(tensor, pipeline, data):
    layout = Layout(tensor, pipeline, data)
    places = [layout.place(rank) for rank in range(layout.world)]
    assert [layout.rank(place) for place in places] == list(range(layout.world))
    assert len(set(places)) == layout.world and places[0] == Place(0, 0, 0)
    assert [i for stage in layout.stages(pipeline + 3) for i in stage] == list(range(pipeline + 3))


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 1))
def test_pieces_joined_are_the_whole(parts, ranks, dim):
    sizes = tuple(part * ranks for part in parts)
    split = Split(dim, sizes)
    whole = torch.arange(sum(sizes) * 3).view((-1, 3) if dim == 0 else (3, -1))
    pieces = [split.take(whole, index, ranks) for index in range(ranks)]
    assert torch.equal(split.join(pieces), whole)
    assert len({tuple(piece.shape) for piece in pieces}) == 1


def test_every_parameter_is_held_by_some_stage_and_a_tied_embedding_by_both_ends():
    for shape in (DENSE, MIXED):
        layout = Layout(2, 3, 1)
        held = [p.name for stage in range(3) for p in held_by(shape, layout, stage)]
        assert set(held) == {p.name for p in parameters(shape, layout)}
        assert held.count("embedding.weight") == (2 if shape.tied else 1)
    assert padded_vocab(DENSE, Layout(2, 1, 1)) == 112 and padded_vocab(DENSE, Layout()) == 104


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Layout(0, 1, 1), "degrees are at least 1"),
        (lambda: Layout(zero=4), "stages 0 to 3"),
        (lambda: Shape(hidden=30), "don't divide"),
        (lambda: Layout(1, 5, 1).stages(4), "can't fill"),
        (lambda: Layout().place(1), "not in 0..0"),
        (lambda: Split(0, (3, 4)).take(torch.zeros(7), 0, 2), "can't share"),
        (lambda: Trainer(DENSE, form_groups(Layout()), Recipe(micro=3)).step(batch_at(0)), "can't be shared"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
