"""Rewriting statements: assignments, jumps and branches."""

import ast
from collections.abc import Sequence
from dataclasses import replace

from papers.dycl.calls import Calls
from papers.dycl.program import (
    Block,
    Body,
    If,
    Leave,
    Node,
    Return,
)
from papers.dycl.source import Place, Unsupported
from papers.dycl.values import (  # fmt: skip
    Const,
    Environment,
    Host,
    Several,
    Tensor,
    Value,
    meet,
    name,
    reads_of,
    wrapped,
)


class Statements(Calls):
    """The environment of a frame is None behind a jump, where nothing is reached."""

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            if self.frame.env is None:
                return
            method = getattr(self, f"do_{type(statement).__name__.lower()}", None)
            if method is None:
                raise self.refuse(
                    statement, f"`{type(statement).__name__.lower()}` statements can't be rewritten"
                )
            method(statement)

    def do_pass(self, node: ast.Pass) -> None:
        pass

    def do_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.operand(node.value)

    def do_assign(self, node: ast.Assign) -> None:
        if len(node.targets) > 1:
            raise self.refuse(node, "a chained assignment; write one a line")
        self._assign(node.targets[0], node.value, node)

    def do_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value, node)

    def do_augassign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            raise self.refuse(node, "an assignment to an attribute or an element changes state in place")
        before = self.of_name(ast.copy_location(ast.Name(node.target.id, ast.Load()), node))
        if isinstance(before, Tensor):
            raise self.refuse(
                node, f"in place on a tensor; write {node.target.id} = {node.target.id} ... instead"
            )
        right = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        self._assign(node.target, ast.fix_missing_locations(ast.copy_location(right, node)), node)

    def _assign(self, target: ast.expr, right: ast.expr, node: ast.stmt) -> None:
        if isinstance(target, ast.Name):
            self.env[target.id] = self.bind(
                self.name_of(self.frame, target.id), self.expression(right), self.at(node)
            )
            return
        if not isinstance(target, (ast.Tuple, ast.List)):
            raise self.refuse(node, "an assignment to an attribute or an element changes state in place")
        self._unpack(target, self.expression(right), node)

    def _unpack(self, target: ast.Tuple | ast.List, value: Value, node: ast.AST) -> None:
        if any(isinstance(inner, ast.Starred) for inner in target.elts):
            raise self.refuse(node, "a starred target; name every element")
        if isinstance(value, Tensor):  # an operation that returns a tuple: all its targets are tensors
            self.tensor_assign(self._tensor_target(target, node), value, self.at(node))
            return
        if isinstance(value, Const) and isinstance(value.value, (tuple, list)):
            value = Several(tuple(wrapped(item, self.known) for item in value.value))
        if isinstance(value, Several):
            if len(value.items) != len(target.elts):
                raise self.refuse(node, f"{len(value.items)} values for {len(target.elts)} targets")
            place = self.at(node)
            simple = all(isinstance(item, Const) for item in value.items)
            items = value.items if simple else tuple(self._kept(item, place) for item in value.items)
            for inner, item in zip(target.elts, items, strict=True):
                if isinstance(inner, ast.Name):
                    self.env[inner.id] = self.bind(self.name_of(self.frame, inner.id), item, place)
                elif isinstance(inner, (ast.Tuple, ast.List)):
                    self._unpack(inner, item, node)
                else:
                    raise self.refuse(
                        node, "an assignment to an attribute or an element changes state in place"
                    )
            return
        if isinstance(value, Host):
            for i, inner in enumerate(target.elts):
                if not isinstance(inner, ast.Name):
                    raise self.refuse(node, "nested targets of a host value")
                code = ast.Subscript(value.code, ast.Constant(i), ast.Load())
                item = Host(code, value.reads, value.of_shape)
                self.env[inner.id] = self.bind(self.name_of(self.frame, inner.id), item, self.at(node))
            return
        raise self.refuse(node, "only tuples of known length can be unpacked")

    def _kept(self, item: Value, place: Place) -> Value:
        """A copy that a later target of the same statement does not overwrite (a, b = b, a)."""
        if isinstance(item, (Tensor, Host)):
            return self.bind(self.fresh("item"), item, place)
        return item

    def _tensor_target(self, target: ast.expr, node: ast.AST) -> ast.expr:
        if isinstance(target, ast.Name):
            known = self.name_of(self.frame, target.id)
            self.env[target.id] = Tensor(name(known), frozenset({known}))
            return ast.Name(known, ast.Store())
        if isinstance(target, (ast.Tuple, ast.List)):
            return ast.Tuple([self._tensor_target(inner, node) for inner in target.elts], ast.Store())
        raise self.refuse(node, "an assignment to an attribute or an element changes state in place")

    def do_return(self, node: ast.Return) -> None:
        value: Value = Const(None) if node.value is None else self.operand(node.value)
        frame, place = self.frame, self.at(node)
        if not frame.label:
            self.body.append(Return(self.host_code(self._unnamed(value, node), node), reads_of([value])))
        else:
            frame.returns.append((self.bind("result" + frame.suffix, value, place), dict(self.env)))
            self.body.append(Leave(frame.label))
        frame.env = None

    def _unnamed(self, value: Value, node: ast.AST) -> Value:
        """Parameters have no name in the host program: one that is returned is given one."""
        if isinstance(value, Tensor):
            return self.named(value, node)
        if isinstance(value, Several):
            return replace(value, items=tuple(self._unnamed(item, node) for item in value.items))
        return value

    def do_break(self, node: ast.Break) -> None:
        self._leave(self.frame.loops[-1][0])

    def do_continue(self, node: ast.Continue) -> None:
        self._leave(self.frame.loops[-1][1])

    def _leave(self, label: str) -> None:
        self.exits.setdefault(label, []).append(dict(self.env))
        self.body.append(Leave(label))
        self.frame.env = None

    def _block(self, label: str, body: list[Node]) -> None:
        """Close a block: behind it its own end meets all that left it."""
        arriving = [*([self.frame.env] if self.frame.env is not None else []), *self.exits.pop(label, [])]
        self.frame.env = meet(self.frame.names, arriving)
        self.body.append(Block(label, tuple(body)))

    # branches

    def do_if(self, node: ast.If) -> None:
        value, code, reads = self.decided(node.test)
        place = self.at(node.test)
        self.note(place, code, reads)
        before = dict(self.env)
        if isinstance(value, Const) and self.fold:
            self.statements(node.body if value.value else node.orelse)
            return
        sides: list[Body] = []
        arriving: list[Environment] = []
        for side, taken in ((node.body, True), (node.orelse, False)):
            self.frame.env = dict(before)
            ruled_out = isinstance(value, Const) and value.value is not taken
            exits = {label: list(known) for label, known in self.exits.items()}
            returns = list(self.frame.returns)
            with self.into() as made:
                try:
                    self.statements(side)
                except Unsupported:
                    if not ruled_out:
                        raise
                    made.clear()  # a side that constants rule out need not make sense
            if ruled_out:  # nothing arrives from there
                self.exits, self.frame.returns, self.frame.env = exits, returns, None
            sides.append(tuple(made))
            if self.frame.env is not None:
                arriving.append(self.frame.env)
        self.frame.env = meet(self.frame.names, arriving)
        self.body.append(If(code, reads, sides[0], sides[1], self.key()))
