"""A server that takes no member twice, no NaN, nothing but UTF-8, and one line an object."""

from __future__ import annotations

import json


def strict(text: bytes) -> dict[str, object]:
    """Return what such a server makes of *text*; fails where it refuses it."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs), "a member twice"
        return dict(pairs)

    def never(name: str) -> object:
        raise AssertionError(name)

    assert b"\n" not in text
    assert text.startswith(b'{"')
    assert text.endswith(b"}")
    found = json.loads(text.decode(), object_pairs_hook=once, parse_constant=never)
    assert isinstance(found, dict)
    return found
