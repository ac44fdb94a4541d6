"""Rewriting expressions: one tensor operation a statement; what constants decide is evaluated."""

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from papers.dycl.lowering import Lowering
from papers.dycl.values import (  # fmt: skip
    Choice,
    Const,
    Host,
    Several,
    Tensor,
    Unusable,
    Value,
    name,
    reads_of,
    wrapped,
)

SHAPE = {"shape", "ndim"}
META = {"dtype", "device"}


class Expressions(Lowering):
    """Names, displays, attributes, subscripts and operators."""

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
            raise self.refuse(
                node, f"{type(node).__name__} in an expression can't be rewritten: {ast.unparse(node)}"
            )
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
            if isinstance(
                inner, Tensor
            ):  # of a named tuple such as max(dim) gives: never a variable of its own
                return replace(inner, code=ast.Attribute(inner.code, node.attr, ast.Load()))
        value = self.operand(node.value)
        if isinstance(value, Const):
            if not hasattr(value.value, node.attr):
                raise self.refuse(node, f"{ast.unparse(node)}: there is no such attribute")
            return wrapped(getattr(value.value, node.attr), self.known)
        if isinstance(value, Tensor):
            if node.attr in SHAPE | META:
                value = self.named(value, node)
                return Host(ast.Attribute(value.code, node.attr, ast.Load()), value.reads, of_shape=True)
            if node.attr in ("data", "grad"):
                raise self.refuse(node, f".{node.attr} of a tensor can't be rewritten")
            return replace(value, code=ast.Attribute(value.code, node.attr, ast.Load()))
        raise self.refuse(node, f"attribute {node.attr!r} of a host value")

    def named(self, value: Tensor, node: ast.AST) -> Tensor:
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
        among = ast.parse(
            f"range({len(modules)})[{chosen}]", mode="eval"
        ).body  # counts from the end, refuses others
        self.host(
            ast.Assign([ast.Name(chosen, ast.Store())], among),
            frozenset({chosen}),
            {chosen},
            place,
            kept=True,
        )
        return Choice(tuple(modules), chosen)

    def _plain_index(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Slice):
            parts = [
                None if part is None else self.operand(part) for part in (node.lower, node.upper, node.step)
            ]
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
        return self.operation(node, [node.left, node.right], lambda a, b: ast.BinOp(a, node.op, b))

    def of_unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            value = self.scalar_of(self.test_value(node.operand), node)
            if isinstance(value, Const):
                return Const(not value.value)
            assert isinstance(value, Host)
            return Host(ast.UnaryOp(ast.Not(), value.code), value.reads)
        return self.operation(node, [node.operand], lambda a: ast.UnaryOp(node.op, a))

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
        return self.operation(
            node, sides, lambda first, *others: ast.Compare(first, node.ops, list(others)), values
        )

    def operation(
        self,
        node: ast.expr,
        sides: list[ast.expr],
        make: Callable[..., ast.expr],
        values: list[Value] | None = None,
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
        shapes = all(
            isinstance(value, Const) or (isinstance(value, Host) and value.of_shape) for value in values
        )
        return Host(make(*codes), reads_of(values), shapes)
