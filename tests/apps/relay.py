"""Programs that use a socket in ways in which few others do, each by the system calls of those.

relay.py splice PORT TO       what comes to PORT goes to 127.0.0.1:TO and back by splice(2), as Go's
                              io.Copy and HAProxy move bytes
relay.py available PORT       takes "SEED EXPECT 0\\n" and EXPECT bytes, no more at once than FIONREAD
                              says, as .NET and Java's available() do, and answers with their
                              SHA-256, as the server's port 9001 does
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import struct
import sys
import termios
import threading

PIPE_BYTES = 1 << 16


class Edges:
    """Waits for the edges of a non-blocking socket: a wake-up that is missing is never made up for."""

    def __init__(self, connection: socket.socket, events: int) -> None:
        self._epoll = select.epoll()
        self._epoll.register(connection, events | select.EPOLLRDHUP | select.EPOLLET)

    def wait(self) -> None:
        self._epoll.poll()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Move everything from *source* to *target*, then its end."""
    readable, writable = Edges(source, select.EPOLLIN), Edges(target, select.EPOLLOUT)
    read, write = os.pipe()
    try:
        while held := spliced(source.fileno(), write, PIPE_BYTES, readable):
            while held:
                held -= spliced(read, target.fileno(), held, writable)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()
    finally:
        os.close(read)
        os.close(write)


def spliced(source: int, target: int, size: int, edges: Edges) -> int:
    while True:
        try:
            return os.splice(source, target, size, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            edges.wait()


def relay(connection: socket.socket, port: int) -> None:
    upstream = socket.create_connection(("127.0.0.1", port))
    for one in (connection, upstream):
        one.setblocking(False)
    threading.Thread(target=pump, args=(upstream, connection), daemon=True).start()
    pump(connection, upstream)


def available(connection: socket.socket, _: int) -> None:
    connection.setblocking(False)
    edges = Edges(connection, select.EPOLLIN)
    data = bytearray()
    while b"\n" not in data or len(data) - data.index(b"\n") - 1 < int(data.split(b" ", 2)[1]):
        edges.wait()
        while waiting := struct.unpack("=i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))[0]:
            data += connection.recv(waiting)
    connection.send(hashlib.sha256(data[data.index(b"\n") + 1 :]).hexdigest().encode())
    connection.shutdown(socket.SHUT_RDWR)


def main(kind: str, port: str, to: str = "0") -> None:
    serve = {"splice": relay, "available": available}[kind]
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, int(to)), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
