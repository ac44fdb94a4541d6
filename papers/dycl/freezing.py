"""What a tracer does, done to the rewritten program: every branch as one sample takes it. The negative control."""

from dataclasses import replace
from typing import Any

import torch

from papers.dycl.host import host_text
from papers.dycl.liveness import with_interfaces
from papers.dycl.merging import merged
from papers.dycl.program import Block, Body, If, Leave, Loop, Node, Program, Return, flattened, nodes, rebuild
from papers.dycl.recording import Decisions, built
from papers.dycl.subnetworks import eager, numbered


def frozen(program: Program, sample: tuple[Any, ...]) -> Program:
    """The program without branches: each `if` goes where the sample goes first, loops make as many rounds as then."""
    runnable, networks = numbered(with_interfaces(merged(program)))
    take = Decisions()
    with torch.no_grad():
        built(host_text(runnable, len(networks), traced=True))["build"](
            eager(networks), lambda where, value: value, take
        )(*sample)

    def straighten(body: Body) -> Body:
        made: list[Node] = []
        for node in body:
            if isinstance(node, If):
                outcomes = take.seen.get(node.key, [False])
                made.extend(node.then if outcomes[0] else node.orelse)
            elif isinstance(node, Loop) and not node.target:
                rounds = sum(take.seen.get(node.key, [False]))
                made.extend(_once(node) * rounds)
            else:
                made.append(node)
            if made and isinstance(made[-1], (Leave, Return)):
                break
        return tuple(made)

    return replace(program, body=_cut(rebuild(program.body, straighten)))


def _once(loop: Loop) -> Body:
    return tuple(node for node in loop.body if not (isinstance(node, Leave) and node.label == loop.label))


def _cut(body: Body) -> Body:
    """Blocks whose jumps are now certain become straight lines: what stands behind a jump goes."""

    def change(inner: Body) -> Body:
        made: list[Node] = []
        for node in inner:
            made.extend(flattened(node) if isinstance(node, Block) else [node])
            if made and isinstance(made[-1], (Leave, Return)):
                break
        return tuple(made)

    straight = rebuild(body, change)
    assert not any(isinstance(node, If) for node in nodes(straight))
    return straight
