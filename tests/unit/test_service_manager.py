"""What a service manager hears of the daemon: the real protocol, at a socket of the test's own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.service_manager import NOTIFY_SOCKET, WATCHDOG_SECONDS, ServiceManager
from tests.unit.test_supervisor import ended, read_until, supervised

CARRYING = """
    def control(end, pulse):
        read(end, Begin)
        fork(end)
        beat(end)
        signal.pause()
"""
MUTE = """
    def worker(end, pulse):
        time.sleep(60)

    def control(end, pulse):
        read(end, Begin)
        fork(end)
        beat(end)
        print("begun", flush=True)
        signal.pause()
"""


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address)
        end.settimeout(60)
        yield end


def heard(end: socket.socket) -> list[str]:
    """Return the lines of the next message."""
    return end.recv(4096).decode().splitlines()


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@nodeagent-test-{os.getpid()}"


def test_ready_is_told_once_and_life_as_often_as_it_is_asked_for(address: str) -> None:
    with listening(address.replace("@", "\0")) as end:
        manager = ServiceManager(address)
        for now in (1000.0, 1001.0, 1000.0 + WATCHDOG_SECONDS):
            manager.beaten(now)
        manager.stopping()
        assert heard(end)[:2] == [f"MAINPID={os.getpid()}", "READY=1"]
        assert [heard(end)[0] for _ in range(3)] == ["WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)


def test_nobody_waits_and_nothing_is_wrong() -> None:
    for manager in (ServiceManager(), ServiceManager("/nowhere/at/all")):
        manager.beaten(1.0)
        manager.stopping()


def test_who_began_it_in_the_background_is_released_by_the_first_beat() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as waiting:
        manager = ServiceManager(waiting=writing)
        manager.beaten(1.0)
        manager.beaten(2.0)
        assert waiting.read() == b"\n"  # to its end: nobody has the other one any more


def test_the_address_is_no_childs_to_use() -> None:
    environment = {NOTIFY_SOCKET: "/run/notify", "PATH": "/bin"}
    ServiceManager.of(environment)
    assert environment == {"PATH": "/bin"}


def test_a_daemon_says_when_it_carries_pods_and_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv(NOTIFY_SOCKET, address)
    with listening(address) as end, supervised(CARRYING) as running:
        assert heard(end)[:2] == [f"MAINPID={running.pid}", "READY=1"]
        assert heard(end) == ["WATCHDOG=1"]
        running.send_signal(signal.SIGTERM)
        assert heard(end)[0] == "STOPPING=1"
        ended(running)


def test_a_daemon_of_which_no_worker_turns_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv(NOTIFY_SOCKET, address)
    with listening(address) as end, supervised(MUTE) as running:
        read_until(running, b"begun")
        running.send_signal(signal.SIGTERM)
        assert heard(end)[0] == "STOPPING=1"
        ended(running)
