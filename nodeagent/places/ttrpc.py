"""ttrpc, in which containerd and its plugins call each other, over connections that share one socket. Pure.

What comes is read as hostile: each length is bounded before anything of it is kept. Both sides have
one message a call and one an answer; streams of several are refused.

Formats: containerd/ttrpc, PROTOCOL.md (a message's head is its length, its stream, its kind and
flags); containerd/nri, pkg/net/multiplex (a frame's is its connection, then its length). A message
may come in several frames. One that is sent is one frame, of less than the 4096 bytes that the other
side reads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from nodeagent.errors import NodeagentError, shown
from nodeagent.protocols.status_pb2 import Status
from nodeagent.protocols.ttrpc_pb2 import Request, Response

MAX_MESSAGE: Final = 4 << 20
"""Bytes of a message, by the protocol."""
OK: Final = 0
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
"""Codes of a status, gRPC's."""
_HEAD: Final = Struct(">IIBB")
_FRAME: Final = Struct(">II")
_MAX_FRAME: Final = _HEAD.size + MAX_MESSAGE
_REQUEST: Final = 1
_RESPONSE: Final = 2
_NANO: Final = 1e9
_Kind = TypeVar("_Kind", bound=Message)


class TtrpcError(NodeagentError):
    """What came is no ttrpc, or the other side refuses a call; says which."""


@dataclass(frozen=True, slots=True)
class TtrpcCall:
    """What the other side asks."""

    connection: int
    stream: int
    method: str
    """``package.Service/Method``."""
    payload: bytes
    seconds: float
    """In which it wants the answer; 0: not told."""


@dataclass(frozen=True, slots=True)
class TtrpcAnswer:
    """What the other side answers."""

    stream: int
    refusal: str
    """Why it refuses, in words; empty: it does not."""


class Incoming:
    """What comes over *connections*; frames of others are passed over."""

    def __init__(self, connections: Iterable[int]) -> None:
        self._trunk = bytearray()
        self._parts = {connection: bytearray() for connection in connections}

    def feed(self, data: bytes) -> Iterator[TtrpcCall | TtrpcAnswer]:
        """Yield the messages that *data* completes. Raises TtrpcError; nothing can be read after that."""
        self._trunk += data
        while len(self._trunk) >= _FRAME.size:
            connection, length = _FRAME.unpack_from(self._trunk)
            if length > _MAX_FRAME:
                raise TtrpcError(f"a frame of {length} bytes, at most {_MAX_FRAME} are read")
            end = _FRAME.size + length
            if len(self._trunk) < end:
                return
            part = self._parts.get(connection)
            if part is not None:
                part += memoryview(self._trunk)[_FRAME.size : end]
            del self._trunk[:end]
            if part is not None:
                yield from _messages(connection, part)


def _messages(connection: int, part: bytearray) -> Iterator[TtrpcCall | TtrpcAnswer]:
    """Yield the messages at the beginning of *part*, which is left with what follows them."""
    while len(part) >= _HEAD.size:
        length, stream, kind, flags = _HEAD.unpack_from(part)
        if length > MAX_MESSAGE:
            raise TtrpcError(f"a message of {length} bytes, at most {MAX_MESSAGE} are read")
        if kind not in (_REQUEST, _RESPONSE) or (kind == _REQUEST and flags):
            raise TtrpcError(f"a message of kind {kind} with flags {flags}: calls with one message are expected")
        end = _HEAD.size + length
        if len(part) < end:
            return
        data = bytes(memoryview(part)[_HEAD.size : end])
        del part[:end]
        yield _call(connection, stream, data) if kind == _REQUEST else _answer(stream, data)


def _call(connection: int, stream: int, data: bytes) -> TtrpcCall:
    said = parsed(Request, data)
    seconds = max(said.timeout_nano, 0) / _NANO
    return TtrpcCall(connection, stream, f"{said.service}/{said.method}", said.payload, seconds)


def _answer(stream: int, data: bytes) -> TtrpcAnswer:
    status = parsed(Response, data).status
    words = shown(status.message) if status.message else f"code {status.code}"
    return TtrpcAnswer(stream, words if status.code else "")


def parsed(kind: type[_Kind], data: bytes) -> _Kind:
    """Return the message of *kind* that *data* is. Raises TtrpcError."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise TtrpcError(f"no {kind.DESCRIPTOR.name}: {error}") from None


def asks(connection: int, stream: int, service: str, method: str, request: Message, seconds: float) -> bytes:
    """Return the bytes of a call, to be answered within *seconds*."""
    payload = request.SerializeToString()
    message = Request(service=service, method=method, payload=payload, timeout_nano=int(seconds * _NANO))
    return _framed(connection, stream, _REQUEST, message)


def answers(call: TtrpcCall, answer: Message) -> bytes:
    """Return the bytes of *answer* to *call*."""
    return _framed(call.connection, call.stream, _RESPONSE, Response(payload=answer.SerializeToString()))


def refuses(call: TtrpcCall, code: int, why: str) -> bytes:
    """Return the bytes that refuse *call*."""
    return _framed(call.connection, call.stream, _RESPONSE, Response(status=Status(code=code, message=why)))


def _framed(connection: int, stream: int, kind: int, message: Message) -> bytes:
    data = message.SerializeToString()
    return _FRAME.pack(connection, _HEAD.size + len(data)) + _HEAD.pack(len(data), stream, kind, 0) + data
