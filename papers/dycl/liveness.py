"""Backward liveness over the structured program: drops what nobody reads, and says what leaves each sub-network."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace

from papers.dycl.program import (
    Block,
    Body,
    HostOp,
    If,
    Leave,
    Loop,
    Names,
    Node,
    Note,
    Program,
    Region,
    Return,
    TensorOp,
)  # fmt: skip

Visit = Callable[[TensorOp | HostOp | Note | Region, Names], Node | None]


def backward(body: Body, after: Names, exits: Mapping[str, Names], visit: Visit) -> tuple[Body, Names]:
    """The body with every operation put through `visit(operation, live after it)`, and what is live before it.

    after: live behind the body; exits: live behind the Block or Loop of a label. None from `visit` drops the operation.
    """
    made: list[Node] = []
    live = after
    for node in reversed(body):
        if isinstance(node, Leave):
            live = exits[node.label]
        elif isinstance(node, Return):
            live = node.reads
        elif isinstance(node, If):
            then, one = backward(node.then, live, exits, visit)
            orelse, other = backward(node.orelse, live, exits, visit)
            node, live = replace(node, then=then, orelse=orelse), one | other | node.reads
        elif isinstance(node, Block):
            inner, live = backward(node.body, live, {**exits, node.label: live}, visit)
            node = replace(node, body=inner)
        elif isinstance(node, Loop):
            node, live = _loop(node, live, exits, visit)
        else:
            kept = visit(node, live)
            if kept is None:
                continue
            node = kept
            live = (live - _overwritten(node)) | _needed(node)
        made.append(node)
    return tuple(reversed(made)), live


def _loop(node: Loop, after: Names, exits: Mapping[str, Names], visit: Visit) -> tuple[Loop, Names]:
    head = after | node.reads
    while True:  # a loop's head is also behind its body
        _, before = backward(node.body, head, {**exits, node.label: after}, visit)
        wider = head | (before - {node.target})
        if wider == head:
            break
        head = wider
    inner, _ = backward(node.body, head, {**exits, node.label: after}, visit)
    return replace(node, body=inner), head


def _overwritten(node: Node) -> Names:
    if isinstance(node, HostOp):
        return node.writes - node.reads
    return node.writes if isinstance(node, (TensorOp, Region)) else frozenset()


def _needed(node: Node) -> Names:
    return node.reads if isinstance(node, (TensorOp, HostOp, Note, Region)) else frozenset()


def without_dead(program: Program) -> Program:
    """Without operations whose results nobody reads (dead-code elimination)."""

    def visit(node: TensorOp | HostOp | Note | Region, live: Names) -> Node | None:
        if isinstance(node, TensorOp) or (isinstance(node, HostOp) and not node.kept):
            return node if node.writes & live else None
        return node

    return replace(program, body=backward(program.body, frozenset(), {}, visit)[0])


def with_interfaces(program: Program, prune: bool = True) -> Program:
    """With the inputs and outputs of each region filled in, in order of first appearance.

    Inputs are what it reads before writing; outputs what it writes and somebody reads later (without prune: all).
    """

    def visit(node: TensorOp | HostOp | Note | Region, live: Names) -> Node | None:
        if not isinstance(node, Region):
            return node
        inputs, written = _in_order(node)
        outputs = tuple(key for key in written if key in live or not prune)
        return replace(node, inputs=inputs, outputs=outputs)

    return replace(program, body=backward(program.body, frozenset(), {}, visit)[0])


def _in_order(region: Region) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs: dict[str, None] = {}
    written: dict[str, None] = {}
    for op in region.ops:
        for inner in ast.walk(op.value):
            if isinstance(inner, ast.Name) and inner.id in op.reads and inner.id not in written:
                inputs[inner.id] = None
        for inner in ast.walk(op.target):
            if isinstance(inner, ast.Name):
                written[inner.id] = None
    return tuple(inputs), tuple(written)
