"""The path an eager network takes, seen by its own source with every test wrapped; knows nothing of the compiler."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

from torch import nn

Path = list[tuple[str, Any]]


@contextmanager
def watched(network: nn.Module, only: frozenset[tuple[str, int]] | None = None) -> Iterator[Path]:
    """Within the block the network's decisions are appended to the list that is yielded.

    A decision is the outcome of a test (`if`, `while`, conditional expression) or an index into a ModuleList, by
    file:line:column. only: functions (file, line of def) to watch; all of the network's classes by default. The classes
    are patched for the time of the block.
    """
    path: Path = []

    def test(where: str, value: Any) -> Any:
        outcome = bool(value)
        path.append((where, outcome))
        return outcome

    def index(where: str, owner: Any, place: Any) -> Any:
        if isinstance(owner, nn.ModuleList) and not isinstance(place, slice):
            path.append((where, int(place)))
        return owner[place]

    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    kinds = {kind for kind in kinds if not kind.__module__.startswith(("torch", "builtins"))}
    patched: list[tuple[type, str, Any]] = []
    try:
        for kind in kinds:
            for name, function in list(vars(kind).items()):
                if inspect.isfunction(function) and name != "__init__":
                    wrapped = _wrapped(function, {"test_": test, "index_": index}, only)
                    if wrapped is not None:
                        patched.append((kind, name, function))
                        setattr(kind, name, wrapped)
        yield path
    finally:
        for kind, name, function in patched:
            setattr(kind, name, function)


def _wrapped(
    function: Callable[..., Any], hooks: dict[str, Any], only: frozenset[tuple[str, int]] | None
) -> Callable[..., Any] | None:
    function = inspect.unwrap(function)  # what a decorator hides
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    file = function.__code__.co_filename
    if only is not None and (file, definition.lineno) not in only:
        return None
    changed = ast.fix_missing_locations(_Wrap(FilePath(file).name).visit(tree))
    changed.body[0].decorator_list = []
    names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals, **hooks}
    exec(compile(changed, file, "exec"), names)
    return names[definition.name]


class _Wrap(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self.file = file

    def key(self, node: ast.AST) -> ast.Constant:
        return ast.Constant(f"{self.file}:{node.lineno}:{node.col_offset}")  # type: ignore[attr-defined]

    def decision(self, node: Any) -> Any:
        key = self.key(node.test)
        self.generic_visit(node)
        node.test = ast.Call(ast.Name("test_", ast.Load()), [key, node.test], [])
        return node

    visit_If = visit_While = visit_IfExp = decision

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        key = self.key(node)
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load) or any(
            isinstance(inner, ast.Slice) for inner in ast.walk(node.slice)
        ):
            return node
        return ast.Call(ast.Name("index_", ast.Load()), [key, node.value, node.slice], [])
