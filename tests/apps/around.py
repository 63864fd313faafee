"""Asks a web server while it tries to get around capture, as a process without any privilege:
``around.py WAY ADDRESS PORT``.

Prints the first line of the answer, or why there is none.
"""

from __future__ import annotations

import os
import socket
import sys

NOBODY = 65534
MPTCP = 262
REQUEST = b"GET /about HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"


def ask(way: str, address: str, port: int) -> bytes:
    """Return the first line of the answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, MPTCP if way == "mptcp" else 0) as connection:
        connection.settimeout(60)
        if way == "device":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        if way == "fast-open":
            connection.setblocking(True)
            connection.sendto(REQUEST, socket.MSG_FASTOPEN, (address, port))
        else:
            connection.connect((address, port))
            connection.sendall(REQUEST)
        return connection.makefile("rb").readline(1000)


if __name__ == "__main__":
    os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        print(ask(sys.argv[1], sys.argv[2], int(sys.argv[3])).decode().strip() or "closed")
    except OSError as error:
        print(error.strerror or error)
