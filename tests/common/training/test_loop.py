"""The training loop: equal to a loop by hand, to two processes, and to itself after a kill."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import find
from common.training.language import language_batches, language_loss, tiny_decoder
from common.training.loop import Checkpoints, train, warmup_cosine

ROOT = Path(__file__).resolve().parents[3]
DATA = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 5))).float()


def network():
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))


def batch_at(step):
    return (DATA[torch.from_numpy(np.random.default_rng(step).integers(0, 64, 8))],)


def loss_of(model, batch):
    return (model(batch[0][:, :4])[:, 0] - batch[0][:, 4]).square().mean()


def trained(steps, **options):
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, train(model, optimiser, batch_at, loss_of, steps, **options)


def test_it_does_what_a_loop_by_hand_does():
    schedule = warmup_cosine(3, 10)
    ours, losses = trained(10, schedule=schedule, clip=0.5)
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    expected = []
    for step in range(10):
        optimiser.param_groups[0]["lr"] = 0.01 * schedule(step)
        loss = loss_of(model, batch_at(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        optimiser.zero_grad()
        expected.append(float(loss.detach()))
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


def test_the_schedule_rises_to_one_and_falls_to_its_last_value():
    factor = warmup_cosine(4, 20, last=0.2)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(12) == pytest.approx(0.6) and factor(20) == factor(99) == pytest.approx(0.2)


def test_a_resumed_run_equals_one_in_a_piece_to_the_bit(tmp_path):
    whole, losses = trained(12)
    trained(5, checkpoints=Checkpoints(tmp_path, every=5))
    torch.rand(100)  # whatever else happened to the global generator in between
    resumed, again = trained(12, checkpoints=Checkpoints(tmp_path, every=5))
    assert again == losses, "dropout and moments go on where they were"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000012"]


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            from pathlib import Path
            from common.training.loop import Checkpoints
            from tests.common.training.test_loop import trained

            def die(step):
                if step == 7:
                    os.kill(os.getpid(), signal.SIGKILL)

            trained(12, checkpoints=Checkpoints(Path(sys.argv[1]), every=3), before_step=die)
            """
        )
    )
    kept = tmp_path / "kept"
    ended = subprocess.run([sys.executable, script, kept], cwd=ROOT, env=_environment(), check=False)
    assert ended.returncode == -signal.SIGKILL
    (kept / "writing-step-000000009").mkdir()  # as if it had died while writing the next one
    assert [path.name for path in kept.glob("step-*")] == ["step-000000006"]
    _, losses = trained(12, checkpoints=Checkpoints(kept, every=3))
    assert losses == trained(12)[1]


def test_two_processes_train_as_one_does(tmp_path):
    one, two = ends(tmp_path, 1), ends(tmp_path, 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert np.allclose(two["weight"], one["weight"], rtol=1e-5)


def test_a_group_is_ended_before_the_interpreter_is(tmp_path):
    """Else gloo's threads abort about one launch in eight: forty-six launches went well when this was written.

    A launch takes some 8 s, so here two of them (with those above) and the cause itself: no group is left at exit.
    """
    left = ends(tmp_path, 2, calls=2)["left"]
    assert left == [False, False], "a rank went down with its group"


def ends(folder, processes, calls=1):
    """What ranks under torchrun left: losses, weight, and of each rank whether a group was there at its exit."""
    script, out = folder / "run.py", folder / str(processes)
    script.write_text(SCRIPT)
    out.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    launch += [str(processes), script, out, str(calls)]
    ended = subprocess.run(launch, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    kept = json.loads((out / "main.json").read_text())
    return kept | {"left": [json.loads((out / f"left{rank}").read_text()) for rank in range(processes)]}


SCRIPT = """
import atexit, json, os, sys
from pathlib import Path
import torch
from accelerate import PartialState
from common.training.loop import train
from tests.common.training.test_loop import batch_at, loss_of

out, rank = Path(sys.argv[1]), os.environ["RANK"]
tell = lambda: (out / f"left{rank}").write_text(json.dumps(torch.distributed.is_initialized()))
atexit.register(tell)  # asked after all that the loop registers
for _ in range(int(sys.argv[2])):
    torch.manual_seed(7)
    model = torch.nn.Linear(4, 1)
    losses = train(model, torch.optim.Adam(model.parameters(), lr=0.01), batch_at, loss_of, 6)
if PartialState().is_main_process:
    state = {"losses": losses, "weight": model.weight.tolist(), "processes": PartialState().num_processes}
    (out / "main.json").write_text(json.dumps(state))
"""


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_run_ends_early_when_asked_to_and_leaves_the_learning_rate_as_it_was():
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    schedule = warmup_cosine(2, 10)
    losses = train(
        model,
        optimiser,
        batch_at,
        loss_of,
        10,
        schedule=schedule,
        until=lambda loss: seen.append(loss) or len(seen) == 4,
    )
    assert losses == seen and len(losses) == 4
    assert optimiser.param_groups[0]["lr"] == 0.01


def test_batches_of_a_text_depend_on_seed_and_step_alone():
    tokens = torch.arange(100)
    first, same, other = (language_batches(tokens, 4, 9, seed) for seed in (0, 0, 1))
    assert torch.equal(first(3)[0], same(3)[0]) and first(3)[0].shape == (4, 9)
    assert not torch.equal(first(3)[0], first(4)[0]) and not torch.equal(first(3)[0], other(3)[0])


def test_a_tiny_decoder_learns_shakespeare():
    file = find("tiny-shakespeare")
    if file is None:
        pytest.skip("the data set tiny-shakespeare is not here: make data")
    made = tiny_decoder(file, steps=60)
    from common.models.perplexity import windows
    from common.models.texts import encoded

    tokens = encoded(file, made.tokenizer)
    unseen = windows(tokens[len(tokens) * 9 // 10 + 1000 :], 128, most=8).tokens
    with torch.inference_mode():
        loss = float(language_loss(made.model, (unseen,)))
    counts = torch.bincount(tokens, minlength=1024).double()
    shares = (counts / counts.sum())[counts > 0]
    unigram = float(-(shares * shares.log()).sum())
    assert loss < unigram - 0.3, f"{loss:.2f} against {unigram:.2f} nats of the tokens' frequencies"
