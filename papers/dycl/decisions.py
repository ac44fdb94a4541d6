"""Rewriting decisions inside expressions: tests, `and`, `or` and conditional expressions become branches."""

import ast

from papers.dycl.expressions import Expressions
from papers.dycl.program import (
    Body,
    If,
    Node,
    TensorOp,
)
from papers.dycl.values import (  # fmt: skip
    Const,
    Host,
    Tensor,
    Unusable,
    Value,
    joined,
    name,
    reads_of,
)


def harmless(node: Node) -> bool:
    """Whether an operation may run where its result is not asked for: arithmetic on tensors, which can't fail."""
    if not isinstance(node, TensorOp):
        return False
    return not any(isinstance(inner, (ast.Call, ast.Subscript)) for inner in ast.walk(node.value))


class Decisions(Expressions):
    """Whatever a Python expression decides."""

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
            neutral = isinstance(following, Const) and bool(following.value) is conjunction
            if not later and truth and neutral:
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
                self.host_assign(
                    result, self.host_code(following, node), reads_of([following]), self.at(node)
                )
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
