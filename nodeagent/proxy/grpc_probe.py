"""A gRPC probe that a pod declares, asked of the application in the node's stead.

Not a byte of who asks goes on to the application: its HTTP/2 ends here, only the health of a
declared service can be asked for, and what is asked is a request of our own. So nothing else comes
in however the connection is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from grpclib.client import UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.server import Stream

from nodeagent.errors import CONNECT_FAILED
from nodeagent.health import CHECK
from nodeagent.identity.grpc_socket import GrpcSocket
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, DialError
from nodeagent.proxy.external.bounds import CallError
from nodeagent.proxy.external.call import Inside, unary


def answering(services: frozenset[str], dial: Dial, context: Context, ended: Callable[[], None]) -> asyncio.Protocol:
    """Return what serves one connection of the node: the health of *services*, as the application
    at *dial* tells it. *ended*: it is over.
    """

    async def ask(service: str) -> HealthCheckResponse:
        async with asyncio.timeout(context.timeouts.head):
            return await _asked(dial, context, service)

    return GrpcSocket([_Health(services, ask)]).protocol(ended)


class _Health:
    def __init__(self, services: frozenset[str], ask: Callable[[str], Awaitable[HealthCheckResponse]]) -> None:
        self._services = services
        self._ask = ask

    def __mapping__(self) -> dict[str, Handler]:
        return {CHECK: Handler(self._check, Cardinality.UNARY_UNARY, HealthCheckRequest, HealthCheckResponse)}

    async def _check(self, stream: Stream[HealthCheckRequest, HealthCheckResponse]) -> None:
        request = await stream.recv_message()
        if request is None or request.service not in self._services:
            raise GRPCError(Status.PERMISSION_DENIED, "this is not a probe that the pod declares")
        try:
            answer = await self._ask(request.service)
        except (DialError, CallError, StreamTerminatedError, TimeoutError, OSError):
            raise GRPCError(Status.UNAVAILABLE, CONNECT_FAILED.hint) from None
        await stream.send_message(answer)


async def _asked(dial: Dial, context: Context, service: str) -> HealthCheckResponse:
    """Ask the application. Raises GRPCError with its own refusal, DialError, CallError, and what
    grpclib raises of a connection that ends.
    """
    channel = Inside(partial(dial.connect, context, "tcp"), dial.address, dial.port)
    try:
        return await unary(
            UnaryUnaryMethod(channel, CHECK, HealthCheckRequest, HealthCheckResponse),
            HealthCheckRequest(service=service),
            HealthCheckResponse,
        )
    finally:
        channel.close()
