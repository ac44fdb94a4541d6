"""The serving bake-off: equal terms are equal, and what it reads off them is right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoffs.nanoflow_overlap import OverlappedLatency, plan_overlap
from bakeoffs.serving import Config, Curve, Job, Search, objectives, requests, run, server, terms_of
from bakeoffs.serving_systems import ABOUT, SYSTEMS
from common.lab.bakeoff import compose_bakeoff
from common.lab.bounds import unbounded
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.serving.metrics import attainment, keeps_pace
from common.serving.workload import Workload
from papers.nanoflow.search import Effort

SMALL = Config(
    requests=60,
    seconds=5.0,
    most_requests=400,
    resolution=0.2,
    loads=[0.5, 1.5],
    instances=4,
    systems=["vLLM"],
    tight=0.0,
)
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "serving_bakeoff.ipynb"


@pytest.fixture(scope="module")
def overlap():
    return plan_overlap(1155, 211, Effort(walks=2, evaluations=400, refined=400, nodes=20))


def lab(seeds: int = 1) -> Runtime:
    return Runtime(range(seeds), workers=1)


@pytest.fixture(scope="module")
def small():
    _, slo = objectives(SMALL, terms_of(SMALL), lab())
    return slo, requests(SMALL, lab(), 0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_serves_the_same_requests_to_their_last_token(system, small):
    _, workload = small
    trace = server(Job(SMALL, system, 0, workload))(4.0)
    np.testing.assert_array_equal(trace.output, workload.output[:60])
    assert [len(times) for times in trace.token_times] == trace.output.tolist()
    assert np.all(trace.ttft > 0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_system_beats_the_latency_model_on_a_lone_request(system):
    alone = Workload(np.array([0.0]), np.array([1000]), np.array([20]))
    config = replace(SMALL, requests=1, most_requests=1)
    trace = server(Job(config, system, 0, alone))(1.0)
    latency = terms_of(config).latency
    prefill = latency.iteration([(1000, 0)], 0, 0)[0]
    decode = sum(latency.iteration([], 1, 1000 + step)[0] for step in range(1, 20))
    assert trace.ttft[0] >= prefill * (1 - 1e-9)
    assert trace.finish[0] - trace.first_token[0] >= decode * (1 - 1e-9)


def test_the_rates_found_are_sustained_and_a_little_more_is_not(small):
    slo, workload = small
    job = Job(SMALL, "vLLM", 0, workload)
    found = {metric: value for metric, value, _ in Search(slo)(job)}
    serve, gpus = server(job), terms_of(SMALL).gpus
    assert attainment(serve(found["goodput"] * gpus), slo) >= 0.9
    assert attainment(serve(found["goodput"] * gpus * 1.2), slo) < 0.9
    assert keeps_pace(serve(found["capacity"] * gpus), slo.tpot)
    assert found["gpu_seconds_per_request"] == 1 / found["goodput"]


@given(
    chunks=st.lists(st.tuples(st.integers(1, 2048), st.integers(0, 4000)), max_size=4),
    decodes=st.integers(0, 200),
    length=st.integers(1, 4000),
)
@settings(max_examples=80, deadline=None)
def test_overlap_shortens_full_mixed_batches_alone_and_its_lines_are_exact(overlap, chunks, decodes, length):
    base = terms_of(SMALL).latency
    latency = OverlappedLatency(base, overlap)
    plain, ours = (one.iteration(chunks, decodes, decodes * length)[0] for one in (base, latency))
    tokens = decodes + sum(new for new, _ in chunks)
    assert 0.5 * plain < ours <= plain
    if not chunks or tokens < 500:
        assert ours == plain
    if decodes:
        line = latency.decode_line(decodes, decodes * length)
        expected = latency.iteration([], decodes, decodes * length)[0]
        assert line.intercept + line.slope * decodes * length == pytest.approx(expected, rel=1e-12)


def test_a_full_batch_of_the_planned_lengths_does_overlap(overlap):
    latency = OverlappedLatency(terms_of(SMALL).latency, overlap)
    share = overlap.share([(1738, 0)], 310, 310 * 1260)
    assert share < 1.0
    assert latency.iteration([(1738, 0)], 310, 310 * 1260)[0] == pytest.approx(
        share * latency.base.iteration([(1738, 0)], 310, 310 * 1260)[0]
    )


def test_less_memory_serves_less_and_priorities_swap_where_it_is_short(small):
    _, workload = small
    config = replace(SMALL, requests=200, instances=1)
    served = {}
    for system in ("vLLM, priorities", "FastSwitch"):
        for share in (1.0, 0.05):
            trace = server(Job(config, system, 0, workload, kv_share=share))(3.0)
            served[system, share] = trace
        assert served[system, 1.0].preemptions.sum() == 0 < served[system, 0.05].preemptions.sum()
    slow, fast = (served[system, 0.05].finish.max() for system in ("vLLM, priorities", "FastSwitch"))
    assert fast <= slow


def test_attainment_falls_with_the_rate(small):
    slo, workload = small
    rows = Curve(slo)(Job(SMALL, "vLLM", 0, workload, reference=2.0))
    light, heavy = (value for metric, value, _ in rows if metric == "attainment")
    assert light > heavy


def test_objectives_are_multiples_of_an_idle_instance():
    terms = terms_of(SMALL)
    prompt, slo = objectives(SMALL, terms, lab())
    assert slo.ttft == 10 * terms.latency.iteration([(round(prompt), 0)], 0, 0)[0]
    assert slo.tpot == 5 * terms.latency.iteration([], 32, 32 * 4096)[0]


def test_same_config_and_seeds_give_the_same_bytes():
    config = replace(SMALL, systems=["vLLM", "DistServe"], instances=3)
    assert run(config, lab(2)).to_json() == run(config, lab(2)).to_json()


def test_the_committed_config_composes_and_every_system_is_described():
    composed = compose_bakeoff(Project.current(), "serving")
    assert set(composed.config.systems) == set(SYSTEMS) == set(ABOUT)


@pytest.mark.parametrize(
    "odd",
    [
        "systems=[]",
        "systems=[vllm]",
        "systems=[vLLM,vLLM]",
        "model=gpt5",
        "tensor_parallel=3",
        "tensor_parallel=1",
        "instances=1",
        "requests=1",
        "requests=9000",
        "seconds=-1",
        "gap_factor=0",
        "target=1.5",
        "resolution=0",
        "tight=0.001",
        "loads=[]",
        "loads=[-3]",
        "lengths=foo",
    ],
)
def test_terms_that_nobody_could_serve_on_are_refused_in_one_line(odd):
    with pytest.raises(LabError) as error:
        compose_bakeoff(Project.current(), "serving", [f"bakeoff.{odd}"])
    assert "\n" not in str(error.value) and odd.partition("=")[0] in str(error.value)


def test_every_field_of_the_terms_is_bounded():
    assert unbounded(Config) == []


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
