"""The zoo: every network decides both ways, is seeded, and reads what it says."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.models.dynamic import zoo
from common.models.dynamic.calibration import quantile
from common.models.dynamic.early_exit import EarlyExitVGG


def small(name: str, seed: int = 0) -> tuple[torch.nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = zoo.draw(zoo.recipe(name).reads, 160, generator, 32)
    return zoo.build(name, generator, inputs[:80], zoo.recipe(name).width // 2), inputs[80:]


def rows(network: torch.nn.Module, inputs: torch.Tensor) -> list[object]:
    with torch.inference_mode():
        return [network(inputs[i : i + 1]) for i in range(len(inputs))]


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_same_seed_same_network_and_another_seed_another(name: str) -> None:
    first, again, other = (small(name, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_every_network_is_small_in_eval_mode_and_without_gradients(name: str) -> None:
    network = zoo.recipe(name).make(zoo.recipe(name).width)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 2_000_000
    built, _ = small(name)
    assert not built.training and not any(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize(("name", "outcomes"), [("early_exit_resnet", 4), ("patient_encoder", 5)])
def test_every_exit_is_taken_by_5_to_95_percent_of_the_inputs(name: str, outcomes: int) -> None:
    network, inputs = small(name)
    ran = [int(output[1]) for output in rows(network, inputs)]  # type: ignore[index]
    shares = [ran.count(value) / len(ran) for value in sorted(set(ran))]
    assert len(shares) == outcomes
    assert min(shares) >= 0.05 and max(shares) <= 0.95


def test_an_equal_share_of_the_calibration_inputs_leaves_at_each_exit_of_the_vgg() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = zoo.draw("images", 60, generator)
    network = zoo.build("early_exit_vgg", generator, inputs, 8)
    assert isinstance(network, EarlyExitVGG)
    counts = [0] * 6
    for i in range(60):
        x = inputs[i : i + 1]
        for place, (block, head) in enumerate(zip(network.blocks, network.heads, strict=True)):
            x = block(x)
            sure = float(head(x).softmax(dim=-1).max())
            if place == 5 or sure > network.thresholds[place]:
                counts[place] += 1
                break
    assert counts == [10] * 6


@pytest.mark.parametrize("name", ["gated_resnet", "policy_resnet"])
def test_each_block_runs_for_some_inputs_and_not_for_others(name: str) -> None:
    network, inputs = small(name)
    ran = [0] * len(network.blocks)  # type: ignore[arg-type]
    for place, block in enumerate(network.blocks):  # type: ignore[arg-type]
        block.register_forward_hook(lambda *_, place=place: ran.__setitem__(place, ran[place] + 1))
    rows(network, inputs)
    assert all(0.05 <= count / len(inputs) <= 0.95 for count in ran)


def test_each_expert_is_chosen_for_some_inputs() -> None:
    network, inputs = small("expert_stack")
    for layer in network.layers:  # type: ignore[union-attr]
        counts = [0] * len(layer.experts)  # type: ignore[union-attr, arg-type]
        for place, expert in enumerate(layer.experts):  # type: ignore[union-attr, arg-type]
            expert.register_forward_hook(
                lambda *_, place=place, counts=counts: counts.__setitem__(place, counts[place] + 1)
            )
        layer.counts = counts  # type: ignore[union-attr, assignment]
    rows(network, inputs)
    for layer in network.layers:  # type: ignore[union-attr]
        assert sum(layer.counts) == len(inputs)  # type: ignore[union-attr, arg-type]
        assert min(layer.counts) / len(inputs) >= 0.05 and max(layer.counts) / len(inputs) <= 0.95  # type: ignore[union-attr, arg-type]


def test_the_decoder_ends_sentences_at_different_lengths_and_with_the_end_token_or_at_the_limit() -> None:
    network, inputs = small("greedy_decoder")
    emitted = [output[0] for output in rows(network, inputs)]  # type: ignore[index]
    assert len({len(tokens) for tokens in emitted}) >= 4
    assert max(emitted.count(tokens) for tokens in emitted) < len(emitted) / 2  # the input matters
    for tokens in emitted:
        assert 0 not in tokens[:-1] and (tokens[-1] == 0 or len(tokens) == network.longest)


def test_halting_shares_of_the_pondering_network_sum_to_one() -> None:
    network, inputs = small("pondering_rnn")
    seen: list[torch.Tensor] = []
    network.halt.register_forward_hook(lambda _, __, out: seen.append(out.sigmoid()))  # type: ignore[union-attr]
    with torch.inference_mode():
        _, ran = network(inputs[:1])
    assert len(seen) == ran
    assert network.steps <= ran <= network.steps * network.longest  # type: ignore[operator]


def test_calibration_refuses_few_inputs_and_unknown_names() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        zoo.build("early_exit_vgg", torch.Generator(), torch.zeros(4, 3, 32, 32))
    with pytest.raises(ValueError, match="early_exit_vgg"):
        zoo.recipe("resnet")
    with pytest.raises(ValueError, match="none of images"):
        zoo.draw("sounds", 4, torch.Generator())


def test_a_quantile_lies_between_its_neighbours() -> None:
    values = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert quantile(values, 0.5) == 2.5
    assert quantile(values, 0.25) == 1.5
    assert quantile(values, 0.0) == 1.5  # never below or above all


def test_images_and_sentences_are_read_from_their_files(tmp_path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(3):
            file = tmp_path / f"{i}.jpg"
            Image.fromarray(np.full((32, 32, 3), 100 * i, np.uint8)).save(file)
            archive.write(file, f"test/{i}.jpg")
    images = zoo.read_images(tmp_path / "images.zip", 3, np.random.default_rng(0))
    assert images.shape == (3, 3, 32, 32)
    assert sorted(float(image.mean()) for image in images) == pytest.approx(
        [(level / 255 - 0.47) / 0.25 for level in (0, 100, 200)], abs=0.02
    )
    with pytest.raises(ValueError, match="there are 3"):
        zoo.read_images(tmp_path / "images.zip", 4, np.random.default_rng(0))
    (tmp_path / "dev.tsv").write_text("a good film\t1\na film\t0\n")
    tokens = zoo.read_sentences(tmp_path / "dev.tsv")
    assert tokens.shape == (2, zoo.LENGTH)
    assert tokens[0, 0] == tokens[1, 0] and tokens[0, 2] == tokens[1, 1] and tokens[1, 2] == 0
    assert zoo.sequences_of(tokens, torch.Generator()).shape == (2, zoo.STEPS, zoo.FEATURES)
