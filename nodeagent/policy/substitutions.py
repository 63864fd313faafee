"""Texts with Envoy's substitutions (``%REQ(:PATH)%``), as values of fields that an HTTP authorizer is
told; those of its command operators that say something of a request before it has an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.policy.header_names import TOKEN


@dataclass(frozen=True, slots=True)
class RequestAsTold:
    """What may be substituted. Texts have one character a byte."""

    method: str
    path: str
    authority: str
    scheme: str
    protocol: str
    header: Callable[[str], str | None]
    """Name in lower case -> its value, several lines joined; None without it."""
    sni: str
    remote_address: str
    remote_port: int
    remote_identity: str
    """With its scheme; empty: it proved none."""
    local_address: str
    local_port: int
    local_identity: str


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


_FACTS: Final[dict[str, Callable[[RequestAsTold], str]]] = {
    "PROTOCOL": lambda told: told.protocol,
    "REQUESTED_SERVER_NAME": lambda told: told.sni,
    "DOWNSTREAM_REMOTE_ADDRESS": lambda told: _host_port(told.remote_address, told.remote_port),
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda told: told.remote_address,
    "DOWNSTREAM_REMOTE_PORT": lambda told: str(told.remote_port),
    "DOWNSTREAM_LOCAL_ADDRESS": lambda told: _host_port(told.local_address, told.local_port),
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": lambda told: told.local_address,
    "DOWNSTREAM_LOCAL_PORT": lambda told: str(told.local_port),
    "DOWNSTREAM_PEER_URI_SAN": lambda told: told.remote_identity,
    "DOWNSTREAM_LOCAL_URI_SAN": lambda told: told.local_identity,
}
_PSEUDO: Final[dict[str, Callable[[RequestAsTold], str]]] = {
    ":method": lambda told: told.method,
    ":path": lambda told: told.path,
    ":authority": lambda told: told.authority,
    ":scheme": lambda told: told.scheme,
    "host": lambda told: told.authority,
}
ALLOWED: Final = ", ".join([f"%{name}%" for name in ("REQ(name?other):length", *_FACTS, "")])
"""In words; ``%%`` stands for a percent sign."""
_OPERATOR: Final = re.compile(
    rf"%(?:REQ\((?P<name>:?{TOKEN})(?:\?(?P<other>:?{TOKEN}))?\)(?::(?P<length>[0-9]{{1,5}}))?|(?P<fact>[A-Z_]*))%"
)
_UNSAYABLE: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
Part = Callable[[RequestAsTold], str]


class SubstitutedText:
    """A text as it is written, made whole for each request."""

    __slots__ = ("_parts",)

    def __init__(self, text: str) -> None:
        """Read *text*. Raises ValueError when it holds what is no substitution."""
        self._parts = tuple(_parts(text))

    def of(self, told: RequestAsTold) -> str:
        """Return the text for the request that is *told*: a header that is not there is empty."""
        return _UNSAYABLE.sub("?", "".join([part(told) for part in self._parts]))


def substituted_text(text: str) -> str:
    """Return *text* if it can be read. Raises ValueError."""
    SubstitutedText(text)
    return text


def _parts(text: str) -> Iterator[Part]:
    if not text.isascii() or not text.isprintable():
        raise ValueError("printable ASCII is expected")
    at = 0
    while at < len(text):
        operator = text.find("%", at)
        if operator != at:
            end = len(text) if operator < 0 else operator
            yield _constant(text[at:end])
            at = end
            continue
        match = _OPERATOR.match(text, at)
        part = _operator(match) if match is not None else None
        if match is None or part is None:
            raise ValueError(f"Envoy's substitutions that are known here are expected: {ALLOWED}")
        yield part
        at = match.end()


def _operator(match: re.Match[str]) -> Part | None:
    """Return what *match* stands for; None: nothing that is known."""
    name, other, length, fact = match.group("name", "other", "length", "fact")
    if name is None:
        return _FACTS.get(fact) if fact else _constant("%")
    longest = int(length) if length else None
    names = [each.lower() for each in (name, other) if each is not None]
    if any(each.startswith(":") and each not in _PSEUDO for each in names):
        return None

    def found(told: RequestAsTold) -> str:
        values = [value for each in names if (value := _value(told, each)) is not None]
        return values[0][:longest] if values else ""

    return found


def _value(told: RequestAsTold, name: str) -> str | None:
    pseudo = _PSEUDO.get(name)
    return told.header(name) if pseudo is None else pseudo(told)


def _constant(text: str) -> Part:
    return lambda told: text
