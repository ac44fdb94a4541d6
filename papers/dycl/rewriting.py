"""Rewriting a network's forward into a program whose tensor parts hold no decision: the first half of DyCL.

What depends on modules and numbers of the network alone is evaluated here: such loops are unrolled, such conditions
folded. Methods and modules that hold decisions are inlined. What is left to decide becomes `If` and `Loop`.
"""

import ast
import inspect

from torch import nn

from papers.dycl.loops import Loops
from papers.dycl.lowering import Frame
from papers.dycl.program import Block, Body, Node, Program, Return, flattened, rebuild
from papers.dycl.source import Place, Source, Unsupported, assigned_names, source_of
from papers.dycl.values import (  # fmt: skip
    Choice,
    Const,
    Environment,
    Host,
    Several,
    Tensor,
    Unusable,
    Value,
    meet,
    name,
)

DEEPEST = 40  # calls inside calls; more is taken for a recursion


def rewrite(network: nn.Module, fold: bool = True, fuse_conditions: bool = True) -> Program:
    """The program of network.forward, whose arguments are tensors.

    fold: drop branches that constants decide. fuse_conditions: evaluate the condition of a loop at the end of its body,
    so that it can become part of the body's sub-network. Unsupported names file and line of what can't be rewritten;
    ValueError for a network in training mode.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call eval() first")
    return _Rewriter(network, fold, fuse_conditions).program()


class _Rewriter(Loops):
    """Puts the parts together: forward itself, and functions in place of their calls."""

    def __init__(self, network: nn.Module, fold: bool, fuse_conditions: bool) -> None:
        super().__init__(network)
        self.network, self.fold, self.fuse_conditions = network, fold, fuse_conditions
        self.frames: list[Frame] = []
        self.sources: list[Source] = []
        self.exits = {}

    def program(self) -> Program:
        source = source_of(type(self.network).forward)
        first, *arguments = inspect.signature(type(self.network).forward).parameters.values()
        for argument in arguments:
            if argument.kind is not argument.POSITIONAL_OR_KEYWORD:
                raise Unsupported(
                    source.place(source.tree), f"forward takes *{argument.name}; name its arguments"
                )
        given = [a for a in arguments if a.default is a.empty]
        env: Environment = {first.name: Const(self.network)}
        frame = Frame(source, "", env)
        for argument in arguments:
            known = self.name_of(frame, argument.name)
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

    def inline(self, source: Source, bound: dict[str, Value], place: Place) -> Value:
        """The body of a function in place of its call; its variables get a suffix of their own."""
        if len(self.frames) > DEEPEST:
            raise Unsupported(place, f"{source.tree.name} calls itself, or calls are nested too deeply")
        self.counter += 1
        frame = Frame(
            source, f"_{source.tree.name.strip('_')}{self.counter}", {}, label=f"call_{self.counter}"
        )
        assert frame.env is not None
        changed = assigned_names(source.tree.body)
        for parameter, value in bound.items():
            fixed = isinstance(value, (Const, Choice, Unusable)) or (
                isinstance(value, Host) and value.of_shape
            )
            named = isinstance(value, Tensor) or (
                isinstance(value, Host) and isinstance(value.code, ast.Name)
            )
            if parameter in changed or not (fixed or named or isinstance(value, Several)):
                value = self.bind(self.name_of(frame, parameter), value, place)
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


def _flat(body: Body) -> Body:
    """Blocks that nothing leaves are no blocks."""
    made: list[Node] = []
    for node in body:
        made.extend(flattened(node) if isinstance(node, Block) else [node])
    return tuple(made)
