"""The source of a function as a syntax tree with its lines in the file; the error for what can't be rewritten."""

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where something stands in a source file."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def key(self) -> str:
        """The same decision has the same key in the network and in its host program."""
        return f"{Path(self.file).name}:{self.line}:{self.column}"


class Unsupported(Exception):
    """A construct that the rewriting does not take; the message names file and line, and what to write instead."""

    def __init__(self, place: Place, what: str) -> None:
        super().__init__(f"{place}: {what}")
        self.place = place


@dataclass(frozen=True)
class Source:
    """A function: its tree (lines as in the file), its file, and the names it sees from outside."""

    tree: ast.FunctionDef
    file: str
    names: dict[str, Any]

    def place(self, node: ast.AST) -> Place:
        return Place(self.file, getattr(node, "lineno", self.tree.lineno), getattr(node, "col_offset", 0))


def source_of(function: Callable[..., Any]) -> Source:
    """The source of a Python function or method. Unsupported where there is none (built in, lambda, generator)."""
    return _source_of(inspect.unwrap(getattr(function, "__func__", function)))


@cache
def _source_of(function: Callable[..., Any]) -> Source:
    code = getattr(function, "__code__", None)
    if code is None:
        raise Unsupported(Place("<built in>", 0), f"{function!r} has no Python source")
    place = Place(code.co_filename, code.co_firstlineno)
    try:
        lines, first = inspect.getsourcelines(function)
        parsed = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError) as error:
        raise Unsupported(place, f"the source of {function.__name__} can't be read ({error})") from None
    ast.increment_lineno(parsed, first - 1)
    tree = parsed.body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise Unsupported(place, f"{function.__name__} is no plain function (a lambda, or async)")
    if tree.decorator_list and not _harmless(tree.decorator_list):
        raise Unsupported(place, f"{function.__name__} has a decorator; remove it")
    closure = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    return Source(tree, code.co_filename, {**vars(builtins), **function.__globals__, **closure})


def _harmless(decorators: list[ast.expr]) -> bool:
    return all(ast.unparse(one) in ("staticmethod", "classmethod", "torch.no_grad()") for one in decorators)


def assigned_names(nodes: list[ast.stmt]) -> set[str]:
    """The names that these statements bind."""
    return {
        inner.id
        for node in nodes
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    }
