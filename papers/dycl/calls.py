"""Rewriting calls: of torch, of the user's modules and functions, of lists, and of modules chosen by an index."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from papers.dycl.decisions import Decisions
from papers.dycl.program import (
    Body,
    If,
)
from papers.dycl.source import source_of
from papers.dycl.values import (  # fmt: skip
    Choice,
    Const,
    Host,
    Several,
    Tensor,
    Unusable,
    Value,
    name,
    reads_of,
    wrapped,
)

PURE = (
    len, range, min, max, abs, int, float, bool, sum, round, enumerate, zip, reversed, list, tuple, isinstance, hasattr,
    getattr, str, divmod, sorted,
)  # fmt: skip
HOST_CALLS = (range, min, max, abs, sum, round, len, int, float, bool, str)
RANDOM = (
    "rand",
    "bernoulli",
    "multinomial",
    "normal",
    "poisson",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
)
READING = ("index", "count", "get", "keys", "values", "items", "copy")


def of_torch(item: Any) -> bool:
    """Whether a class, module or function belongs to torch, so that a tracer takes it whole."""
    home = getattr(item, "__module__", None) or getattr(type(item), "__module__", "") or ""
    return (home + ".").startswith(("torch.", "_VariableFunctions", "builtins."))


def decides(module: nn.Module) -> bool:
    """Whether a module, or one inside it, is the user's and its source holds a decision, so that it must be inlined."""
    if not of_torch(type(module)):
        for node in ast.walk(source_of(type(module).forward).tree):
            if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.BoolOp)):
                return True
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Attribute) and called.attr in ("item", "tolist"):
                    return True
                if isinstance(called, ast.Name) and called.id in ("int", "float", "bool"):
                    return True
                if isinstance(called, ast.Attribute) and not isinstance(called.value, ast.Call):
                    owner = called.value
                    helper = getattr(type(module), called.attr, None)
                    if isinstance(owner, ast.Name) and owner.id == "self" and inspect.isfunction(helper):
                        return True
    return any(decides(child) for child in module.children())


class Calls(Decisions):
    """A call is a tensor operation, a host expression, or the body of what is called."""

    def of_call(self, node: ast.Call) -> Value:
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            keyword.arg is None for keyword in node.keywords
        ):
            raise self.refuse(node, "starred arguments; write them out")
        if isinstance(node.func, ast.Attribute):
            owner = self.operand(node.func.value)
            if isinstance(owner, (Tensor, Host, Several)):
                return self._method(owner, node.func.attr, node)
            if not isinstance(owner, Const):
                raise self.refuse(node, "a method of a module chosen by an index")
            if not hasattr(owner.value, node.func.attr):
                raise self.refuse(node, f"{ast.unparse(node.func)}: there is no such attribute")
            callee: Value = Const(getattr(owner.value, node.func.attr))
        else:
            callee = self.operand(node.func)
        if isinstance(callee, Choice):
            return self._call_of_choice(callee, node)
        if not isinstance(callee, Const):
            raise self.refuse(
                node, f"{ast.unparse(node.func)} is not a function that is known while compiling"
            )
        positional, named = self._arguments(node)
        return self.call(callee.value, positional, named, node)

    def _arguments(self, node: ast.Call) -> tuple[list[Value], dict[str, Value]]:
        positional = [self.operand(argument) for argument in node.args]
        return positional, {str(keyword.arg): self.operand(keyword.value) for keyword in node.keywords}

    def _call_of_choice(self, callee: Choice, node: ast.Call) -> Value:
        """One branch for each module of the list."""
        positional, named = self._arguments(node)
        place, result = self.at(node), self.fresh("chosen_out")
        values: list[Value] = []
        sides: list[Body] = []
        for module in callee.modules:
            with self.into() as made:
                values.append(self.bind(result, self.call(module, positional, named, node), place))
            sides.append(tuple(made))
        if not all(isinstance(value, Tensor) for value in values):
            raise self.refuse(node, "modules chosen by an index must each return one tensor")
        orelse = sides[-1]
        for place_, side in reversed(list(enumerate(sides[:-1]))):
            test = ast.Compare(name(callee.index), [ast.Eq()], [ast.Constant(place_)])
            orelse = (If(test, frozenset({callee.index}), side, orelse, self.key()),)
        self.body.extend(orelse)
        return values[0]

    def _method(self, owner: Value, method: str, node: ast.Call) -> Value:
        positional, named = self._arguments(node)
        if isinstance(owner, Tensor):
            if method in ("item", "tolist"):
                crossed = self.crossing(owner, node)
                assert isinstance(crossed.code, ast.Call) and isinstance(crossed.code.func, ast.Attribute)
                crossed.code.func.attr = method
                return crossed
            if method in ("size", "dim"):
                shape = self.named(owner, node)
                code: ast.expr = ast.Attribute(shape.code, "ndim" if method == "dim" else "shape", ast.Load())
                if positional:
                    code = ast.Subscript(code, self.host_code(positional[0], node), ast.Load())
                return Host(code, shape.reads, of_shape=True)
            if method.endswith("_") or method in ("numpy", "backward", "register_hook"):
                raise self.refuse(node, f".{method}() changes a tensor in place or leaves torch")
            if method in RANDOM:
                raise self.refuse(node, f".{method}() is random")
            return self._tensor_call(
                lambda codes, keywords: ast.Call(ast.Attribute(codes[0], method, ast.Load()), codes[1:], keywords),
                [owner, *positional], named, {}, node,
            )  # fmt: skip
        if method == "append" and isinstance(owner, Host) and isinstance(owner.code, ast.Name):
            return self._append(owner, positional[0], node)
        raise self.refuse(
            node, f".{method}() of a host value; lists can be appended to, indexed and returned"
        )

    def _append(self, owner: Host, value: Value, node: ast.Call) -> Value:
        assert isinstance(owner.code, ast.Name) and isinstance(node.func, ast.Attribute)
        if isinstance(value, Tensor):
            value = self.named(value, node)
            for variable, known in self.env.items():
                if isinstance(known, Host) and known.code == owner.code:
                    self.env[variable] = replace(known, tensors=True)
            if isinstance(node.func.value, ast.Name):
                self.env[node.func.value.id] = replace(owner, tensors=True)
        call = ast.Call(ast.Attribute(owner.code, "append", ast.Load()), [self.host_code(value, node)], [])
        reads = owner.reads | reads_of([value])
        self.host(ast.Expr(call), reads, {owner.code.id}, self.at(node), kept=True)
        return Const(None)

    def call(self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call) -> Value:
        """A call of something known while compiling."""
        arguments = [*positional, *named.values()]
        for value in arguments:
            if isinstance(value, Unusable):
                raise self.refuse(node, value.reason)
        if isinstance(callee, nn.Module):
            return self._module(callee, positional, named, node)
        if any(callee is known for known in PURE) or getattr(callee, "__module__", "") == "math":
            return self._python_call(callee, positional, named, node)
        plain = isinstance(getattr(callee, "__self__", None), (list, tuple, dict, str, int, float))
        if inspect.isclass(callee) or plain:
            if plain and callee.__name__ not in READING:
                raise self.refuse(node, f"{ast.unparse(node.func)} may change an attribute of the network")
            return self._evaluated(callee, positional, named, node)
        function = getattr(callee, "__func__", callee)
        if inspect.isfunction(function) and not of_torch(function):
            bound = self._bound(callee, positional, named, node)
            return self.inline(source_of(callee), bound, self.at(node))
        if not callable(callee) or not of_torch(callee) or getattr(callee, "__module__", "") == "builtins":
            raise self.refuse(
                node, f"{ast.unparse(node.func)} is neither of torch nor a Python function with source"
            )
        if getattr(callee, "__name__", "").startswith(RANDOM):
            raise self.refuse(node, f"{ast.unparse(node.func)} is random")
        if getattr(callee, "__name__", "") in ("tensor", "as_tensor", "from_numpy") and not all(
            isinstance(value, Const) for value in positional
        ):
            raise self.refuse(
                node, "torch.tensor of a value known at run time; index or add to a tensor instead"
            )
        head, _, constants = self.tensor_code(Const(callee), node)
        return self._tensor_call(
            lambda codes, keywords: ast.Call(head, codes, keywords), positional, named, constants, node
        )

    def _tensor_call(
        self, make: Callable[[list[ast.expr], list[ast.keyword]], ast.expr], positional: list[Value],
        named: dict[str, Value], constants: dict[str, Any], node: ast.Call,
    ) -> Tensor:  # fmt: skip
        parts = [self.tensor_code(value, node) for value in positional]
        words = {key: self.tensor_code(value, node) for key, value in named.items()}
        for _, _, known in [*parts, *words.values()]:
            constants = {**constants, **known}
        reads = frozenset[str]().union(*(reads for _, reads, _ in [*parts, *words.values()]))
        keywords = [ast.keyword(key, code) for key, (code, _, _) in words.items()]
        return Tensor(make([code for code, _, _ in parts], keywords), reads, constants)

    def _bound(
        self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call
    ) -> dict[str, Value]:
        try:
            signature = inspect.signature(callee)
            bound = signature.bind(*positional, **named)
        except (TypeError, ValueError) as error:
            raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
        values: dict[str, Value] = {}
        for parameter in signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise self.refuse(node, f"{ast.unparse(node.func)} takes *arguments; name them")
            given = bound.arguments.get(parameter.name)
            values[parameter.name] = given if given is not None else wrapped(parameter.default, self.known)
        owner = getattr(callee, "__self__", None)
        if owner is not None:
            first = next(iter(inspect.signature(callee.__func__).parameters))
            values = {first: Const(owner), **values}
        return values

    def _module(
        self, module: nn.Module, positional: list[Value], named: dict[str, Value], node: ast.Call
    ) -> Value:
        if any(getattr(inner, "inplace", False) for inner in module.modules()):
            raise self.refuse(node, f"{ast.unparse(node.func)} works in place; build it with inplace=False")
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise self.refuse(node, f"{ast.unparse(node.func)} is a list of modules and can't be called")
        if decides(module):
            if isinstance(module, nn.Sequential):
                for inner in module:
                    positional = [self.settled(self.call(inner, positional, named, node), self.at(node))]
                return positional[0]
            if of_torch(type(module)):
                raise self.refuse(node, f"{type(module).__name__} of torch holds modules with decisions")
            return self.inline(
                source_of(module.forward), self._bound(module.forward, positional, named, node), self.at(node)
            )
        head, _, constants = self.tensor_code(Const(module), node)
        return self._tensor_call(
            lambda codes, keywords: ast.Call(head, codes, keywords), positional, named, constants, node
        )

    def _python_call(
        self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call
    ) -> Value:
        values = [*positional, *named.values()]
        if all(isinstance(value, Const) for value in values):
            return self._evaluated(callee, positional, named, node)
        if callee in (bool, int, float) and len(positional) == 1:
            return self.scalar_of(positional[0], node, callee.__name__)
        first = positional[0] if positional else None
        if callee is isinstance and isinstance(first, Tensor) and isinstance(positional[1], Const):
            return Const(positional[1].value is torch.Tensor)
        if callee is len and isinstance(first, Several):
            return Const(len(first.items))
        if callee is len and isinstance(first, Tensor):
            first = self.named(first, node)
            return Host(
                ast.parse(f"{ast.unparse(first.code)}.shape[0]", mode="eval").body, first.reads, of_shape=True
            )
        if callee in (zip, enumerate, reversed, list, tuple) and all(
            isinstance(v, (Const, Several)) for v in values
        ):
            return self._over_several(callee, positional, node)
        if callee is abs and isinstance(first, Tensor):
            return self.operation(node, [], lambda a: ast.Call(name("abs"), [a], []), [first])
        if any(isinstance(value, (Tensor, Several)) for value in values):
            raise self.refuse(node, f"{ast.unparse(node.func)} of tensors; use torch's function")
        if callee not in HOST_CALLS and getattr(callee, "__module__", "") != "math":
            raise self.refuse(node, f"{ast.unparse(node)}: its arguments must be constants")
        called: ast.expr = name(callee.__name__)
        if callee not in HOST_CALLS:
            called = ast.Attribute(name("math"), callee.__name__, ast.Load())
        code = ast.Call(
            called,
            [self.host_code(value, node) for value in positional],
            [ast.keyword(key, self.host_code(value, node)) for key, value in named.items()],
        )  # fmt: skip
        return Host(code, reads_of(values))

    def _evaluated(
        self, callee: Any, positional: list[Value], named: dict[str, Value], node: ast.Call
    ) -> Value:
        """A call over constants, made now."""
        if not all(isinstance(value, Const) for value in [*positional, *named.values()]):
            raise self.refuse(node, f"{ast.unparse(node)}: its arguments must be constants")
        try:
            result = callee(
                *(value.value for value in positional if isinstance(value, Const)),
                **{key: value.value for key, value in named.items() if isinstance(value, Const)},
            )
        except Exception as error:
            raise self.refuse(node, f"{ast.unparse(node)}: {error}") from None
        return wrapped(list(result) if callee in (enumerate, zip, reversed) else result, self.known)

    def _over_several(self, callee: Any, positional: list[Value], node: ast.Call) -> Value:
        """zip, enumerate, reversed, list and tuple over tuples of known length."""
        columns: list[list[Value]] = []
        for value in positional:
            if isinstance(value, Several):
                columns.append(list(value.items))
            elif isinstance(value, Const):
                columns.append([wrapped(item, self.known) for item in value.value])
        if callee is enumerate:
            columns = [[Const(i) for i in range(len(columns[0]))], columns[0]]
        if callee in (zip, enumerate):
            return Several(tuple(Several(row) for row in zip(*columns)))  # noqa: B905
        return Several(tuple(reversed(columns[0]) if callee is reversed else columns[0]), callee is list)
