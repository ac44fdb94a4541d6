"""The heterogeneous control-flow graph of a program, for looking at and for counting paths."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from papers.dycl.program import Block, Body, HostOp, If, Leave, Loop, Note, Program, Region, Return, TensorOp


@dataclass(frozen=True)
class Vertex:
    """kind: tensor (one operation), region (a sub-network), host, branch, join, return, start."""

    number: int
    kind: str
    text: str
    network: int = -1  # of a region


@dataclass(frozen=True)
class Graph:
    vertices: tuple[Vertex, ...]
    edges: tuple[
        tuple[int, int, str], ...
    ]  # from, to, and the names that are carried or the outcome of a branch

    def count(self, kind: str) -> int:
        return sum(vertex.kind == kind for vertex in self.vertices)

    def paths(self) -> int:
        """Ways from the start to a return when every loop runs at most once."""
        following: dict[int, list[int]] = {}
        for source, target, _ in self.edges:
            if target > source:
                following.setdefault(source, []).append(target)

        @cache
        def ways(number: int) -> int:
            if self.vertices[number].kind == "return":
                return 1
            return sum(ways(other) for other in following.get(number, []))

        return ways(0)


def graph_of(program: Program) -> Graph:
    """The graph of a program, before or after merging."""
    maker = _Maker()
    maker.add("start", ", ".join(program.arguments))
    maker.body(program.body, [(0, "")])
    return Graph(tuple(maker.vertices), tuple(maker.edges))


Ends = list[tuple[int, str]]  # vertices whose next one is not known yet, with the label of that edge


class _Maker:
    def __init__(self) -> None:
        self.vertices: list[Vertex] = []
        self.edges: list[tuple[int, int, str]] = []
        self.left: dict[str, Ends] = {}

    def add(self, kind: str, text: str, network: int = -1) -> int:
        self.vertices.append(Vertex(len(self.vertices), kind, text, network))
        return len(self.vertices) - 1

    def link(self, ends: Ends, target: int) -> None:
        self.edges += [(source, target, label) for source, label in ends]

    def body(self, body: Body, ends: Ends) -> Ends:
        for node in body:
            if not ends:
                return ends
            ends = self.node(node, ends)
        return ends

    def node(self, node: object, ends: Ends) -> Ends:
        if isinstance(node, Note):
            return ends
        if isinstance(node, TensorOp):
            return self.step("tensor", f"{_text(node.target)} = {_text(node.value)}", ends)
        if isinstance(node, Region):
            if node.index < 0:
                kind = "host" if all(op.alias for op in node.ops) else "tensor"
                text = "; ".join(f"{_text(op.target)} = {_text(op.value)}" for op in node.ops)
                return self.step(kind, text, ends)
            call = f"{', '.join(node.outputs)} = sub_{node.index}({', '.join(node.inputs)})"
            return self.step("region", call, ends, node.index)
        if isinstance(node, HostOp):
            return self.step("host", ast.unparse(ast.fix_missing_locations(node.statement)), ends)
        if isinstance(node, Return):
            self.step("return", f"return {_text(node.value)}", ends)
            return []
        if isinstance(node, Leave):
            self.left.setdefault(node.label, []).extend(ends)
            return []
        if isinstance(node, If):
            branch = self.add("branch", _text(node.test))
            self.link(ends, branch)
            then = self.body(node.then, [(branch, "yes")])
            return then + self.body(node.orelse, [(branch, "no")])
        if isinstance(node, Loop):
            branch = self.add(
                "branch", f"{node.target} in {_text(node.test)}" if node.target else _text(node.test)
            )
            self.link(ends, branch)
            self.link(self.body(node.body, [(branch, "yes")]), branch)
            return [(branch, "no"), *self.left.pop(node.label, [])]
        assert isinstance(node, Block)
        return self.body(node.body, ends) + self.left.pop(node.label, [])

    def step(self, kind: str, text: str, ends: Ends, network: int = -1) -> Ends:
        if len(ends) > 1:
            join = self.add("join", "")
            self.link(ends, join)
            ends = [(join, "")]
        made = self.add(kind, text, network)
        self.link(ends, made)
        return [(made, "")]


def _text(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(node))


def columns(graph: Graph) -> Iterator[tuple[Vertex, int, int]]:
    """Where to draw each vertex: (vertex, column, row), column 0 first. Rows follow the longest way from the start."""
    row = [0] * len(graph.vertices)
    for source, target, _ in sorted(graph.edges):
        if target > source:
            row[target] = max(row[target], row[source] + 1)
    by_row: dict[int, list[Vertex]] = {}
    for vertex in graph.vertices:
        by_row.setdefault(row[vertex.number], []).append(vertex)
    for level, known in by_row.items():
        for place, vertex in enumerate(known):
            yield vertex, place, level
