"""The state of a rewriting: frames, the body being written, and how values become code."""

import ast
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from papers.dycl.program import (
    HostOp,
    Node,
    Note,
    TensorOp,
)
from papers.dycl.source import Place, Source, Unsupported
from papers.dycl.values import (  # fmt: skip
    Choice,
    Const,
    Environment,
    Host,
    Several,
    Tensor,
    Unusable,
    Value,
    hostable,
    literal,
    name,
    reads_of,
)

RESERVED = {
    "seen",
    "take",
    "math",
    "np",
    "build",
    "forward",
    "subs",
    "range",
    "len",
    "int",
    "bool",
    "float",
    "min",
    "max",
    "abs",
    "sum",
    "round",
    "str",
}


@dataclass
class Frame:
    """A function that is being rewritten: its variables, and what they are called in the rewritten program."""

    source: Source
    suffix: str
    env: Environment | None
    names: dict[str, str] = field(default_factory=dict)
    returns: list[tuple[Value, Environment]] = field(default_factory=list)
    label: str = ""  # of the block that a return leaves; "" in forward itself
    loops: list[tuple[str, str]] = field(default_factory=list)  # labels that break and continue leave


def is_bool(code: ast.expr) -> bool:
    """Whether a host expression is a bool already."""
    if isinstance(code, ast.BoolOp):
        return all(is_bool(side) for side in code.values)
    negated = isinstance(code, ast.UnaryOp) and isinstance(code.op, ast.Not)
    converted = isinstance(code, ast.Call) and isinstance(code.func, ast.Name) and code.func.id == "bool"
    return isinstance(code, ast.Compare) or negated or converted


class Lowering:
    """What the parts of the rewriting share: it writes nodes of the current frame into the current body."""

    fuse_conditions: bool
    fold: bool  # of conditions that depend on constants alone
    frames: list[Frame]
    exits: dict[str, list[Environment]]  # label -> environments that arrive behind it

    def __init__(self, network: nn.Module) -> None:
        self.known = {id(item): path for path, item in network.named_modules()}
        self.known |= {id(item): path for path, item in network.named_parameters()}
        self.known |= {id(item): path for path, item in network.named_buffers()}
        self.body: list[Node] = []
        self.in_condition = False
        self.counter = 0
        self.used: set[str] = set()  # names of the rewritten program
        self.keys = 0

    # what the later parts provide
    def inline(self, source: Source, bound: dict[str, Value], place: Place) -> Value:
        raise NotImplementedError

    def statements(self, body: Sequence[ast.stmt]) -> None:
        raise NotImplementedError

    def test_value(self, node: ast.expr) -> Value:
        raise NotImplementedError

    # the current place

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def env(self) -> Environment:
        assert self.frame.env is not None
        return self.frame.env

    def at(self, node: ast.AST) -> Place:
        return self.frame.source.place(node)

    def refuse(self, node: ast.AST, what: str) -> Unsupported:
        return Unsupported(self.at(node), what)

    def fresh(self, stem: str) -> str:
        while True:
            self.counter += 1
            made = f"{stem}_{self.counter}"
            if made not in self.used:
                self.used.add(made)
                return made

    @contextmanager
    def into(self) -> Iterator[list[Node]]:
        """Within the block nodes go into a body of its own."""
        outer, self.body = self.body, []
        try:
            yield self.body
        finally:
            self.body = outer

    # emitting

    def host(
        self, statement: ast.stmt, reads: frozenset[str], writes: set[str], place: Place, kept: bool = False
    ) -> None:
        self.body.append(HostOp(statement, reads, frozenset(writes), kept, place))

    def host_assign(self, target: str, code: ast.expr, reads: frozenset[str], place: Place) -> Host:
        self.host(ast.Assign([ast.Name(target, ast.Store())], code), reads, {target}, place)
        return Host(name(target), frozenset({target}))

    def tensor_assign(self, target: ast.expr, value: Tensor, place: Place) -> None:
        writes = frozenset(n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        self.body.append(
            TensorOp(target, value.code, value.reads, writes, value.constants, self.in_condition, place)
        )

    def settled(self, value: Value, place: Place, target: str = "") -> Value:
        """The value with its tensor operation done: a tensor becomes a name."""
        if not isinstance(value, Tensor) or isinstance(value.code, ast.Name):
            return value
        target = target or self.fresh("t")
        self.tensor_assign(ast.Name(target, ast.Store()), value, place)
        return Tensor(name(target), frozenset({target}))

    def note(self, place: Place, code: ast.expr, reads: frozenset[str]) -> None:
        self.body.append(Note(place, code, reads))

    def key(self) -> int:
        self.keys += 1
        return self.keys

    # from values to code

    def host_code(self, value: Value, node: ast.AST) -> ast.expr:
        """As an expression of the host program. Unsupported for modules and tuples of them."""
        if isinstance(value, Host):
            return value.code
        if isinstance(value, Const) and hostable(value.value):
            if isinstance(value.value, float) and not math.isfinite(value.value):
                return ast.parse(f"float({str(value.value)!r})", mode="eval").body
            return literal(value.value)
        if isinstance(value, Tensor) and isinstance(value.code, ast.Name) and not value.constants:
            return value.code
        if isinstance(value, Several):
            items = [self.host_code(self.settled(item, self.at(node)), node) for item in value.items]
            return ast.List(items, ast.Load()) if value.is_list else ast.Tuple(items, ast.Load())
        if isinstance(value, Unusable):
            raise self.refuse(node, value.reason)
        raise self.refuse(node, f"{ast.unparse(node)} can't be a value of the host program")

    def tensor_code(self, value: Value, node: ast.AST) -> tuple[ast.expr, frozenset[str], dict[str, Any]]:
        """As part of a tensor operation: code, names read, constants."""
        if isinstance(value, Tensor):
            return value.code, value.reads, dict(value.constants)
        if isinstance(value, Host):
            if value.tensors:
                raise self.refuse(
                    node, "a list of tensors whose length is not known can't enter a tensor operation"
                )
            return value.code, value.reads, {}
        if isinstance(value, Const):
            if value.value is Ellipsis:
                return ast.Constant(...), frozenset(), {}
            if hostable(value.value):
                return self.host_code(value, node), frozenset(), {}
            alias = (
                self.known.get(id(value.value)) or getattr(value.value, "__name__", None) or str(value.value)
            )
            alias = "".join(c if c.isalnum() else "_" for c in alias) + "_"
            return name(alias), frozenset(), {alias: value.value}
        if isinstance(value, Several):
            parts = [self.tensor_code(item, node) for item in value.items]
            codes = [code for code, _, _ in parts]
            code: ast.expr = ast.List(codes, ast.Load()) if value.is_list else ast.Tuple(codes, ast.Load())
            constants = {key: item for _, _, known in parts for key, item in known.items()}
            return code, frozenset().union(*(reads for _, reads, _ in parts)), constants
        if isinstance(value, Choice):
            raise self.refuse(node, "a module chosen by an index can only be called")
        raise self.refuse(node, value.reason)

    def scalar_of(self, value: Value, node: ast.AST, convert: str = "bool") -> Value:
        """bool, int or float of a value, as a host value: a tensor crosses to the host here."""
        if isinstance(value, Const):
            return Const({"bool": bool, "int": int, "float": float}[convert](value.value))
        value = self.settled(value, self.at(node))
        if isinstance(value, Tensor):
            value = self.crossing(value, node)
        code = self.host_code(value, node)
        if not (convert == "bool" and is_bool(code)):
            code = ast.Call(name(convert), [code], [])
        return Host(code, reads_of([value]))

    def crossing(self, value: Tensor, node: ast.AST) -> Host:
        """The number in a tensor of one element, on the host."""
        settled = self.settled(value, self.at(node))
        if isinstance(settled, Tensor) and settled.constants:
            target = self.fresh("t")
            self.tensor_assign(ast.Name(target, ast.Store()), settled, self.at(node))
            settled = Tensor(name(target), frozenset({target}))
        assert isinstance(settled, Tensor)
        item = ast.Call(ast.Attribute(settled.code, "item", ast.Load()), [], [])
        return Host(item, settled.reads)

    def name_of(self, frame: Frame, variable: str) -> str:
        """A variable's name in the rewritten program."""
        if variable not in frame.names:
            plain = variable + frame.suffix
            while plain in RESERVED or plain in self.used or plain.startswith(("sub_", "leave_")):
                plain += "_"
            self.used.add(plain)
            frame.names[variable] = plain
        return frame.names[variable]

    def bind(self, target: str, value: Value, place: Place) -> Value:
        """Assign a value to a name of the rewritten program; the value under that name.

        Constants are written down too, for another path may give the name another value; liveness drops what is unread.
        """
        if isinstance(value, Tensor):
            if isinstance(value.code, ast.Name) and value.code.id == target and not value.constants:
                return value
            self.tensor_assign(ast.Name(target, ast.Store()), value, place)
            return Tensor(name(target), frozenset({target}))
        if isinstance(value, Host):
            bound = self.host_assign(target, value.code, value.reads, place)
            return replace(bound, tensors=value.tensors)
        if isinstance(value, Several):
            if value.is_list:
                items = [self.settled(item, place) for item in value.items]
                node = ast.Pass(lineno=place.line, col_offset=place.column)
                code = ast.List([self.host_code(item, node) for item in items], ast.Load())
                tensors = any(isinstance(item, Tensor) for item in items)
                return replace(self.host_assign(target, code, reads_of(items), place), tensors=tensors)
            return Several(
                tuple(self.bind(f"{target}__{i}", item, place) for i, item in enumerate(value.items))
            )
        if isinstance(value, Const) and hostable(value.value):
            self.host_assign(target, self.host_code(value, ast.Pass()), frozenset(), place)
        return value
