"""Plain values (from YAML or JSON) to typed dataclasses and back; what does not fit is refused by its dotted name.

Standard library only: the bare runner needs it where nothing else is installed.
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from common.lab import bounds
from common.lab.errors import LabError, nearest

T = TypeVar("T")
MISSING = "???"  # Hydra's mark for a value that must be given


def build(cls: type[T], content: Any, where: str = "paper") -> T:
    """A dataclass from a mapping; `where` is the name of the whole in messages.

    LabError where a key is unknown (the valid ones are named), missing, has the wrong type or breaks its bound.
    """
    return typing.cast(T, _convert(cls, content, where))


def plain(value: Any) -> Any:
    """A dataclass as nested dicts, lists and scalars, as JSON would keep it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.value if isinstance(value, enum.Enum) else value


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The default values of a dataclass as plain values; '???' where a field has none."""
    hints = typing.get_type_hints(cls)
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            tree[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            tree[field.name] = plain(field.default_factory())
        elif dataclasses.is_dataclass(hints[field.name]):
            tree[field.name] = defaults(typing.cast(type[Any], hints[field.name]))
        else:
            tree[field.name] = MISSING
    return tree


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        made = _convert(inner[0], value, where)
        bounds.check(made, inner[1:], where)
        return made
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type[Any], kind), value, where)
    if origin in (typing.Union, types.UnionType):
        return _union(inner, value, where)
    if origin is typing.Literal:
        if value in inner:
            return value
        raise LabError(f"{where}: {value!r} is none of {', '.join(str(choice) for choice in inner)}")
    if origin is list or kind is list:
        return [
            _convert(inner[0] if inner else Any, item, f"{where}[{i}]") for i, item in _items(value, where)
        ]
    if origin is tuple or kind is tuple:
        return _tuple(inner, value, where)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise LabError(f"{where}: {value!r} is no mapping")
        each = inner[1] if inner else Any
        return {str(key): _convert(each, item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise LabError(f"{where}: {value!r} is none of {', '.join(str(m.value) for m in kind)}") from None
    return _scalar(kind, value, where)


def _dataclass(kind: type[Any], value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise LabError(f"{where}: {value!r} is no mapping with the keys of {kind.__name__}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise unknown_key(f"{where}.{key}", str(key), fields)
    given = {key: item for key, item in value.items() if item != MISSING}
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in given:
            raise LabError(f"{where}.{name}: has no default and must be given")
    try:
        return kind(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in given.items()})
    except (ValueError, TypeError) as error:  # from a __post_init__ that checks
        raise LabError(f"{where}: {error}") from error


def unknown_key(where: str, key: str, valid: Any) -> LabError:
    """The error for a key that is not there: it names the nearest, and all valid ones."""
    return LabError(f"{where}: unknown key.{nearest(key, valid)} Valid: {', '.join(valid)}")


def _items(value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise LabError(f"{where}: {value!r} is no list")
    return enumerate(value)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = list(_items(value, where))
    if not inner or (len(inner) == 2 and inner[1] is Ellipsis):
        kinds = [inner[0] if inner else Any] * len(items)
    elif len(inner) != len(items):
        raise LabError(f"{where}: {len(inner)} values are needed, not {len(items)}")
    else:
        kinds = list(inner)
    return tuple(_convert(kind, item, f"{where}[{i}]") for kind, (i, item) in zip(kinds, items, strict=True))


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    reasons = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _convert(kind, value, where)
        except LabError as error:
            reasons.append(str(error).removeprefix(f"{where}: "))
    raise LabError(f"{where}: {' and '.join(reasons)}")


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise LabError(f"{where}: {value} is no finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    names = {float: "number", int: "whole number", str: "string", bool: "boolean (true or false)"}
    raise LabError(f"{where}: {value!r} is no {names.get(kind, getattr(kind, '__name__', str(kind)))}")
