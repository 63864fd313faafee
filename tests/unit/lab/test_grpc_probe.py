"""The lab's kubelet asks a real gRPC server how it is."""

from __future__ import annotations

import asyncio
import socket

import pytest

from nodeagent.lab import probes
from nodeagent.resources.pod import Container, Grpc, Probe
from tests.fakes import health


def asked(port: int, service: str = "", timeout: int = 5) -> str:
    async def run(argv: object) -> int:
        raise AssertionError("no command is run")

    probe = Probe(grpc=Grpc(port=port, service=service), timeout_seconds=timeout)
    return asyncio.run(probes.check(probe, Container(name="c", command=("x",)), "127.0.0.1", run))


@pytest.mark.parametrize(
    ("service", "fault"),
    [("", ""), ("web", ""), ("ill", "grpc: ill is NOT_SERVING"), ("unheard-of", "grpc: status NOT_FOUND")],
)
def test_what_the_server_says(service: str, fault: str) -> None:
    server, port = health.serve(health.Health())
    try:
        assert asked(port, service) == fault
    finally:
        server.stop(None).wait()


def test_nobody_listens_or_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "Errno 111" in asked(unused.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asked(silent.getsockname()[1], timeout=1) == "no answer within 1 s"
