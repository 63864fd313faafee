"""Single calls to a gRPC service over connections that are kept: bounded in time, number and size.
A failure is a :class:`CallError`.
"""

from __future__ import annotations

import asyncio
import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, cast

from google.protobuf.message import Message
from grpclib.client import Channel, Stream, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import H2Protocol

from nodeagent.grpc_answers import AnswerError, next_answer
from nodeagent.proxy.dial import DialError, Dialled
from nodeagent.proxy.external.bounds import (
    MAX_ANSWER,
    MAX_CONNECTIONS,
    CallBounds,
    CallError,
    UnreachedError,
    connecting,
    next_way,
)
from nodeagent.proxy.external.model import Resolve, Way

_WINDOW: Final = Configuration(http2_stream_window_size=(1 << 16) - 1, http2_connection_window_size=1 << 20)
_Answer = TypeVar("_Answer", bound=Message)


class ProviderCalls:
    """The calls of one worker to one method of a provider."""

    def __init__(self, name: str, service: str, port: int, path: str, resolve: Resolve) -> None:
        self._bounds = CallBounds(name, service, port)
        self._service = service
        self._port = port
        self._path = path
        self._resolve = resolve
        self._channels: OrderedDict[Way, _Shared] = OrderedDict()

    async def call(self, request: Message, answer: type[_Answer], timeout: float, asker: str) -> _Answer:
        """Send *request* for the pod *asker*; return the answer, which must come within *timeout*
        seconds. Raises CallError.
        """
        return await self._bounds.run(timeout, partial(self._call, request, answer, asker), asker)

    def close(self) -> None:
        """Close the connections; calls under way fail."""
        for shared in self._channels.values():
            shared.retired = True
            shared.channel.close()
        self._channels.clear()

    async def _call(self, request: Message, answer: type[_Answer], asker: str, limit: asyncio.Timeout) -> _Answer:
        way = next_way(self._resolve, self._service, self._port, asker, None)
        try:
            return await self._attempt(way, request, answer, limit)
        except (StreamTerminatedError, UnreachedError):
            # The connection went away under the call, or there was none: a provider that restarts
            # or renews connections. Its next endpoint is asked once.
            pass
        way = next_way(self._resolve, self._service, self._port, asker, way)
        try:
            return await self._attempt(way, request, answer, limit)
        except StreamTerminatedError:
            raise CallError("the connection was closed before the answer") from None

    async def _attempt(self, way: Way, request: Message, answer: type[_Answer], limit: asyncio.Timeout) -> _Answer:
        shared = self._lend(way)
        keep = False
        try:
            async with connecting(limit):
                await shared.channel.__connect__()
            result = await unary(UnaryUnaryMethod(shared.channel, self._path, type(request), answer), request, answer)
            keep = True
            return result
        except GRPCError as error:
            keep = True  # a refusal by status is an answer of a sound connection
            raise CallError(f"gRPC status {error.status.name}") from None
        except (StreamTerminatedError, CallError):
            raise
        except asyncio.CancelledError:
            keep = not limit.expired()  # the client went, or the connection may lead nowhere any more
            raise
        except DialError as error:
            raise UnreachedError(f"cannot connect: {error.reason.code}") from None
        except TimeoutError:
            raise UnreachedError("cannot connect: nobody answers") from None
        except OSError as error:
            raise UnreachedError(f"cannot connect: {error.strerror or type(error).__name__}") from None
        except Exception as error:  # noqa: BLE001 - the library asserts, and raises others' errors, on what a broken peer sends
            raise CallError(f"the answer is not valid gRPC ({type(error).__name__})") from None
        finally:
            self._give_back(way, shared, keep)

    def _lend(self, way: Way) -> _Shared:
        shared = self._channels.get(way)
        if shared is None:
            shared = self._channels[way] = _Shared(
                Inside(partial(way.connect, "tcp"), way.address, way.port)
                if way.connect
                else Channel(way.address, way.port, config=_WINDOW)
            )
            if len(self._channels) > MAX_CONNECTIONS:
                self._channels.popitem(last=False)[1].retire()
        self._channels.move_to_end(way)
        shared.users += 1
        return shared

    def _give_back(self, way: Way, shared: _Shared, keep: bool) -> None:
        """Keep the connection, or let the next call make a new one."""
        shared.users -= 1
        if not keep and self._channels.get(way) is shared:
            del self._channels[way]
            shared.retired = True
        if shared.retired:
            shared.retire()


class Inside(Channel):
    """A channel whose connection another makes: from inside a pod, by mTLS or not."""

    def __init__(self, connect: Callable[[], Awaitable[Dialled]], address: str, port: int) -> None:
        super().__init__(address, port, config=_WINDOW)
        self._connect = connect

    async def _create_connection(self) -> H2Protocol:
        dialled = await self._connect()
        if dialled.lost or dialled.ended:
            dialled.transport.abort()
            raise ConnectionResetError(errno.ECONNRESET, "closed before a word was said")
        protocol = self._protocol_factory()
        dialled.transport.set_protocol(protocol)
        protocol.connection_made(cast(asyncio.BaseTransport, dialled.transport))
        if dialled.early:
            protocol.data_received(dialled.early)
        return protocol


class _Shared:
    """A connection and how many calls use it; one that is retired is closed by the last of them."""

    __slots__ = ("channel", "retired", "users")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.users = 0
        self.retired = False

    def retire(self) -> None:
        self.retired = True
        if not self.users:
            self.channel.close()


async def unary(method: UnaryUnaryMethod[Message, _Answer], request: Message, answer: type[_Answer]) -> _Answer:
    """Call *method*; return its answer, of no more than MAX_ANSWER bytes. Raises CallError, and what grpclib raises."""
    stream: Stream[Message, _Answer]
    async with method.open() as stream:
        await stream.send_message(request, end=True)
        await stream.recv_initial_metadata()
        try:
            result = await next_answer(stream, answer, MAX_ANSWER)
        except AnswerError as error:
            raise CallError(str(error)) from None
    if result is None:
        raise CallError("the answer is empty")
    return result
