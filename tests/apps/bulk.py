"""``python bulk.py ADDRESS PORT FILE [SECONDS]``: a server of Elasticsearch's ``_bulk`` that takes everything, appends
each action and its document to FILE as one line ``{"action": …, "source": …}``, and answers after SECONDS.

For tests in which the server has to stand in another network namespace: one that answers as the real one does
in trouble is ``tests/fakes/bulk.py``.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"version": {"number": "8.0.0"}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"acknowledged": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        lines = [json.loads(line) for line in body.splitlines()]
        items = []
        taken = []
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            ((kind, of),) = action.items()
            taken.append(json.dumps({"action": of, "source": source}) + "\n")
            items.append({kind: {"status": 201}})
        with open(sys.argv[3], "ab", buffering=0) as file:
            file.write("".join(taken).encode())
        time.sleep(float(sys.argv[4]) if len(sys.argv) > 4 else 0)
        self._answer({"errors": False, "items": items})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
