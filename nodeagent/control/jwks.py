"""Key sets behind ``jwksUri`` and OpenID Connect discovery: fetched, checked, kept fresh; the last
good one stays when a refresh fails.

A server of keys is as untrusted as any other: time, size and content of what it says are bounded,
redirects are not followed. So is who names it: unless agent.yaml allows that, nothing is asked at
addresses that only this machine can reach, or that clouds keep for what it may know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httptools

from nodeagent import __version__
from nodeagent.errors import ControlError, translated
from nodeagent.parts import Parts
from nodeagent.policy.jwt_keys import key_set
from nodeagent.policy.jwt_token import parse_json
from nodeagent.policy.model import DISCOVERY, Jwks, RequestAuthentication

REFRESH_SECONDS: Final = 1200.0
"""Istio's default (PILOT_JWT_PUB_KEY_REFRESH_INTERVAL)."""
FIRST_RETRY_SECONDS: Final = 1.0
MAX_BYTES: Final = 1 << 20
MAX_KEYS: Final = 256
_MEMBERS: Final = ("kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y")
_MAX_HEAD: Final = 1 << 16
_READ: Final = 1 << 16
log = logging.getLogger("nodeagent.control")


def wanted_by(authentications: Iterable[RequestAuthentication]) -> dict[str, float]:
    """Return the URIs that *authentications* need keys from, with the seconds that each fetch may
    take: the longest that is granted.
    """
    wanted: dict[str, float] = {}
    for each in authentications:
        for rule in each.rules:
            if rule.keys_uri:
                wanted[rule.keys_uri] = max(rule.timeout_seconds, wanted.get(rule.keys_uri, 0.0))
    return wanted


class KeySets:
    """Keeps a key set for each wanted URI: one part, so never more than one fetch, for each.

    *changed* gets an entry when the keys or what is wrong with them changed. *authorities* is a PEM
    file of roots to trust beside the system's. *local*: servers at loopback and link-local addresses
    are asked, too. *sleep* waits for so many seconds.
    """

    def __init__(
        self,
        changed: Callable[[Jwks], None],
        authorities: Path | None = None,
        *,
        local: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changed = changed
        self._authorities = authorities
        self._local = local
        self._sleep = sleep
        self._parts = Parts(sleep=sleep)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timeouts: dict[str, float] = {}
        self._last_good: dict[str, str] = {}
        """Keys by URI: who keeps a set and failed for what nobody foresaw begins anew with them."""
        self._tls: ssl.SSLContext | None = None

    def wanted(self, timeouts: Mapping[str, float]) -> tuple[str, ...]:
        """Keep the key sets of exactly these URIs, each fetched within so many seconds; return the
        keys of entries no longer kept. Needs the running loop.
        """
        dropped = [Jwks(uri) for uri in self._tasks if uri not in timeouts]
        for entry in dropped:
            self._tasks.pop(entry.uri).cancel()
            self._last_good.pop(entry.uri, None)
        self._timeouts = dict(timeouts)
        for uri in timeouts:
            if uri not in self._tasks:
                self._tasks[uri] = self._parts.start(f"the keeper of the key set {uri}", partial(self._keep, uri))
        return tuple(entry.key for entry in dropped)

    def failing(self) -> list[str]:
        """Return, in words, the key sets whose keeping fails for what nobody foresaw; it goes on."""
        return self._parts.failing()

    async def close(self) -> None:
        """End every fetch."""
        tasks = list(self._tasks.values())
        self.wanted({})
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, uri: str) -> None:
        """Fetch, tell, wait, for ever."""
        known = Jwks(uri)
        retry = FIRST_RETRY_SECONDS
        while True:
            try:
                found = Jwks(uri, await self.fetch(uri, self._timeouts[uri]))
                self._last_good[uri] = found.keys
                pause = REFRESH_SECONDS
                retry = FIRST_RETRY_SECONDS
            except ControlError as error:
                found = Jwks(uri, self._last_good.get(uri, ""), str(error))
                pause = retry
                retry = min(2 * retry, REFRESH_SECONDS)
            if found != known:
                if found.error:
                    kept = (
                        "the last good keys stay in force" if found.keys else "tokens that need these keys are refused"
                    )
                    log.warning("%s; %s", found.error, kept)
                known = found
                self._changed(found)
            # Not all nodes, nor all URIs of one server, at once.
            await self._sleep(pause * random.uniform(0.9, 1.1))

    async def fetch(self, uri: str, seconds: float) -> str:
        """Return the key set at *uri*, or the one that the discovery document there names, as JSON
        text, within *seconds*.

        Raises ControlError naming the URI and what is wrong.
        """
        try:
            async with asyncio.timeout(seconds):
                with translated(ControlError, f"key set {uri}"):
                    return await self._fetch(uri)
        except TimeoutError:
            raise ControlError(
                f"key set {uri}: no whole answer within {seconds:g} s: is the server reachable, "
                "jwtRules[].timeout long enough?"
            ) from None

    async def _fetch(self, uri: str) -> str:
        source = _named_by(uri, _json(uri, await self._get(uri))) if uri.endswith(DISCOVERY) else uri
        return _public_keys(source, _json(source, await self._get(source)))

    async def _get(self, uri: str) -> bytes:
        """Return the body of *uri*. Raises ControlError."""
        parts, port = _split(uri)
        context = await self._context() if parts.scheme == "https" else None
        try:
            reader, writer = await self._connected(uri, str(parts.hostname), port, context)
        except ssl.SSLError as error:
            raise ControlError(
                f"key set {uri}: TLS failed: {error.reason or error}; is the server's certificate signed by a "
                "root this node trusts?"
            ) from None
        except (OSError, UnicodeError) as error:
            raise ControlError(f"key set {uri}: cannot connect: {error}") from None
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            host = parts.netloc
            writer.write(
                f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
                f"User-Agent: nodeagent/{__version__}\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            return await _answer(uri, reader)
        except OSError as error:
            raise ControlError(f"key set {uri}: the connection broke: {error}") from None
        finally:
            writer.transport.abort()

    async def _connected(
        self, uri: str, host: str, port: int, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address of *host* that answers: to the addresses that were looked at, whatever
        a second look-up would say. Raises OSError; ControlError where none may be asked.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
        allowed = [address for address in addresses if self._local or not _is_local(address)]
        if not allowed:
            raise ControlError(
                f"key set {uri}: {host} is {', '.join(addresses)}: loopback and link-local addresses are not asked "
                "unless agent.yaml says jwks.allowLocal: true"
            )
        name = host if context else None
        failed = OSError()
        for address in allowed:
            try:
                return await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
            except OSError as error:
                failed = error
        raise failed

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            # Off the loop: reading the system's roots takes tens of milliseconds.
            self._tls = await asyncio.to_thread(_trusting, self._authorities)
        return self._tls


def _trusting(authorities: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:
            raise ControlError(f"{authorities}: cannot be read as PEM certificates: {error}") from None
    return context


def _is_local(text: str) -> bool:
    """Say whether a packet to the address *text* stays on this machine or its link (RFC 6890)."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _split(uri: str) -> tuple[SplitResult, int]:
    """Return the parts of *uri* and its port. Raises ControlError."""
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
        port = 0
    if (
        not port
        or not parts.hostname
        or parts.username is not None
        or not uri.isascii()
        or not uri.isprintable()
        or " " in uri
    ):
        raise ControlError(f"key set {uri!r}: an http or https URI without user and password is expected")
    return parts, port


class _Answer:
    """What httptools' parser reports of a response."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.encoded = self.until_end = self.finished = False
        """``until_end``: the body ends with the connection."""
        self._fields: set[bytes] = set()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.add(name.lower())
        self.encoded = self.encoded or (name.lower() == b"content-encoding" and value.lower() != b"identity")

    def on_headers_complete(self) -> None:
        self.until_end = self._fields.isdisjoint((b"content-length", b"transfer-encoding"))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.finished = True


async def _answer(uri: str, reader: asyncio.StreamReader) -> bytes:
    """Read a response and return its body. Raises ControlError."""
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    received = 0
    while not answer.finished:
        data = await reader.read(_READ)
        received += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            if not answer.finished:
                raise ControlError(f"key set {uri}: the answer is not valid HTTP") from None
        if parser.get_status_code() >= 300 or (answer.finished and parser.get_status_code() != 200):
            hint = "; redirects are not followed: name the address itself" if parser.get_status_code() < 400 else ""
            raise ControlError(f"key set {uri}: the server answered {parser.get_status_code()}, 200 is expected{hint}")
        if len(answer.body) > MAX_BYTES or received > MAX_BYTES + _MAX_HEAD:
            raise ControlError(f"key set {uri}: larger than {MAX_BYTES} bytes")
        if not data:
            if answer.until_end:
                break
            raise ControlError(f"key set {uri}: the answer is cut off after {received} bytes")
    if answer.encoded:
        raise ControlError(f"key set {uri}: the answer is compressed, although that was not asked for")
    return bytes(answer.body)


def _json(uri: str, data: bytes) -> object:
    try:
        return parse_json(data)
    except ValueError:
        raise ControlError(f"key set {uri}: the answer is not JSON ({len(data)} bytes)") from None


def _named_by(uri: str, document: object) -> str:
    """Return the key set's URI that the discovery *document* at *uri* names. Raises ControlError."""
    source = document.get("jwks_uri") if isinstance(document, dict) else None
    if not isinstance(source, str):
        raise ControlError(f"key set {uri}: the discovery document has no jwks_uri; name one by jwtRules[].jwksUri")
    if uri.startswith("https:") and not source.startswith("https:"):
        raise ControlError(f"key set {uri}: the discovery document's jwks_uri is not an https URI")
    return source


def _public_keys(uri: str, document: object) -> str:
    """Return the key set *document* with what verifying needs and nothing else. Raises ControlError
    unless it holds a key to verify with.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ControlError(f'key set {uri}: not a key set: {{"keys": […]}} is expected')
    if len(keys) > MAX_KEYS:
        raise ControlError(f"key set {uri}: {len(keys)} keys, at most {MAX_KEYS} are allowed")
    public = [
        {name: key[name] for name in _MEMBERS if name in key}
        for key in keys
        if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP")
    ]
    if not public:
        raise ControlError(f"key set {uri}: holds no public key (kty RSA, EC or OKP)")
    text = json.dumps({"keys": public})
    if not key_set(text).usable:
        raise ControlError(f"key set {uri}: none of its {len(public)} keys can verify a token")
    return text
