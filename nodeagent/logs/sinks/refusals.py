"""Why Elasticsearch or OpenSearch refuse a whole request, in their words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import orjson

MAX_REASON: Final = 500
"""Characters of a server's reason that are kept."""
MAX_CAUSES: Final = 8
"""Reasons behind a reason that are told."""
MAX_REFUSAL: Final = 256 << 10
"""Bytes of a refusal of a whole request that are looked into."""


def is_its_own(body: bytes) -> bool:
    """Say whether a refusal is the server's own, not that of a proxy before it: it is JSON with an ``error``."""
    if len(body) > MAX_REFUSAL:
        return False
    try:
        found: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, Mapping) and "error" in found


def reason_of(body: bytes) -> str:
    """Return what a refusal says, whatever it is written in."""
    try:
        # A refusal is short; of millions of empty lists Python would make a gigabyte.
        found: object = orjson.loads(body) if len(body) <= MAX_REFUSAL else None
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, Mapping) and isinstance(error := found.get("error"), Mapping):
        return in_words(error.get("type", ""), error.get("reason", ""), error.get("caused_by"))
    if isinstance(found, Mapping) and isinstance(found.get("error"), str):
        return str(found["error"])[:MAX_REASON]
    return body[:200].decode("utf-8", "replace") or "nothing is said"


def in_words(kind: object, reason: object, caused_by: object) -> str:
    """Return what an error of that *kind* says: its *reason*, and those behind it (*caused_by*, an error's object)."""
    return "".join((f"{kind}: {reason}", *_causes(reason, caused_by)))[:MAX_REASON]


def _causes(said: object, cause: object) -> Iterator[str]:
    """Yield the reasons behind what is *said*, the last of which says what is wrong: they stand in each other."""
    for _ in range(MAX_CAUSES):
        if not isinstance(cause, Mapping):
            return
        if cause.get("reason") != said:
            said = cause.get("reason")
            yield f": {said}"
        cause = cause.get("caused_by")
