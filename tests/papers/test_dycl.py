"""The compiler on random programs, on what it must refuse, and on files that run without torch."""

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("onnxruntime", reason="the extra `compile` is not installed")

from common.lab.runtime import Runtime
from common.models.dynamic import zoo
from papers.dycl import backends, baselines
from papers.dycl.compiler import Compiled, Options, compile_network
from papers.dycl.config import Config
from papers.dycl.experiment import run
from papers.dycl.hcfg import graph_of
from papers.dycl.loading import flat
from papers.dycl.paths import watched
from papers.dycl.program import Region, nodes
from papers.dycl.recording import Decisions
from papers.dycl.source import Unsupported
from papers.dycl.subnetworks import as_tensor
from papers.dycl.timing import WARM_UP, Inside, latencies
from papers.dycl.verification import Task, in_a_fresh_process, verify
from tests.papers.dycl_programs import HEAD, TAIL, programs

OPTIONS = [
    Options(),
    Options(merge=False),
    Options(fuse_conditions=False),
    Options(fold=False),
    Options(prune=False),
    Options(share=False),
]
COUNT = itertools.count()


def module_of(text: str, folder: Path) -> nn.Module:
    """The module Drawn of a source text, in eval mode."""
    file = folder / f"drawn{next(COUNT)}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    torch.manual_seed(0)
    return loaded.Drawn().eval().requires_grad_(False)


def written(body: str, folder: Path) -> nn.Module:
    """A module whose forward has this body, in front of `return x, y, z, a, b, seen`."""
    lines = ["        " + line for line in body.strip("\n").splitlines()]
    return module_of(HEAD + "\n".join(lines) + "\n" + TAIL, folder)


def pairs(count: int = 10, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(1, 4, generator=generator), torch.randn(1, 4, generator=generator)) for _ in range(count)
    ]


def agrees(network: nn.Module, compiled: Compiled, inputs: list[Any], backend: str = "eager") -> int:
    """Asserts that outputs and paths are eager mode's on all inputs; the number of different paths."""
    calls, path = compiled.calls(backend), []  # type: ignore[var-annotated]
    plain, traced = compiled.forward(calls), compiled.watched(calls, path)
    seen = set()
    with torch.no_grad(), watched(network, compiled.program.sources) as wanted:
        for given_ in inputs:
            wanted.clear()
            path.clear()
            expected = flat(network(*given_))
            passed = given_ if backend in ("eager", "inductor") else [value.numpy() for value in given_]
            found = flat(plain(*passed))
            assert flat(traced(*passed)) == found
            assert path == list(wanted), compiled.text
            assert baselines.equal(found, expected, 1e-4), compiled.text
            seen.add(str(path))
    return len(seen)


@given(programs(), st.sampled_from(OPTIONS))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_random_programs_keep_outputs_and_paths_under_every_optimisation(
    tmp_path_factory: pytest.TempPathFactory, text: str, options: Options
) -> None:
    network = module_of(text, tmp_path_factory.mktemp("drawn"))
    try:
        compiled = compile_network(network, pairs(4), options)
    except Unsupported as error:
        assert "no sample reaches this" in str(error)  # a side that no input takes; all else must be taken
        return
    agrees(network, compiled, pairs(12))


@given(programs())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_random_programs_keep_outputs_and_paths_in_onnx_runtime(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    network = module_of(text, tmp_path_factory.mktemp("drawn"))
    try:
        compiled = compile_network(network, pairs(4))
    except Unsupported as error:
        assert "no sample reaches this" in str(error)
        return
    agrees(network, compiled, pairs(8), "onnxruntime")
    for model in compiled.export():
        assert not backends.operators(model) & {"If", "Loop", "Scan"}


HARD = {
    "return inside two loops": """
for i in range(3):
    n = 0
    while n < 4 and x.sum() < 3:
        n = n + 1
        x = x + 0.3
        if y.mean() + n > 1.5:
            return x, y, z, i, n, seen
        if n > 2:
            break
    seen.append(n)
""",
    "continue in a loop whose length the input decides": """
n = 0
while n < 5:
    n = n + 1
    if x[0, 1] * n > 0.5:
        continue
    x = torch.tanh(x + z)
    seen.append(n)
a = n
""",
    "a method with early returns inside a loop": """
for k in range(2):
    for m in self.layers:
        x, a = self.pick(x, a)
        if a > 3:
            break
        z = m(x + z)
    else_ = k
b = else_
""",
    "a module chosen by an index that counts from the end": """
for j in range(-3, 3):
    x = self.layers[j](x)
i = int(x.argmax()) % 3 - 3
x = self.layers[i](x) + self.layers[a](y)
""",
    "a tuple of tensors carried through a loop": """
state = (x, y)
n = 0
while n < 3 and state[0].sum() < 2:
    left, right = state
    state = (torch.tanh(left + right), left)
    n += 1
x, y = state
""",
    "a tensor that grows in a loop": """
n = 0
while n < 4 and x.sum() < 1:
    x = torch.cat([x, y], dim=1)
    n += 1
a = x.shape[1]
z = x.mean(dim=1, keepdim=True) + z
b = len(x)
""",
    "a host loop over a shape": """
keep = z[:, :2]
h, w = x.shape
for j in range(w):
    if x[0, j] > 0:
        z = z * x[:, j]
    else:
        z = torch.tanh(z - j)
""",
    "a variable that begins as None, and operations that return tuples": """
w = None
for k, m in enumerate(self.layers):
    if k == 1 and self.off is None:
        continue
    w = m(x) if w is None else w + m(x)
z = w
vals, idx = x.max(dim=1)
(q, r), s = x.split(2, dim=1), y
y = q + r[:, :2]
a = idx.item()
b = float(vals)
""",
    "nested tuples and a Python float carried through branches": """
best, state = -1.0, (x, (y, z))
for m in self.layers:
    u, (v, w) = state
    score = float(m(u).sum())
    if score > best:
        best = score
        state = (v, (w, u))
    elif not (score < -1 or u[0, 0] > 0):
        state = (u, (w, v))
x, (y, z) = state
a = round(best, 1)
""",
    "modules picked by a counter that runs down": """
def_ = self.cuts
total = 0.0
for c in def_:
    total += c if x.mean() > c else -c
x = x * total
i = 2
while i >= 0:
    x = self.layers[i](x)
    i -= 1
    if i == 0 and x.sum() > 0: break
a = i
""",
    "a list of tensors": """
kept = []
for m in self.layers:
    x = m(x)
    if x.sum() > 0:
        kept.append(x)
seen = kept
""",
}


@pytest.mark.parametrize("body", HARD.values(), ids=HARD.keys())
def test_hard_control_flow(body: str, tmp_path: Path) -> None:
    network = written(body, tmp_path)
    for options in OPTIONS:
        agrees(network, compile_network(network, pairs(6), options), pairs(40, seed=5))


REFUSED = {
    "try:\n    x = x + 1\nexcept ValueError:\n    pass": "try",
    "with torch.no_grad():\n    x = x + 1": "with",
    "x = [v for v in seen]": "ListComp",
    "f = lambda v: v": "Lambda",
    "yield x": "Yield",
    "self.a = 1": "state in place",
    "x[0] = 1": "state in place",
    "x += y": "in place on a tensor",
    "x = x.add_(y)": "in place",
    "x = torch.rand(1, 4)": "random",
    "x = torch.tensor([[int(x.argmax())]]) + y": "torch.tensor of a value known at run time",
    "a = int(y.argmax())\nx = x[:, :a]": "slice",
    "for row in x:\n    y = y + row": "loop over a tensor",
    "print(x)": "neither of torch",
    "while a < 2:\n    a = a + 1\nelse:\n    b = 2": "`else` of a loop",
    "x = torch.stack([*self.layers])": "starred",
    "y = x and z": "as a value",
    "m = self.layers[0] if x.sum() > 0 else self.layers[1]\ny = m(x)": "on one path",
    "q = None\nif x.sum() > 0:\n    q = y\nz = q + 1": "on one path",
    "c = x.sum() > 0 > y.sum()": "chained comparison",
    "x = min(x, y)": "use torch's function",
    "assert a == 0": "assert",
    "x = self.missing(x)": "no such attribute",
    "x = undefined": "no value here",
    "outs = []\nfor j in range(int(x.argmax())):\n    outs.append(x)\nx = torch.cat(outs)": "length is not known",
}


@pytest.mark.parametrize(("body", "message"), REFUSED.items())
def test_what_cannot_be_rewritten_is_refused_with_file_and_line(
    body: str, message: str, tmp_path: Path
) -> None:
    network = written(body, tmp_path)
    with pytest.raises(Unsupported) as caught:
        compile_network(network, pairs(2))
    assert message in str(caught.value)
    first = HEAD.count("\n") + 1
    assert caught.value.place.file.endswith(".py")
    assert first <= caught.value.place.line < first + len(body.splitlines())


class Hidden(nn.Module):
    """Looks like an operation, but a number leaves the tensors inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * sum(x[0].detach().numpy())


class HidesIt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Hidden()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1


def test_a_value_that_the_exporters_trace_would_freeze_is_refused() -> None:
    compiled = compile_network(HidesIt().eval(), [(torch.ones(1, 4),)])
    with pytest.raises(Exception, match="Python value|numpy|constant"):
        compiled.export()


def test_bad_input_is_refused_with_what_to_do() -> None:
    network = HidesIt()
    with pytest.raises(ValueError, match="eval"):
        compile_network(network, [(torch.ones(1, 4),)])
    with pytest.raises(ValueError, match="at least one sample"):
        compile_network(network.eval(), [])
    with pytest.raises(ValueError, match="onnxruntime, openvino"):
        compile_network(network, [(torch.ones(1, 4),)]).calls("tvm")


def network_and_inputs(name: str, count: int = 40) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = zoo.recipe(name).width // 2
    inputs = zoo.draw(zoo.recipe(name).reads, 40 + count, generator, width)
    return zoo.build(name, generator, inputs[:40], width), inputs[:40], inputs[40:]


def compiled_zoo(name: str, options: Options | None = None) -> tuple[nn.Module, Compiled, torch.Tensor]:
    network, calibration, inputs = network_and_inputs(name)
    return network, compile_network(network, [(calibration[i : i + 1],) for i in range(15)], options), inputs


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_each_network_of_the_zoo_keeps_outputs_and_paths(name: str) -> None:
    network, compiled, inputs = compiled_zoo(name)
    different = agrees(network, compiled, [(inputs[i : i + 1],) for i in range(30)], "onnxruntime")
    assert different >= 3


def test_a_saved_program_runs_in_a_fresh_process_without_torch_and_without_the_class(tmp_path: Path) -> None:
    network, compiled, inputs = compiled_zoo("greedy_decoder")
    folder = compiled.save(tmp_path / "saved")
    text = (folder / "program.py").read_text()
    assert "import torch" not in text and "common." not in text and "GreedyDecoder" not in text
    found = in_a_fresh_process(folder, inputs)
    assert found["torch"] is False and found["same"] is True
    with torch.no_grad(), watched(network, compiled.program.sources) as path:
        for row, output, taken in zip(range(len(inputs)), found["outputs"], found["paths"], strict=True):
            path.clear()
            assert baselines.equal(output, flat(network(inputs[row : row + 1])), 1e-4)
            assert [list(step) for step in path] == taken


def test_the_zoo_gives_sub_networks_linear_in_blocks_where_paths_are_exponential() -> None:
    _, gated, _ = compiled_zoo("gated_resnet")
    assert len(gated.networks) == 2 * 6 + 1  # stem with first gate, block, gate, ..., head
    assert graph_of(gated.program).paths() == 2**6
    _, policy, _ = compiled_zoo("policy_resnet")
    assert len(policy.networks) == 1 + 6 + 1  # all conditions are known after the first
    _, decoder, _ = compiled_zoo("greedy_decoder")
    assert len(decoder.networks) == 2  # what comes before the loop, and one step
    assert "while" in decoder.text and "for " not in decoder.text


def regions(compiled: Compiled) -> list[Region]:
    return [node for node in nodes(compiled.program.body) if isinstance(node, Region) and node.index >= 0]


def test_each_optimisation_removes_what_it_is_for() -> None:
    without = {
        name: compiled_zoo("pondering_rnn", Options(**{name: False}))[1]
        for name in ("fold", "prune", "merge", "fuse_conditions", "share")
    }
    _, full, _ = compiled_zoo("pondering_rnn")
    operations = sum(not op.alias for region in regions(full) for op in region.ops)
    assert len(regions(without["merge"])) == operations
    assert len(without["fuse_conditions"].networks) > len(full.networks)
    assert len(without["share"].networks) > len(full.networks)
    assert len(regions(without["share"])) == len(regions(full))
    dead = sum(part.arity[1] for part in without["prune"].networks)
    assert dead > sum(part.arity[1] for part in full.networks)
    _, kept, _ = compiled_zoo("early_exit_resnet", Options(fold=False))
    assert kept.text.count("if ") > compiled_zoo("early_exit_resnet")[1].text.count("if ")


def test_a_branch_that_no_sample_takes_is_compiled_with_shapes_from_forced_decisions(tmp_path: Path) -> None:
    network = written("if x.sum() > 50:\n    x = torch.tanh(self.layers[0](x)) * 2", tmp_path)
    compiled = compile_network(network, pairs(3))
    assert compiled.unreached >= 1
    far = [(x + 100, y) for x, y in pairs(3)]
    assert agrees(network, compiled, [*pairs(3), *far], "onnxruntime") == 2


def test_forced_decisions_are_forced_once() -> None:
    take = Decisions({1: False})
    assert [take(1, True), take(1, True), take(2, False)] == [False, True, False]
    assert take.seen == {1: [False, True], 2: [False]}


def test_an_uncut_program_is_right_on_the_samples_path_and_wrong_on_others_as_a_trace_is() -> None:
    network, calibration, inputs = network_and_inputs("early_exit_vgg")
    sample = (calibration[:1],)
    uncut = compile_network(network, [sample], Options(cut=False))
    assert "if" not in uncut.text and "while" not in uncut.text
    forward, trace = uncut.forward(uncut.calls("eager")), baselines.trace_torch(network, sample[0])
    with torch.no_grad():
        assert baselines.equal(flat(forward(*sample)), flat(network(*sample)), 1e-4)
        rows = [inputs[i : i + 1] for i in range(len(inputs))]
        same = [baselines.equal(flat(forward(row)), flat(trace(row)), 1e-4) for row in rows]
        right = [baselines.equal(flat(forward(row)), flat(network(row)), 1e-4) for row in rows]
    assert all(same) and not all(right)


def test_a_traces_errors_are_the_inputs_that_leave_its_path(tmp_path: Path) -> None:
    network, calibration, inputs = network_and_inputs("resolution_cascade")
    task = Task(
        "resolution_cascade", 0, 0, 16, calibration, inputs, str(tmp_path / "a"), Options(), deploy=False
    )
    seen = verify(task)
    (share,) = seen.values("traced_path_share")
    for method in ("trace to ONNX", "torch.jit.trace"):
        assert seen.values("trace_wrong", method=method) == pytest.approx([1 - share])
    assert seen.values("right") == [1.0]


def test_openvino_runs_the_same_sub_networks() -> None:
    pytest.importorskip("openvino")
    network, compiled, inputs = compiled_zoo("patient_encoder")
    agrees(network, compiled, [(inputs[i : i + 1],) for i in range(10)], "openvino")


def test_numbers_of_the_host_promote_as_python_numbers_do() -> None:
    half = torch.ones(2, dtype=torch.float16)
    assert (half * as_tensor(0.5)).dtype == torch.float16
    assert (torch.ones(2, dtype=torch.int64) * as_tensor(2)).dtype == torch.int64
    assert as_tensor(True).dtype == torch.bool


def test_watching_leaves_the_classes_as_they_were() -> None:
    network, _, inputs = network_and_inputs("early_exit_vgg")
    before = type(network).forward
    with watched(network) as path:
        assert type(network).forward is not before
        network(inputs[:1])
    assert type(network).forward is before and path


def test_every_system_sees_every_input_as_often_in_turn() -> None:
    order: list[tuple[str, int]] = []

    def call(name: str) -> Callable[[int], None]:
        return lambda value: order.append((name, value))

    found = latencies({"a": call("a"), "b": call("b")}, {"a": [0, 1, 2], "b": [0, 1, 2]}, rounds=2)
    assert found["a"].shape == (3,) and np.all(found["a"] >= 0)
    part = WARM_UP + 3
    for begin, name in ((0, "a"), (part, "b"), (2 * part, "b"), (3 * part, "a")):  # the second round turns
        timed = order[begin + WARM_UP : begin + part]
        assert timed == [(name, 0), (name, 1), (name, 2)]
    assert len(order) == 4 * part


def test_the_clock_inside_counts_sub_networks_alone() -> None:
    inside = Inside([lambda x: x + 1])
    assert inside.calls[0](1) == 2 and inside.seconds > 0


TINY = Config(networks=["greedy_decoder"], narrower=4, calibration=32, inputs=12, threads=[], timed_inputs=4, rounds=1,
              rivals=False, backends=["onnxruntime"], inductor=[], ablations=["share"])  # fmt: skip


def steady(config: Config) -> str:
    seen = run(
        config,
        Runtime([0], workers=1, wanted={"correct_share", "trace_wrong_share", "regions_per_operation"}),
    )
    rows = [row for row in seen if "seconds" not in row.metric]
    return type(seen)(rows).to_json()


def test_two_runs_see_the_same() -> None:
    assert steady(TINY) == steady(TINY)


def test_the_gpu_measurement_runs_on_a_cpu_and_agrees() -> None:
    from papers.dycl.gpu import on_gpu

    seen = on_gpu(TINY, Runtime([0], workers=1))
    assert max(seen.values("gpu_difference")) < 1e-4
    assert min(seen.values("gpu_speedup")) > 0


def test_the_generated_text_names_no_module_of_this_process() -> None:
    _, compiled, _ = compiled_zoo("expert_stack")
    names: dict[str, Any] = {}
    exec(compile(compiled.text, "<text>", "exec"), names)
    assert set(names) - {"__builtins__"} == {"build"} and "torch" in sys.modules


def test_a_config_names_every_network_of_the_zoo() -> None:
    assert Config().networks == list(zoo.RECIPES)
