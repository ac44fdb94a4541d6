"""What an expression is while it is rewritten: a constant, a tensor, a host value, several, or a choice of modules."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

HOSTABLE = (bool, int, float, str, type(None))  # constants that the host program can hold


@dataclass(frozen=True)
class Const:
    """Known while compiling: a number, a module, a function."""

    value: Any


@dataclass(frozen=True)
class Tensor:
    """An expression whose value is a tensor: a name once it was assigned.

    reads: names in it; constants: modules, parameters and functions in it.
    """

    code: ast.expr
    reads: frozenset[str] = frozenset()
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """An expression over Python values, evaluated by the host program.

    of_shape: it reads tensors' shapes alone, so that it can also stand inside a tensor operation; tensors: a list with
    tensors in it.
    """

    code: ast.expr
    reads: frozenset[str] = frozenset()
    of_shape: bool = False
    tensors: bool = False


@dataclass(frozen=True)
class Several:
    """A tuple, or a list that is written down where it is used."""

    items: tuple["Value", ...]
    is_list: bool = False


@dataclass(frozen=True)
class Choice:
    """A module of a list whose index, a host name, is known only when the program runs."""

    modules: tuple[nn.Module, ...]
    index: str


@dataclass(frozen=True)
class Unusable:
    """Different things on different paths; an error where it is used."""

    reason: str


Value = Const | Tensor | Host | Several | Choice | Unusable
Environment = dict[str, Value]


def name(text: str) -> ast.Name:
    return ast.Name(text, ast.Load())


def hostable(value: Any) -> bool:
    """Whether a constant can be written down in the host program."""
    if isinstance(value, (tuple, list)):
        return all(hostable(item) for item in value)
    return isinstance(value, HOSTABLE)


def literal(value: Any) -> ast.expr:
    """A hostable constant as an expression. float('inf') and such have none and are refused by the caller."""
    return ast.parse(repr(value), mode="eval").body


def wrapped(value: Any, known_names: Mapping[int, str]) -> Value:
    """A Python object met while compiling: parameters and buffers are tensors, all else is a constant."""
    if isinstance(value, torch.Tensor):
        alias = known_names.get(id(value), "tensor").replace(".", "_") + "_"
        return Tensor(name(alias), frozenset(), {alias: value})
    return Const(value)


def reads_of(values: Sequence[Value]) -> frozenset[str]:
    """All names that these values read."""
    found: frozenset[str] = frozenset()
    for value in values:
        if isinstance(value, (Tensor, Host)):
            found |= value.reads
        elif isinstance(value, Several):
            found |= reads_of(value.items)
        elif isinstance(value, Choice):
            found |= {value.index}
    return found


def joined(variable: str, known: str, one: Value | None, other: Value | None) -> Value:
    """What a variable is after two paths meet; `known` is its name in the rewritten program.

    A constant becomes a host value where the other path gave it another value: both paths have assigned it.
    """
    if one is None or other is None:
        found = one or other
        assert found is not None
        return found
    if isinstance(one, Const) and isinstance(other, Const) and _same(one.value, other.value):
        return one
    if isinstance(one, Host) and isinstance(other, Host) and ast.unparse(one.code) == ast.unparse(other.code):
        return replace(one, tensors=one.tensors or other.tensors)
    if isinstance(one, Several) and isinstance(other, Several) and len(one.items) == len(other.items):
        pairs = zip(one.items, other.items, strict=True)
        return Several(
            tuple(joined(variable, f"{known}__{i}", a, b) for i, (a, b) in enumerate(pairs)), one.is_list
        )
    sides = [
        side
        for side in (one, other)
        if isinstance(side, Host) or (isinstance(side, Const) and hostable(side.value))
    ]
    if len(sides) == 2:
        tensors = any(isinstance(side, Host) and side.tensors for side in sides)
        return Host(name(known), frozenset({known}), tensors=tensors)
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and ast.unparse(one.code) == ast.unparse(other.code)
    ):
        return one
    if one == other:
        return one
    if isinstance(one, Unusable):
        return one
    return Unusable(f"{variable!r} is {_kind(one)} on one path and {_kind(other)} on another")


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and hostable(one) and bool(one == other))


def _kind(value: Value) -> str:
    if isinstance(value, Const):
        return "a module" if isinstance(value.value, nn.Module) else f"the constant {value.value!r}"
    return {Tensor: "a tensor", Host: "a Python value", Several: "a tuple", Choice: "a chosen module"}.get(
        type(value), "something else"
    )


def meet(names: Mapping[str, str], paths: Sequence[Environment]) -> Environment | None:
    """The environment where several paths meet; None where none arrives. names: variable -> its rewritten name."""
    if not paths:
        return None
    together = dict(paths[0])
    for path in paths[1:]:
        for variable in dict.fromkeys([*together, *path]):
            together[variable] = joined(
                variable, names.get(variable, variable), together.get(variable), path.get(variable)
            )
    return together
