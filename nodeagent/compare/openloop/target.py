"""What is asked: the address behind a URL, and the bytes of the request."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

from nodeagent.errors import NodeagentError
from nodeagent.vocabulary import host_port

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Not HEAD and CONNECT: their answers are framed otherwise."""
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?[ \t]*")
_RESERVED: Final = {"content-length", "transfer-encoding", "upgrade", "expect"}
"""The request has no body, and the client speaks nothing but HTTP/1.1."""


class TargetError(NodeagentError):
    """The URL, method or a header cannot be asked for."""


SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""As :mod:`socket` takes it: of IPv4, or of IPv6."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """What is asked and where: the bytes of the request, and the server's address as text in ``shown``."""

    family: int
    address: SocketAddress
    shown: str
    request: bytes

    @classmethod
    def parse(cls, url: str, method: str = "GET", headers: Sequence[str] = ()) -> HttpTarget:
        """Return the target of ``http://host[:port]/path``; *headers* as ``Name: value``. Raises
        TargetError, which says what is allowed.
        """
        try:
            parts = urlsplit(url)
            host = parts.hostname
            port = parts.port or 80
        except ValueError as error:
            raise TargetError(f"--url: {url!r}: {error}") from None
        if (
            parts.scheme != "http"
            or not host
            or parts.username is not None
            or not url.isascii()
            or not url.isprintable()
            or " " in url
        ):
            raise TargetError(f"--url: {url!r}: allowed: http://host:port/path in ASCII")
        if method not in METHODS:
            raise TargetError(f"--method: {method!r}: allowed: {', '.join(METHODS)}")
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise TargetError(f"--url: {host!r} has no address: {error}") from None
        fields = dict([_field(each) for each in headers])
        lines = [f"{method} {parts.path or '/'}{'?' * bool(parts.query)}{parts.query} HTTP/1.1"]
        if not any(name.lower() == "host" for name in fields):
            lines.append(f"Host: {parts.netloc}")
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if method in ("POST", "PUT", "PATCH"):
            lines.append("Content-Length: 0")
        shown = host_port(host, port)
        return cls(family, cast(SocketAddress, address), shown, "\r\n".join([*lines, "", ""]).encode("ascii"))


def _field(text: str) -> tuple[str, str]:
    match = _FIELD.fullmatch(text)
    if match is None or match[1].lower() in _RESERVED:
        name = match[1] if match else text.partition(":")[0]  # never the value: it may be a token
        raise TargetError(
            f"--header: {name!r:.80}: allowed: 'Name: value' in ASCII, but none of {', '.join(sorted(_RESERVED))}"
        )
    return match[1], match[2] or ""
