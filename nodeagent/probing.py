"""Asking an application how it is, as the kubelet does: over HTTP, by a TCP connection, or by
gRPC's health protocol. Used by the lab, in the kubelet's place, and by the classic sidecar, to which
the kubelet's questions are led.

Like the kubelet this verifies no certificate, takes 200 to 399 for success and follows no redirect.
What an application answers is bounded in time and bytes. Each question returns why the application is
not well, in words for people; empty: it is well.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterable
from typing import Final

from nodeagent.vocabulary import host_port

SourceAddress = tuple[str, int] | None
"""The own address and port of the connection by which is asked; None: any."""
USER_AGENT: Final = "kube-probe/1.31"
MAX_HEAD: Final = 16 << 10
"""Bytes of an answer's first line."""


async def judged(asking: Awaitable[str], seconds: float) -> str:
    """Return what *asking* says is wrong, or that it did not come about within *seconds*; empty:
    the application is well.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asking
    except TimeoutError:
        return f"no answer within {seconds} s"
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        return str(error) or type(error).__name__


async def by_tcp(host: str, port: int, source: SourceAddress = None) -> str:
    """Connect to *host*, *port* and close again; return nothing, as an application that accepts is
    well. Raises OSError when no connection can be made.
    """
    _, writer = await asyncio.open_connection(host, port, local_addr=source)
    writer.close()
    return ""


async def by_http(
    host: str, port: int, *, scheme: str, path: str, headers: Iterable[tuple[str, str]], source: SourceAddress = None
) -> str:
    """GET *path*, a request's target as it is sent, by HTTP/1.1, over TLS where *scheme* is HTTPS;
    *headers* replace the kubelet's own of the same names. Return what is wrong with the status line;
    empty: its status is a success. Raises OSError when there is no connection, EOFError and
    LimitOverrunError when no line comes.
    """
    tls = _unverified() if scheme == "HTTPS" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=MAX_HEAD, local_addr=source)
    try:
        fields = {
            "host": host_port(host, port),
            "user-agent": USER_AGENT,
            "accept": "*/*",
        }
        fields |= {name.lower(): value for name, value in headers} | {"connection": "close"}
        writer.write(
            "".join(
                [f"GET {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n"]
            ).encode()
        )
        line = (await reader.readuntil(b"\n")).split(maxsplit=2)
        if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not (line[1].isdigit() and len(line[1]) == 3):
            return f"not an HTTP answer: {b' '.join(line)[:80]!r}"
        return "" if 200 <= int(line[1]) < 400 else f"HTTP status {int(line[1])}"
    finally:
        if tls:
            writer.transport.abort()  # the application need not end TLS: that is not waited for
        else:
            writer.close()


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def by_grpc(host: str, port: int, service: str, source: SourceAddress = None) -> str:
    """Ask for the health of *service* (empty: of the server as a whole) by grpc.health.v1. Return what
    is wrong; empty: it is serving. Raises OSError when no connection can be made.
    """
    from nodeagent.health import ask  # it brings gRPC, and most pods have no such probe

    return await ask(host, port, service, source)
