"""The live engine: greedy tokens do not depend on the policy, and its memory is what the accounting says."""

import threading
import time

import numpy as np
import pytest
import torch

from common.data import DataError, fetch
from common.models import smollm2
from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.models.paged import BlockPool
from common.serving.clients import ClosedLoop
from common.serving.latency import INFINITY, Line
from common.serving.live import Iteration, serve
from common.serving.live_fit import LiveLatency, compare, copy_seconds_per_token, fit, predict
from common.serving.loop import ARRIVAL
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.metrics import SLO
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst, RequestLevel
from common.serving.wall_clock import ProcessorClock, WallClock
from common.serving.workload import Workload

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


@pytest.mark.parametrize("name", [name for name in POLICIES if "paged" in name or "first" in name])
def test_a_pool_of_the_blocks_that_are_counted_suffices(model, requests, expected, name):
    """The cache really lies in as many blocks as the policies' accounting says it does."""
    scheduler, memory, host_blocks = POLICIES[name]
    held = memory()
    pool = BlockPool(CONFIG, held.capacity, held.block_tokens)
    run = serve(model, *requests, scheduler, held, host_blocks=host_blocks, new_cache=pool.new)
    assert run.tokens == expected
    assert len(pool.free) == held.capacity


class FakeTime:
    """A clock that only the model and the waiting move."""

    def __init__(self):
        self.now = 100.0

    def read(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Linear:
    """A decode costs what a chunk of one token costs, so that the model need not know which is which."""

    stages = 1

    def iteration(self, chunks, decodes, context):
        tokens = decodes + sum(new for new, _ in chunks)
        seconds = 1e-3 + 1e-4 * tokens + 1e-6 * (context + sum(map(sum, chunks)))
        return seconds, seconds

    def decode_line(self, decodes, context):
        return Line(1e-3 + 1e-4 * decodes, 1e-6, INFINITY)


class TimedDecoder(Decoder):
    """Takes the seconds of the latency model by a fake clock."""

    def __init__(self, time):
        super().__init__(CONFIG, torch.Generator().manual_seed(0))
        self.time = time

    def forward(self, tokens, caches):
        chunks = [(len(new), cache.length) for new, cache in zip(tokens, caches, strict=True)]
        self.time.now += Linear().iteration(chunks, 0, 0)[0]
        return super().forward(tokens, caches)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("clients", [None, 6])
def test_a_live_run_is_the_simulation_but_for_the_seconds_of_iterations(requests, name, clients):
    """With a model that takes exactly the predicted seconds, every token comes out when the simulator says."""
    scheduler, memory, host_blocks = POLICIES[name]
    arrivals = np.cumsum(np.random.default_rng(1).exponential(2e-3, 12))
    fake = FakeTime()
    who = clients and ClosedLoop(clients)
    run = serve(
        TimedDecoder(fake),
        *requests,
        scheduler,
        memory(),
        arrivals=arrivals,
        clients=who,
        host_blocks=host_blocks,
        clock=WallClock(fake.read, fake.sleep),
    )
    workload = Workload(arrivals, np.array([len(prompt) for prompt in requests[0]]), np.array(requests[1]))
    trace = predict(workload, Linear(), scheduler, memory(), clients=who, host_blocks=host_blocks)
    for live, simulated in zip(run.trace.token_times, trace.token_times, strict=True):
        np.testing.assert_allclose(live, simulated, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(run.trace.preemptions, trace.preemptions)
    np.testing.assert_allclose(run.trace.started, trace.started, rtol=0, atol=1e-9)
    assert all(abs(row.error) < 1e-9 for row in compare(run.trace, trace, SLO(0.02, 0.002)))


def test_a_fit_finds_the_coefficients_behind_the_seconds():
    truth = LiveLatency((3e-3, 2e-4, 1e-6), (4e-3, 5e-5, 1e-4, 2e-8, 3e-4, 2e-6))
    rng = np.random.default_rng(2)
    log = []
    for step in range(200):
        chunks = tuple((int(n), int(c)) for n, c in rng.integers(1, 200, (step % 4, 2)))
        decodes = int(rng.integers(0 if chunks else 1, 20))
        context = decodes * int(rng.integers(10, 500))
        log.append(Iteration(0.0, truth.iteration(chunks, decodes, context)[0], chunks, decodes, context))
    found = fit(log)
    np.testing.assert_allclose(found.decode, truth.decode, rtol=1e-6)
    np.testing.assert_allclose(found.mixed, truth.mixed, rtol=1e-6)
    apart = fit([each for each in log if not (each.chunks and each.decodes)])
    np.testing.assert_allclose(apart.mixed[4:], truth.decode[1:], rtol=1e-6)
    with pytest.raises(ValueError, match="iterations that only decode"):
        fit([each for each in log if each.chunks])


def test_a_fit_has_no_negative_coefficient_and_survives_an_interruption():
    truth = LiveLatency((3e-3, 2e-4, 0.0), (4e-3, 5e-5, 0.0, 0.0, 0.0, 0.0))
    rng = np.random.default_rng(3)
    log = []
    for step in range(400):
        chunks = ((int(rng.integers(1, 200)), 0),) if step % 2 else ()
        decodes, context = (0, 0) if chunks else (int(rng.integers(1, 20)), int(rng.integers(50, 5000)))
        seconds = truth.iteration(chunks, decodes, context)[0] * rng.normal(1, 0.02)
        log.append(Iteration(0.0, seconds * (30 if step == 100 else 1), chunks, decodes, context))
    found = fit(log)
    assert min(*found.decode, *found.mixed) >= 0
    for n in (1, 10, 20):
        assert found.iteration([], n, 1000)[0] == pytest.approx(truth.iteration([], n, 1000)[0], rel=0.01)


def test_copies_cost_their_mean_per_token():
    log = [
        Iteration(0, 1, (), 1, 1, 30, 3e-3),
        Iteration(0, 1, (), 1, 1),
        Iteration(0, 1, (), 1, 1, 10, 1e-3),
    ]
    assert copy_seconds_per_token(log) == pytest.approx(1e-4)
    assert copy_seconds_per_token(log[1:2]) == 0


def test_the_processor_clock_skips_waiting(model):
    begun = time.perf_counter()
    run = serve(
        model,
        [[1], [2]],
        [2, 2],
        IterationLevel(),
        ReservedMemory(9),
        arrivals=[0, 600],
        clock=ProcessorClock(),
    )
    assert time.perf_counter() - begun < 60
    assert run.trace.started[1] >= 600 and 0 < run.trace.ttft[1] < 5


def test_the_pretrained_model_answers_alike_under_two_policies():
    try:
        fetch(smollm2.DATASET)
    except DataError as error:
        pytest.skip(f"the model's file can't be had here: {error}")
    pretrained = smollm2.load_smollm2(64)
    capital = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    asked = [capital, capital[:4], capital[1:]], [4, 3, 2]
    together = serve(pretrained, *asked, IterationLevel(), ReservedMemory(100))
    chunked = serve(pretrained, *asked, ChunkedPrefill(4, 3), PagedMemory(100))
    assert together.tokens == chunked.tokens
    assert together.tokens[0][0] == 7042  # " Paris"


def test_what_another_thread_posts_is_called_on_the_runs_own_thread_in_its_turn():
    loop = WallClock()
    called: list[tuple[str, float, int]] = []

    def note(name):
        called.append((name, loop.now, threading.get_ident()))

    def over(name):
        note(name)
        loop.outside -= 1

    def outside():
        time.sleep(0.02)
        loop.post(note, "first")
        time.sleep(0.02)
        loop.post(over, "last")

    loop.outside = 1
    loop.at(0.0, ARRIVAL, note, "due at once")
    loop.at(0.03, ARRIVAL, note, "due between")
    thread = threading.Thread(target=outside)
    thread.start()
    loop.run([], lambda sequence: None)
    thread.join()
    assert [name for name, _, _ in called] == ["due at once", "first", "due between", "last"]
    assert [when for _, when, _ in called] == sorted(when for _, when, _ in called)
    assert {thread for _, _, thread in called} == {threading.get_ident()}


def test_a_run_without_outside_threads_ends_though_something_was_posted_before_it():
    loop = WallClock()
    called: list[str] = []
    loop.post(called.append, "early")
    loop.run([], lambda sequence: None)
    assert called == ["early"]
