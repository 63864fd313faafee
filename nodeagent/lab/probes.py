"""Ask a container how it is, from the node's network namespace, as its spec declares (httpGet,
tcpSocket, exec, grpc).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nodeagent.probing import by_grpc, by_http, by_tcp, judged
from nodeagent.resources.pod import Container, Probe

RunInPod = Callable[[Sequence[str]], Awaitable[tuple[int, str]]]
"""Run a command in the container and return its exit status, and what it wrote."""


async def check(probe: Probe, container: Container, address: str, run: RunInPod) -> str:
    """Return why *probe* fails, empty if it succeeds, within its timeoutSeconds."""
    return await judged(_asked(probe, container, address, run), probe.timeout_seconds)


async def _asked(probe: Probe, container: Container, address: str, run: RunInPod) -> str:
    if probe.exec:
        status, written = await run(probe.exec.command)
        if not status:
            return ""
        said = f": {written}" if written else ""
        return f"exec: exit status {status}{said}"
    if probe.tcp_socket:
        return await by_tcp(probe.tcp_socket.host or address, _port(container, probe.tcp_socket.port))
    if probe.grpc:
        return await by_grpc(address, probe.grpc.port, probe.grpc.service)
    assert probe.http_get is not None, "a Probe holds exactly one handler"
    get = probe.http_get
    headers = [(header.name, header.value) for header in get.http_headers]
    return await by_http(
        get.host or address, _port(container, get.port), scheme=get.scheme, path=get.path, headers=headers
    )


def _port(container: Container, port: int | str) -> int:
    return port if isinstance(port, int) else next(each.container_port for each in container.ports if each.name == port)
