"""Merging: between two decisions, tensor operations gather into as few sub-networks as their dependencies allow.

An operation may also pass a branch that has nothing to do with it: up, to join a sub-network before the branch, or
down, where it would only be a second sub-network before it.
"""

from dataclasses import replace

from papers.dycl.program import (
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
    nodes,
    rebuild,
)  # fmt: skip

Straight = TensorOp | HostOp | Note


def merged(program: Program, merge: bool = True, fuse_conditions: bool = True) -> Program:
    """Every tensor operation in a region. merge: as few regions as can be, host statements move out of the way;
    without it one an operation. fuse_conditions: a condition's operations may join those before it.
    """

    def change(body: Body) -> Body:
        if merge:
            body = _sunk(_hoisted(body))
        made: list[Node] = []
        run: list[Straight] = []
        for node in body:
            if isinstance(node, (TensorOp, HostOp, Note)):
                run.append(node)
                continue
            made += _grouped(run, merge, fuse_conditions)
            made.append(node)
            run = []
        return (*made, *_grouped(run, merge, fuse_conditions))

    return replace(program, body=rebuild(program.body, change))


def _grouped(run: list[Straight], merge: bool, fuse_conditions: bool) -> list[Node]:
    if not merge:
        return [Region((node,)) if isinstance(node, TensorOp) else node for node in run]
    before = [{i for i in range(j) if _conflict(run[i], run[j])} for j in range(len(run))]
    left, made = list(range(len(run))), list[Node]()
    waiting = set(left)
    while left:
        for j in list(left):  # host statements as early as they can go
            if not isinstance(run[j], TensorOp) and not before[j] & waiting:
                made.append(run[j])
                left.remove(j)
                waiting.discard(j)
        ops: list[TensorOp] = []
        for j in list(left):
            node = run[j]
            if not isinstance(node, TensorOp) or before[j] & waiting:
                continue
            if ops and not fuse_conditions and node.condition != ops[0].condition:
                continue
            ops.append(node)
            left.remove(j)
            waiting.discard(j)
        if ops:
            made.append(Region(tuple(ops)))
    return made


def _conflict(first: Straight, second: Straight) -> bool:
    """Whether the two must keep their order."""
    ordered = (isinstance(first, Note) and isinstance(second, Note)) or (_kept(first) and _kept(second))
    return ordered or bool(_writes(first) & (second.reads | _writes(second)) or first.reads & _writes(second))


def _writes(node: Straight) -> Names:
    return frozenset() if isinstance(node, Note) else node.writes


def _kept(node: Straight) -> bool:
    return isinstance(node, HostOp) and node.kept


def _hoisted(body: Body) -> Body:
    """Operations behind a branch that neither it nor what stands between needs or changes move before it."""
    made = list(body)
    for start in range(len(made)):
        node = made[start]
        if not isinstance(node, TensorOp):
            continue
        place, landing, passed = start, start, False
        while place > 0 and _independent(made[place - 1], node):
            place -= 1
            passed |= isinstance(made[place], If)
            joins = place > 0 and isinstance(made[place - 1], TensorOp)
            if passed and joins:
                landing = place
        if passed and place > 0 and isinstance(made[place - 1], TensorOp):
            landing = place  # right behind what it depends on
        if landing < start:
            made.insert(landing, made.pop(start))
    return tuple(made)


def _sunk(body: Body) -> Body:
    """Operations that wait for a host statement before a branch, and that it does not need, move behind it."""
    made = list(body)
    for start in range(len(made) - 1, -1, -1):
        node = made[start]
        if not isinstance(node, TensorOp) or not _waits(made, start):
            continue
        place = start
        while place + 1 < len(made) and _independent(made[place + 1], node):
            place += 1
        branches = [k for k in range(start + 1, place + 1) if isinstance(made[k], If)]
        if branches and any(isinstance(other, TensorOp) for other in made[branches[-1] + 1 :]):
            made.insert(branches[-1], made.pop(start))
    return tuple(made)


def _waits(body: list[Node], start: int) -> bool:
    """Whether an operation needs what a host statement of the same straight line computes from a tensor."""
    needed = body[start].reads  # type: ignore[union-attr]
    for node in reversed(body[:start]):
        if not isinstance(node, (TensorOp, HostOp, Note)):
            return False
        if _writes(node) & needed:
            if isinstance(node, HostOp) and node.reads:
                return True
            needed |= node.reads
    return False


def _independent(node: Node, op: TensorOp) -> bool:
    """Whether an operation may pass a node: a straight one, or a branch that is always left at its end."""
    if isinstance(node, (TensorOp, HostOp, Note)):
        return not _conflict(node, op)
    if not isinstance(node, If):
        return False
    reads, writes = node.reads, frozenset[str]()
    for inner in nodes((node,)):
        if isinstance(inner, (Leave, Return, Loop)):
            return False
        if not isinstance(inner, If) and hasattr(inner, "reads"):
            reads |= inner.reads
        if isinstance(inner, (TensorOp, HostOp, Region)):
            writes |= inner.writes
        if isinstance(inner, If):
            reads |= inner.reads
    return not (op.writes & (reads | writes) or op.reads & writes)
