"""An external authorizer over HTTP for tests, as a program: ``python tests/fakes/http_authz.py --port N``.

As oauth2-proxy and Istio's sample together: who has the cookie ``session=ann``, the field
``x-ext-authz: allow`` or the body ``allow`` may pass, and the application is told who that is; anybody else
is sent to log in, and gets a cookie for that. A path that ends with ``/broken`` gets 500. Prints one JSON
line a check, and "ready" with its port when it listens.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

LOGIN = "https://login.example/start"


class Check(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    printing = threading.Lock()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.printing:
            line = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body.decode()}
            print(json.dumps(line), flush=True)
        if self.path.endswith("/broken"):
            self._say(500, [], b"a secret")
        elif "session=ann" in self.headers.get("cookie", "") or b"allow" in (self._word(), body):
            told = [("X-Auth-User", "ann"), ("X-Envoy-Auth-Headers-To-Remove", "x-ext-authz")]
            self._say(200, [*told, ("Set-Cookie", "session=renewed")], b"")
        else:
            there = f"{LOGIN}?rd={quote(self.headers.get('x-redirect', ''), safe='')}"
            cookies = [("Set-Cookie", "csrf=1; HttpOnly"), ("Set-Cookie", "other=2")]
            self._say(302, [("Location", there), *cookies, ("X-Internal", "1")], b"log in")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _word(self) -> bytes:
        return self.headers.get("x-ext-authz", "").encode()

    def _say(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", default="0.0.0.0")
    options = parser.parse_args()
    server = ThreadingHTTPServer((options.address, options.port), Check)
    print(f"ready {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
