"""Sub-networks as modules: what stands in a region becomes the forward of a module; equal ones are the same module."""

import ast
import inspect
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from papers.dycl.program import Body, Program, Region, rebuild
from papers.dycl.source import Place, Unsupported


class SubNetwork(nn.Module):
    """One region: forward takes its inputs in order and returns a tuple of its outputs.

    Parameters are the network's own. text: the source of forward; place: where its first statement comes from.
    """

    def __init__(
        self, text: str, constants: dict[str, Any], place: Place, arity: tuple[int, int], operations: int
    ) -> None:
        super().__init__()
        self.text, self.place, self.arity, self.operations = text, place, arity, operations
        self.identity = (text, tuple((alias, id(item)) for alias, item in constants.items()))
        known: dict[str, Any] = {"torch": torch}
        for alias, item in constants.items():
            if isinstance(item, nn.Module):
                self.add_module(alias, item)
            elif isinstance(item, nn.Parameter):
                self.register_parameter(alias, item)
            elif isinstance(item, torch.Tensor):
                self.register_buffer(alias, item)
            else:
                known[alias] = item
        file = f"<sub-network of {place} #{id(self)}>"
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # so that tracers can quote it
        exec(compile(text, file, "exec"), known)
        self._function = known["forward"]
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._function(self, *inputs)


def numbered(program: Program) -> tuple[Program, list[SubNetwork]]:
    """The program with its regions numbered, and a sub-network for each. Regions that only rename tensors get none."""
    made: list[SubNetwork] = []

    def number(region: Region) -> Region:
        if all(op.alias for op in region.ops):
            return region
        text, constants = _canonical(region)
        arity = (len(region.inputs), len(region.outputs))
        made.append(SubNetwork(text, constants, region.ops[0].place, arity, len(region.ops)))
        return replace(region, index=len(made) - 1)

    return _renumbered(program, number), made


def shared(program: Program, recorders: Sequence["Recorder"]) -> tuple[Program, list["Recorder"]]:
    """Sub-networks of the same operations over the same parameters and shapes become one."""
    first: dict[object, int] = {}
    kept: list[Recorder] = []
    place: list[int] = []
    for recorder in recorders:
        key = recorder.identity()
        if key not in first:
            first[key] = len(kept)
            kept.append(recorder)
        place.append(first[key])

    def number(region: Region) -> Region:
        return replace(region, index=place[region.index]) if region.index >= 0 else region

    return _renumbered(program, number), kept


def _renumbered(program: Program, number: Callable[[Region], Region]) -> Program:
    def change(body: Body) -> Body:
        return tuple(number(node) if isinstance(node, Region) else node for node in body)

    return replace(program, body=rebuild(program.body, change))


def _canonical(region: Region) -> tuple[str, dict[str, Any]]:
    """The text of a region's forward with its variables renamed in order, so that equal regions have equal texts."""
    names: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aliases: dict[int, str] = {}

    class Rename(ast.NodeTransformer):
        def __init__(self, known: dict[str, Any]) -> None:
            self.known = known

        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id in self.known:
                item = self.known[node.id]
                if id(item) not in aliases:
                    aliases[id(item)] = f"{_stem(item)}{len(constants)}"
                    constants[aliases[id(item)]] = item
                alias = aliases[id(item)]
                if isinstance(item, (nn.Module, torch.Tensor)):
                    return ast.Attribute(ast.Name("self", ast.Load()), alias, ast.Load())
                return ast.Name(alias, ast.Load())
            if node.id in names:
                return ast.Name(names[node.id], node.ctx)
            return node

    for key in region.inputs:
        names[key] = f"v{len(names)}"
    lines = []
    for op in region.ops:
        value = Rename(dict(op.constants)).visit(_copy(op.value))
        for inner in ast.walk(op.target):
            if isinstance(inner, ast.Name) and inner.id not in names:
                names[inner.id] = f"v{len(names)}"
        target = Rename({}).visit(_copy(op.target))
        lines.append(f"    {ast.unparse(target)} = {ast.unparse(value)}")
    inputs = ", ".join(["self", *(names[key] for key in region.inputs)])
    outputs = "".join(f"{names[key]}, " for key in region.outputs)
    text = f"def forward({inputs}):\n" + "\n".join(lines) + f"\n    return ({outputs})\n"
    return text, constants


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body


def _stem(item: Any) -> str:
    if isinstance(item, nn.Module):
        return type(item).__name__.lower()
    if isinstance(item, torch.Tensor):
        return "weight"
    return "f_" + getattr(item, "__name__", type(item).__name__) if not inspect.isclass(item) else "c"


@dataclass
class Seen:
    """What entered and left a sub-network: the first call's values, and which dimensions changed later."""

    inputs: tuple[Any, ...]
    outputs: tuple[torch.Tensor, ...]
    varying: set[tuple[int, int]]  # (input, dimension)


class Recorder:
    """Runs a sub-network eagerly and remembers what it saw."""

    def __init__(self, network: SubNetwork) -> None:
        self.network = network
        self.seen: Seen | None = None

    def __call__(self, *inputs: Any) -> Any:
        tensors = tuple(as_tensor(value) for value in inputs)
        outputs = self.network(*tensors)
        if self.seen is None:
            self.seen = Seen(tensors, outputs, set())
        for place, (first, now) in enumerate(zip(self.seen.inputs, tensors, strict=True)):
            if first.dim() != now.dim() or first.dtype != now.dtype:
                raise Unsupported(
                    self.network.place, "a tensor changes its number of dimensions or its type between paths"
                )
            self.seen.varying |= {
                (place, d) for d, (a, b) in enumerate(zip(first.shape, now.shape, strict=True)) if a != b
            }
        return outputs if len(outputs) != 1 else outputs[0]

    def identity(self) -> object:
        """Equal for sub-networks that compute the same on inputs of the same shapes."""
        assert self.seen is not None
        kinds = tuple((tuple(value.shape), value.dtype) for value in self.seen.inputs)
        return (self.network.identity, kinds, frozenset(self.seen.varying))


def as_tensor(value: Any) -> torch.Tensor:
    """A tensor as it is, and a host number as a tensor without dimensions that promotes as the number does."""
    if isinstance(value, torch.Tensor):
        return value
    kind = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float32
    return torch.tensor(value, dtype=kind)


def eager(networks: Sequence[SubNetwork]) -> list[Callable[..., Any]]:
    """The sub-networks as they are, without any compiler."""

    def call(network: SubNetwork) -> Callable[..., Any]:
        function, single = network._function, network.arity[1] == 1

        def run(*inputs: Any) -> Any:
            outputs = function(network, *(as_tensor(value) for value in inputs))
            return outputs[0] if single else outputs

        return run

    return [call(network) for network in networks]
