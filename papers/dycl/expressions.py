"""Rewriting expressions: one tensor operation a statement, and every decision inside an expression made a branch."""

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from papers.dycl.program import Body, HostOp, If, Node, Note, TensorOp
from papers.dycl.source import Place, Source, Unsupported, source_of
from papers.dycl.values import (
    Choice, Const, Environment, Host, Several, Tensor, Unusable, Value, hostable, joined, literal, name, reads_of, wrapped,
)  # fmt: skip

SHAPE = {"shape", "ndim"}
META = {"dtype", "device"}
PURE = (
    len, range, min, max, abs, int, float, bool, sum, round, enumerate, zip, reversed, list, tuple, isinstance, hasattr,
    getattr, str, divmod, sorted,
)  # fmt: skip
HOST_CALLS = (range, min, max, abs, sum, round, len, int, float, bool, str)
RANDOM = ("rand", "bernoulli", "multinomial", "normal", "poisson", "dropout", "alpha_dropout", "feature_dropout")
READING = ("index", "count", "get", "keys", "values", "items", "copy")
RESERVED = {"seen", "take", "math", "np", "build", "forward", "subs", "range", "len", "int", "bool", "float", "min", "max", "abs", "sum", "round", "str"}


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


def of_torch(item: Any) -> bool:
    """Whether a class, module or function belongs to torch, so that a tracer takes it whole."""
    home = getattr(item, "__module__", None) or getattr(type(item), "__module__", "") or ""
    return (home + ".").startswith(("torch.", "_VariableFunctions", "builtins."))


def decides(module: nn.Module) -> bool:
    """Whether a module, or one inside it, is the user's and its source holds a decision, so that it must be inlined."""
    if not of_torch(type(module)):
        for node in ast.walk(source_of(type(module).forward).tree):
            if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.BoolOp)):
                return True
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Attribute) and called.attr in ("item", "tolist"):
                    return True
                if isinstance(called, ast.Name) and called.id in ("int", "float", "bool"):
                    return True
                if isinstance(called, ast.Attribute) and not isinstance(called.value, ast.Call):
                    owner = called.value
                    helper = getattr(type(module), called.attr, None)
                    if isinstance(owner, ast.Name) and owner.id == "self" and inspect.isfunction(helper):
                        return True
    return any(decides(child) for child in module.children())


def is_bool(code: ast.expr) -> bool:
    """Whether a host expression is a bool already."""
    if isinstance(code, ast.BoolOp):
        return all(is_bool(side) for side in code.values)
    negated = isinstance(code, ast.UnaryOp) and isinstance(code.op, ast.Not)
    converted = isinstance(code, ast.Call) and isinstance(code.func, ast.Name) and code.func.id == "bool"
    return isinstance(code, ast.Compare) or negated or converted


def harmless(node: Node) -> bool:
    """Whether an operation may run where its result is not asked for: arithmetic on tensors, which can't fail."""
    if not isinstance(node, TensorOp):
        return False
    return not any(isinstance(inner, (ast.Call, ast.Subscript)) for inner in ast.walk(node.value))


class Expressions:
    """Lowers expressions of the current frame into the current body."""

    fuse_conditions: bool
    fold: bool  # of conditions that depend on constants alone
    frames: list[Frame]

    def __init__(self, network: nn.Module) -> None:
        self.known = {id(item): path for path, item in network.named_modules()}
        self.known |= {id(item): path for path, item in network.named_parameters()}
        self.known |= {id(item): path for path, item in network.named_buffers()}
        self.body: list[Node] = []
        self.in_condition = False
        self.counter = 0
        self.used: set[str] = set()  # names of the rewritten program
        self.keys = 0

    # what the statements part provides
    def inline(self, source: Source, bound: dict[str, Value], place: Place) -> Value:
        raise NotImplementedError

    def bind(self, target: str, value: Value, place: Place) -> Value:
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

    def host(self, statement: ast.stmt, reads: frozenset[str], writes: set[str], place: Place, kept: bool = False) -> None:
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
            alias = self.known.get(id(value.value)) or getattr(value.value, "__name__", None) or str(value.value)
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

    # expressions

    def operand(self, node: ast.expr) -> Value:
        """An expression's value, with its own tensor operation done."""
        value = self.expression(node)
        if isinstance(value, Unusable):
            raise self.refuse(node, value.reason)
        return self.settled(value, self.at(node))

    def expression(self, node: ast.expr) -> Value:
        """An expression's value; its last tensor operation is left to the caller, who may name its result."""
        method = getattr(self, f"of_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.refuse(node, f"{type(node).__name__} in an expression can't be rewritten: {ast.unparse(node)}")
        return method(node)

    def of_constant(self, node: ast.Constant) -> Value:
        return Const(node.value)

    def of_name(self, node: ast.Name) -> Value:
        if node.id in self.env:
            return self.env[node.id]
        if node.id in self.frame.source.names:
            return wrapped(self.frame.source.names[node.id], self.known)
        raise self.refuse(node, f"{node.id!r} has no value here")

    def of_tuple(self, node: ast.Tuple) -> Value:
        return self._display(node.elts, is_list=False)

    def of_list(self, node: ast.List) -> Value:
        return self._display(node.elts, is_list=True)

    def _display(self, elements: list[ast.expr], is_list: bool) -> Value:
        for element in elements:
            if isinstance(element, ast.Starred):
                raise self.refuse(element, "a starred element; write the elements out")
        items = tuple(self.operand(element) for element in elements)
        if not is_list and all(isinstance(item, Const) for item in items):
            return Const(tuple(item.value for item in items if isinstance(item, Const)))
        return Several(items, is_list)

    def of_attribute(self, node: ast.Attribute) -> Value:
        if isinstance(node.value, ast.Call) and node.attr in ("values", "indices"):
            inner = self.expression(node.value)
            if isinstance(inner, Tensor):  # of a named tuple such as max(dim) gives: never a variable of its own
                return replace(inner, code=ast.Attribute(inner.code, node.attr, ast.Load()))
        value = self.operand(node.value)
        if isinstance(value, Const):
            if not hasattr(value.value, node.attr):
                raise self.refuse(node, f"{ast.unparse(node)}: there is no such attribute")
            return wrapped(getattr(value.value, node.attr), self.known)
        if isinstance(value, Tensor):
            if node.attr in SHAPE | META:
                value = self._named(value, node)
                return Host(ast.Attribute(value.code, node.attr, ast.Load()), value.reads, of_shape=True)
            if node.attr in ("data", "grad"):
                raise self.refuse(node, f".{node.attr} of a tensor can't be rewritten")
            return replace(value, code=ast.Attribute(value.code, node.attr, ast.Load()))
        raise self.refuse(node, f"attribute {node.attr!r} of a host value")

    def _named(self, value: Tensor, node: ast.AST) -> Tensor:
        """A tensor under a name of the rewritten program (parameters have none)."""
        if not value.constants:
            return value
        target = self.fresh("t")
        self.tensor_assign(ast.Name(target, ast.Store()), value, self.at(node))
        return Tensor(name(target), frozenset({target}))

    def of_subscript(self, node: ast.Subscript) -> Value:
        if isinstance(node.value, ast.Call):
            base = self.expression(node.value)  # f(x)[0] is one operation: f may return a tuple
        else:
            base = self.operand(node.value)
        if isinstance(base, Unusable):
            raise self.refuse(node, base.reason)
        if isinstance(base, Tensor):
            index, reads, constants = self._index(node.slice)
            code = ast.Subscript(base.code, index, ast.Load())
            return Tensor(code, base.reads | reads, {**base.constants, **constants})
        index_value = self._plain_index(node.slice)
        if isinstance(base, Const):
            if isinstance(index_value, Const):
                if isinstance(base.value, nn.ModuleList) and isinstance(index_value.value, int):
                    self.note(self.at(node), ast.Constant(index_value.value), frozenset())
                try:
                    return wrapped(base.value[index_value.value], self.known)
                except (IndexError, KeyError, TypeError) as error:
                    raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
            if isinstance(base.value, (nn.ModuleList, nn.Sequential)):
                return self._choice(base.value, index_value, node)
        if isinstance(base, Several) and isinstance(index_value, Const):
            picked = base.items[index_value.value]
            return Several(picked, base.is_list) if isinstance(picked, tuple) else picked
        if isinstance(base, Host) and base.tensors:
            raise self.refuse(node, "a list of tensors can only be appended to and returned")
        code = ast.Subscript(self.host_code(base, node), self.host_code(index_value, node), ast.Load())
        of_shape = isinstance(base, Host) and base.of_shape and isinstance(index_value, Const)
        return Host(code, reads_of([base, index_value]), of_shape)

    def _choice(self, modules: nn.ModuleList | nn.Sequential, index: Value, node: ast.Subscript) -> Choice:
        """An index of a list of modules that is known only at run time."""
        if isinstance(index, Tensor):
            index = self.crossing(index, node)
        place, code = self.at(node), self.host_code(index, node)
        chosen = self.fresh("chosen")
        self.host_assign(chosen, code, reads_of([index]), place)
        if isinstance(modules, nn.ModuleList):
            self.note(place, name(chosen), frozenset({chosen}))
        among = ast.parse(f"range({len(modules)})[{chosen}]", mode="eval").body  # counts from the end, refuses others
        self.host(
            ast.Assign([ast.Name(chosen, ast.Store())], among), frozenset({chosen}), {chosen}, place, kept=True
        )
        return Choice(tuple(modules), chosen)

    def _plain_index(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Slice):
            parts = [None if part is None else self.operand(part) for part in (node.lower, node.upper, node.step)]
            if any(part is not None and not isinstance(part, Const) for part in parts):
                raise self.refuse(node, "a slice whose bounds depend on the input")
            return Const(slice(*(part.value if isinstance(part, Const) else None for part in parts)))
        return self.operand(node)

    def _index(self, node: ast.expr) -> tuple[ast.expr, frozenset[str], dict[str, Any]]:
        """The index of a tensor."""
        if isinstance(node, ast.Tuple):
            parts = [self._index(part) for part in node.elts]
            constants = {key: item for _, _, known in parts for key, item in known.items()}
            reads = frozenset[str]().union(*(reads for _, reads, _ in parts))
            return ast.Tuple([code for code, _, _ in parts], ast.Load()), reads, constants
        if isinstance(node, ast.Slice):
            bounds: list[ast.expr | None] = []
            reads = frozenset()
            for part in (node.lower, node.upper, node.step):
                value = None if part is None else self.operand(part)
                if isinstance(value, Tensor) or (isinstance(value, Host) and not value.of_shape):
                    raise self.refuse(node, "a slice whose bounds depend on the input")
                code = None if value is None else self.tensor_code(value, node)[0]
                bounds.append(code)
                reads |= reads_of([value]) if value is not None else frozenset()
            return ast.Slice(*bounds), reads, {}
        return self.tensor_code(self.operand(node), node)

    def of_binop(self, node: ast.BinOp) -> Value:
        return self._operation(node, [node.left, node.right], lambda a, b: ast.BinOp(a, node.op, b))

    def of_unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            value = self.scalar_of(self.test_value(node.operand), node)
            if isinstance(value, Const):
                return Const(not value.value)
            assert isinstance(value, Host)
            return Host(ast.UnaryOp(ast.Not(), value.code), value.reads)
        return self._operation(node, [node.operand], lambda a: ast.UnaryOp(node.op, a))

    def of_compare(self, node: ast.Compare) -> Value:
        sides = [node.left, *node.comparators]
        values = [self.operand(side) for side in sides]
        if all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops) and len(values) == 2:
            known = [value for value in values if isinstance(value, Const) and value.value is None]
            if known and any(isinstance(value, (Tensor, Several, Choice)) for value in values):
                return Const(isinstance(node.ops[0], ast.IsNot))  # a tensor is not None
        if len(sides) > 2 and any(isinstance(value, Tensor) for value in values):
            raise self.refuse(node, "a chained comparison of tensors; write it with `and`")
        if any(isinstance(value, Tensor) for value in values) and any(
            isinstance(op, (ast.In, ast.NotIn, ast.Is, ast.IsNot)) for op in node.ops
        ):
            raise self.refuse(node, "`in` and `is` with a tensor")
        return self._operation(
            node, sides, lambda first, *others: ast.Compare(first, node.ops, list(others)), values
        )

    def _operation(
        self, node: ast.expr, sides: list[ast.expr], make: Callable[..., ast.expr], values: list[Value] | None = None
    ) -> Value:
        """An operator: evaluated now over constants, else a tensor operation or a host expression."""
        values = values or [self.operand(side) for side in sides]
        if all(isinstance(value, Const) for value in values):
            names = {f"_{i}": value.value for i, value in enumerate(values) if isinstance(value, Const)}
            code = ast.fix_missing_locations(ast.Expression(make(*(name(key) for key in names))))
            try:
                return wrapped(eval(compile(code, "<constant>", "eval"), {}, names), self.known)
            except Exception as error:
                raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
        if any(isinstance(value, Tensor) for value in values):
            parts = [self.tensor_code(value, node) for value in values]
            constants = {key: item for _, _, known in parts for key, item in known.items()}
            reads = frozenset[str]().union(*(reads for _, reads, _ in parts))
            return Tensor(make(*(code for code, _, _ in parts)), reads, constants)
        codes = [self.host_code(value, node) for value in values]
        shapes = all(isinstance(value, Const) or (isinstance(value, Host) and value.of_shape) for value in values)
        return Host(make(*codes), reads_of(values), shapes)

    # decisions inside expressions

    def test_value(self, node: ast.expr) -> Value:
        """The value of a test; only its truth will be used."""
        outer, self.in_condition = self.in_condition, True
        try:
            if isinstance(node, ast.BoolOp):
                return self._bool_op(node, truth=True)
            return self.operand(node)
        finally:
            self.in_condition = outer

    def of_boolop(self, node: ast.BoolOp) -> Value:
        return self._bool_op(node, truth=False)

    def _bool_op(self, node: ast.BoolOp, truth: bool) -> Value:
        conjunction = isinstance(node.op, ast.And)
        value = self._side(node.values[0], truth)
        for place, other in enumerate(node.values[1:]):
            if isinstance(value, Const):
                if bool(value.value) is not conjunction:
                    return value
                value = self._side(other, truth)
                continue
            with self.into() as later:
                following = self._side(other, truth)
            if not later and truth and isinstance(following, Const):
                if bool(following.value) is conjunction:
                    continue  # `c and True` is c
            if later and truth and self.fuse_conditions and all(harmless(made) for made in later):
                self.body.extend(later)  # computed at once with what stands before, needed or not
                later.clear()
            if not later:
                codes = [self.host_code(value, node), self.host_code(following, node)]
                value = Host(ast.BoolOp(node.op, codes), reads_of([value, following]))
                continue
            result = self.fresh("both" if conjunction else "either")
            self.host_assign(result, self.host_code(value, node), reads_of([value]), self.at(node))
            with self.into() as later:
                rest: ast.expr = other
                if place + 2 < len(node.values):
                    rest = ast.copy_location(ast.BoolOp(node.op, node.values[place + 1 :]), node)
                    following = self._bool_op(rest, truth)  # type: ignore[arg-type]
                else:
                    following = self._side(other, truth)
                self.host_assign(result, self.host_code(following, node), reads_of([following]), self.at(node))
            test: ast.expr = name(result) if conjunction else ast.UnaryOp(ast.Not(), name(result))
            self.body.append(If(test, frozenset({result}), tuple(later), (), self.key()))
            return Host(name(result), frozenset({result}))
        return value

    def _side(self, node: ast.expr, truth: bool) -> Value:
        if truth:
            value = self.test_value(node)
            return self.scalar_of(value, node) if isinstance(value, Tensor) else value
        value = self.operand(node)
        if isinstance(value, Tensor):
            raise self.refuse(node, "`and` or `or` of tensors as a value; write an if")
        return value

    def decided(self, node: ast.expr) -> tuple[Value, ast.expr, frozenset[str]]:
        """A test as a host value of type bool (or a constant), its code and what that reads; the path is noted."""
        value = self.scalar_of(self.test_value(node), node)
        return value, self.host_code(value, node), reads_of([value])

    def of_ifexp(self, node: ast.IfExp) -> Value:
        value, code, reads = self.decided(node.test)
        self.note(self.at(node.test), code, reads)
        if isinstance(value, Const):
            return self.expression(node.body if value.value else node.orelse)
        result = self.fresh("either")
        sides: list[Body] = []
        values = []
        for side in (node.body, node.orelse):
            with self.into() as made:
                values.append(self.bind(result, self.operand(side), self.at(side)))
            sides.append(tuple(made))
        self.body.append(If(code, reads, sides[0], sides[1], self.key()))
        found = joined(ast.unparse(node), result, values[0], values[1])
        if isinstance(found, Const):
            return found
        if isinstance(found, Unusable):
            raise self.refuse(node, found.reason)
        return found

    # calls

    def of_call(self, node: ast.Call) -> Value:
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            keyword.arg is None for keyword in node.keywords
        ):
            raise self.refuse(node, "starred arguments; write them out")
        if isinstance(node.func, ast.Attribute):
            owner = self.operand(node.func.value)
            if isinstance(owner, (Tensor, Host, Several)):
                return self._method(owner, node.func.attr, node)
            if not isinstance(owner, Const):
                raise self.refuse(node, "a method of a module chosen by an index")
            if not hasattr(owner.value, node.func.attr):
                raise self.refuse(node, f"{ast.unparse(node.func)}: there is no such attribute")
            callee: Value = Const(getattr(owner.value, node.func.attr))
        else:
            callee = self.operand(node.func)
        if isinstance(callee, Choice):
            return self._call_of_choice(callee, node)
        if not isinstance(callee, Const):
            raise self.refuse(node, f"{ast.unparse(node.func)} is not a function that is known while compiling")
        positional, named = self._arguments(node)
        return self.call(callee.value, positional, named, node)

    def _arguments(self, node: ast.Call) -> tuple[list[Value], dict[str, Value]]:
        positional = [self.operand(argument) for argument in node.args]
        return positional, {str(keyword.arg): self.operand(keyword.value) for keyword in node.keywords}

    def _call_of_choice(self, callee: Choice, node: ast.Call) -> Value:
        """One branch for each module of the list."""
        positional, named = self._arguments(node)
        place, result = self.at(node), self.fresh("chosen_out")
        values: list[Value] = []
        sides: list[Body] = []
        for module in callee.modules:
            with self.into() as made:
                values.append(self.bind(result, self.call(module, positional, named, node), place))
            sides.append(tuple(made))
        if not all(isinstance(value, Tensor) for value in values):
            raise self.refuse(node, "modules chosen by an index must each return one tensor")
        orelse = sides[-1]
        for place_, side in reversed(list(enumerate(sides[:-1]))):
            test = ast.Compare(name(callee.index), [ast.Eq()], [ast.Constant(place_)])
            orelse = (If(test, frozenset({callee.index}), side, orelse, self.key()),)
        self.body.extend(orelse)
        return values[0]

    def _method(self, owner: Value, method: str, node: ast.Call) -> Value:
        positional, named = self._arguments(node)
        if isinstance(owner, Tensor):
            if method in ("item", "tolist"):
                crossed = self.crossing(owner, node)
                if method == "tolist":
                    assert isinstance(crossed.code, ast.Call)
                    crossed = replace(crossed, code=ast.Call(ast.Attribute(crossed.code.func.value, "tolist", ast.Load()), [], []))  # type: ignore[attr-defined] # fmt: skip
                return crossed
            if method in ("size", "dim"):
                shape = self._named(owner, node)
                code: ast.expr = ast.Attribute(shape.code, "ndim" if method == "dim" else "shape", ast.Load())
                if positional:
                    code = ast.Subscript(code, self.host_code(positional[0], node), ast.Load())
                return Host(code, shape.reads, of_shape=True)
            if method.endswith("_") or method in ("numpy", "backward", "register_hook"):
                raise self.refuse(node, f".{method}() changes a tensor in place or leaves torch")
            if method in RANDOM:
                raise self.refuse(node, f".{method}() is random")
            return self._tensor_call(
                lambda codes, keywords: ast.Call(ast.Attribute(codes[0], method, ast.Load()), codes[1:], keywords),
                [owner, *positional], named, {}, node,
            )  # fmt: skip
        if method == "append" and isinstance(owner, Host) and isinstance(owner.code, ast.Name):
            return self._append(owner, positional[0], node)
        raise self.refuse(node, f".{method}() of a host value; lists can be appended to, indexed and returned")

    def _append(self, owner: Host, value: Value, node: ast.Call) -> Value:
        assert isinstance(owner.code, ast.Name) and isinstance(node.func, ast.Attribute)
        if isinstance(value, Tensor):
            value = self._named(value, node)
            for variable, known in self.env.items():
                if isinstance(known, Host) and known.code == owner.code:
                    self.env[variable] = replace(known, tensors=True)
            if isinstance(node.func.value, ast.Name):
                self.env[node.func.value.id] = replace(owner, tensors=True)
        call = ast.Call(ast.Attribute(owner.code, "append", ast.Load()), [self.host_code(value, node)], [])
        reads = owner.reads | reads_of([value])
        self.host(ast.Expr(call), reads, {owner.code.id}, self.at(node), kept=True)
        return Const(None)

    def call(self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call) -> Value:
        """A call of something known while compiling."""
        arguments = [*positional, *named.values()]
        for value in arguments:
            if isinstance(value, Unusable):
                raise self.refuse(node, value.reason)
        if isinstance(callee, nn.Module):
            return self._module(callee, positional, named, node)
        if any(callee is known for known in PURE) or getattr(callee, "__module__", "") == "math":
            return self._python_call(callee, positional, named, node)
        plain = isinstance(getattr(callee, "__self__", None), (list, tuple, dict, str, int, float))
        if inspect.isclass(callee) or plain:
            if plain and callee.__name__ not in READING:
                raise self.refuse(node, f"{ast.unparse(node.func)} may change an attribute of the network")
            return self._evaluated(callee, positional, named, node)
        function = getattr(callee, "__func__", callee)
        if inspect.isfunction(function) and not of_torch(function):
            bound = self._bound(callee, positional, named, node)
            return self.inline(source_of(callee), bound, self.at(node))
        if not callable(callee) or not of_torch(callee):
            raise self.refuse(node, f"{ast.unparse(node.func)} is neither of torch nor a Python function with source")
        if getattr(callee, "__name__", "").startswith(RANDOM):
            raise self.refuse(node, f"{ast.unparse(node.func)} is random")
        if getattr(callee, "__name__", "") in ("tensor", "as_tensor", "from_numpy") and not all(
            isinstance(value, Const) for value in positional
        ):
            raise self.refuse(node, "torch.tensor of a value known at run time; index or add to a tensor instead")
        head, _, constants = self.tensor_code(Const(callee), node)
        return self._tensor_call(
            lambda codes, keywords: ast.Call(head, codes, keywords), positional, named, constants, node
        )

    def _tensor_call(
        self, make: Callable[[list[ast.expr], list[ast.keyword]], ast.expr], positional: list[Value],
        named: dict[str, Value], constants: dict[str, Any], node: ast.Call,
    ) -> Tensor:  # fmt: skip
        parts = [self.tensor_code(value, node) for value in positional]
        words = {key: self.tensor_code(value, node) for key, value in named.items()}
        for _, _, known in [*parts, *words.values()]:
            constants = {**constants, **known}
        reads = frozenset[str]().union(*(reads for _, reads, _ in [*parts, *words.values()]))
        keywords = [ast.keyword(key, code) for key, (code, _, _) in words.items()]
        return Tensor(make([code for code, _, _ in parts], keywords), reads, constants)

    def _bound(
        self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call
    ) -> dict[str, Value]:
        try:
            signature = inspect.signature(callee)
            bound = signature.bind(*positional, **named)
        except (TypeError, ValueError) as error:
            raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
        values: dict[str, Value] = {}
        for parameter in signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise self.refuse(node, f"{ast.unparse(node.func)} takes *arguments; name them")
            given = bound.arguments.get(parameter.name)
            values[parameter.name] = given if given is not None else wrapped(parameter.default, self.known)
        owner = getattr(callee, "__self__", None)
        if owner is not None:
            first = next(iter(inspect.signature(callee.__func__).parameters))
            values = {first: Const(owner), **values}
        return values

    def _module(self, module: nn.Module, positional: list[Value], named: dict[str, Value], node: ast.Call) -> Value:
        if any(getattr(inner, "inplace", False) for inner in module.modules()):
            raise self.refuse(node, f"{ast.unparse(node.func)} works in place; build it with inplace=False")
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise self.refuse(node, f"{ast.unparse(node.func)} is a list of modules and can't be called")
        if decides(module):
            if isinstance(module, nn.Sequential):
                for inner in module:
                    positional = [self.settled(self.call(inner, positional, named, node), self.at(node))]
                return positional[0]
            if of_torch(type(module)):
                raise self.refuse(node, f"{type(module).__name__} of torch holds modules with decisions")
            return self.inline(
                source_of(module.forward), self._bound(module.forward, positional, named, node), self.at(node)
            )
        head, _, constants = self.tensor_code(Const(module), node)
        return self._tensor_call(
            lambda codes, keywords: ast.Call(head, codes, keywords), positional, named, constants, node
        )

    def _python_call(self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call) -> Value:
        values = [*positional, *named.values()]
        if all(isinstance(value, Const) for value in values):
            return self._evaluated(callee, positional, named, node)
        if callee in (bool, int, float) and len(positional) == 1:
            return self.scalar_of(positional[0], node, callee.__name__)
        first = positional[0] if positional else None
        if callee is isinstance and isinstance(first, Tensor) and isinstance(positional[1], Const):
            return Const(positional[1].value is torch.Tensor)
        if callee is len and isinstance(first, Several):
            return Const(len(first.items))
        if callee is len and isinstance(first, Tensor):
            first = self._named(first, node)
            return Host(ast.parse(f"{ast.unparse(first.code)}.shape[0]", mode="eval").body, first.reads, of_shape=True)
        if callee in (zip, enumerate, reversed, list, tuple) and all(isinstance(v, (Const, Several)) for v in values):
            return self._over_several(callee, positional, node)
        if callee is abs and isinstance(first, Tensor):
            return self._operation(node, [], lambda a: ast.Call(name("abs"), [a], []), [first])
        if any(isinstance(value, (Tensor, Several)) for value in values):
            raise self.refuse(node, f"{ast.unparse(node.func)} of tensors; use torch's function")
        if callee not in HOST_CALLS and getattr(callee, "__module__", "") != "math":
            raise self.refuse(node, f"{ast.unparse(node)}: its arguments must be constants")
        code = ast.Call(
            ast.Attribute(name("math"), callee.__name__, ast.Load()) if callee not in HOST_CALLS else name(callee.__name__),
            [self.host_code(value, node) for value in positional],
            [ast.keyword(key, self.host_code(value, node)) for key, value in named.items()],
        )  # fmt: skip
        return Host(code, reads_of(values))

    def _evaluated(self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call) -> Value:
        """A call over constants, made now."""
        if not all(isinstance(value, Const) for value in [*positional, *named.values()]):
            raise self.refuse(node, f"{ast.unparse(node)}: its arguments must be constants")
        try:
            result = callee(
                *(value.value for value in positional if isinstance(value, Const)),
                **{key: value.value for key, value in named.items() if isinstance(value, Const)},
            )
        except Exception as error:
            raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
        return wrapped(list(result) if callee in (enumerate, zip, reversed) else result, self.known)

    def _over_several(self, callee: Any, positional: list[Value], node: ast.Call) -> Value:
        """zip, enumerate, reversed, list and tuple over tuples of known length."""
        columns: list[list[Value]] = []
        for value in positional:
            if isinstance(value, Several):
                columns.append(list(value.items))
            elif isinstance(value, Const):
                columns.append([wrapped(item, self.known) for item in value.value])
        if callee is enumerate:
            columns = [[Const(i) for i in range(len(columns[0]))], columns[0]]
        if callee in (zip, enumerate):
            return Several(tuple(Several(row) for row in zip(*columns)))  # noqa: B905
        return Several(tuple(reversed(columns[0]) if callee is reversed else columns[0]), callee is list)


