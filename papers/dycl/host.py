"""The host program as text: the control flow that is left, in plain Python, calling sub-networks by number."""

import ast

from papers.dycl.program import (
    Block,
    Body,
    HostOp,
    If,
    Leave,
    Loop,
    Node,
    Note,
    Program,
    Region,
    Return,
    TensorOp,
    nodes,
)  # fmt: skip

INDENT = "    "


def host_text(program: Program, networks: int, traced: bool = False) -> str:
    """`def build(subs, ...)` that returns forward.

    Plain, it takes the sub-networks; traced, also `seen(key, value)`, called with every decision of the source, and
    `take(number, value)`, through which every branch passes.
    """
    writer = _Writer(traced)
    names = ", ".join(f"sub_{k}" for k in range(networks))
    extra = ", seen, take" if traced else ""
    writer.line(f"def build(subs{extra}):", 0)
    if networks:
        writer.line(f"({names},) = subs" if networks == 1 else f"{names} = subs", 1)
    writer.line(f"def forward({', '.join(program.arguments)}):", 1)
    writer.body(program.body, 2)
    writer.line("return forward", 1)
    return "\n".join(writer.lines) + "\n"


class _Writer:
    """Writes nodes line by line; `open` are the Python loops around the current line, by the label they stand for."""

    def __init__(self, traced: bool) -> None:
        self.traced = traced
        self.lines: list[str] = []
        self.open: list[str] = []

    def line(self, text: str, depth: int) -> None:
        self.lines.append(INDENT * depth + text)

    def body(self, body: Body, depth: int) -> None:
        before = len(self.lines)
        for node in body:
            self.node(node, depth)
        if len(self.lines) == before:
            self.line("pass", depth)

    def node(self, node: Node, depth: int) -> None:
        if isinstance(node, Region):
            self.region(node, depth)
        elif isinstance(node, HostOp):
            self.line(ast.unparse(ast.fix_missing_locations(node.statement)), depth)
        elif isinstance(node, Note):
            if self.traced:
                self.line(f"seen({node.place.key!r}, {_code(node.value)})", depth)
        elif isinstance(node, If):
            self.branch(node, depth)
        elif isinstance(node, Loop):
            self.loop(node, depth)
        elif isinstance(node, Block):
            self.block(node, depth)
        elif isinstance(node, Leave):
            self.leave(node, depth)
        elif isinstance(node, Return):
            self.line(f"return {_code(node.value)}", depth)
        else:
            assert isinstance(node, TensorOp)
            raise ValueError(
                "tensor operations must be merged into regions before the host program is written"
            )

    def region(self, node: Region, depth: int) -> None:
        if node.index < 0:
            for op in node.ops:
                self.line(f"{_code(op.target)} = {_code(op.value)}", depth)
            return
        call = f"sub_{node.index}({', '.join(node.inputs)})"
        self.line(f"{', '.join(node.outputs)} = {call}" if node.outputs else call, depth)

    def branch(self, node: If, depth: int, word: str = "if") -> None:
        then, orelse, test = node.then, node.orelse, self.test(node.test, node.key)
        if orelse and not then:
            then, orelse = orelse, then
            inverted = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
            if inverted and not self.traced:
                test = _code(node.test.operand)  # type: ignore[attr-defined]
            else:
                test = f"not ({test})" if " " in test else f"not {test}"
        self.line(f"{word} {test}:", depth)
        self.body(then, depth + 1)
        if len(orelse) == 1 and isinstance(orelse[0], If):
            self.branch(orelse[0], depth, "elif")
        elif orelse:
            self.line("else:", depth)
            self.body(orelse, depth + 1)

    def test(self, code: ast.expr, key: int) -> str:
        return f"take({key}, {_code(code)})" if self.traced else _code(code)

    def loop(self, node: Loop, depth: int) -> None:
        self.flag(node, depth)
        if node.target:
            self.line(f"for {node.target} in {_code(node.test)}:", depth)
        else:
            self.line(f"while {self.test(node.test, node.key)}:", depth)
        self.inside(node, depth)

    def block(self, node: Block, depth: int) -> None:
        self.flag(node, depth)
        self.line("while True:", depth)
        self.inside(node, depth, once=True)

    def inside(self, node: Loop | Block, depth: int, once: bool = False) -> None:
        self.open.append(node.label)
        self.body(node.body, depth + 1)
        if once:
            self.line("break", depth + 1)
        self.open.pop()
        for label in self.open:  # a jump further out goes on through this loop
            if any(isinstance(inner, Leave) and inner.label == label for inner in nodes(node.body)):
                self.line(f"if leave_{label}:", depth)
                self.line("break", depth + 1)

    def flag(self, node: Loop | Block, depth: int) -> None:
        """A jump through several Python loops sets a flag, which is cleared before the outermost of them."""
        if self.jumps_through(node.body, node.label, inside=False):
            self.line(f"leave_{node.label} = False", depth)

    def jumps_through(self, body: Body, label: str, inside: bool) -> bool:
        for node in body:
            if isinstance(node, Leave) and node.label == label and inside:
                return True
            if isinstance(node, If) and any(
                self.jumps_through(side, label, inside) for side in (node.then, node.orelse)
            ):
                return True
            if isinstance(node, (Loop, Block)) and self.jumps_through(node.body, label, True):
                return True
        return False

    def leave(self, node: Leave, depth: int) -> None:
        if self.open[-1] != node.label:
            self.line(f"leave_{node.label} = True", depth)
        self.line("break", depth)


def _code(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(node))
