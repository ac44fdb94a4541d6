"""Training runs, what claims compare, and clocks: small, and twice the same."""

import math

import pytest
import torch

from common.data import DataError, fetch
from common.lab.runtime import Runtime
from papers.eight_bit_optimizers import study
from papers.eight_bit_optimizers.config import Config
from papers.eight_bit_optimizers.experiment import run
from papers.eight_bit_optimizers.language_task import LanguageTask
from papers.eight_bit_optimizers.optimizer import WIDE, States
from papers.eight_bit_optimizers.runs import Hyper, trained
from papers.eight_bit_optimizers.study import BASE, HIGH, LANGUAGE, LOW, NAIVE, Cells, performed, points, side
from papers.eight_bit_optimizers.tasks import ImageTask, TranslationTask, drawn
from papers.eight_bit_optimizers.timing import BYTES_8, BYTES_32, cpu_seconds, device_seconds, h100_rows

TINY = Config(
    language_steps=6, language_layers=1, language_rows=2, language_scored=4, sensitivity_points=1, image_steps=0,
    sentence_steps=0, translation_steps=0,
)  # fmt: skip
NAMES = ["torch foreach", "torch fused", "bitsandbytes 32", "bitsandbytes 8", "adafactor", "ours"]


def text(name: str):
    try:
        return fetch(name)
    except DataError as error:
        pytest.skip(str(error))


def test_two_runs_of_the_experiment_see_the_same() -> None:
    text("wikitext2-valid"), text("wikitext2-test")
    seen = []
    wanted = ["language_ratio", "code_gain", "block_gain", "stable_gain_8", "never_unstable", "flushed_naive"]
    for _ in range(2):
        study.KNOWN.clear()
        seen.append(run(TINY, Runtime([0], workers=1, wanted=wanted)).to_json())
    assert seen[0] == seen[1]
    assert all(f'"{metric}"' in seen[0] for metric in wanted)


def test_what_a_control_shares_with_the_experiment_is_trained_once() -> None:
    task = ImageTask(steps=2)
    runs = [study.Run(task, seed, WIDE, study.IMAGES) for seed in (0, 1, 0)]
    called = []

    def together(function, items, label):
        called.append(len(items))
        return [function(item) for item in items]

    study.KNOWN.clear()
    first = performed(runs, together)
    assert performed(runs[:1], together)[runs[0]] is first[runs[0]]
    assert called == [2]


def test_cells_are_the_parts_of_the_method() -> None:
    cells = Cells(LanguageTask(text("wikitext2-valid"), text("wikitext2-test")), 0, States(), True)
    assert cells.run("ours").states == States() and cells.run("ours").task.stable
    assert cells.run("code").states == States(block=0) and not cells.run("code").task.stable
    assert cells.run("blocks").states == States(code="linear")
    assert cells.run("naive, stable").states == NAIVE and cells.run("naive, stable").task.stable
    assert cells.run("wide, standard").errors and not cells.run("wide").errors
    with pytest.raises(KeyError):
        cells.run("nothing")


def test_one_hyper_parameter_changes_at_a_time_and_both_sides_are_met() -> None:
    cells = [
        Cells(LanguageTask(text("wikitext2-valid"), text("wikitext2-test")), s, States(), True)
        for s in (0, 1)
    ]
    for name in LOW:
        changed = {getattr(each.run("ours", name).hyper, name) for each in cells}
        assert changed == {LOW[name], HIGH[name]}
        assert side(0, name) is not side(1, name)
    assert points(0, 4) == [BASE, *LOW] and len(points(3, 2)) == 3
    assert cells[0].run("wide").hyper == LANGUAGE


def test_the_embedding_keeps_32_bits_only_where_it_is_stable() -> None:
    files = text("wikitext2-valid"), text("wikitext2-test")
    size = {}
    for stable in (True, False):
        task = LanguageTask(*files, layers=1, rows=2, steps=1, scored=2, stable=stable)
        outcome, optimizer = trained(task, 0, States(), Hyper(1e-3))
        size[stable] = optimizer.state_bytes()
        assert outcome.parameters > 8192 * 64 and math.isfinite(outcome.held_out)
    assert size[True] - size[False] == pytest.approx(8192 * 64 * (8 - 2 - 8 / 2048), rel=0.001)


def test_a_run_that_overflows_broke_and_counts_as_unstable() -> None:
    outcome, _ = trained(ImageTask(steps=12), 0, WIDE, Hyper(1e30, momentum=True))
    assert outcome.broke and outcome.unstable
    assert math.isfinite(study.loss(outcome)) and math.isfinite(study.perplexity(outcome))


def test_digits_are_learnt_with_momentum_in_eight_bits() -> None:
    outcome, optimizer = trained(ImageTask(steps=60), 0, States(), study.IMAGES)
    assert outcome.accuracy > 0.8 and not outcome.unstable
    assert any(
        value.dtype == torch.uint8 for state in optimizer.state.values() for value in (state["first"],)
    )


def test_translation_counts_only_the_second_line() -> None:
    task = TranslationTask(text("multi30k-2016-en"), text("multi30k-2016-de"), steps=1, vocab=2048)
    job = task.job(0)
    tokens, counted = job.batch_at(0)
    assert tokens.shape == counted.shape == (8, 64)
    first = counted.int().argmax(dim=1)
    assert bool((first > 3).all()) and bool((counted.sum(dim=1) > 3).all())
    assert float(job.loss_of(job.model, (tokens, counted)).detach()) == pytest.approx(
        math.log(2048), rel=0.05
    )


def test_an_epoch_meets_every_row_once() -> None:
    at = drawn((torch.arange(20),), 5, seed=3)
    epoch = torch.cat([at(step)[0] for step in range(4)])
    assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(torch.cat([at(step)[0] for step in range(4, 8)]), epoch)


def test_clocks_know_every_optimizer() -> None:
    generator = torch.Generator().manual_seed(0)
    for taken in (
        cpu_seconds(1 << 13, NAMES, States(), generator, 2),
        device_seconds(1 << 13, NAMES, States(), generator, 3),
    ):
        assert list(taken) == NAMES and all(seconds > 0 for seconds in taken.values())
    with pytest.raises(ValueError, match="no optimizer"):
        cpu_seconds(64, ["nothing"], States(), generator, 1)


def test_the_device_profile_sees_what_its_claims_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in a GPU's place."""
    lab = Runtime([0])
    config = Config(measure=False, gpu_elements=[1 << 12])
    from common.lab.runtime import Observations
    from papers.eight_bit_optimizers import experiment
    from papers.eight_bit_optimizers.optimizer import States as Kept

    seen = Observations()
    experiment.on_device(config, Kept(), lab, seen)
    assert seen.values("gpu_gain_over_fused")[0] > 0 and len(seen.rows("device_ms")) == 5
    under = Observations()
    experiment.on_device(config, WIDE, lab, under)
    assert under.values("gpu_gain_over_fused") == under.values("gpu_gain_over_foreach") == [1.0]
    assert len(run(config, lab)) == 0


def test_an_h100_is_far_from_the_bytes_that_an_8_bit_update_moves() -> None:
    """Weight, gradient and states read and written: 28 bytes of 32-bit Adam against 16."""
    rows = h100_rows()
    largest = 1 << 30
    assert BYTES_32 / BYTES_8 == 1.75
    fused, eight = rows["adam32_torch_fused", largest], rows["adam8bit_bnb", largest]
    assert BYTES_32 * largest / 3.35e12 / fused > 0.75  # the fused 32-bit kernel is bound by memory
    assert BYTES_8 * largest / 3.35e12 / eight < 0.2  # the 8-bit one is not
