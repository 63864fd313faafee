"""Header fields on their way to and from external services."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from nodeagent.proxy.external.bounds import CallError
from nodeagent.proxy.external.model import Header
from nodeagent.proxy.http.fields import folded

if TYPE_CHECKING:
    from nodeagent.protocols.envoy_core_pb2 import HeaderValue

MAX_FIELDS: Final = 128
"""Header fields in an answer."""
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,256}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,16384}")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9!$'()*+,./:;?@_~%-]{1,1024}")
_PARAMETER_VALUE: Final = re.compile(r"[A-Za-z0-9!$'()*+,./:;=?@_~%-]{0,8192}")
"""What RFC 3986 section 3.4 lets stand in a query, but for what separates its parameters."""
_KEPT: Final = frozenset(
    folded(name)
    for name in (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"x-forwarded-client-cert",
    )
)
"""What the proxy itself answers for: where a message ends, whose connection it is, who the client is;
as the proxy compares names, of which applications take ``content_length`` for one of them too.
"""


def utf8(text: str) -> str:
    """Return *text*, one character a byte, as the UTF-8 that it may be; other bytes are replaced."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def changeable(name: str) -> str:
    """Return *name* in lower case, or nothing when an external service may not change that field;
    pseudo-headers are none. Raises CallError.
    """
    lower = name.lower()
    if lower.startswith(":") or folded(lower.encode("latin-1", "replace")) in _KEPT:
        return ""
    if not _NAME.fullmatch(lower):
        raise CallError("the answer names a header field that cannot be")
    return lower


def read(values: Iterable[HeaderValue]) -> tuple[Header, ...]:
    """Return the fields of *values* that may be put, one character a byte. Raises CallError when
    one cannot be a header field.
    """
    return sound((value.key, (value.raw_value or value.value.encode()).decode("latin-1")) for value in values)


def sound(fields: Iterable[Header]) -> tuple[Header, ...]:
    """Return those of *fields*, which have one character a byte, that may be put. Raises CallError
    when one cannot be a header field.
    """
    found = []
    for given, text in fields:
        name = changeable(given)
        if not _VALUE.fullmatch(text):
            raise CallError("the answer holds a header field whose value cannot be")
        if name:
            found.append((name, text.strip(" \t")))
    if len(found) > MAX_FIELDS:
        raise CallError(f"the answer holds more than {MAX_FIELDS} header fields")
    return tuple(found)


def parameter(key: str, value: str) -> tuple[str, str]:
    """Return a query parameter that may be put as it is. Raises CallError when it would have to be escaped first."""
    if not _PARAMETER.fullmatch(key) or not _PARAMETER_VALUE.fullmatch(value):
        raise CallError("the answer holds a query parameter that cannot be: escape it")
    return key, value
