"""The socket bypass: whose sockets are joined, what bounds it, what keeps the order, and what
joined sockets may not do.
"""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path as File

import pytest

from nodeagent.errors import KernelError
from nodeagent.mesh.kernel_plan import ALLOWED
from nodeagent.redirect import bypass, hooks, transparency
from tests.bpf.conftest import Node
from tests.bpf.test_kernel_path import KINDS, B, Path, path  # noqa: F401  (a fixture)
from tests.bpf.world import Pod, connected
from tests.waiting import eventually

PORT = 8319
SO_RCVBUF_OF_A_PAGE = 8192
"""Bytes of an option's value that do not fit into a page, of which the kernel reads an int."""
TCP_ULP = 31


def _listener(kind: str) -> socket.socket:
    return (
        socket.create_server(("::", PORT), family=socket.AF_INET6)
        if kind == "6"
        else socket.create_server(("0.0.0.0", PORT))
    )


# -- whose sockets are joined --


def test_the_trials_find_nothing_in_sockets_that_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: every trial with TCP alone, which is what each compares with, by a process that holds
    many descriptors. Verdict: nothing differs.
    """
    monkeypatch.setattr(transparency.JoinablePair, "join", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [os.dup(0)]
    try:
        while held[-1] < 1024:  # FD_SETSIZE
            held.append(os.dup(0))
        assert transparency.differences() == []
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("joined", "said"), [(True, "MSG_WAITALL does not wait for all"), (False, "")])
def test_whether_all_is_waited_for_shows_where_no_unread_bytes_are_counted(
    monkeypatch: pytest.MonkeyPatch, joined: bool, said: str
) -> None:
    """Input: as Linux 5.10 counts, none; a thread that is late to receive. Verdict: what it receives is no accident."""
    monkeypatch.setattr(transparency.JoinablePair, "unread", lambda _: 0)
    monkeypatch.setattr(transparency, "_PATIENCE_SECONDS", 60.0)
    both_sent = threading.Event()
    sendall, recv, parts = socket.socket.sendall, socket.socket.recv, []

    def send(one: socket.socket, part: bytes) -> None:
        sendall(one, part)
        parts.append(part)
        if len(parts) == 2:
            both_sent.set()

    def receive(one: socket.socket, *arguments: int) -> bytes:
        both_sent.wait(0.3)
        return recv(one, *arguments)

    with transparency.pair() as pair:
        if not joined:
            monkeypatch.setattr(transparency.JoinablePair, "join", lambda *_: None)
        monkeypatch.setattr(socket.socket, "sendall", send)
        monkeypatch.setattr(socket.socket, "recv", receive)
        assert transparency._wait_for_all(pair) == said


@pytest.mark.parametrize("trial", transparency.TRIALS)
def test_a_trial_ends_on_joined_sockets(trial: Callable[[transparency.JoinablePair], str]) -> None:
    """Input: each trial on this kernel, whatever it does. Verdict: it comes to an end, in words of one line or none."""
    with transparency.pair() as pair:
        said = trial(pair)
    assert len(said) < 100 and "\n" not in said


REFUSALS = {
    "unread bytes are not counted": (
        "asked",
        "struct_places",
        KernelError("no such thing"),
        "it cannot be had on this kernel: no such thing",
    ),
    "an application could tell": (
        "proven",
        "differences",
        ["FIONREAD lies"],
        "applications could tell on this kernel: FIONREAD lies",
    ),
    "it cannot be tried": (
        "proven",
        "differences",
        OSError(errno.EMFILE, "too many"),
        "it cannot be had on this kernel: [Errno 24] too many",
    ),
    "asked for all the same": ("asked", "differences", ["FIONREAD lies"], ""),
    "no application can tell": ("proven", "differences", [], ""),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_who_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    setting, tried, outcome, refusal = REFUSALS[case]
    monkeypatch.setattr(transparency if tried == "differences" else bypass, tried, _giving(outcome))
    found = bypass.joining(setting)  # type: ignore[arg-type]
    assert found.refusal.startswith(refusal) and bool(found.refusal) == bool(refusal)
    assert bool(found.unread and found.written) == (not refusal)


def _giving(outcome: list[str] | Exception) -> Callable[[], list[str]]:
    def give() -> list[str]:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return give


def test_where_it_is_refused_nothing_is_joined(
    make_node: Callable[..., Node], a: Pod, b: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: pods that ask for the bypass on a kernel where applications could tell; before, the
    node took their word. Verdict: their connections go by TCP, and nothing else runs for them any
    more.
    """
    monkeypatch.setattr(transparency, "differences", lambda: ["FIONREAD lies"])
    node = make_node(bypass="asked")
    link = node.pin_directory / "links" / hooks.SETSOCKOPT.name
    assert link.exists() and node.plane.verify_node() == []
    node.plane.close()
    node.plane = node.load(bypass="proven")
    pods = Path(node, a, b)
    node.enroll(b, B, protected=True, bypass=True)
    server = node.stage.start(b, _read_late, "4")
    server.receive()
    pods.put(ALLOWED, PORT, bypass=True)
    client = node.stage.start(a, _flood, b.ipv4)
    assert client.receive() == "full"
    assert node.plane.bypassed() == {}
    assert not link.exists() and node.plane.verify_node() == []
    server.send("read")
    assert server.receive() == (client.receive() + 1_000_000) // 4


# -- what bounds it, and the order --


def _flood(pipe: Connection, address: str) -> int:
    """Send numbered words until nobody takes more, at most 32 MB; then a megabyte in peace. Return
    how many bytes were taken in the rush.
    """
    words = memoryview(array.array("I", range(8 << 20))).cast("B")
    with connected(address, PORT) as connection:
        connection.setblocking(False)
        taken = 0
        try:
            while taken < len(words):
                taken += connection.send(words[taken : taken + 10_000])
        except BlockingIOError:
            pipe.send("full")
        connection.settimeout(60)
        connection.sendall(words[taken : taken + 1_000_000 - taken % 4])
        return taken


def _read_late(pipe: Connection, kind: str) -> int:
    """Read when told to; return how many words came in their order, -1: one did not."""
    with _listener(kind) as listener:
        pipe.send("ready")
        connection, _ = listener.accept()
        with connection:
            pipe.recv()
            words = array.array("I", _read_all(connection))
    return len(words) if words == array.array("I", range(len(words))) else -1


def _read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(1 << 20):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_that_does_not_read_is_not_flooded(path: Path, kind: str) -> None:  # noqa: F811
    """Input: a sender past TCP that is never told to wait. Verdict: it is, by TCP, when much is
    unread; the bytes keep their order.
    """
    server = path.node.stage.start(path.b, _read_late, kind)
    server.receive()
    path.put(ALLOWED, PORT, bypass=True)
    client = path.node.stage.start(path.a, _flood, path.b.address(kind))
    assert client.receive() == "full"
    (sent,) = [stream for stream in path.node.plane.bypassed().values() if stream.way != "undecided"]
    assert sent.way == "tcp"
    assert 256 << 10 <= sent.sent_bytes < 1 << 20
    server.send("read")
    taken = client.receive()
    assert server.receive() == (taken + 1_000_000 - taken % 4) // 4


def _accept_late(pipe: Connection, kind: str) -> bytes:
    """Listen with room for one connection, and take it and the next one when told to; read the
    second one when told to.
    """
    with _listener(kind) as listener:
        listener.listen(0)
        pipe.send("ready")
        pipe.recv()
        with listener.accept()[0]:
            connection, _ = listener.accept()
        with connection:
            pipe.recv()
            return _read_all(connection)


def _send_while_connecting(pipe: Connection, address: str) -> int:
    """Fill the listener's backlog; a thread sends on a connection that is not made yet, and then this one does."""
    with connected(address, PORT), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((address, PORT)) == errno.EINPROGRESS
        connection.setblocking(True)
        first = threading.Thread(target=connection.sendall, args=(b"first",))
        first.start()
        eventually(lambda: _asleep(first, connection))
        pipe.send("waiting")
        first.join()
        connection.sendall(b" second")
        return connection.send(b" third")


def _asleep(thread: threading.Thread, connection: socket.socket) -> bool:
    """Its system call's first argument is the connection."""
    return File(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[1:2] == [hex(connection.fileno())]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_while_connecting_comes_first(path: Path, kind: str) -> None:  # noqa: F811
    """Input: a thread waits in send() as the connection is joined, so that its bytes go by TCP;
    another sends after it. Verdict: in that order.
    """
    server = path.node.stage.start(path.b, _accept_late, kind)
    server.receive()
    path.put(ALLOWED, PORT, bypass=True)
    client = path.node.stage.start(path.a, _send_while_connecting, path.b.address(kind))
    assert client.receive() == "waiting"
    server.send("accept")
    assert client.receive() == len(b" third")
    server.send("read")
    assert server.receive() == b"first second third"


# -- what joined sockets may not do --


def _set_options(pipe: Connection, address: str) -> tuple[int, int]:
    """Return the errors of giving the socket to kTLS, and of an option with a long value."""
    with connected(address, PORT) as connection:
        pipe.send("connected")
        pipe.recv()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            error = 0
        except OSError as refused:
            error = refused.errno or 0
        long_value = (1 << 16).to_bytes(4, sys.byteorder) + bytes(SO_RCVBUF_OF_A_PAGE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, long_value)
        return error, connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("joined", [True, False])
def test_a_joined_socket_gets_no_upper_layer_protocol(path: Path, kind: str, joined: bool) -> None:  # noqa: F811
    """Input: TCP_ULP on a connection. Verdict: a joined one is refused it; any other gets the
    kernel's own answer. Other options are as ever.
    """
    server = path.node.stage.start(path.b, _read_late, kind)
    server.receive()
    path.put(ALLOWED, PORT, bypass=joined)
    client = path.node.stage.start(path.a, _set_options, path.b.address(kind))
    assert client.receive() == "connected"
    client.send("go")
    error, buffer = client.receive()
    assert (error == errno.EPERM) == joined
    assert buffer == 2 << 16
