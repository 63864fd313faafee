"""Ask a container how it is, from the node's network namespace, as its spec declares (httpGet, tcpSocket, exec, grpc)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence

from nodeagent.resources.pod import Container, HttpGet, Probe

RunInPod = Callable[[Sequence[str]], Awaitable[int]]
"""Run a command in the container and return its exit status."""


async def check(probe: Probe, container: Container, address: str, run: RunInPod) -> str:
    """Return why *probe* fails, empty if it succeeds, within its timeoutSeconds."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.exec:
                status = await run(probe.exec.command)
                return f"exec: exit status {status}" if status else ""
            if probe.tcp_socket:
                return await _tcp(probe.tcp_socket.host or address, _port(container, probe.tcp_socket.port))
            if probe.grpc:
                return await _grpc(address, probe.grpc.port, probe.grpc.service)
            assert probe.http_get is not None, "a Probe holds exactly one handler"
            return await _http(probe.http_get, probe.http_get.host or address, _port(container, probe.http_get.port))
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return str(error) or type(error).__name__


def _port(container: Container, port: int | str) -> int:
    return port if isinstance(port, int) else next(each.container_port for each in container.ports if each.name == port)


async def _tcp(host: str, port: int) -> str:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return ""


async def _http(get: HttpGet, host: str, port: int) -> str:
    context = None
    if get.scheme == "HTTPS":  # as the kubelet, which does not verify either
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        headers = {"Host": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "User-Agent": "kube-probe/1.31", "Accept": "*/*", "Connection": "close"}
        headers |= {header.name: header.value for header in get.http_headers}
        writer.write("".join([f"GET {get.path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode())
        line = (await reader.readuntil(b"\n")).split(maxsplit=2)
        if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not line[1].isdigit():
            return f"not an HTTP answer: {line!r}"
        return "" if 200 <= int(line[1]) < 400 else f"HTTP status {int(line[1])}"
    finally:
        writer.close()


async def _grpc(host: str, port: int, service: str) -> str:
    from grpclib.client import Channel, UnaryUnaryMethod  # most pods have no such probe
    from grpclib.exceptions import GRPCError, StreamTerminatedError
    from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    channel = Channel(host, port)
    try:
        method = UnaryUnaryMethod(channel, "/grpc.health.v1.Health/Check", HealthCheckRequest, HealthCheckResponse)
        status = (await method(HealthCheckRequest(service=service))).status
        return "" if status == HealthCheckResponse.SERVING else f"grpc: {service or 'the server'} is {HealthCheckResponse.ServingStatus.Name(status)}"
    except GRPCError as error:
        return f"grpc: status {error.status.name}"
    except StreamTerminatedError:
        return "grpc: the connection was closed before the answer"
    finally:
        channel.close()
