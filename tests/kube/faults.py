"""A proxy before the API server that does what networks and API servers do on a bad day.

It stands in the control plane's network namespace, shows the API server's own certificate, and takes
what nodes send there (nftables, so no client has to know). Faults are for those alone whose token is
of the given service account; kubelets and administrator pass.

    with faults.before(kube, "system:serviceaccount:nodeagent-system:nodeagent") as api:
        api.tear()

What it never does: answer a request itself, but for the faults it is told.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import h11

from nodeagent.lab import linux
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.layout import CONTROL, WIRE

PORT = 6444
_READ = 1 << 16
_RULES = f"""table ip faults
delete table ip faults
table ip faults {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    ip daddr {WIRE[0][1]} tcp dport 6443 dnat to {WIRE[0][1]}:{PORT}
  }}
}}
"""
_GONE = {
    "type": "ERROR",
    "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410},
}


@dataclass
class Faults:
    """What is done to the account's requests; all may be changed while it stands."""

    account: str
    away: bool = False
    """Connections are accepted and ended, as by a load balancer with nobody behind it."""
    delay: float = 0.0
    """Seconds by which every event of a watch is late."""
    duplicate: bool = False
    """Every event comes twice."""
    reorder: bool = False
    """Events come in pairs, the later one first."""
    expired: bool = False
    """A watch that is begun is told that its version is too old (410)."""
    refused: frozenset[str] = frozenset()
    """Resources (``pods``, ``services``) that the account may not read: 403."""
    requests: list[str] = field(default_factory=list)
    """What the account has asked for: ``GET /path?query``."""
    _watches: set[_Exchange] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    def tear(self) -> int:
        """End every watch of the account in the middle of an event; return how many there were."""
        assert self._loop
        return asyncio.run_coroutine_threadsafe(self._tear(), self._loop).result(10)

    async def _tear(self) -> int:
        torn = list(self._watches)
        self._watches.clear()
        for each in torn:
            each.abort()
        return len(torn)

    @property
    def watches(self) -> int:
        """Return how many watches of the account stand."""
        return len(self._watches)


@contextmanager
def before(kube: Kube, account: str) -> Iterator[Faults]:
    """Within, what nodes send to the API server passes the proxy."""
    faults = Faults(account)
    netns = kube.layout.netns(CONTROL)
    with linux.network_namespace(netns):
        listener = socket.create_server((str(WIRE[0][1]), PORT), backlog=100)
    proxy = _Proxy(kube, faults)
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(listener, started.set)), daemon=True)
    thread.start()
    assert started.wait(60), "the proxy does not start"
    try:
        subprocess.run(kube.command(CONTROL, ["nft", "-f", "-"]), input=_RULES, text=True, check=True)
        yield faults
    finally:
        subprocess.run(kube.command(CONTROL, ["nft", "delete", "table", "ip", "faults"]), check=True)
        proxy.stop()
        thread.join(60)


class _Proxy:
    def __init__(self, kube: Kube, faults: Faults) -> None:
        self._netns = kube.layout.netns(CONTROL)
        self._faults = faults
        pki = kube.layout.pki
        self._server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._server_tls.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        self._client_tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._stopped: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    async def serve(self, listener: socket.socket, started: Callable[[], None]) -> None:
        self._loop = self._faults._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._connection, sock=listener, ssl=self._server_tls)
        started()
        await self._stopped.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        try:
            raw = self._socket()
            await self._loop.sock_connect(raw, (str(WIRE[0][1]), 6443))
            upstream = await asyncio.open_connection(sock=raw, ssl=self._client_tls, server_hostname=str(WIRE[0][1]))
            exchange = _Exchange(self._faults, (reader, writer), upstream)
            while await exchange.one():
                pass
        except (OSError, h11.ProtocolError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in (writer, upstream[1] if upstream else None):
                if each:
                    with suppress(OSError):
                        each.transport.abort()

    def _socket(self) -> socket.socket:
        with linux.network_namespace(self._netns):
            raw = socket.socket()
        raw.setblocking(False)
        return raw


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Exchange:
    """Requests of one connection, one after the other."""

    def __init__(self, faults: Faults, client: Stream, upstream: Stream) -> None:
        self._faults = faults
        self._client = client
        self._upstream = upstream
        self._down = h11.Connection(h11.SERVER)
        self._up = h11.Connection(h11.CLIENT)
        self._held = b""

    def abort(self) -> None:
        for stream in (self._client, self._upstream):
            stream[1].transport.abort()

    async def one(self) -> bool:
        """Carry a request and its answer; return whether another may follow."""
        request = await _event(self._down, self._client[0])
        if not isinstance(request, h11.Request):
            return False
        target = request.target.decode()
        own = _subject(request) == self._faults.account
        if own:
            self._faults.requests.append(f"{request.method.decode()} {target}")
            if self._faults.away:
                return False
        headers = [
            (name, value) for name, value in request.headers if name.lower() not in (b"accept-encoding", b"upgrade")
        ]
        self._send(self._upstream, self._up.send(h11.Request(method=request.method, target=target, headers=headers)))
        async for data in _body(self._down, self._client[0]):
            self._send(self._upstream, self._up.send(h11.Data(data)))
        self._send(self._upstream, self._up.send(h11.EndOfMessage()))
        await self._answer(target, own)
        if (
            self._down.our_state is not h11.DONE
            or self._up.our_state is not h11.DONE
            or self._up.their_state is not h11.DONE
        ):
            return False
        self._down.start_next_cycle()
        self._up.start_next_cycle()
        return True

    async def _answer(self, target: str, own: bool) -> None:
        response = await _event(self._up, self._upstream[0])
        while isinstance(response, h11.InformationalResponse):
            response = await _event(self._up, self._upstream[0])
        if not isinstance(response, h11.Response):
            raise h11.RemoteProtocolError("no answer")
        path = target.partition("?")[0]
        if own and path.rpartition("/")[2] in self._faults.refused:
            await self._instead(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403})
            return
        self._send(
            self._client, self._down.send(h11.Response(status_code=response.status_code, headers=response.headers))
        )
        if own and "watch=" in target and response.status_code == 200:
            await self._watch()
            return
        async for data in _body(self._up, self._upstream[0]):
            self._send(self._client, self._down.send(h11.Data(data)))
            await self._client[1].drain()
        self._send(self._client, self._down.send(h11.EndOfMessage()))

    async def _instead(self, status: int, document: object) -> None:
        """Answer in the API server's stead, whose own answer is read to its end first."""
        async for _ in _body(self._up, self._upstream[0]):
            pass
        text = json.dumps(document).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(text)))]
        for each in (h11.Response(status_code=status, headers=headers), h11.Data(text), h11.EndOfMessage()):
            self._send(self._client, self._down.send(each))
        await self._client[1].drain()

    async def _watch(self) -> None:
        """Carry a watch, event by event, with the faults that there are at that moment."""
        self._faults._watches.add(self)
        try:
            if self._faults.expired:
                self._event_line(json.dumps(_GONE).encode() + b"\n")
                self._send(self._client, self._down.send(h11.EndOfMessage()))
                raise h11.RemoteProtocolError("the watch is over")
            rest = b""
            async for data in _body(self._up, self._upstream[0]):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    await self._carry(line + b"\n")
            self._send(self._client, self._down.send(h11.EndOfMessage()))
        finally:
            self._faults._watches.discard(self)

    async def _carry(self, line: bytes) -> None:
        if self._faults.delay:
            await asyncio.sleep(self._faults.delay)  # the fault itself
        if self._faults.reorder and not self._held:
            self._held = line
            return
        self._event_line(line)
        if self._faults.duplicate:
            self._event_line(line)
        if self._held:
            self._event_line(self._held)
            self._held = b""
        await self._client[1].drain()

    def _event_line(self, line: bytes) -> None:
        self._send(self._client, self._down.send(h11.Data(line)))

    @staticmethod
    def _send(stream: Stream, data: bytes | None) -> None:
        if stream[1].transport.is_closing():
            raise ConnectionResetError("the peer has gone")
        if data:
            stream[1].write(data)


async def _event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next event of *connection*."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_READ))
    return event


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield what a message holds, as it comes."""
    while isinstance(event := await _event(connection, reader), h11.Data):
        yield bytes(event.data)
    if isinstance(event, h11.ConnectionClosed):
        raise h11.RemoteProtocolError("ended within a message")


def _subject(request: h11.Request) -> str:
    """Return whose token (JWT) a request bears; it is the API server who checks it."""
    given = dict(request.headers).get(b"authorization", b"").removeprefix(b"Bearer ").split(b".")
    if len(given) != 3:
        return ""
    with suppress(ValueError):
        payload = json.loads(base64.urlsafe_b64decode(given[1] + b"=" * (-len(given[1]) % 4)))
        return str(payload.get("sub", ""))
    return ""
