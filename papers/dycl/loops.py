"""Rewriting loops: over constants they are unrolled, all others stay loops of the host program."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace

from papers.dycl.program import (
    If,
    Leave,
    Loop,
)
from papers.dycl.source import assigned_names
from papers.dycl.statements import Statements
from papers.dycl.values import (  # fmt: skip
    Const,
    Environment,
    Host,
    Several,
    Unusable,
    Value,
    hostable,
    meet,
    name,
    wrapped,
)

PASSES = 6  # over a loop's body until the kinds of its variables settle


class Loops(Statements):
    """`for` and `while`."""

    def do_for(self, node: ast.For) -> None:
        if node.orelse:
            raise self.refuse(node, "`else` of a loop")
        over = self.operand(node.iter)
        items: Sequence[Value]
        if isinstance(over, Several):
            items = over.items
        elif isinstance(over, Const):
            try:
                items = [wrapped(item, self.known) for item in over.value]
            except TypeError:
                raise self.refuse(node, f"{ast.unparse(node.iter)} can't be looped over") from None
        elif isinstance(over, Host) and not over.tensors:
            return self._host_for(node, over)
        else:
            raise self.refuse(node, "a loop over a tensor; loop over a range and index it")
        self._unrolled(node, items)

    def _unrolled(self, node: ast.For, items: Sequence[Value]) -> None:
        whole = self.fresh("loop")
        with self.into() as body:
            for item in items:
                if self.frame.env is None:
                    break
                once = self.fresh("round")
                self.frame.loops.append((whole, once))
                with self.into() as made:
                    self._target(node.target, item, node)
                    self.statements(node.body)
                self.frame.loops.pop()
                self._block(once, made)
        self._block(whole, body)

    def _target(self, target: ast.expr, item: Value, node: ast.AST) -> None:
        if isinstance(target, ast.Name):
            self.env[target.id] = self.bind(self.name_of(self.frame, target.id), item, self.at(node))
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target, item, node)
        else:
            raise self.refuse(node, "an assignment to an attribute or an element changes state in place")

    def _host_for(self, node: ast.For, over: Host) -> None:
        """A loop whose number of rounds the input decides, over host values."""
        if not isinstance(node.target, ast.Name):
            raise self.refuse(node, "several targets in a loop over host values")
        target = self.name_of(self.frame, node.target.id)
        self.env[node.target.id] = Host(name(target), frozenset({target}))

        def test() -> tuple[ast.expr, frozenset[str]]:
            return over.code, over.reads

        self._loop(node, test, at_end=False, target=target)

    def do_while(self, node: ast.While) -> None:
        if node.orelse:
            raise self.refuse(node, "`else` of a loop")
        place = self.at(node.test)
        before = dict(self.env)
        self._demote(assigned_names([node]), before)
        held = self.frame.env
        self.frame.env = before
        with self.into() as trial:
            value, _, _ = self.decided(node.test)
        self.frame.env = held
        if isinstance(value, Const) and not value.value:
            self.note(place, ast.Constant(False), frozenset())
            return
        kept = self.fresh("going")
        plain = not trial  # nothing of the test is a tensor operation

        def test() -> tuple[ast.expr, frozenset[str]]:
            _, code, reads = self.decided(node.test)
            if not (isinstance(value, Const) or (plain and self.fuse_conditions)):
                self.host_assign(kept, code, reads, place)
                code, reads = name(kept), frozenset({kept})
            self.note(place, code, reads)
            return code, reads

        self._loop(node, test, at_end=self.fuse_conditions)

    def _demote(self, variables: set[str], env: Environment) -> None:
        """Variables that a loop assigns are no constants in it."""
        for variable in variables & env.keys():
            value = env[variable]
            if isinstance(value, Const):
                known = self.name_of(self.frame, variable)
                env[variable] = (
                    Host(name(known), frozenset({known}))
                    if hostable(value.value)
                    else Unusable(
                        f"{variable!r} is another object in each round of a loop whose length is not known"
                    )
                )
            elif isinstance(value, Several):
                inner = {f"{variable}__{i}": item for i, item in enumerate(value.items)}
                for key in inner:
                    self.frame.names.setdefault(
                        key, self.name_of(self.frame, variable) + key[len(variable) :]
                    )
                self._demote(set(inner), inner)
                env[variable] = replace(value, items=tuple(inner.values()))

    def _loop(
        self,
        node: ast.While | ast.For,
        test: Callable[[], tuple[ast.expr, frozenset[str]]],
        at_end: bool,
        target: str = "",
    ) -> None:
        """A loop of the host program. at_end: the test is computed before the loop and at the end of each round."""
        head = dict(self.env)
        self._demote(assigned_names([node]) - ({node.target.id} if target else set()), head)  # type: ignore[union-attr]
        for _ in range(PASSES):
            exits = {label: list(known) for label, known in self.exits.items()}
            returns = list(self.frame.returns)
            whole, once = self.fresh("loop"), self.fresh("round")
            self.frame.env = dict(head)
            code: ast.expr = ast.Constant(True)
            reads: frozenset[str] = frozenset()
            with self.into() as before:
                if target or at_end:
                    code, reads = test()
            with self.into() as inner:
                if not (target or at_end):
                    going, needed = test()
                    self.body.append(
                        If(ast.UnaryOp(ast.Not(), going), needed, (Leave(whole),), (), self.key())
                    )
                tested = dict(self.frame.env)
                self.frame.loops.append((whole, once))
                with self.into() as round_:
                    self.statements(node.body)
                self.frame.loops.pop()
                self._block(once, round_)
                if at_end and self.frame.env is not None:
                    test()
            ends = [] if self.frame.env is None else [self.frame.env]
            joined = meet(self.frame.names, [head, *ends])
            assert joined is not None
            if all(_kind(joined[key]) == _kind(head[key]) for key in head):
                break
            head, self.exits, self.frame.returns = joined, exits, returns
        else:
            raise self.refuse(node, "the kinds of this loop's variables do not settle")
        endless = at_end and isinstance(code, ast.Constant) and code.value is True
        arriving = [*([] if endless else [tested, *ends]), *self.exits.pop(whole, [])]
        self.frame.env = meet(self.frame.names, arriving)
        self.body.extend(before)
        self.body.append(Loop(whole, code, reads, tuple(inner), self.key(), target))


def _kind(value: Value) -> tuple[object, ...]:
    if isinstance(value, Const):
        return (Const, id(value.value) if not hostable(value.value) else repr(value.value))
    if isinstance(value, Several):
        return (Several, *(_kind(item) for item in value.items))
    return (type(value), getattr(value, "tensors", None))
