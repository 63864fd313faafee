"""Where an HTTP/1.x message ends, and which of its fields belong to one connection only (RFC 9112
section 6, RFC 9110 section 7.6.1).

Pure. What two parsers could read differently is refused, never guessed: a length that is ambiguous
here is a request smuggled past policy there. It must never accept a message whose end an other
parser may see elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

Fields = Sequence[tuple[bytes, bytes]]


class Ambiguous(ValueError):
    """The message could be read in two ways, or breaks a rule that keeps readings apart; says which."""


class BodyKind(Enum):
    """How the body's end is found."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3
    """Only responses: the body ends with the connection."""


class Framing(NamedTuple):
    """The decision about one message."""

    kind: BodyKind
    length: int
    """Bytes of the body when ``kind`` is LENGTH, else 0."""
    keep_alive: bool
    """The connection may carry another message after this one."""
    hop_by_hop: frozenset[bytes]
    """Lower-case names of the fields that must not be passed on."""
    upgrade: bytes = b""
    """The protocols asked for or switched to; empty when there are none, or when they were not named in Connection."""


HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
"""RFC 9110 section 7.6.1."""
_WITH_LENGTH: Final = HOP_BY_HOP | {b"content-length"}
_END_TO_END: Final = frozenset(
    (b"content-length", b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
)
"""Fields that frame, route, or say who asks and how: a Connection field naming them asks the proxy to
break the message (Envoy's ``sanitizeConnectionHeader`` refuses the last three).
"""
_TOKEN_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""RFC 9110 section 7.2; no comma: it is what a folded, repeated Host looks like."""
_PROTOCOL: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?")
"""RFC 9110 section 7.8."""
_IS_HTTP: Final = re.compile(rb"h2|http", re.IGNORECASE)
_MAX_LENGTH_DIGITS: Final = 18
"""Below 2**63 for every reader."""
_DECIDING: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"))

_SHAPES: Final = 512
_SHAPE_NAMES: Final = 32
_SHAPE_BYTES: Final = 1024
_shapes: Final[dict[tuple[bytes, ...], tuple[tuple[int, bytes], ...]]] = {}

_NO_BODY: Final = Framing(BodyKind.NONE, 0, True, HOP_BY_HOP)
_UNTIL_CLOSE: Final = Framing(BodyKind.UNTIL_CLOSE, 0, False, HOP_BY_HOP)


def request_framing(method: bytes, version: str, headers: Fields) -> Framing:
    """Decide the framing of a request; *version* is ``1.0`` or ``1.1``, names and values are
    without surrounding space.

    CONNECT gets no special reading: its caller refuses or tunnels it. Raises Ambiguous.
    """
    names, values = _columns(headers)
    return frame_request(method, version, names, values)


def response_framing(status: int, request_method: bytes, headers: Fields, version: str = "1.1") -> Framing:
    """Decide the framing of the response with *status* to a request with *request_method*.

    1xx, 204, 304 and answers to HEAD have no body whatever their fields say; in 1xx and 204 a
    Content-Length has no meaning and is dropped. Raises Ambiguous.
    """
    names, values = _columns(headers)
    return frame_response(status, request_method, version, names, values)


def frame_request(method: bytes, version: str, names: tuple[bytes, ...], values: Sequence[bytes]) -> Framing:
    """Do what :func:`request_framing` does, for fields that stand in two columns."""
    fields = _deciding(names, values)
    hosts = fields.pop(b"host", ())
    if len(hosts) != 1 and (hosts or version != "1.0"):
        raise Ambiguous("HTTP/1.1 asks for exactly one Host" if not hosts else "Host is repeated")
    if hosts and not valid_host(hosts[0]):
        raise Ambiguous("Host is not a name or address with an optional port")
    if not method:
        raise Ambiguous("the request has no method")
    if not fields and version == "1.1":
        return _NO_BODY
    kind, length = _body(version, fields)
    return _with_options(BodyKind.NONE if kind is None else kind, length, version, fields)


def frame_response(
    status: int, request_method: bytes, version: str, names: tuple[bytes, ...], values: Sequence[bytes]
) -> Framing:
    """Do what :func:`response_framing` does, for fields that stand in two columns."""
    fields = _deciding(names, values)
    bodiless = status < 200 or status in (204, 304) or request_method == b"HEAD"
    if not fields and version == "1.1":
        return _NO_BODY if bodiless else _UNTIL_CLOSE
    kind, length = _body(version, fields)
    if bodiless:
        framing = _with_options(BodyKind.NONE, 0, version, fields)
        return (
            framing._replace(hop_by_hop=framing.hop_by_hop | _WITH_LENGTH) if status < 200 or status == 204 else framing
        )
    if kind is None:
        return _with_options(BodyKind.UNTIL_CLOSE, 0, version, fields)._replace(keep_alive=False)
    return _with_options(kind, length, version, fields)


def valid_host(value: bytes) -> bool:
    """Say whether *value* may stand in a Host field; the empty one may (RFC 9110 section 7.2)."""
    return _HOST.fullmatch(value) is not None


def valid_target(method: bytes, target: bytes, host: bytes) -> bool:
    """Say whether *target* is one that a server takes (RFC 9112 section 3.2): a path, ``*`` for
    OPTIONS, or an URL of the same *host*.
    """
    if method == b"CONNECT":
        return False
    if target == b"*":
        return method == b"OPTIONS"
    if target[:1] == b"/":
        return True
    scheme, _, rest = target.partition(b"://")
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    return scheme.lower() in (b"http", b"https") and authority.lower() == host.strip(b" \t").lower() != b""


def origin_form(target: bytes) -> bytes:
    """Return the *target* of a request, which is valid, as a server gets it: without scheme and host (RFC
    9112 section 3.2.1). An URL without a path is ``/``, for OPTIONS too, as by Envoy.
    """
    _, is_url, rest = target.partition(b"://")
    if target[:1] == b"/" or not is_url:
        return target
    path = rest[len(rest.partition(b"/")[0].partition(b"?")[0]) :]
    return path if path[:1] == b"/" else b"/" + path


def content_length(digits: bytes) -> int:
    """Return the number in a Content-Length that stands alone. Raises Ambiguous."""
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        raise Ambiguous(f"Content-Length is not a number of at most {_MAX_LENGTH_DIGITS} digits")
    return int(digits)


def _columns(headers: Fields) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    return tuple(zip(*headers, strict=True)) if headers else ((), ())  # type: ignore[return-value]


def _deciding(names: tuple[bytes, ...], values: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """Return the values of the fields that decide, by lower-case name; every field is checked for forbidden bytes."""
    text = b"".join(values)
    if b"\n" in text or b"\r" in text or b"\0" in text:
        raise Ambiguous("a header value holds CR, LF or NUL")
    shape = _shapes.get(names)
    if shape is None:
        shape = _shape(names)
    if len(values) != len(names):
        raise ValueError("as many names as values are expected")
    found: dict[bytes, list[bytes]] = {}
    for at, name in shape:
        if name in found:
            found[name].append(values[at].strip(b" \t"))
        else:
            found[name] = [values[at].strip(b" \t")]
    return found


def _shape(names: tuple[bytes, ...]) -> tuple[tuple[int, bytes], ...]:
    """Return which of *names* decide: position and lower-case name. Peers send the same names again
    and again, so it is kept.
    """
    if b"" in names or b"".join(names).translate(None, _TOKEN_BYTES):
        raise Ambiguous("a header name is empty or holds a character that no token may hold")
    shape = tuple((at, name) for at, name in enumerate(map(bytes.lower, names)) if name in _DECIDING)
    if len(names) <= _SHAPE_NAMES and sum(map(len, names)) <= _SHAPE_BYTES:
        if len(_shapes) >= _SHAPES:
            _shapes.clear()  # a peer made names up; start again rather than hold what it likes
        _shapes[names] = shape
    return shape


def _body(version: str, fields: dict[bytes, list[bytes]]) -> tuple[BodyKind | None, int]:
    """Return how the body ends by its fields, None without any."""
    if version not in ("1.0", "1.1"):
        raise Ambiguous("the version is neither HTTP/1.0 nor HTTP/1.1")
    codings = fields.get(b"transfer-encoding")
    lengths = fields.get(b"content-length")
    if codings is not None:
        if lengths is not None:
            raise Ambiguous("Transfer-Encoding and Content-Length together")
        if version == "1.0":
            raise Ambiguous("Transfer-Encoding in HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Ambiguous("Transfer-Encoding is not 'chunked', once")
        return BodyKind.CHUNKED, 0
    if lengths is None:
        return None, 0
    if len(lengths) != 1:
        raise Ambiguous("Content-Length is repeated")
    return BodyKind.LENGTH, content_length(lengths[0])


def _with_options(kind: BodyKind, length: int, version: str, fields: dict[bytes, list[bytes]]) -> Framing:
    """Complete a framing by what Connection and Upgrade say."""
    connection = fields.get(b"connection")
    if connection is None:
        return Framing(kind, length, version == "1.1", HOP_BY_HOP)
    if len(connection) == 1 and version == "1.1" and connection[0].lower() == b"keep-alive":
        return Framing(kind, length, True, HOP_BY_HOP)
    options = frozenset(_listed([value.lower() for value in connection])) - {b""}
    if not options.isdisjoint(_END_TO_END):
        raise Ambiguous("Connection names a field that every recipient needs")
    keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
    upgrade = b""
    if b"upgrade" in options and version == "1.1":
        upgrade = _upgrade(fields.get(b"upgrade", []))
    return Framing(kind, length, keep_alive, HOP_BY_HOP | options, upgrade)


def _upgrade(values: list[bytes]) -> bytes:
    """Return the protocols to offer on (RFC 9110 section 7.8). HTTP itself is left out, by any of its
    names (h2c, h2c-14, HTTP/2.0): behind it requests would pass that nobody authorised one by one.
    So is what is no protocol's name, in which a server could find another one.
    """
    return b", ".join([each for each in _listed(values) if _PROTOCOL.fullmatch(each) and not _IS_HTTP.match(each)])


def offered(protocols: bytes, upgrade: bytes) -> bool:
    """Say whether all that *upgrade*, an answer's field, names are *protocols* that went out."""
    given = frozenset(_listed([protocols.lower(), b""]))
    return given.issuperset(_listed([upgrade.lower()]))


def _listed(values: list[bytes]) -> list[bytes]:
    """Return the members of a list that stands in one field or several (RFC 9110 section 5.6.1)."""
    return [member.strip(b" \t") for member in b",".join(values).split(b",")]
