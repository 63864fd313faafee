"""TLS of the kernel beside the agent's own: bytes go from a source through two proxies, which seal and open
them, to a sink that compares their digest.

``checks.py`` runs it on a machine of the lab, by the agent's Python: ``python -m tests.vm.kernel_tls MEBIBYTES
ROUNDS`` prints in a line what each way cost. Keys reach the kernel by OpenSSL itself for sending, of which Debian
12's knows alone in TLS 1.3, and by the key log for receiving.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import uvloop

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import TCP_ALPN, client_context, server_context
from nodeagent.proxy.busy_poll import BusyPoll
from nodeagent.proxy.dial import Dialled
from nodeagent.proxy.tcp import Relay
from nodeagent.proxy.tls.stream import TlsStream
from nodeagent.vocabulary import SpiffeId
from tests.unit.proxy.tls_client import client_secret, expand

OP_ENABLE_KTLS: Final = 1 << 3
"""OpenSSL's SSL_OP_ENABLE_KTLS, which Python's ssl names from 3.12 on."""
TCP_ULP: Final = 31
SOL_TLS: Final = 282
TLS_TX: Final = 1
TLS_RX: Final = 2
CRYPTO_INFO: Final = struct.Struct("=HH8s32s4s8s")
"""struct tls12_crypto_info_aes_gcm_256 (linux/tls.h): version, cipher, iv, key, salt, number of the next record."""
TLS_1_3: Final = 0x0304
AES_GCM_256: Final = 52
HERE: Final = "127.0.0.1"
FIRST: Final = b"!"
PIECE: Final = 1 << 20
SECONDS: Final = 300
"""After which a process that waits for another one gives up."""

Half = Literal["none", "user", "kernel", "splice"]
"""Whose TLS a proxy has towards the other one; ``splice``: the kernel's, and no byte comes to user space."""
Proxy = Callable[[Half, socket.socket, socket.socket], None]


@dataclass(frozen=True)
class Way:
    """What the two proxies do."""

    name: str
    sends: Half
    receives: Half


WAYS: Final = (
    Way("no TLS", "none", "none"),
    Way("user space", "user", "user"),
    Way("kernel sends", "kernel", "user"),
    Way("kernel", "kernel", "kernel"),
    Way("kernel, splice", "splice", "splice"),
)


@dataclass(frozen=True)
class Cost:
    """Of one way in one round: CPU time of each proxy in ms per MiB, and MiB per second through both."""

    sends: float
    receives: float
    rate: float


class Contexts:
    """Those of the agent, for a client and a server of one identity."""

    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority.open_or_create(folder, "cluster.local")
        certificate = authority.issue(SpiffeId("spiffe://cluster.local/ns/lab/sa/far"), 3600)
        self._key_log = folder / "keys"
        self.client = client_context(certificate, TCP_ALPN)
        self.server = server_context(certificate)

    def send(self, half: Half, application: socket.socket, peer: socket.socket) -> None:
        """Be the proxy that seals what comes from *application* for *peer*."""
        if half in ("none", "user"):
            uvloop.run(relay(application, peer, sealed=self.client if half == "user" else None))
            return
        self.client.options |= OP_ENABLE_KTLS
        sealing = socket.socket(fileno=self.client.wrap_socket(peer).detach())
        sealing.getsockopt(SOL_TLS, TLS_TX, CRYPTO_INFO.size)  # an error unless the kernel seals
        carry(half, application, sealing)

    def receive(self, half: Half, peer: socket.socket, application: socket.socket) -> None:
        """Be the proxy that opens what comes from *peer* for *application*."""
        if half in ("none", "user"):
            uvloop.run(relay(application, peer, sealed=self.server if half == "user" else None))
            return
        self.server.keylog_filename = str(self._key_log)
        opening = socket.socket(fileno=self.server.wrap_socket(peer, server_side=True).detach())
        secret = client_secret(self._key_log)
        key, vector = expand(secret, b"key", 32), expand(secret, b"iv", 12)
        opening.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        info = CRYPTO_INFO.pack(TLS_1_3, AES_GCM_256, vector[4:], key, vector[:4], bytes(8))
        opening.setsockopt(SOL_TLS, TLS_RX, info)
        carry(half, opening, application)


def carry(half: Half, source: socket.socket, drain: socket.socket) -> None:
    """Move the bytes of *source* to *drain*, both plain to whoever reads and writes them here."""
    if half != "splice":
        uvloop.run(relay(source, drain, sealed=None))
        return
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIECE)
    while count := os.splice(source.fileno(), writing, PIECE):
        while count:
            count -= os.splice(reading, drain.fileno(), count)


async def relay(one: socket.socket, other: socket.socket, *, sealed: ssl.SSLContext | None) -> None:
    """Join both as a worker does; *sealed*: TLS stands on *other*."""
    loop = asyncio.get_running_loop()
    closed = loop.create_future()
    first, second = await joined(one, None), await joined(other, sealed)
    relayed = Relay(first.transport, second.transport, lambda *_: closed.set_result(None), BusyPoll(loop, 0.0))
    relayed.start(first.early, second.early)
    await closed


async def joined(sock: socket.socket, context: ssl.SSLContext | None) -> Dialled:
    """Return a transport on *sock*, with the agent's TLS where there is a *context*."""
    loop = asyncio.get_running_loop()
    if context is None:
        return (await loop.create_connection(Dialled, sock=sock))[1]
    ready: asyncio.Future[TlsStream] = loop.create_future()
    stream = TlsStream(
        context,
        server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER,
        ready=ready.set_result,
        failed=ready.set_exception,
    )
    dialled = stream.protocol = Dialled()
    dialled.transport = stream
    await loop.create_connection(lambda: stream, sock=sock)  # type: ignore[type-var]  # asyncio's protocols are duck-typed
    await ready
    return dialled


def proxy(work: Proxy, half: Half, listener: socket.socket, towards: socket.socket) -> None:
    """Take a connection, dial *towards*, and join both by *work*."""
    work(half, listener.accept()[0], socket.create_connection(towards.getsockname()))


@dataclass(frozen=True)
class Pipes:
    """What sink and source say: *go* when a first byte went all the way, *told* what came of the others."""

    go: tuple[int, int]
    told: tuple[int, int]


def source(towards: socket.socket, piece: bytes, pieces: int, pipes: Pipes) -> None:
    sock = socket.create_connection(towards.getsockname())
    sock.sendall(FIRST)
    os.read(pipes.go[0], 1)
    for _ in range(pieces):
        sock.sendall(piece)
    signal.pause()


def sink(listener: socket.socket, size: int, proxies: list[int], pipes: Pipes) -> None:
    """Take *size* bytes behind the first one; tell their digest and their :class:`Cost`."""
    sock, _ = listener.accept()
    if sock.recv(1) != FIRST:
        return
    began = time.perf_counter()
    spent = [cpu_seconds(process) for process in proxies]
    os.write(pipes.go[1], FIRST)
    digest = sha256()
    left = size
    while left and (data := sock.recv(PIECE)):
        digest.update(data)
        left -= len(data)
    seconds = time.perf_counter() - began
    sends, receives = (cpu_seconds(process) - before for process, before in zip(proxies, spent, strict=True))
    mebibytes = size / (1 << 20)
    cost = Cost(1000 * sends / mebibytes, 1000 * receives / mebibytes, mebibytes / seconds)
    os.write(pipes.told[1], json.dumps([digest.hexdigest(), asdict(cost)]).encode())


def forked(work: Callable[[], None]) -> int:
    """Do *work* in a process of its own; return its number."""
    if number := os.fork():
        return number
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.alarm(SECONDS)
    code = 1
    try:
        work()
        code = 0
    except OSError as error:  # ssl's are such
        print(f"kernel_tls: {error!r}", file=sys.stderr)
    finally:
        os._exit(code)


def cpu_seconds(process: int) -> float:
    """Return the CPU time that *process* took so far, by its clock (clock_getcpuclockid(3))."""
    return time.clock_gettime(~process << 3 | 2)


def measured(way: Way, contexts: Contexts, piece: bytes, pieces: int) -> Cost:
    """Send *piece* as often as *pieces* says. Raises AssertionError where other bytes arrive."""
    first, second, third = (socket.create_server((HERE, 0)) for _ in range(3))
    proxies = [
        forked(lambda: proxy(contexts.send, way.sends, first, second)),
        forked(lambda: proxy(contexts.receive, way.receives, second, third)),
    ]
    pipes = Pipes(os.pipe(), os.pipe())
    drain = forked(lambda: sink(third, len(piece) * pieces, proxies, pipes))
    os.close(pipes.told[1])  # before the source has it: what is told ends with the sink
    processes = [*proxies, drain, forked(lambda: source(first, piece, pieces, pipes))]
    with os.fdopen(pipes.told[0], "rb") as told:
        answer = told.read()
    for process in processes:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
    for each in pipes.go:
        os.close(each)
    for listener in (first, second, third):
        listener.close()
    assert answer, f"{way.name}: nothing arrived whole"
    digest, cost = json.loads(answer)
    assert digest == sha256(piece * pieces).hexdigest(), f"{way.name}: other bytes arrived than were sent"
    return Cost(**cost)


def best(found: list[Cost]) -> Cost:
    """Return the lowest of each: what a quiet machine takes, nearly, on a busy one too."""
    return Cost(
        min(each.sends for each in found), min(each.receives for each in found), max(each.rate for each in found)
    )


def words(costs: dict[str, list[Cost]]) -> str:
    """Say what each way took at best, and how much that is of user space's."""
    user = best(costs["user space"])
    return "; ".join(f"{name}: {_beside(best(found), user)}" for name, found in costs.items())


def _beside(way: Cost, user: Cost) -> str:
    sending = f"sending {way.sends:.3g} ms ({way.sends / user.sends:.2f} ×)"
    receiving = f"receiving {way.receives:.3g} ms ({way.receives / user.receives:.2f} ×)"
    return f"{sending}, {receiving}, stream {way.rate / user.rate:.2f} ×"


def main(mebibytes: int, rounds: int) -> None:
    piece = os.urandom(1 << 20)
    costs: dict[str, list[Cost]] = {way.name: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                costs[way.name].append(measured(way, Contexts(Path(folder)), piece, mebibytes))
    print(f"{rounds} × {mebibytes} MiB, each byte right; CPU a MiB: {words(costs)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
