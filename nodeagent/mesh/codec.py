"""JSON values back to frozen dataclasses, by their annotations. For this program's own data: nothing is checked."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from typing import Any


def decode(kind: Any, value: Any) -> Any:
    """Return *value*, as ``dataclasses.asdict`` and JSON left it, as a *kind*: nested dataclasses
    and tuples are made again.
    """
    return _decoder(kind)(value)


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    if is_dataclass(kind):
        return _dataclass(kind)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            item = _decoder(arguments[0])
            return lambda values: tuple([item(value) for value in values])
        items = [_decoder(argument) for argument in arguments]
        return lambda values: tuple([one(value) for one, value in zip(items, values, strict=True)])
    if origin in (types.UnionType, typing.Union):
        (one,) = [argument for argument in arguments if argument is not type(None)]
        inner = _decoder(one)
        return lambda value: None if value is None else inner(value)
    return lambda value: value


def _dataclass(kind: Any) -> Callable[[Any], Any]:
    decoders = {name: _decoder(hint) for name, hint in typing.get_type_hints(kind).items()}
    return lambda value: kind(**{name: decoders[name](field) for name, field in value.items()})
