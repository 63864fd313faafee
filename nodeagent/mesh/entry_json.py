"""An entry of the snapshot as JSON, and back by the annotations of its class: for this program's own
data, of which nothing is checked.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, Final, cast

import orjson

from nodeagent.mesh.entries import Entry, Service, UnreadPolicies, Workload
from nodeagent.policy.model import AuthorizationPolicy, Jwks, RateLimit, RequestAuthentication

_KINDS: Final[dict[str, type[Entry]]] = {
    kind.__name__: kind
    for kind in (Workload, Service, AuthorizationPolicy, RequestAuthentication, Jwks, RateLimit, UnreadPolicies)
}
_Make = Callable[[Any], object]
"""Makes a value of what JSON left of it, which is of the type that was written."""


def to_bytes(entry: Entry) -> bytes:
    """Return *entry* as JSON, with its kind. Raises TypeError for what JSON cannot say."""
    return b'{"kind":"%b",%b' % (type(entry).__name__.encode(), orjson.dumps(entry)[1:])


def to_json(entry: Entry) -> dict[str, object]:
    """Return what :func:`to_bytes` says of *entry*. Raises TypeError."""
    return cast("dict[str, object]", orjson.loads(to_bytes(entry)))


def from_json(value: Mapping[str, Any]) -> Entry:
    """The inverse of :func:`to_json`; trusts its input, which is this program's own. Raises
    KeyError, TypeError, ValueError for what is none.
    """
    fields = dict(value)
    return cast(Entry, _maker(_KINDS[fields.pop("kind")])(fields))


_MAKERS: Final[dict[object, _Make]] = {}


def _maker(kind: object) -> _Make:
    """Return what makes a *kind* again: nested dataclasses and tuples from mappings and lists."""
    maker = _MAKERS.get(kind)
    if maker is None:
        maker = _MAKERS[kind] = _new_maker(kind)
    return maker


def _new_maker(kind: object) -> _Make:
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass_maker(kind)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            item = _maker(arguments[0])
            return lambda values: tuple([item(value) for value in values])
        items = [_maker(argument) for argument in arguments]
        return lambda values: tuple([one(value) for one, value in zip(items, values, strict=True)])
    if origin in (types.UnionType, typing.Union):
        (one,) = [argument for argument in arguments if argument is not type(None)]
        inner = _maker(one)
        return lambda value: None if value is None else inner(value)
    return lambda value: value


def _dataclass_maker(kind: type[object]) -> _Make:
    makers = {name: _maker(hint) for name, hint in typing.get_type_hints(kind).items()}
    return lambda value: kind(**{name: makers[name](field) for name, field in value.items()})
