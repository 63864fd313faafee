"""What of an HTTP/2 header block may pass, and how heads are written as one (RFC 9113 section 8). Pure.

Whatever two readers could take for different things is refused: a field that HTTP/1 would frame or
split by, a second authority, a length that is none. What passes here may be written as HTTP/1
without another look at it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from nodeagent.proxy.http import fields as field
from nodeagent.proxy.http.exchange import UNKNOWN, Exchange
from nodeagent.proxy.http.fields import Field, classify, has_room
from nodeagent.proxy.http1.framing import Ambiguous, content_length, valid_host
from nodeagent.proxy.http2.hpack.secret import NeverIndexed

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
"""A token without upper case (RFC 9113 section 8.2.1)."""
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+")
"""A token without lower case, in which policies know no method and some servers take it for the usual one."""
_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+")
_FORBIDDEN: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
"""RFC 9113 section 8.2.2."""
_TRAILERS: Final = (b"te", b"trailers")
_PROTO: Final = (b"x-forwarded-proto", b"http")
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))
"""Servers of HTTP/1 want to know that a request by these has no body (RFC 9110 section 8.6)."""
_EMPTY: Final = (b"content-length", b"0")
_SLASH: Final = 0x2F
_COLON: Final = 0x3A
_SPACE: Final = 0x20
_SCHEME: Final = (b":scheme", b"http")

WRONG: Final = -1
COOKIE: Final = 1 << 20
TE: Final = 1 << 21
_OWN: Final = {b"cookie": COOKIE, b"te": TE}
_kinds: Final[dict[bytes, int]] = {}
"""Names that were met, and what they are; WRONG: no name that may come."""
_lower: Final[dict[bytes, bytes]] = {}
"""Spellings that were met, as they are written; empty: not at all."""
_hosts: Final[dict[bytes, int]] = {}
_targets: Final[dict[bytes, int]] = {}
"""Authorities and paths that were found to be valid."""


class Malformed(ValueError):
    """This is no message (RFC 9113 section 8.1.1); says why."""


class RequestHead:
    """A request's head as the rest of the proxy takes it; several exchanges may share one, which
    nobody changes.
    """

    length = UNKNOWN
    seen = 0
    user_agent = b""
    request_id = b""
    content_type = b""
    forwarded_for = b""
    te = False

    def __init__(self, method: bytes, target: bytes, authority: bytes, fields: list[Field]) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.fields = fields
        self.block: Sequence[Field] = fields
        """What it was read from."""


class AnswerHead:
    """An answer's head; several answers may share one, which nobody changes."""

    unsaid = False
    """It has no body where one could be, and no field says so."""

    def __init__(self, status: int, fields: list[Field], length: int) -> None:
        self.status = status
        self.fields = fields
        self.length = length
        self.block: Sequence[Field] = fields
        """What it was read from."""


def kind_of(name: bytes) -> int:
    """Return what the field *name* is to the proxy (``fields.py``, COOKIE or TE), WRONG where it may not come."""
    kind = _kinds.get(name)
    if kind is None:
        kind = WRONG
        if _NAME.fullmatch(name) and name not in _FORBIDDEN:
            kind = _OWN.get(name) or classify(name)
        if has_room(_kinds, name):
            _kinds[name] = kind
    return kind


def read_request(block: Sequence[Field], *, ended: bool, local: bytes) -> RequestHead:
    """Return the request whose head is *block*; *ended*: it has no body; *local* stands in for a
    missing authority. Raises Malformed.
    """
    method = target = authority = scheme = protocol = b""
    at = 0
    for name, value in block:
        if not name or name[0] != _COLON:
            break
        at += 1
        if not value:
            raise Malformed("a pseudo-header is empty")
        if name == b":method" and not method:
            method = value
        elif name == b":path" and not target:
            target = value
        elif name == b":scheme" and not scheme:
            scheme = value
        elif name == b":authority" and not authority:
            authority = value
        elif name == b":protocol" and not protocol:
            protocol = value
        else:
            raise Malformed("a pseudo-header is unknown or repeated")
    head = RequestHead(method, target, authority, [])
    head.block = block
    _read_fields(head, block, at)
    _check_line(head, scheme, protocol)
    _take_host(head, local)
    if not head.seen & field.FORWARDED_PROTO:
        head.fields.append(_PROTO)
    if ended:
        _end(head)
    return head


def _take_host(head: RequestHead, local: bytes) -> None:
    """Make the authority of what the client names, *local* where it names nothing, and of both one."""
    authority = head.authority
    hosts = [value for name, value in head.fields if name == b"host"] if head.seen & field.HOST else []
    if len(hosts) > 1 or (hosts and hosts[0].lower() != (authority or hosts[0]).lower()) or b"" in hosts:
        raise Malformed("host is repeated, empty, or not what :authority says")
    head.authority = bracketed(authority or (hosts[0] if hosts else local))
    if not hosts:
        head.fields.insert(0, (b"host", head.authority))
    _check_host(head.authority)


def _end(head: RequestHead) -> None:
    """The request has no body."""
    if head.length > 0:
        raise Malformed("content-length announces a body that does not follow")
    if head.length == UNKNOWN and head.method in _WITH_BODY:
        head.fields.append(_EMPTY)
    head.length = 0


def _read_fields(head: RequestHead, block: Sequence[Field], at: int) -> None:
    """Take over the fields of *block* from *at* on."""
    fields = head.fields
    cookies: list[bytes] = []
    seen = 0
    for name, value in block[at:]:
        kind = kind_of(name)
        value = checked(value)
        if kind:
            if kind == WRONG:
                raise Malformed("a field's name may not stand in HTTP/2")
            seen |= kind
            if kind == COOKIE:
                cookies.append(value)
                if len(cookies) > 1:
                    continue
            elif not _note(head, kind, value):
                continue
        fields.append((name, value))
    head.seen = seen
    if len(cookies) > 1:
        whole = _one_cookie(cookies)
        head.fields = [(name, whole if name == b"cookie" else value) for name, value in fields]


def _one_cookie(crumbs: list[bytes]) -> bytes:
    """Return the cookie whose *crumbs* came one by one (RFC 9113 section 8.2.3): as secret as any of them."""
    cookie = b"; ".join(crumbs)
    secret = NeverIndexed in [type(crumb) for crumb in crumbs]
    return NeverIndexed(cookie) if secret else cookie


def _note(head: RequestHead, kind: int, value: bytes) -> bool:
    """Note what a field of *kind* says; say whether it goes on."""
    if kind == field.LENGTH:
        _take_length(head, value)
    elif kind == field.USER_AGENT:
        head.user_agent = value
    elif kind == field.REQUEST_ID:
        head.request_id = value
    elif kind == field.FORWARDED_FOR:
        head.forwarded_for = head.forwarded_for + b"," + value if head.forwarded_for else value
    elif kind == field.CONTENT_TYPE:
        head.content_type = value
    elif kind == TE:
        if value.lower() != b"trailers":
            raise Malformed("te says something else than trailers")
        head.te = True
        return False
    return True


def _take_length(head: RequestHead, value: bytes) -> None:
    if head.length != UNKNOWN:
        raise Malformed("content-length is repeated")
    head.length = _length(value)


def _length(value: bytes) -> int:
    try:
        return content_length(value)
    except Ambiguous as error:
        raise Malformed(str(error)) from None


def checked(value: bytes) -> bytes:
    """Return *value* without the white space around it, which is no part of it (RFC 9110 section 5.5): a
    message of HTTP/2 with some is malformed, but gRPC's libraries send it, and say that it may be taken away.
    Raises Malformed for what HTTP/1 could take for the end of a field (RFC 9113 section 8.2.1).
    """
    if b"\n" in value or b"\r" in value or b"\0" in value:
        raise Malformed("a field's value holds CR, LF or NUL")
    if value and (value[0] <= _SPACE or value[-1] <= _SPACE):
        bare = value.strip(b" \t")
        return NeverIndexed(bare) if isinstance(value, NeverIndexed) else bare
    return value


def _check_line(head: RequestHead, scheme: bytes, protocol: bytes) -> None:
    """Refuse what would not be one line of HTTP/1: method and target; a *protocol* belongs to CONNECT (RFC 8441)."""
    method = head.method
    if not _METHOD.fullmatch(method):
        raise Malformed(":method is missing, no token, or in lower case")
    if method == b"CONNECT":
        return
    if protocol:
        raise Malformed(":protocol is unknown")
    target = head.target
    if not target or not scheme:
        raise Malformed(":path or :scheme is missing")
    if target in _targets:
        return
    if not _TARGET.fullmatch(target) or (target[0] != _SLASH and (target != b"*" or method != b"OPTIONS")):
        raise Malformed(":path is no path")
    if target[0] == _SLASH and has_room(_targets, target):
        _targets[target] = 0


def bracketed(authority: bytes) -> bytes:
    """Return *authority* with an IPv6 address in brackets, as HTTP/1 wants it (RFC 3986 section
    3.2.2): Node.js leaves them out where its URL has them.
    """
    if authority.count(b":") < 2 or authority[:1] == b"[":
        return authority
    host, _, port = authority.rpartition(b":")
    if _is_v6(host) and port.isdigit():
        return b"[%b]:%b" % (host, port)
    return b"[%b]" % authority if _is_v6(authority) else authority


def _is_v6(text: bytes) -> bool:
    try:
        ipaddress.IPv6Address(text.decode("latin-1"))
    except ValueError:
        return False
    return b"%" not in text


def _check_host(authority: bytes) -> None:
    if authority in _hosts:
        return
    if not valid_host(authority):
        raise Malformed(":authority or host is not a name or address with an optional port")
    if has_room(_hosts, authority):
        _hosts[authority] = 0


def read_answer(block: Sequence[Field], method: bytes, *, ended: bool) -> AnswerHead:
    """Return the answer to *method* whose head is *block*; *ended*: it has no body. Raises Malformed."""
    if not block or block[0][0] != b":status" or len(block[0][1]) != 3 or not block[0][1].isdigit():
        raise Malformed(":status is missing or no number of three digits")
    status = int(block[0][1])
    if status < 100:
        raise Malformed(":status is below 100")
    empty = status < 200 or status == 204
    fields: list[Field] = []
    length = UNKNOWN
    for name, value in block[1:]:
        kind = kind_of(name)
        value = checked(value)
        if kind:
            if kind == WRONG:
                raise Malformed("a field's name may not stand in HTTP/2")
            if kind == field.LENGTH:
                if length != UNKNOWN:
                    raise Malformed("content-length is repeated")
                length = _length(value)
                if empty:
                    continue  # it may not stand there (RFC 9110 section 8.6)
        fields.append((name, value))
    bodiless = method == b"HEAD" or status in (204, 304)
    if ended and length > 0 and not bodiless:
        raise Malformed("content-length announces a body that does not follow")
    head = AnswerHead(status, fields, 0 if ended or bodiless else length)
    head.block = block
    head.unsaid = ended and not bodiless and length == UNKNOWN
    return head


def read_trailers(block: Sequence[Field]) -> list[Field]:
    """Return the trailers in *block* that may go on: fields that frame, route or identify have no
    business there (RFC 9110 section 6.5.1). Raises Malformed.
    """
    trailers: list[Field] = []
    for name, value in block:
        kind = kind_of(name)
        value = checked(value)
        if kind == WRONG:
            raise Malformed("a trailer's name may not stand in HTTP/2")
        if not kind:
            trailers.append((name, value))
    return trailers


def lowered(name: bytes) -> bytes:
    """Return *name* as HTTP/2 writes it; empty: it is not written, but said by a pseudo-header or the frames."""
    written = _lower.get(name)
    if written is None:
        written = name.lower()
        if written == b"host" or written in _FORBIDDEN or not _NAME.fullmatch(written):
            written = b""
        if has_room(_lower, name):
            _lower[name] = written
    return written


def request_block(exchange: Exchange) -> list[Field]:
    """Return the header block of *exchange* as it goes to the endpoint."""
    hop = exchange.route
    assert hop is not None, "a request is routed before it is forwarded"
    block: list[Field] = [
        (b":method", exchange.method),
        _SCHEME,
        (b":path", exchange.target),
    ]
    if exchange.authority:
        block.append((b":authority", exchange.authority))
    write_fields(block, exchange.onward())
    if _TRAILERS in exchange.own:
        block.append(_TRAILERS)
    if hop.forwarded:
        block += hop.forwarded
    return block


def answer_block(status: int, fields: Sequence[Field]) -> list[Field]:
    """Return the header block of an answer."""
    block: list[Field] = [(b":status", b"%d" % status)]
    write_fields(block, fields)
    return block


def trailer_block(trailers: Sequence[Field]) -> list[Field]:
    """Return the header block of *trailers*."""
    block: list[Field] = []
    write_fields(block, trailers)
    return block


def write_fields(block: list[Field], fields: Sequence[Field]) -> None:
    """Add *fields* to *block*, names in lower case; what belongs to HTTP/1 alone is left out."""
    for each in fields:
        name = each[0]
        written = _lower.get(name)
        if written is None:
            written = lowered(name)
        if written == name:
            block.append(each)  # as most are: the encoder knows it by its hash, not by a new pair
        elif written:
            block.append((written, each[1]))
