"""The pods' services on a socket of this process, and grpclib's client for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvloop
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.grpc_socket import GrpcSocket
from nodeagent.identity.jwt_svid import JwtKeys
from nodeagent.identity.sds import SecretDiscovery
from nodeagent.identity.subject import JwtAuthority, Subject
from nodeagent.identity.workload_api import WorkloadApi
from nodeagent.vocabulary import SpiffeId

WEB = SpiffeId("spiffe://cluster.local/ns/default/sa/web")
PATIENCE = 60.0


class World:
    """A pod with its socket, and the authority that it has its certificates from."""

    def __init__(self, directory: Path, *, tokens: bool) -> None:
        self.authority = CertificateAuthority.open_or_create(directory / "ca", "cluster.local")
        self.jwt = JwtAuthority(JwtKeys(directory / "ca", "cluster.local")) if tokens else None
        if self.jwt:
            self.jwt.refresh()
        self.subject = Subject(WEB, self.jwt)
        self.server = GrpcSocket([WorkloadApi(self.subject), SecretDiscovery(self.subject)])
        self.path = str(directory / "socket")
        self.channel = Channel(path=self.path)

    def renew(self) -> Certificate:
        """Give the pod a new certificate."""
        certificate = self.authority.issue(WEB, 3600)
        self.subject.certificate.set(certificate)
        return certificate


@asynccontextmanager
async def _opened(*, tokens: bool) -> AsyncIterator[World]:
    with TemporaryDirectory() as directory:
        world = World(Path(directory), tokens=tokens)
        listener = await asyncio.get_running_loop().create_unix_server(
            lambda: world.server.protocol(lambda: None), world.path
        )
        try:
            yield world
        finally:
            world.channel.close()
            listener.close()
            await asyncio.sleep(0)


def run(scenario: Callable[[World], Awaitable[None]], *, tokens: bool = True) -> None:
    """Play *scenario*; one that hangs fails."""

    async def play() -> None:
        async with _opened(tokens=tokens) as world, asyncio.timeout(PATIENCE):
            await scenario(world)

    uvloop.run(play())  # as control has it


@asynccontextmanager
async def talking(call: Any) -> AsyncIterator[Any]:
    """Have *call*, a stream that the server would never end, and end it."""
    async with call as stream:
        yield stream
        await stream.cancel()


async def refusal(call: Awaitable[Any]) -> tuple[Status, str]:
    """Return status and words with which *call* is refused."""
    with pytest.raises(GRPCError) as caught:
        await call
    return caught.value.status, caught.value.message or ""


async def silent(receive: Awaitable[Any]) -> bool:
    """Say whether nothing comes."""
    try:
        async with asyncio.timeout(0.2):
            await receive
    except TimeoutError:
        return True
    return False
