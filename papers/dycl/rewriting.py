"""Rewriting a network's forward into a program whose tensor parts hold no decision: the first half of DyCL.

What depends on modules and numbers of the network alone is evaluated here: such loops are unrolled, such conditions
folded. Methods and modules that hold decisions are inlined. What is left to decide becomes `If` and `Loop`.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from papers.dycl.expressions import RESERVED, Expressions, Frame
from papers.dycl.program import Block, Body, If, Leave, Loop, Node, Program, Return, flattened, rebuild
from papers.dycl.source import Place, Source, Unsupported, assigned_names, source_of
from papers.dycl.values import (
    Choice, Const, Environment, Host, Several, Tensor, Unusable, Value, hostable, meet, name, reads_of, wrapped,
)  # fmt: skip

DEEPEST = 40  # calls inside calls; more is taken for a recursion
PASSES = 6  # over a loop's body until the kinds of its variables settle


def rewrite(network: nn.Module, fold: bool = True, fuse_conditions: bool = True) -> Program:
    """The program of network.forward, whose arguments are tensors.

    fold: drop branches that constants decide. fuse_conditions: evaluate the condition of a loop at the end of its body,
    so that it can become part of the body's sub-network. Unsupported names file and line of what can't be rewritten;
    ValueError for a network in training mode.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call eval() first")
    return _Rewriter(network, fold, fuse_conditions).program()


class _Rewriter(Expressions):
    """Lowers statements. The environment of a frame is None behind a jump, where nothing is reached."""

    def __init__(self, network: nn.Module, fold: bool, fuse_conditions: bool) -> None:
        super().__init__(network)
        self.network, self.fold, self.fuse_conditions = network, fold, fuse_conditions
        self.frames: list[Frame] = []
        self.sources: list[Source] = []
        self.exits: dict[str, list[Environment]] = {}  # label -> environments that arrive behind it

    def program(self) -> Program:
        source = source_of(type(self.network).forward)
        first, *arguments = inspect.signature(type(self.network).forward).parameters.values()
        for argument in arguments:
            if argument.kind is not argument.POSITIONAL_OR_KEYWORD:
                raise Unsupported(source.place(source.tree), f"forward takes *{argument.name}; name its arguments")
        given = [a for a in arguments if a.default is a.empty]
        env: Environment = {first.name: Const(self.network)}
        frame = Frame(source, "", env)
        for argument in arguments:
            known = self._name(frame, argument.name)
            env[argument.name] = (
                Const(argument.default) if argument not in given else Tensor(name(known), frozenset({known}))
            )
        self.frames.append(frame)
        self.sources.append(source)
        self.statements(source.tree.body)
        if frame.env is not None:
            self.body.append(Return(ast.Constant(None), frozenset()))
        body = rebuild(tuple(self.body), _flat)
        arguments_ = tuple(frame.names[argument.name] for argument in given)
        places = frozenset((source.file, source.tree.lineno) for source in self.sources)
        return Program(type(self.network).__name__, source.file, arguments_, body, places)

    # statements

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            if self.frame.env is None:
                return
            method = getattr(self, f"do_{type(statement).__name__.lower()}", None)
            if method is None:
                raise self.refuse(statement, f"`{type(statement).__name__.lower()}` statements can't be rewritten")
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
            raise self.refuse(node, f"in place on a tensor; write {node.target.id} = {node.target.id} ... instead")
        right = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        self._assign(node.target, ast.fix_missing_locations(ast.copy_location(right, node)), node)

    def _assign(self, target: ast.expr, right: ast.expr, node: ast.stmt) -> None:
        if isinstance(target, ast.Name):
            self.env[target.id] = self.bind(self._name(self.frame, target.id), self.expression(right), self.at(node))
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
                    self.env[inner.id] = self.bind(self._name(self.frame, inner.id), item, place)
                elif isinstance(inner, (ast.Tuple, ast.List)):
                    self._unpack(inner, item, node)
                else:
                    raise self.refuse(node, "an assignment to an attribute or an element changes state in place")
            return
        if isinstance(value, Host):
            for i, inner in enumerate(target.elts):
                if not isinstance(inner, ast.Name):
                    raise self.refuse(node, "nested targets of a host value")
                code = ast.Subscript(value.code, ast.Constant(i), ast.Load())
                item = Host(code, value.reads, value.of_shape)
                self.env[inner.id] = self.bind(self._name(self.frame, inner.id), item, self.at(node))
            return
        raise self.refuse(node, "only tuples of known length can be unpacked")

    def _kept(self, item: Value, place: Place) -> Value:
        """A copy that a later target of the same statement does not overwrite (a, b = b, a)."""
        if isinstance(item, (Tensor, Host)):
            return self.bind(self.fresh("item"), item, place)
        return item

    def _tensor_target(self, target: ast.expr, node: ast.AST) -> ast.expr:
        if isinstance(target, ast.Name):
            known = self._name(self.frame, target.id)
            self.env[target.id] = Tensor(name(known), frozenset({known}))
            return ast.Name(known, ast.Store())
        if isinstance(target, (ast.Tuple, ast.List)):
            return ast.Tuple([self._tensor_target(inner, node) for inner in target.elts], ast.Store())
        raise self.refuse(node, "an assignment to an attribute or an element changes state in place")

    def _name(self, frame: Frame, variable: str) -> str:
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
            return Several(tuple(self.bind(f"{target}__{i}", item, place) for i, item in enumerate(value.items)))
        if isinstance(value, Const) and hostable(value.value):
            self.host_assign(target, self.host_code(value, ast.Pass()), frozenset(), place)
        return value

    # jumps

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
            return self._named(value, node)
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
            exits = {label: list(known) for label, known in self.exits.items()}
            with self.into() as made:
                try:
                    self.statements(side)
                except Unsupported:
                    if not isinstance(value, Const) or value.value is taken:
                        raise
                    made.clear()  # a side that constants rule out need not make sense
                    self.exits, self.frame.env = exits, None
            sides.append(tuple(made))
            if self.frame.env is not None and not (isinstance(value, Const) and value.value is not taken):
                arriving.append(self.frame.env)
        self.frame.env = meet(self.frame.names, arriving)
        self.body.append(If(code, reads, sides[0], sides[1], self.key()))

    # loops

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
            self.env[target.id] = self.bind(self._name(self.frame, target.id), item, self.at(node))
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target, item, node)
        else:
            raise self.refuse(node, "an assignment to an attribute or an element changes state in place")

    def _host_for(self, node: ast.For, over: Host) -> None:
        """A loop whose number of rounds the input decides, over host values."""
        if not isinstance(node.target, ast.Name):
            raise self.refuse(node, "several targets in a loop over host values")
        target = self._name(self.frame, node.target.id)
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
                known = self._name(self.frame, variable)
                env[variable] = (
                    Host(name(known), frozenset({known}))
                    if hostable(value.value)
                    else Unusable(f"{variable!r} is another object in each round of a loop whose length is not known")
                )
            elif isinstance(value, Several):
                inner = {f"{variable}__{i}": item for i, item in enumerate(value.items)}
                for key in inner:
                    self.frame.names.setdefault(key, self._name(self.frame, variable) + key[len(variable) :])
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
                    self.body.append(If(ast.UnaryOp(ast.Not(), going), needed, (Leave(whole),), (), self.key()))
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

    # calls of the user's functions

    def inline(self, source: Source, bound: dict[str, Value], place: Place) -> Value:
        """The body of a function in place of its call; its variables get a suffix of their own."""
        if len(self.frames) > DEEPEST:
            raise Unsupported(place, f"{source.tree.name} calls itself, or calls are nested too deeply")
        self.counter += 1
        frame = Frame(source, f"_{source.tree.name.strip('_')}{self.counter}", {}, label=f"call_{self.counter}")
        assert frame.env is not None
        changed = assigned_names(source.tree.body)
        for parameter, value in bound.items():
            fixed = isinstance(value, (Const, Choice, Unusable)) or (isinstance(value, Host) and value.of_shape)
            named = isinstance(value, Tensor) or (isinstance(value, Host) and isinstance(value.code, ast.Name))
            if parameter in changed or not (fixed or named or isinstance(value, Several)):
                value = self.bind(self._name(frame, parameter), value, place)
            frame.env[parameter] = value
        *first, last = source.tree.body
        straight = isinstance(last, ast.Return) and not any(
            isinstance(inner, ast.Return) for node in first for inner in ast.walk(node)
        )
        self.frames.append(frame)
        self.sources.append(source)
        try:
            if straight and isinstance(last, ast.Return):
                self.statements(first)
                if frame.env is not None:
                    return Const(None) if last.value is None else self.operand(last.value)
                raise Unsupported(place, f"{source.tree.name} never returns")
            with self.into() as made:
                self.statements(source.tree.body)
                if frame.env is not None:
                    frame.returns.append((Const(None), frame.env))
            self.body.append(Block(frame.label, tuple(made)))
            result = "result" + frame.suffix
            met = meet({"result": result}, [{"result": value} for value, _ in frame.returns])
            if met is None:
                raise Unsupported(place, f"{source.tree.name} never returns")
            return met["result"]
        finally:
            self.frames.pop()


def _kind(value: Value) -> tuple[object, ...]:
    if isinstance(value, Const):
        return (Const, id(value.value) if not hostable(value.value) else repr(value.value))
    if isinstance(value, Several):
        return (Several, *(_kind(item) for item in value.items))
    return (type(value), getattr(value, "tensors", None))


def _flat(body: Body) -> Body:
    """Blocks that nothing leaves are no blocks."""
    made: list[Node] = []
    for node in body:
        made.extend(flattened(node) if isinstance(node, Block) else [node])
    return tuple(made)
