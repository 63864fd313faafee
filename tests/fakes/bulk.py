"""Elasticsearch's ``_bulk`` for tests, after its documentation: creates documents by id, answers for each
of them, honours filter_path, gunzips; and does what a test tells it to: is busy, refuses, tears, is
slow, finds requests too large.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Item: TypeAlias = dict[str, Any]
"""A status, and an error where there is one."""
ReadRequest: TypeAlias = tuple[str, dict[str, str], bytes]
"""Its path, headers (names in lower case), and body."""


async def read_request(reader: asyncio.StreamReader) -> ReadRequest | None:
    """Return the next HTTP/1.1 request with a Content-Length; None where there is none."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *rest = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest if each)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return first.split(" ")[1], headers, body


def response(status: int, body: bytes, *headers: str) -> bytes:
    """Return an answer as bytes."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class Bulk:
    """What it holds, and how it behaves; a test changes it at any time."""

    documents: dict[tuple[str, str], Any] = field(default_factory=dict)
    """By index and id."""
    requests: list[ReadRequest] = field(default_factory=list)
    item: Callable[[str, Any], Item | None] = lambda _id, _document: None
    """What is answered for a document instead of taking it."""
    whole: bytes | None = None
    """What is answered to every request instead."""
    torn: bool = False
    """Whether answers end in their middle."""
    largest: int = 1 << 30
    """Bytes of a request; larger ones get 413."""
    gate: asyncio.Event | None = None
    """What is waited for before an answer."""
    bare_items: bool = False
    """Whether filter_path is ignored."""
    templates: dict[str, Any] = field(default_factory=dict)
    """Index templates, by name."""
    port: int = 0
    connections: int = 0

    async def start(self, tls: ssl.SSLContext | None = None, listener: socket.socket | None = None) -> asyncio.Server:
        """Listen on a free port of 127.0.0.1, or on *listener*, of another network namespace."""
        listener = listener or socket.create_server(("127.0.0.1", 0))
        server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 24, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await read_request(reader):
                self.requests.append(request)
                if self.gate:
                    await self.gate.wait()
                answer = self._answer(request)
                if self.torn:
                    writer.write(answer[: len(answer) // 2])
                    break
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, request: ReadRequest) -> bytes:
        path, headers, body = request
        if self.whole is not None:
            return self.whole
        if int(headers["content-length"]) > self.largest:
            return response(413, b"")
        if path.startswith("/_index_template/"):
            return self._template(path.removeprefix("/_index_template/"), body)
        assert path.startswith("/_bulk")
        lines = body.split(b"\n")
        assert lines.pop() == b"", "a bulk body ends with a newline"
        items: list[Item] = []
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            items.append({"create": self._create(json.loads(action)["create"], json.loads(source))})
        errors = any("error" in each["create"] for each in items)
        answer: dict[str, Any] = {"errors": errors, "items": items}
        if not self.bare_items:
            for each in items:
                each["create"].pop("_id")
        return response(200, json.dumps(answer, separators=(",", ":")).encode())

    def _template(self, name: str, body: bytes) -> bytes:
        """Answer a GET, which has no body, or a PUT with ``?create=true``."""
        name, _, create = name.partition("?")
        if not body:
            return response(200 if name in self.templates else 404, b"{}")
        made = json.loads(body)
        if "index_patterns" not in made:
            error = {"type": "action_request_validation_exception", "reason": "index patterns are missing"}
            return response(400, json.dumps({"error": error, "status": 400}).encode())
        assert create == "create=true" and name not in self.templates
        self.templates[name] = made
        return response(200, b'{"acknowledged":true}')

    def _create(self, action: Any, document: Any) -> Item:
        key = (action["_index"], action["_id"])
        told = self.item(action["_id"], document)
        if told is None and key in self.documents:
            told = {"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "exists"}}
        if told is None:
            self.documents[key] = document
            told = {"status": 201}
        return {"_id": action["_id"], **told}
