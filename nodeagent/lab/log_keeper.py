"""The process that writes down what a node's containers write, as a container runtime does: one a node,
beside the kubelet.

::

    container ──pipe a stream──▶ keeper ──▶ <pod's folder>/<container>/N.log
                                    ▲  │
    kubelet ──"read these two"──────┘  └──"both have ended"──▶ kubelet

The kubelet forks, so it can have no thread, and stands still while it makes pods: whoever fills a pipe
meanwhile would stand still with it. The keeper is forked from it before anything else, so it costs
no import. It ends with the kubelet, and the kubelet with it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from nodeagent.lab import cri_log
from nodeagent.lab.linux import die_with_parent

_log = logging.getLogger(__name__)

_MESSAGE_BYTES: Final = 16 << 10
_READ_BYTES: Final = 1 << 16
_KEPT_SECONDS: Final = 60.0
"""For how long a pod's logs outlive it: the kubelet looks once a minute which it may remove."""


@dataclass(slots=True)
class _File:
    """The file of one start of a container, and its streams that are still open."""

    number: int
    path: Path
    max_bytes: int
    descriptor: int
    size: int = 0
    streams: int = 2

    def write(self, data: bytes) -> None:
        """Append *data*, and rotate; where the disk is full the lines are lost, as a runtime loses them."""
        with suppress(OSError):
            self.size += os.write(self.descriptor, data)
            if self.size >= self.max_bytes:
                self._rotate()

    def _rotate(self) -> None:
        packed = cri_log.rotate(self.path, int(time.time()))
        if self.path.exists():  # rotated within this very second
            return
        os.close(self.descriptor)
        self.descriptor = _opened(self.path)
        self.size = 0
        if packed:
            threading.Thread(target=_compress, args=[packed], daemon=True).start()


@dataclass(slots=True)
class _Stream:
    """One stream of a container."""

    name: bytes
    file: _File
    rest: bytearray = field(default_factory=bytearray)
    """Of a line that has no end yet."""


class _Keeper:
    """The keeper's side; it runs in a process of its own."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._leaving: list[tuple[float, Path]] = []

    def run(self) -> None:
        """Serve until the kubelet is gone."""
        while True:
            for key, _ in self._selector.select(self._remove_old()):
                if key.data is not None:
                    self._read(key.fd, key.data)
                elif not self._order():
                    return

    def _order(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._orders, _MESSAGE_BYTES, 2)
        if not message:
            return False
        order = json.loads(message)
        if gone := order.get("gone"):
            self._leaving.append((time.monotonic() + _KEPT_SECONDS, Path(gone)))
            return True
        path = Path(order["path"])
        self._leaving = [each for each in self._leaving if not path.is_relative_to(each[1])]  # the pod is made again
        file = _File(order["number"], path, order["maxBytes"], _opened(path))
        for name, descriptor in zip((b"stdout", b"stderr"), descriptors, strict=True):
            self._selector.register(descriptor, selectors.EVENT_READ, _Stream(name, file))
        return True

    def _read(self, descriptor: int, stream: _Stream) -> None:
        data = os.read(descriptor, _READ_BYTES)
        now = time.time_ns()
        if not data:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            if stream.rest:
                stream.file.write(cri_log.encode(stream.name, bytes(stream.rest), now))
            self._ended(stream.file)
            return
        stream.rest += data
        whole = stream.rest.rfind(b"\n") + 1
        if whole:
            stream.file.write(cri_log.encode(stream.name, bytes(stream.rest[:whole]), now))
            del stream.rest[:whole]
        while len(stream.rest) > cri_log.LINE_BYTES:
            stream.file.write(cri_log.encode(stream.name, bytes(stream.rest[: cri_log.LINE_BYTES]), now, partial=True))
            del stream.rest[: cri_log.LINE_BYTES]

    def _ended(self, file: _File) -> None:
        file.streams -= 1
        if not file.streams:
            os.close(file.descriptor)
            with suppress(OSError):  # the kubelet is gone, and what it would be told with it
                self._orders.send(str(file.number).encode())

    def _remove_old(self) -> float | None:
        """Remove what is to go by now; return the seconds until the next does."""
        now = time.monotonic()
        for _, path in (each for each in self._leaving if each[0] <= now):
            shutil.rmtree(path, ignore_errors=True)
        self._leaving = [each for each in self._leaving if each[0] > now]
        return self._leaving[0][0] - now if self._leaving else None


def _compress(paths: list[Path]) -> None:
    for path in paths:
        cri_log.compress(path)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


@dataclass(slots=True)
class Streams:
    """The writing ends of a container's streams, to be given to its process and closed here."""

    out: int
    err: int
    ended: asyncio.Event
    """All that was written is in the file."""

    def close(self) -> None:
        """Close the caller's ends: they end with the processes that hold them."""
        os.close(self.out)
        os.close(self.err)


class LogKeeper:
    """The kubelet's side."""

    def __init__(self) -> None:
        """Fork the keeper: the caller has one thread, and runs no loop yet."""
        gc.freeze()  # what is imported is never collected: its pages stay shared
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        self._orders = ours
        self._open: dict[int, asyncio.Event] = {}
        self._number = 0

    def attach(self, lost: Callable[[], Any]) -> None:
        """Hear the keeper from the running loop; *lost* is called when it has died."""

        def heard() -> None:
            message = self._orders.recv(_MESSAGE_BYTES)
            if message:
                self._open.pop(int(message)).set()
            else:
                asyncio.get_running_loop().remove_reader(self._orders)
                lost()

        asyncio.get_running_loop().add_reader(self._orders, heard)

    def streams(self, folder: Path, max_bytes: int) -> Streams:
        """Return two pipes whose lines go to the next file of the container's *folder*; raises OSError."""
        self._number += 1
        out_read, out = os.pipe2(os.O_CLOEXEC)
        err_read, err = os.pipe2(os.O_CLOEXEC)
        order = {"number": self._number, "path": str(cri_log.next_file(folder)), "maxBytes": max_bytes}
        try:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [out_read, err_read])
        finally:
            os.close(out_read)
            os.close(err_read)
        return Streams(out, err, self._open.setdefault(self._number, asyncio.Event()))

    @staticmethod
    def plain(folder: Path) -> Streams:
        """Return a file in place of the pipes, without the keeper: a sidecar logs 100 MB a minute in a
        comparison, which counts and empties it, and whose processors it is to leave alone.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / cri_log.PLAIN, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        written = asyncio.Event()
        written.set()
        return Streams(file, os.dup(file), written)

    def gone(self, folder: Path) -> None:
        """Say that the pod of *folder* has ended: its logs go a minute later."""
        with suppress(OSError):
            self._orders.send(json.dumps({"gone": str(folder)}).encode())


def _serve(orders: socket.socket) -> NoReturn:
    try:
        die_with_parent(signal.SIGKILL)
        _Keeper(orders).run()
    except Exception:  # noqa: BLE001 - a forked child must never return into the caller's code
        _log.exception("the node's log keeper")
    finally:
        os._exit(0)
