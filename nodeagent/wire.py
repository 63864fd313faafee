"""A message between the daemon's processes as one packet, and back: a JSON object and the
descriptors that go with it.

A message is a frozen dataclass (:mod:`nodeagent.messages`). Its descriptors are fields like any
other; where each stands among a packet's descriptors is decided here, in the order of the fields.
Who reads may not trust who writes: what is no message of the reader's direction, or has a field
too many, too few or of another type, is a MessageError that says so, and nothing of it is used.

JSON in and dataclasses out, without pydantic: every process holds this, and a message is checked at
the cost of an isinstance() a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, Literal, NewType, TypeVar, get_args, get_origin, get_type_hints

import orjson

from nodeagent.errors import ControlError, shown

FileDescriptor = NewType("FileDescriptor", int)
"""An open file of this process. Whoever sends it keeps its own, whoever receives it owns the copy."""
LARGEST_BYTES: Final = 64 << 20
"""Of a message; a document's bound (1.5 MiB) keeps every entry of the snapshot far below."""
Unchecked = dict[str, Any]
"""A JSON object whose content its reader checks: an entry of the snapshot, a row, a report."""
Message = TypeVar("Message")
Check = Callable[[object], object]
"""Returns a field's value from JSON. Raises TypeError when it has another type than the field."""


class MessageError(ControlError):
    """What another process of this daemon sent is no message of its direction."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    carries: Literal["json", "one", "some", "named"]
    """JSON, or a descriptor, a tuple of descriptors, descriptors by name."""
    check: Check


class MessageDecoder(Generic[Message]):
    """The messages of one direction, by the names of their classes."""

    def __init__(self, kinds: Iterable[type[Message]], largest: int = LARGEST_BYTES) -> None:
        """*kinds*: dataclasses whose fields are JSON's types, tuples of them, Unchecked objects,
        Literals, and descriptors: ``FileDescriptor``, ``tuple[FileDescriptor, ...]`` or
        ``Mapping[str, FileDescriptor]``. Raises TypeError for a field of any other type. *largest*:
        the most bytes of JSON that are read as a message of this direction; as objects they take
        up to thirty times that.
        """
        self.largest = largest
        self._kinds = {kind.__name__: (kind, _layout(kind)) for kind in kinds}

    def decode(self, payload: bytes, descriptors: list[FileDescriptor]) -> Message:
        """Return the message that *payload* and *descriptors* are; it owns the descriptors then.

        Raises MessageError, naming the message, the field and what is wrong: closing *descriptors*
        is the caller's then.
        """
        content = _content(payload)
        name = content.pop("op", None)
        kind, layout = self._kinds.get(name if isinstance(name, str) else "", (None, ()))
        if kind is None:
            raise MessageError(f"no message of this direction is called {shown(name)}")
        waiting = iter(descriptors)
        values = {each.name: _value(kind.__name__, each, content, waiting) for each in layout}
        if content:
            raise MessageError(f"{kind.__name__}: no field is called {shown(next(iter(content)))}")
        if next(waiting, None) is not None:
            raise MessageError(f"{kind.__name__}: it brings more descriptors than its fields take")
        return kind(**values)


def encode(message: object) -> tuple[bytes, list[FileDescriptor]]:
    """Return *message*, a dataclass as MessageDecoder takes them, as a packet's payload and descriptors."""
    content: dict[str, object] = {"op": type(message).__name__}
    descriptors: list[FileDescriptor] = []
    for each in _layout(type(message)):
        value = getattr(message, each.name)
        if each.carries == "json":
            content[each.name] = value
        elif each.carries == "one":
            descriptors.append(value)
        elif each.carries == "some":
            content[each.name] = len(value)
            descriptors += value
        else:
            content[each.name] = list(value)
            descriptors += value.values()
    return orjson.dumps(content), descriptors


def _content(payload: bytes) -> dict[str, object]:
    try:
        content = orjson.loads(payload)
    except ValueError as error:
        raise MessageError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise MessageError("it is not a JSON object")
    return content


def _value(message: str, field: _Field, content: dict[str, object], waiting: Iterator[FileDescriptor]) -> object:
    """Take the value of *field* out of *content* and *waiting*. Raises MessageError."""
    try:
        if field.carries == "one":
            return next(waiting)
        value = field.check(content.pop(field.name))
        if field.carries == "some" and isinstance(value, int):
            if value < 0:
                raise TypeError("fewer than none")
            return tuple(next(waiting) for _ in range(value))
        if field.carries == "named" and isinstance(value, tuple):
            if len(set(value)) < len(value):
                raise TypeError("a name stands there twice")
            return {name: next(waiting) for name in value}
    except KeyError:
        raise MessageError(f"{message}: {field.name} is missing") from None
    except TypeError as error:
        raise MessageError(f"{message}: {field.name}: {error}") from None
    except (StopIteration, RuntimeError):  # within a generator the one becomes the other (PEP 479)
        raise MessageError(f"{message}: {field.name}: it brings fewer descriptors than that") from None
    return value


_LAYOUTS: Final[dict[type[Any], tuple[_Field, ...]]] = {}


def _layout(kind: type[Any]) -> tuple[_Field, ...]:
    """Return the fields of the message class *kind*, worked out once. Raises TypeError for one that
    cannot be carried.
    """
    layout = _LAYOUTS.get(kind)
    if layout is None:
        hints = get_type_hints(kind)
        layout = _LAYOUTS[kind] = tuple(_field(each.name, hints[each.name]) for each in fields(kind))
    return layout


def _field(name: str, hint: object) -> _Field:
    if hint is FileDescriptor:
        return _Field(name, "one", _exactly(int))
    if hint == tuple[FileDescriptor, ...]:
        return _Field(name, "some", _exactly(int))
    if hint == Mapping[str, FileDescriptor]:
        return _Field(name, "named", _tuple_of(str))
    return _Field(name, "json", _check(hint))


def _check(hint: object) -> Check:
    """Return what checks a value of the type *hint*. Raises TypeError for a type that JSON does not hold."""
    plain = getattr(hint, "__supertype__", hint)  # a NewType's
    origin = get_origin(plain)
    if origin is Literal:
        return _one_of(get_args(plain))
    if origin is tuple:
        item = get_args(plain)[0]
        return _tuple_of(getattr(item, "__supertype__", item))
    if origin is list and get_args(plain) == (Unchecked,):
        return _objects
    if origin is dict:
        return _exactly(dict)
    if plain is float:
        return _number
    if isinstance(plain, type) and plain in (bool, int, str):
        return _exactly(plain)
    raise TypeError(f"{hint}: no message carries it")


def _exactly(kind: type[object]) -> Check:
    def check(value: object) -> object:
        if type(value) is not kind:
            raise _unexpected(kind.__name__, value)
        return value

    return check


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unexpected("a number", value)
    return float(value)


def _one_of(options: tuple[object, ...]) -> Check:
    kinds: Final = {type(option) for option in options}

    def check(value: object) -> object:
        if type(value) not in kinds or value not in options:
            raise _unexpected(f"one of {options}", value)
        return value

    return check


def _tuple_of(kind: type[object]) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise _unexpected(f"a list of {kind.__name__}", value)
        return tuple(value)

    return check


def _objects(value: object) -> object:
    if not isinstance(value, list) or any(type(item) is not dict for item in value):
        raise _unexpected("a list of objects", value)
    return value


def _unexpected(expected: str, value: object) -> TypeError:
    return TypeError(f"{expected} is expected, not {shown(value)}")
