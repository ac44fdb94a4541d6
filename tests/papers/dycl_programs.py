"""Random modules with control flow, as source text: what the compiler of DyCL must get right whatever it looks like."""

from hypothesis import strategies as st

HEAD = """
import torch
from torch import nn


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.cuts = [0.1, -0.2, 0.3]
        self.on, self.off = True, None

    def pick(self, x, a):
        if x.sum() > 0.1:
            return torch.tanh(x @ self.weight), a + 1
        if a > 2:
            if x[0, 0] > 0:
                return x - 0.1, 0
            a = a - 1
        return x * 0.5, a

    def double(self, x):
        return self.scale(x, 2.0) if self.on else x

    def scale(self, x, by=1.0):
        return torch.tanh(x * by)

    def forward(self, x, y):
        a = 0
        b = 1
        z = x + y
        seen = []
"""
TAIL = "        return x, y, z, a, b, seen\n"


def tensors() -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            "torch.tanh(x + y)", "x * 0.5 - z", "self.layers[1](z)", "torch.tanh(y @ self.weight)",
            "x.relu() - y.mean()",
            "torch.tanh(z * a)", "torch.tanh(x + b * 0.1)", "self.layers[a % 3](x)",
            "self.double(y)", "self.layers[-1](y)",
            "self.scale(z, by=1.5)", "(x if a > 1 else y * 0.9)", "torch.where(x > 0, y, z)", "x.softmax(dim=-1)", "y",
            "torch.cat([x[:, :2], y[:, 2:]], dim=1)", "x.max(dim=1, keepdim=True).values - z",
            "z.reshape(x.shape[0], -1)",
            "(self.layers[0](x) if z.sum() > 0 else y)", "self.layers[int(x.argmax()) % 3 - 1](z)",
        ]
    )  # fmt: skip


def numbers() -> st.SearchStrategy[str]:
    return st.sampled_from(
        ["a + 1", "b - a", "int(x.argmax())", "int(y.argmin(dim=-1)) + a", "a * 2 % 5", "3", "b",
         "(a if y.mean() > 0 else 2)", "len(seen)", "max(a, 1)", "x.shape[1] - b"]
    )  # fmt: skip


def tests() -> st.SearchStrategy[str]:
    simple = st.sampled_from(
        ["x.sum() > 0.2", "y.mean() > z.mean()", "a > 1", "b == 1", "z[0, 1] > 0", "self.on", "self.off is not None",
         "x.max() > self.cuts[2]", "not a", "float(y.sum()) < 0.1", "x.norm() > 0.7", "a < b"]
    )  # fmt: skip
    pairs = st.tuples(simple, st.sampled_from(["and", "or"]), simple).map(" ".join)
    return st.one_of(simple, pairs, pairs.map(lambda pair: f"not ({pair})"))


def indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


@st.composite
def bodies(draw: st.DrawFn, depth: int, loop: bool = False, counter: int = 0) -> list[str]:
    """Statements. loop: break and continue are allowed; counter: how many counters of while loops are in use."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 4 if depth else 2))):
        kinds = ["tensor", "tensor", "number", "append", "pick", "swap"]
        kinds += ["if", "if", "return", "while", "for", "modules", "rounds"] if depth else []
        kind = draw(st.sampled_from(kinds))
        if kind == "tensor":
            lines.append(f"{draw(st.sampled_from('xyz'))} = {draw(tensors())}")
        elif kind == "number":
            lines.append(f"{draw(st.sampled_from('ab'))} = {draw(numbers())}")
        elif kind == "append":
            lines.append(f"seen.append({draw(st.sampled_from(['a', 'b', 'a + b']))})")
        elif kind == "pick":
            lines.append(f"{draw(st.sampled_from('xyz'))}, a = self.pick({draw(st.sampled_from('xyz'))}, a)")
        elif kind == "swap":
            lines.append(draw(st.sampled_from(["x, y = y, x", "y, z = z, y * 0.5", "a, b = b, a", "a += 1"])))
        elif kind == "return":
            inner = draw(st.sampled_from(["return x, y, z, a, b, seen", "return z, x, y, b, a, seen"]))
            inner = draw(st.sampled_from([inner, "break", "continue"])) if loop else inner
            lines += [f"if {draw(tests())}:", f"    {inner}"]
        elif kind == "if":
            lines += [f"if {draw(tests())}:", *indented(draw(bodies(depth - 1, loop, counter)))]
            if draw(st.booleans()):
                lines += [f"elif {draw(tests())}:", *indented(draw(bodies(depth - 1, loop, counter)))]
            if draw(st.booleans()):
                lines += ["else:", *indented(draw(bodies(depth - 1, loop, counter)))]
        elif kind == "while":
            test = draw(st.sampled_from(["x.sum() < 1.5", "y.mean() > -0.5", "a < 4", "True"]))
            name = f"n{counter}"
            lines += [f"{name} = 0", f"while {name} < 3 and {test}:", f"    {name} = {name} + 1"]
            lines += indented(draw(bodies(depth - 1, True, counter + 1)))
        elif kind == "for":
            over = draw(st.sampled_from(["range(2)", "enumerate([2, 3])", "(0, 1)"]))
            target = f"i{counter}, k{counter}" if "enumerate" in over else f"i{counter}"
            lines += [f"for {target} in {over}:", f"    x = torch.tanh(x + i{counter} * 0.1)"]
            lines += indented(draw(bodies(depth - 1, True, counter + 1)))
        elif kind == "modules":
            lines += [
                f"for m{counter}, c{counter} in zip(self.layers, self.cuts):",
                f"    z = m{counter}(z) - c{counter}",
            ]
            lines += indented(draw(bodies(depth - 1, True, counter + 1)))
        else:
            over = draw(st.sampled_from(["range(int(x.argmax()))", "range(a % 3)"]))
            lines += [f"for j{counter} in {over}:", f"    y = torch.tanh(y + x[:, j{counter}])"]
            lines += indented(draw(bodies(depth - 1, True, counter + 1)))
    return lines


def programs(depth: int = 2) -> st.SearchStrategy[str]:
    """The text of a file with one module, Drawn, of two inputs (1, 4)."""
    return bodies(depth).map(
        lambda lines: HEAD + "\n".join("        " + line for line in lines) + "\n" + TAIL
    )
