"""``RateLimit`` of nodeagent.io/v1alpha1, validated field by field; unknown fields are refused.

``local`` is modelled on Envoy's local rate limit filter, ``global`` on its rate limit filter, which
asks a service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, cast

from nodeagent.errors import ResourceError, shown
from nodeagent.policy.model import GlobalLimit, LocalLimit, RateLimit, TokenBucket
from nodeagent.resources.part import TOKEN, Part

VERSIONS: Final = ("nodeagent.io/v1alpha1",)
MAX_LIMITS: Final = 64
"""Items of ``local``, and of ``descriptors`` and their ``entries``: each costs every request something."""
MAX_TOKENS: Final = (1 << 32) - 1
_SOURCES: Final = ("principal", "pod", "path")
_PLACE: Final = re.compile(r"\{(?:principal|pod|path|method|host|header:([A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}))\}")


def read(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> RateLimit:
    """Return the RateLimit that *spec* describes; its ``selector`` is read by who knows workloads.

    Raises ResourceError naming the field, its value and what is allowed.
    """
    spec.only("selector", "local", "global")
    local = tuple(_local(item) for item in _items(spec, "local"))
    service = _global(spec.sub("global")) if spec.given("global") else None
    if not local and service is None:
        raise ResourceError(f"{spec.at('local')}: at least one limit is expected in local or global")
    return RateLimit(namespace, name, local, service)


def _items(part: Part, name: str) -> list[Part]:
    items = part.items(name)
    if len(items) > MAX_LIMITS:
        raise ResourceError(f"{part.at(name)}: {len(items)} items: at most {MAX_LIMITS} are allowed")
    return items


def _local(item: Part) -> LocalLimit:
    item.only("match", "by", "tokenBucket")
    match = item.sub("match")
    bucket = item.sub("tokenBucket")
    match.only("methods", "paths", "headers")
    bucket.only("maxTokens", "tokensPerFill", "fillInterval")
    if not bucket.given("fillInterval"):
        raise bucket.wrong("fillInterval", "a duration is expected, such as 1s or 100ms")
    fill = bucket.duration("fillInterval", 1.0, shortest=0.05, longest=86400)  # 50 ms is the least that Envoy takes
    return LocalLimit(
        TokenBucket(bucket.whole("maxTokens", 1, MAX_TOKENS), bucket.whole("tokensPerFill", 1, MAX_TOKENS, 1), fill),
        methods=match.words("methods", lambda text: "" if TOKEN.fullmatch(text) else "an HTTP method is expected"),
        paths=match.words(
            "paths",
            lambda text: _pattern(text) if text[0] in "/*" else "a path that begins with '/' or '*' is expected",
        ),
        headers=_headers(match),
        by=tuple(dict.fromkeys(_by(item, index, value) for index, value in enumerate(item.bounded("by")))),
    )


def _pattern(text: str) -> str:
    """Return what is wrong with a path or a header's value with at most one ``*``, at its begin or end."""
    return "" if "*" not in text[1:-1] and text.count("*") <= 1 else "'*' is allowed once, at the begin or the end"


def _headers(match: Part) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    headers = match.texts("headers")
    if len(headers) > MAX_LIMITS:
        raise ResourceError(f"{match.at('headers')}: {len(headers)} headers: at most {MAX_LIMITS} are allowed")
    for name, value in headers.items():
        problem = _header_problem(name, value)
        if not problem and name.lower() in found:
            problem = "a header that is not named twice is expected"
        if problem:
            raise ResourceError(f"{match.at('headers')}[{shown(name)}]: {shown(value)}: {problem}")
        found[name.lower()] = value
    return tuple(found.items())


def _header_problem(name: str, value: str) -> str:
    """Return what is wrong with a header and the value that it must have, empty: nothing."""
    if not TOKEN.fullmatch(name):
        return "a header's name is expected"
    return _pattern(value) if value else "a text that is not empty is expected"


def _by(item: Part, index: int, value: object) -> str:
    if isinstance(value, str) and value in _SOURCES:
        return value
    if (
        isinstance(value, dict)
        and list(value) == ["header"]
        and isinstance(value["header"], str)
        and TOKEN.fullmatch(value["header"])
    ):
        return f"header:{value['header'].lower()}"
    raise ResourceError(f"{item.at('by')}[{index}]: {shown(value)}: allowed: {', '.join(_SOURCES)}, {{header: NAME}}")


def _global(part: Part) -> GlobalLimit:
    part.only("provider", "domain", "descriptors", "failureMode", "timeout")
    descriptors = tuple(_descriptor(item) for item in _items(part, "descriptors"))
    if not descriptors:
        raise part.wrong("descriptors", "at least one descriptor is expected")
    return GlobalLimit(
        provider=part.text("provider"),
        domain=part.text("domain"),
        descriptors=descriptors,
        failure_mode=cast(Literal["allow", "deny"], part.choice("failureMode", ("allow", "deny"), "allow")),
        timeout_seconds=part.duration("timeout", 0.0, shortest=0.001, longest=60),
    )


def _descriptor(item: Part) -> tuple[tuple[str, str], ...]:
    item.only("entries")
    entries = _items(item, "entries")
    if not entries:
        raise item.wrong("entries", "at least one entry is expected")
    return tuple(_entry(entry) for entry in entries)


def _entry(entry: Part) -> tuple[str, str]:
    entry.only("key", "value")
    value = entry.text("value")
    if value.startswith("{") and not _PLACE.fullmatch(value):
        raise entry.wrong("value", "allowed: a text, {principal}, {pod}, {path}, {method}, {host}, {header:NAME}")
    return entry.text("key"), value.lower() if value.startswith("{header:") else value
