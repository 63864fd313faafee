"""HTTP/2 clients and applications by the ``h2`` package, a second implementation, on asyncio streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from tests.waiting import DEADLINE

Pairs = list[tuple[bytes, bytes]]
# By itself the package takes no frame behind a GOAWAY, though answers follow it (RFC 9113 section 6.8).
for _state in (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN):
    H2ConnectionStateMachine._transitions[_state, ConnectionInputs.RECV_GOAWAY] = (None, _state)


@dataclass
class Message:
    """What came on one stream."""

    number: int
    fields: dict[bytes, bytes] = field(default_factory=dict)
    interim: list[dict[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    reset: int | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int:
        return int(self.fields.get(b":status", b"0"))


class Peer:
    """One side of a connection, with a task that reads it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool, settings: dict[Any, int]
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.messages: dict[int, Message] = {}
        self.goaways: list[ConnectionTerminated] = []
        self.room = asyncio.Event()
        self.takes = True
        """What comes is acknowledged, so that more may come."""
        config = H2Configuration(client_side=client, header_encoding=None, validate_inbound_headers=client)
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings({SettingCodes(key): value for key, value in settings.items()})
        self.send()

    def send(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def read(self) -> None:
        """Read until the connection ends."""
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                self.take(event)
            self.send()
        for message in self.messages.values():
            message.begun.set()
            message.ended.set()

    def take(self, event: Any) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaways.append(event)
            return
        if isinstance(event, WindowUpdated | SettingsAcknowledged):
            self.room.set()
            return
        number = getattr(event, "stream_id", None)
        if not number:
            return
        message = self.messages.setdefault(number, Message(number))
        if isinstance(event, ResponseReceived | RequestReceived):
            message.fields = dict(event.headers or ())
            message.begun.set()
        elif isinstance(event, InformationalResponseReceived):
            message.interim.append(dict(event.headers or ()))
        elif isinstance(event, DataReceived):
            message.body += event.data or b""
            if self.takes and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, TrailersReceived):
            message.trailers = dict(event.headers or ())
        elif isinstance(event, StreamEnded):
            message.ended.set()
        elif isinstance(event, StreamReset):
            message.reset = int(event.error_code or 0)
            message.begun.set()
            message.ended.set()

    async def body(self, number: int, data: bytes, *, end: bool = True, trailers: Pairs | None = None) -> None:
        """Send *data* as windows let it."""
        while data:
            size = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(data))
            if size <= 0:
                self.room.clear()
                await self.room.wait()
                continue
            self.h2.send_data(number, data[:size])
            data = data[size:]
            self.send()
            await self.writer.drain()
        if trailers:
            self.h2.send_headers(number, trailers, end_stream=True)
        elif end:
            self.h2.end_stream(number)
        self.send()


class Http2Client(Peer):
    """A client of one connection."""

    @classmethod
    async def on(cls, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], **settings: int) -> Http2Client:
        made = cls(
            *streams, client=True, settings={SettingCodes[key.upper()]: value for key, value in settings.items()}
        )
        made.task = asyncio.get_running_loop().create_task(made.read())
        return made

    task: asyncio.Task[None]

    def ask(self, path: str = "/", method: str = "GET", *, end: bool = True, more: Pairs | None = None) -> Message:
        """Begin a request."""
        number = self.h2.get_next_available_stream_id()
        head = [
            (b":method", method.encode()),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"web"),
            *(more or ()),
        ]
        self.h2.send_headers(number, head, end_stream=end)
        self.send()
        return self.messages.setdefault(number, Message(number))

    async def get(self, path: str = "/", **options: Any) -> Message:
        """Ask and wait for the whole answer."""
        message = self.ask(path, **options)
        async with asyncio.timeout(DEADLINE):
            await message.ended.wait()
        return message

    async def post(self, path: str, body: bytes, trailers: Pairs | None = None, more: Pairs | None = None) -> Message:
        message = self.ask(path, "POST", end=False, more=more)
        await self.body(message.number, body, trailers=trailers)
        async with asyncio.timeout(DEADLINE):
            await message.ended.wait()
        return message

    def reset(self, message: Message) -> None:
        self.h2.reset_stream(message.number, ErrorCodes.CANCEL)
        self.send()

    async def close(self) -> None:
        self.writer.close()
        await self.task


Answer = Callable[["Http2App", Message], Awaitable[None]]


class Http2App(Peer):
    """An application's end of one connection; each whole request is answered by *answer*."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], answer: Answer, early: bool) -> None:
        super().__init__(*streams, client=False, settings={})
        self.answer = answer
        self.early = early
        self.tasks: set[asyncio.Task[None]] = set()

    def take(self, event: Any) -> None:
        super().take(event)
        if isinstance(event, RequestReceived if self.early else StreamEnded):
            assert event.stream_id is not None
            task = asyncio.get_running_loop().create_task(self.answer(self, self.messages[event.stream_id]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def say(
        self,
        message: Message,
        body: bytes = b"",
        status: int = 200,
        more: Pairs | None = None,
        trailers: Pairs | None = None,
        *,
        end: bool = True,
    ) -> None:
        """Answer *message*."""
        head = [(b":status", b"%d" % status), *(more or ())]
        alone = end and not body and not trailers
        self.h2.send_headers(message.number, head, end_stream=alone)
        self.send()
        if not alone:
            await self.body(message.number, body, end=end, trailers=trailers)


class Apps:
    """A handler for a stage: an application that speaks HTTP/2, *made* for each connection."""

    def __init__(self, answer: Answer, *, early: bool = False, made: Callable[[Http2App], None] | None = None) -> None:
        self.answer = answer
        self.early = early
        self.made = made
        self.connections: list[Http2App] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        app = Http2App((reader, writer), self.answer, self.early)
        if self.made is not None:
            self.made(app)
        self.connections.append(app)
        try:
            await app.read()
        except ProtocolError:
            pass  # it hangs up
        finally:
            for task in app.tasks:
                task.cancel()


async def echo(app: Http2App, message: Message) -> None:
    """Answer with the request's body, and say its path and trailers."""
    more = [(b"x-path", message.fields[b":path"]), (b"content-type", b"application/grpc")]
    if b"te" in message.fields:
        more.append((b"x-te", message.fields[b"te"]))
    said = [(b"grpc-status", b"0"), *message.trailers.items()]
    await app.say(message, message.body, more=more, trailers=said)
