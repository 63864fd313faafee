"""The reader of the bookinfo pages: asks for each URL a number of times, one request after the
other, and prints what came back as JSON.

    visitor.py READER COUNT PER_CONNECTION URL…

PER_CONNECTION requests go over one connection, then a new one is opened. Prints {URL:
{"milliseconds": […], "versions": {…}, "failures": […]}}: the time of each request, which version of
reviews took part, and every answer that was not what it should be.

The file runs in a pod, by whatever python3 the machine has; it imports nothing of nodeagent.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0


def visit(reader: str, count: int, per_connection: int, url: str) -> dict[str, object]:
    """Return what came of *count* requests for *url*."""
    target = urlsplit(url)
    assert target.hostname
    connection = http.client.HTTPConnection(target.hostname, target.port or 80, timeout=TIMEOUT_SECONDS)
    milliseconds: list[float] = []
    versions: Counter[str] = Counter()
    failures = []
    for number in range(count):
        if number % per_connection == 0:
            connection.close()
        started = time.perf_counter()
        try:
            connection.request("GET", target.path or "/", headers={"end-user": reader})
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__} {error}".strip())
            connection.close()
            continue
        milliseconds.append((time.perf_counter() - started) * 1000)
        if response.status != http.client.OK:
            failures.append(f"{response.status} {body.decode(errors='replace')[:200]}")
        elif target.path != "/health":
            page = json.loads(body)
            failures += wrong(page, reader)
            if "reviews" in page:
                versions[page["reviews"]["version"]] += 1
    connection.close()
    return {"milliseconds": milliseconds, "versions": versions, "failures": failures}


def wrong(page: dict[str, Any], reader: str) -> list[str]:
    """Return what is not as it should be in a page that was asked for by *reader*."""
    parts = {"page": page, "details": page.get("details", page), "reviews": page.get("reviews", page)}
    faults = [f"{name}: another reader's: {part['reader']}" for name, part in parts.items() if part["reader"] != reader]
    if parts["reviews"].get("version") == "v2":
        told = parts["reviews"]["ratings"]
        if (told["reader"], told["last"], told["stars"]) != (reader, reader, 4):
            faults.append(f"ratings: {told}")
    return faults


if __name__ == "__main__":
    _, name, requests, each, *urls = sys.argv
    print(json.dumps({url: visit(name, int(requests), int(each), url) for url in urls}))
