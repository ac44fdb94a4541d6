"""The live engine: greedy tokens do not depend on the policy, and its memory is what the accounting says."""

import numpy as np
import pytest
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.serving.clients import ClosedLoop
from common.serving.live import serve
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst, RequestLevel

CONFIG = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, positions=128)
MARGIN = 1e-4  # between the best logit and the second; fp32 batches differ by less than 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices are too small to share, and threads that wait for one another are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, 12)
    prompts = [rng.integers(64, size=n).tolist() for n in lengths]
    return prompts, rng.integers(1, 30, 12).tolist()


@pytest.fixture(scope="module")
def expected(model, requests):
    """Each request alone, by the whole forward pass of all its tokens, from nothing each time."""
    answers = []
    for prompt, output in zip(*requests, strict=True):
        tokens = list(prompt)
        for _ in range(output):
            logits = model([torch.tensor(tokens)], [KVCache(CONFIG, 128)])[0]
            best = logits.topk(2)
            assert best.values[0] - best.values[1] > MARGIN
            tokens.append(int(best.indices[0]))
        answers.append(tokens[len(prompt) :])
    return answers


POLICIES = {
    "request level": (RequestLevel(4), lambda: ReservedMemory(600), 0),
    "iteration level": (IterationLevel(4), lambda: ReservedMemory(200), 0),
    "paged iteration level": (IterationLevel(8), lambda: PagedMemory(160, 8), 0),
    "prompts first, recompute": (PrefillFirst(64, 8), lambda: PagedMemory(120, 4), 0),
    "prompts first, swap": (PrefillFirst(64, 8, swap=True), lambda: PagedMemory(120, 4), 60),
    "prompts first, little to swap into": (PrefillFirst(64, 8, swap=True), lambda: PagedMemory(120, 4), 8),
    "chunks, recompute": (ChunkedPrefill(16, 8), lambda: PagedMemory(120, 4), 0),
    "chunks, swap": (ChunkedPrefill(16, 8, swap=True), lambda: PagedMemory(120, 4), 60),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("clients", [None, 6])
def test_greedy_tokens_do_not_depend_on_the_policy(model, requests, expected, name, clients):
    scheduler, memory, host_blocks = POLICIES[name]
    held = memory()
    run = serve(
        model,
        *requests,
        scheduler,
        held,
        host_blocks=host_blocks,
        arrivals=np.arange(12) * 1e-3,
        clients=clients and ClosedLoop(clients),
    )
    assert run.tokens == expected
    assert held.free == held.capacity
    assert ("swap" in name) == any(step.copied for step in run.iterations)
    if any(word in name for word in ("recompute", "swap")):
        assert run.trace.preemptions.sum() > 0


def test_time_stamps_are_those_of_the_iterations(model, requests):
    run = serve(model, *requests, ChunkedPrefill(16, 8), PagedMemory(2000), arrivals=np.arange(12) * 2e-3)
    ends = np.array([step.start + step.seconds for step in run.iterations])
    assert np.all(np.diff(ends) > 0)
    for times, arrival, output in zip(run.trace.token_times, run.trace.arrival, requests[1], strict=True):
        assert len(times) == output and times[0] > arrival
        assert np.min(np.abs(times[:, None] - ends), axis=1).max() < 1e-9
    assert sum(new for step in run.iterations for new, _ in step.chunks) == sum(map(len, requests[0]))
    assert sum(step.decodes for step in run.iterations) == sum(requests[1]) - 12


def test_arrivals_are_waited_for(model):
    run = serve(model, [[1, 2], [3]], [2, 2], IterationLevel(), ReservedMemory(100), arrivals=[0.0, 0.05])
    assert run.trace.started[1] >= 0.05 and run.trace.first_token[1] > 0.05
    assert run.trace.ttft[1] < 0.05


def test_a_closed_loop_keeps_its_clients_busy(model, requests):
    run = serve(model, *requests, IterationLevel(), ReservedMemory(1000), clients=ClosedLoop(3))
    sent, ended = np.sort(run.trace.arrival), np.sort(run.trace.finish)
    np.testing.assert_allclose(sent[3:], ended[: len(sent) - 3])


def test_progress_counts_to_the_end_and_long_requests_are_refused(model):
    seen: list[int] = []
    serve(model, [[1], [2]], [2, 3], IterationLevel(), ReservedMemory(100), progress=seen.append)
    assert seen == [1, 2]
    with pytest.raises(ValueError, match="may grow to 130 tokens; the model has 128 positions"):
        serve(model, [[1] * 100], [30], IterationLevel(), ReservedMemory(1000))
