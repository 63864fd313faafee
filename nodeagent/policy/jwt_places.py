"""Where tokens stand in a request: header fields, query parameters, cookies; and how one is taken
out.

Finding follows Envoy (jwt_authn's extractor). Where Envoy would look at one of several tokens in a
place, all are found here, since the application may look at another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

from nodeagent.policy.model import JwtRule, TokenHeader


class JwtRequest(Protocol):
    """What is looked at; ``authorization.RequestFacts`` is one."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str:
        """The request target with its query, one character a byte."""

    @property
    def host(self) -> str: ...
    @property
    def header(self) -> Callable[[str], str | None]:
        """Gives a field's value by its lower-case name, several lines joined with ``,``."""


_begin: Final = re.compile(r"[A-Za-z0-9._-]").search
_end: Final = re.compile(r"[^A-Za-z0-9._-]").search
_cookies: Final = re.compile(r"[;,]").split
"""Several Cookie lines come joined with a comma, which no cookie value may hold (RFC 6265, section 4.1.1)."""
MAX_TOKENS: Final = 8
"""Tokens looked at in one place: a request with more is refused for the one after, which stands for the rest."""


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    name: str
    """Lower-case."""
    prefix: str
    """A space stands for a tab, too: applications split at both."""

    def find(self, request: JwtRequest) -> Sequence[str]:
        """Return the tokens here, as they stand."""
        value = request.header(self.name)
        if not value:
            return ()
        if not self.prefix:
            return (value.strip(" \t"),)
        _, prefix, rest = value.replace("\t", " ").partition(self.prefix)
        if not prefix:
            return ()
        if "," in value:
            # Several credentials, of which the application may take another one: no valid token is
            # this text.
            return (value,)
        begin = _begin(rest)
        if begin is None:
            return ("",)
        end = _end(rest, begin.start())
        return (rest[begin.start() : end.start() if end else len(rest)],)


@dataclass(frozen=True, slots=True)
class QueryPlace:
    name: str

    def find(self, request: JwtRequest) -> Sequence[str]:
        query = request.path.partition("?")[2]
        return (
            [unquote(value) for name, value in _parameters(query) if _is(name, self.name)][: MAX_TOKENS + 1]
            if query
            else ()
        )


@dataclass(frozen=True, slots=True)
class CookiePlace:
    name: str

    def find(self, request: JwtRequest) -> Sequence[str]:
        value = request.header("cookie")
        if not value or self.name not in value:
            return ()
        pairs = (part.partition("=") for part in _cookies(value))
        return [_unquoted(token) for name, _, token in pairs if name.strip(" \t") == self.name][: MAX_TOKENS + 1]


Place = HeaderPlace | QueryPlace | CookiePlace
_DEFAULT: Final[tuple[Place, ...]] = (HeaderPlace("authorization", "Bearer "), QueryPlace("access_token"))


def places_of(rule: JwtRule) -> tuple[Place, ...]:
    """Return where *rule* looks for tokens, in order; naming any place leaves out the default ones."""
    named: list[Place] = [_header(header) for header in rule.from_headers]
    named += [QueryPlace(name) for name in rule.from_params]
    named += [CookiePlace(name) for name in rule.from_cookies]
    return tuple(named) or _DEFAULT


def without_parameters(target: str, names: frozenset[str]) -> str:
    """Return the request target *target* without the query parameters *names*; everything else
    stays as it was written.
    """
    path, mark, query = target.partition("?")
    kept = "&".join(part for part in query.split("&") if _decoded(part.partition("=")[0]) not in names)
    return f"{path}{mark}{kept}" if kept else path


def _header(header: TokenHeader) -> HeaderPlace:
    return HeaderPlace(header.name.lower(), header.prefix.replace("\t", " "))


def _parameters(query: str) -> list[tuple[str, str]]:
    parameters = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        parameters.append((name, value))
    return parameters


def _decoded(name: str) -> str:
    return unquote(name.replace("+", " ")) if "%" in name or "+" in name else name


def _is(name: str, wanted: str) -> bool:
    return name == wanted or _decoded(name) == wanted


def _unquoted(value: str) -> str:
    value = value.strip(" \t")
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
