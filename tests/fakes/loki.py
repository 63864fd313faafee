"""Loki's push API for tests, after its documentation: JSON streams of lines with optional structured
metadata; a line that comes twice is kept once; lines that are ignored are answered with 400 while the
others are kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.bulk import read_request, response

Line = tuple[int, str, dict[str, str]]


@dataclass
class Loki:
    """What it holds, by the values of a stream's labels namespace, container and node."""

    ignored: Callable[[str], bool] = lambda _text: False
    lines: dict[tuple[str, ...], list[Line]] = field(default_factory=dict)
    tenants: set[str] = field(default_factory=set)
    port: int = 0

    async def start(self) -> asyncio.Server:
        """Listen on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await read_request(reader):
                path, headers, body = request
                assert path == "/loki/api/v1/push" and headers["content-type"] == "application/json"
                self.tenants.add(headers.get("x-scope-orgid", ""))
                writer.write(self._push(body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _push(self, body: bytes) -> bytes:
        ignored = 0
        total = 0
        for stream in json.loads(body)["streams"]:
            key = tuple(stream["stream"].values())
            for time, text, *metadata in stream["values"]:
                line = (int(time), text, metadata[0] if metadata else {})
                total += 1
                if self.ignored(text):
                    ignored += 1
                elif line not in self.lines.setdefault(key, []):
                    self.lines[key].append(line)
        if ignored:
            why = f"entry too far behind, total ignored: {ignored} out of {total} for stream: {{}}"
            return response(400, why.encode())
        return response(204, b"")
