"""The rewritten program: tensor operations, host statements and structured control flow between them.

This is the heterogeneous control-flow graph in structured form: a body is a tuple of nodes, and only `If` and `Loop`
decide. `Block` and `Leave` carry what was `break`, `continue` and `return` before loops were unrolled and methods
inlined: Leave(label) goes on behind the Block or Loop of that label.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from papers.dycl.source import Place

Names = frozenset[str]


@dataclass(frozen=True)
class TensorOp:
    """target = value, an expression over tensors that holds no decision.

    reads: names of tensors and host numbers in it; constants: modules, parameters and functions by their names in it;
    condition: it was written in the test of a branch.
    """

    target: ast.expr  # a name, or nested tuples of names
    value: ast.expr
    reads: Names
    writes: Names
    constants: Mapping[str, Any]
    condition: bool
    place: Place

    @property
    def alias(self) -> bool:
        """Nothing is computed: a tensor gets a second name."""
        return isinstance(self.value, ast.Name) and not self.constants


@dataclass(frozen=True)
class HostOp:
    """A statement over Python numbers and lists; kept: it changes a list, or may not be dropped for another reason."""

    statement: ast.stmt
    reads: Names
    writes: Names
    kept: bool
    place: Place


@dataclass(frozen=True)
class Note:
    """What a decision of the source came out as; written down when paths are recorded, nothing else."""

    place: Place
    value: ast.expr
    reads: Names


@dataclass(frozen=True)
class Region:
    """A sub-network: tensor operations without any decision between them. Filled in by merging and liveness."""

    ops: tuple[TensorOp, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    index: int = -1  # of the sub-network that computes it; -1: only renames tensors

    @property
    def writes(self) -> Names:
        return frozenset().union(*(op.writes for op in self.ops))

    @property
    def reads(self) -> Names:
        """What it needs from before."""
        known: Names = frozenset()
        needed: Names = frozenset()
        for op in self.ops:
            needed |= op.reads - known
            known |= op.writes
        return needed


@dataclass(frozen=True)
class If:
    test: ast.expr
    reads: Names
    then: "Body"
    orelse: "Body"
    key: int


@dataclass(frozen=True)
class Loop:
    """while test: body, or, with a target, for target in test: body."""

    label: str
    test: ast.expr
    reads: Names
    body: "Body"
    key: int
    target: str = ""


@dataclass(frozen=True)
class Block:
    label: str
    body: "Body"


@dataclass(frozen=True)
class Leave:
    label: str


@dataclass(frozen=True)
class Return:
    value: ast.expr
    reads: Names


Node = TensorOp | HostOp | Note | Region | If | Loop | Block | Leave | Return
Body = tuple[Node, ...]


@dataclass(frozen=True)
class Program:
    """A network's forward, rewritten."""

    name: str
    file: str
    arguments: tuple[str, ...]
    body: Body
    sources: frozenset[tuple[str, int]] = frozenset()  # file and line of every function that was rewritten


def nodes(body: Body) -> Iterator[Node]:
    """All nodes, in the order of the text."""
    for node in body:
        yield node
        for inner in children(node):
            yield from nodes(inner)


def children(node: Node) -> tuple[Body, ...]:
    """The bodies inside a node."""
    if isinstance(node, If):
        return node.then, node.orelse
    return (node.body,) if isinstance(node, (Loop, Block)) else ()


def rebuild(body: Body, change: Callable[[Body], Body]) -> Body:
    """Apply `change` to every body, innermost first."""
    made: list[Node] = []
    for node in body:
        if isinstance(node, If):
            node = replace(node, then=rebuild(node.then, change), orelse=rebuild(node.orelse, change))
        elif isinstance(node, (Loop, Block)):
            node = replace(node, body=rebuild(node.body, change))
        made.append(node)
    return change(tuple(made))


def flattened(block: Block) -> Body:
    """A block without its label where nothing but its end is left for: what follows an `if` moves into its other side.

    Never copies anything, so that programs stay as long as they are.
    """
    body = _without_last_leave(_nested(block.body, block.label), block.label)
    still = any(isinstance(node, Leave) and node.label == block.label for node in nodes(body))
    return (Block(block.label, body),) if still else body


def _nested(body: Body, label: str) -> Body:
    for place, node in enumerate(body):
        if not isinstance(node, If):
            continue
        rest = body[place + 1 :]
        then, orelse = node.then, node.orelse
        if _ends(then, label):
            orelse = orelse + rest
        elif _ends(orelse, label):
            then = then + rest
        elif rest:
            continue
        changed = replace(node, then=_nested(then, label), orelse=_nested(orelse, label))
        return (*body[:place], changed)
    return body


def _ends(body: Body, label: str) -> bool:
    return bool(body) and isinstance(body[-1], Leave) and body[-1].label == label


def _without_last_leave(body: Body, label: str) -> Body:
    if not body:
        return body
    last = body[-1]
    if isinstance(last, Leave) and last.label == label:
        return body[:-1]
    if isinstance(last, If):
        then, orelse = (_without_last_leave(side, label) for side in (last.then, last.orelse))
        last = replace(last, then=then, orelse=orelse)
    return (*body[:-1], last)
