"""HTTP servers inside a network namespace, asked from there: agents, sidecars and applications on a
loopback address.
"""

from __future__ import annotations

import http.client
from pathlib import Path

from nodeagent.lab import linux


def get(netns: Path, port: int, path: str, *, host: str = "127.0.0.1", seconds: float = 10) -> tuple[int, str]:
    """Return status and body of the answer of *host* as *netns* sees it; each step of the exchange
    may take *seconds*.

    Raises OSError that says what went wrong, also for what is no HTTP answer.
    """
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        with linux.network_namespace(netns):
            connection.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an HTTP answer: {error!r:.200}") from None
    finally:
        connection.close()
