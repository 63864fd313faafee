"""The addresses of one sink's servers. A name whose name server is silent is waited for by this sink alone: each name
has a thread of its own, while the event loop's resolver has four for the whole process, and lookups that nobody
waits for any more go on in them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from nodeagent.logs.threads import OwnThread

KEEP_SECONDS: Final = 60.0
"""For so long after its start a lookup that nobody waited for to the end is as good as another one."""
_Connection = TypeVar("_Connection")


@dataclass(frozen=True, slots=True)
class _Lookup:
    begun: float
    found: asyncio.Future[list[str]]


class ServerNames:
    """One sink's."""

    def __init__(self, look_up: Callable[[str], list[str]] | None = None) -> None:
        """*look_up* returns the addresses of a name, or raises OSError; it may take its time."""
        self._look_up = look_up or _addresses
        self._threads: dict[str, OwnThread] = {}
        self._lookups: dict[str, _Lookup] = {}

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of *host*. Raises OSError and UnicodeError. Who gives up waiting leaves the lookup, and
        what comes of it, to who asks next.
        """
        if _is_address(host):
            return [host]
        now = asyncio.get_running_loop().time()
        lookup = self._lookups.get(host)
        if lookup is None or (lookup.found.done() and now - lookup.begun > KEEP_SECONDS):
            thread = self._threads.setdefault(host, OwnThread("a name of a sink's"))
            lookup = self._lookups[host] = _Lookup(now, thread.do(self._look_up, host))
        try:
            return await asyncio.shield(lookup.found)
        finally:
            if lookup.found.done() and self._lookups.get(host) is lookup:
                del self._lookups[host]

    async def connect(self, host: str, connect: Callable[[str], Awaitable[_Connection]]) -> _Connection:
        """Return what *connect* makes of the first address of *host* that it can be made of. Raises UnicodeError, and
        OSError: that of the last address.
        """
        error = OSError(f"{host} has no address")
        for address in await self.addresses(host):
            try:
                return await connect(address)
            except OSError as each:
                error = each
        raise error


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
