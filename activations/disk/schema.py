"""Build dataclasses from what was read from JSON or TOML, or refuse it and name the field that does not fit.

This is our own code because msgspec's `convert` (0.22) does what our files cannot take: it ignores keys that a plain dataclass
does not have, accepts NaN, infinity and whole numbers beyond 64 bits, and changes 1 to 1.0 where a field is a float."""

import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from reprlib import Repr
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63 - 1  # of a whole number: what a tensor's size or a file's may be
_short = Repr()
_short.maxstring = _short.maxother = 60


def parse(kind: type[T], content: Any) -> T:
    """Build the record `kind`, a dataclass, from the JSON object `content`, as `build` does; ignore keys it does not have.

    Raises TypeError for a field that is missing or of another type."""
    check(kind, content)
    return _built(kind, content, True)


def build(kind: type[T], content: Any) -> T:
    """Build the dataclass `kind` from an object, dataclasses within it too; lists become tuples where the field is one.

    Raises TypeError for a field that is missing, unknown or of another type; and what `kind` itself raises."""
    if not isinstance(content, dict):
        raise TypeError(f"{_short.repr(content)} is not an object of {kind.__name__}'s fields")
    unknown = [name for name in content if name not in _kinds(kind)]
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {_short.repr(unknown[0])}")
    check(kind, content)
    return kind(**{name: _built(_kinds(kind)[name], value, False) for name, value in content.items()})


def check(kind: type, content: Any) -> None:
    """Check that `content` has the fields of `kind`, with the right types. Extra keys are ignored; raises TypeError."""
    if not isinstance(content, dict):
        raise TypeError(f"{_short.repr(content)} is not an object")
    for field in fields(kind):
        if field.name in content:
            if not fits(content[field.name], wanted := _kinds(kind)[field.name]):
                raise TypeError(
                    f"{field.name} = {_short.repr(content[field.name])} is not of type {named(wanted)}"
                )
        elif field.default is field.default_factory is MISSING:
            raise TypeError(f"{field.name} is missing")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value read from JSON or TOML can stand for one of this type.

    A bool does not count as a number, and infinity and NaN do not either."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inside)
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(each, inside[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inside[1]) for each in value.values())
    if is_dataclass(kind):
        return (isinstance(kind, type) and isinstance(value, kind)) or _checks(kind, value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int) and kind in (int, float):
        return -LARGEST <= value <= LARGEST
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def named(kind: Any) -> str:
    """Return a type as one reads it: `float | 'auto' | None`."""
    if kind is type(None):
        return "None"
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(named, get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _checks(kind: Any, value: Any) -> bool:
    try:
        check(kind, value)
    except TypeError:
        return False
    return True


def _built(kind: Any, value: Any, lenient: bool) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _built(next(each for each in inside if fits(value, each)), value, lenient)
    if origin is tuple:
        return tuple(_built(inside[0], each, lenient) for each in value)
    if origin is list:
        return [_built(inside[0], each, lenient) for each in value]
    if origin is dict:
        return {name: _built(inside[1], each, lenient) for name, each in value.items()}
    if not (is_dataclass(kind) and isinstance(kind, type)) or isinstance(value, kind):
        return value
    if lenient:
        value = {name: each for name, each in value.items() if name in _kinds(kind)}
        return kind(**{name: _built(_kinds(kind)[name], each, True) for name, each in value.items()})
    return build(kind, value)


@cache
def _kinds(kind: type) -> dict[str, Any]:  # a type such as `int | None` has no type of its own in Python 3.11
    """Return the type of each field."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
