"""h11 as the strict reader at the upstream: what it reads is what an application would believe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import h11

Fields = list[tuple[bytes, bytes]]


@dataclass
class Read:
    """A request as the strict reader read it."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes = b""
    trailers: Fields = field(default_factory=list)


@dataclass
class StrictApp:
    """An application that reads as strictly as it can, keeps what it read, and answers 200 with the body's length."""

    requests: list[Read] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        request: Read | None = None
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                self.faults.append(str(error))
                return
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                request = Read(
                    bytes(event.method),
                    bytes(event.target),
                    [(bytes(name), bytes(value)) for name, value in event.headers],
                )
            elif isinstance(event, h11.Data):
                assert request is not None
                request.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                request.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
                self.requests.append(request)
                body = b"%d" % len(request.body)
                writer.write(
                    parser.send(h11.Response(status_code=200, headers=[("content-length", str(len(body)))])) or b""
                )
                if request.method != b"HEAD":
                    writer.write(parser.send(h11.Data(data=body)) or b"")
                writer.write(parser.send(h11.EndOfMessage()) or b"")
                await writer.drain()
                if parser.our_state is not h11.DONE:
                    return
                parser.start_next_cycle()
            else:
                return
