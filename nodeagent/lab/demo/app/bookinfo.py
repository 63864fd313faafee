"""Istio's bookinfo in small, with the standard library only: every service of it, chosen on the
command line.

    bookinfo.py frontend | details | reviews | ratings | store

A page needs them all: frontend asks details and reviews, reviews v2 asks ratings, ratings keeps its
numbers in the store, over a TCP protocol of lines. The reader's name (header ``end-user``, as in
bookinfo) goes along with every call and comes back in every answer.

The file runs in pods, by whatever python3 the machine has; it imports nothing of nodeagent.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

WEB_PORT = 9080
STORE_PORT = 6380
PASSED_ON = ("end-user", "x-request-id", "traceparent", "tracestate")
"""Headers that a service hands to those it calls, so that a trace holds together."""
TIMEOUT_SECONDS = 5.0
BOOK = {"title": "The Comedy of Errors", "author": "William Shakespeare", "pages": 200, "language": "English"}

Headers = dict[str, str]
Page = Callable[[Headers], object]


class Unavailable(Exception):
    """A service that is needed did not answer as it should."""


_connections = threading.local()
"""A thread serves one caller, and keeps its connections to other services as long as that one stays."""


def call(service: str, path: str, headers: Headers) -> object:
    """Return the JSON that *service* answers; a connection that was closed while it was idle is
    made anew. Raises Unavailable.
    """
    for _ in range(2):
        kept = getattr(_connections, service, None)
        connection = kept or http.client.HTTPConnection(service, WEB_PORT, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            setattr(_connections, service, None)
            if kept is not None:
                continue
            raise Unavailable(f"{service}: {error}") from None
        setattr(_connections, service, connection)
        if response.status != http.client.OK:
            raise Unavailable(f"{service}: {response.status} {body.decode(errors='replace')}")
        return json.loads(body)
    raise Unavailable(f"{service}: no connection lasts")


def ask_store(*lines: str) -> list[str]:
    """Return the store's answer to each line. Raises Unavailable."""
    for _ in range(2):
        kept = getattr(_connections, "store", None)
        try:
            stream = kept or socket.create_connection(("store", STORE_PORT), TIMEOUT_SECONDS).makefile(
                "rw", encoding="utf-8", newline="\n"
            )
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
            answers = [stream.readline().rstrip("\n") for _ in lines]
        except OSError as error:
            _connections.store = None
            if kept is not None:
                continue
            raise Unavailable(f"store: {error}") from None
        if all(answers):
            _connections.store = stream
            return answers
        _connections.store = None
    raise Unavailable("store: it closed the connection")


def frontend(headers: Headers) -> object:
    print(json.dumps({"level": "info", "message": "a page", "reader": reader(headers)}), flush=True)
    return {
        "reader": reader(headers),
        "details": call("details", "/", headers),
        "reviews": call("reviews", "/", headers),
    }


def details(headers: Headers) -> object:
    return {"reader": reader(headers), **BOOK}


def reviews(headers: Headers) -> object:
    version = os.environ.get("VERSION", "v1")
    answer = {"reader": reader(headers), "version": version, "text": "Absolutely fun and entertaining."}
    return answer if version == "v1" else {**answer, "ratings": call("ratings", "/", headers)}


def ratings(headers: Headers) -> object:
    """Note the reader in the store, and tell from it the stars and who has read."""
    stored, stars, last = ask_store(f"SET reader {reader(headers)}", "GET stars", "GET reader")
    if stored != "OK":
        raise Unavailable(f"store: {stored}")
    return {"reader": reader(headers), "stars": int(stars.removeprefix("VALUE ")), "last": last.removeprefix("VALUE ")}


def reader(headers: Headers) -> str:
    return headers.get("end-user", "nobody")


class Web(BaseHTTPRequestHandler):
    """GET: ``/health`` says ok, everything else is the service's page."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    """Head and body leave in one segment."""
    disable_nagle_algorithm = True
    page: Page

    def do_GET(self) -> None:
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        try:
            self._answer(200, {"ok": True} if self.path == "/health" else type(self).page(headers))
        except Unavailable as error:
            self._answer(503, str(error))

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the agent keeps an access log."""


class WebServer(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128


class RatingStore(socketserver.StreamRequestHandler):
    """``SET key value`` answers ``OK``, ``GET key`` answers ``VALUE value`` or ``NONE``; anything
    else ``ERROR why``.
    """

    disable_nagle_algorithm = True
    kept: ClassVar = {"stars": "4"}
    """One store for all connections."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(self._obey(line.decode(errors="replace").split(maxsplit=2)).encode() + b"\n")

    def _obey(self, words: list[str]) -> str:
        match words:
            case ["SET", key, value]:
                self.kept[key] = value.rstrip()
                return "OK"
            case ["GET", key]:
                return f"VALUE {self.kept[key]}" if key in self.kept else "NONE"
        return "ERROR expected: SET key value, or GET key"


class StoreServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


PAGES: dict[str, Page] = {"frontend": frontend, "details": details, "reviews": reviews, "ratings": ratings}


def main(service: str) -> None:
    server: socketserver.BaseServer
    if service == "store":
        server = StoreServer(("::", STORE_PORT), RatingStore)
    else:
        server = WebServer(("::", WEB_PORT), type(service, (Web,), {"page": staticmethod(PAGES[service])}))
    server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in (*PAGES, "store"):
        sys.exit(f"usage: bookinfo.py {' | '.join((*PAGES, 'store'))}")
    main(sys.argv[1])
