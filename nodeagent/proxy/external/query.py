"""A request target's query, as an authorizer changes it. Free of gRPC, as is all that a request
meets where nobody is asked.
"""

from __future__ import annotations

from collections.abc import Iterable


def with_parameters(target: str, put: Iterable[tuple[str, str]], removed: Iterable[str]) -> str:
    """Return the request *target* with query parameters *put* in the place of those of the same
    name, and then others *removed*.

    As by Envoy names are compared as they stand, without unescaping.
    """
    path, _, query = target.partition("?")
    parts = [part for part in query.split("&") if part]
    for key, value in put:
        at = next((index for index, part in enumerate(parts) if part.partition("=")[0] == key), len(parts))
        after = [part for part in parts[at:] if part.partition("=")[0] != key]
        parts = [*parts[:at], f"{key}={value}", *after]
    gone = frozenset(removed)
    parts = [part for part in parts if part.partition("=")[0] not in gone]
    return f"{path}?{'&'.join(parts)}" if parts else path
