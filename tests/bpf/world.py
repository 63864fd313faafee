"""Pods for the tests of the BPF programs: network namespaces joined by a veth, cgroups, and
processes inside both.

Namespaces have no names and live as long as this process holds them, so that a crash leaves none
behind.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nodeagent.redirect import netns, syscall
from nodeagent.redirect.original import OriginalDestinations
from nodeagent.redirect.pod import Listeners
from tests.apps import uring
from tests.waiting import DEADLINE, eventually

_fork = multiprocessing.get_context("fork")
_numbers = itertools.count()


def cgroup2() -> Path:
    """Where the cgroup2 hierarchy is mounted."""
    return next(
        Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )


def ip(fd: int, arguments: str) -> None:
    """Run ip(8) inside a network namespace."""
    with netns.inside(fd):
        subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


@dataclass
class Pod:
    """A network namespace with an IPv4 and an IPv6 address."""

    fd: int
    ipv4: str
    ipv6: str

    @property
    def path(self) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6

    def address(self, kind: str) -> str:
        """The address as an app of that kind dials it: "4", "6" or "mapped"."""
        return {"4": self.ipv4, "6": self.ipv6, "mapped": f"::ffff:{self.ipv4}"}[kind]


def pair() -> tuple[Pod, Pod]:
    """Two pods on one wire."""
    a, b = (Pod(netns.create(), f"10.77.0.{n}", f"fd77::{n}") for n in (1, 2))
    ip(a.fd, f"link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{b.fd}")
    for pod in (a, b):
        ip(pod.fd, "link set eth0 up")
        ip(pod.fd, f"addr add {pod.ipv4}/24 dev eth0")
        ip(pod.fd, f"addr add {pod.ipv6}/64 dev eth0 nodad")
    return a, b


class Child:
    """A process of a pod. Its function gets a pipe first; what it returns, or the OSError it raises, is the result."""

    def __init__(self, cgroup: Path, fd: int | None, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, theirs = _fork.Pipe()
        self.process = _fork.Process(target=_enter, args=(cgroup, fd, theirs, function, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, seconds: float = 60) -> Any:
        """What the function sends or returns; raises what it raised."""
        assert self.pipe.poll(seconds), "the process in the pod said nothing"
        said = self.pipe.recv()
        if isinstance(said, OSError):
            raise said
        return said

    def send(self, what: Any) -> None:
        self.pipe.send(what)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _enter(
    cgroup: Path, fd: int | None, pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if fd is not None:
        syscall.setns(fd)
    try:
        pipe.send(function(pipe, *arguments))
    except OSError as error:
        pipe.send(error)


@dataclass
class Stage:
    """A captured cgroup and the processes in it. ``leave`` removes everything."""

    cgroup: Path
    children: list[Child] = field(default_factory=list)
    above: Path | None = None

    @classmethod
    def below(cls) -> Stage:
        """Make one below a cgroup of its own, to which others may attach programs."""
        above = cgroup2() / f"nodeagent-test-{os.getpid()}-{next(_numbers)}"
        made = cls.make(above / "pods")
        made.above = above
        return made

    @classmethod
    def make(cls, cgroup: Path | None = None) -> Stage:
        cgroup = cgroup or cgroup2() / f"nodeagent-test-{os.getpid()}-{next(_numbers)}"
        (cgroup / "pod").mkdir(parents=True)
        (cgroup / "agent" / "below").mkdir(parents=True)
        return cls(cgroup)

    def start(self, pod: Pod | None, function: Callable[..., Any], *arguments: Any, cgroup: str = "pod") -> Child:
        """Run *function* in a process of *pod* (None: in this network namespace)."""
        child = Child(self.cgroup / cgroup, pod.fd if pod else None, function, *arguments)
        self.children.append(child)
        return child

    def run(self, pod: Pod | None, function: Callable[..., Any], *arguments: Any, cgroup: str = "pod") -> Any:
        return self.start(pod, function, *arguments, cgroup=cgroup).receive()

    def stop(self) -> None:
        for child in self.children:
            child.stop()
        self.children.clear()

    def leave(self) -> None:
        self.stop()
        for directory in ("agent/below", "agent", "pod", ""):
            _rmdir(self.cgroup / directory)
        if self.above is not None:
            _rmdir(self.above)


def _rmdir(directory: Path) -> None:
    """A killed process leaves its cgroup a moment later."""

    def removed() -> bool:
        with contextlib.suppress(OSError):
            directory.rmdir()
        return not directory.exists()

    eventually(removed, f"{directory} is removed")


# What processes in pods do.


@dataclass(frozen=True)
class Seen:
    """A connection as its client sees it."""

    peer: tuple[str, int]
    name: tuple[str, int]
    data: bytes


def connected(address: str, port: int, seconds: float = DEADLINE) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    connection.connect((address, port))
    return connection


def dial(_pipe: Connection, address: str, port: int) -> Seen:
    """Connect, read to the end."""
    with connected(address, port) as connection:
        peer, name = connection.getpeername()[:2], connection.getsockname()[:2]
        return Seen(peer, name, connection.recv(100))


def dial_by_ring(_pipe: Connection, address: str, port: int, polled: bool) -> Seen:
    """As :func:`dial`, the connection being made by io_uring; *polled*: by a thread of the kernel."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as connection:
        uring.connect(connection, address, port, polled=polled)
        connection.settimeout(60)
        peer, name = connection.getpeername()[:2], connection.getsockname()[:2]
        return Seen(peer, name, connection.recv(100))


def serve(pipe: Connection, address: str, port: int) -> None:
    """Answer every connection with b"app <its own address>"."""
    with socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as listener:
        pipe.send("ready")
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(f"app {connection.getsockname()[0]}".encode())


def hold(pipe: Connection, address: str, port: int) -> None:
    """Connect, then exchange whatever bytes the test sends down the pipe."""
    with connected(address, port) as connection:
        pipe.send("connected")
        while data := pipe.recv():
            connection.sendall(data)
            pipe.send((connection.recv(100), connection.getpeername()[:2]))


def keep_dialling(pipe: Connection, address: str, port: int) -> list[bytes]:
    """Connect again and again until told to stop; return what each connection was answered.

    Between two of them is a millisecond, in which the programs are compiled that the test loads.
    """
    answers = []
    while not pipe.poll(0.001):
        try:
            answers.append(dial(pipe, address, port).data)
        except OSError as error:
            answers.append(repr(error).encode())
    return answers


# The daemon's side.


def accept(listener: socket.socket, seconds: float = DEADLINE) -> socket.socket:
    listener.settimeout(seconds)
    connection, _ = listener.accept()
    connection.setblocking(True)
    return connection


def take(destinations: OriginalDestinations, connection: socket.socket) -> tuple[str, int] | None:
    address, port = connection.getpeername()[:2]
    found = destinations.take(netns.cookie_of(connection), address, port)
    assert found is None or found.chosen is None
    return (found.address, found.port) if found else None


@contextlib.contextmanager
def answering(listeners: Listeners, answer: bytes) -> Iterator[None]:
    """Answer every connection to any of the listeners, in threads, until the end of the block."""
    stop = threading.Event()

    def loop(listener: socket.socket) -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer)

    threads = [threading.Thread(target=loop, args=(listener.dup(),)) for listener in listeners.fds.values()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
