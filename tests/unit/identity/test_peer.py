"""Who calls on a unix socket: this process is of its own network namespace and cgroup, and of no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.identity import peer
from nodeagent.identity.peer import stranger
from nodeagent.places import cgroups
from nodeagent.places.place import Place
from nodeagent.redirect import netns
from tests.unit.descriptors import open_descriptors

OWN = "/proc/self/ns/net"


TOP = str(cgroups.cgroup2_mounts(cgroups.own_mountinfo())[-1].point)


@pytest.fixture
def own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return TOP + next(line[3:] for line in lines if line.startswith("0::")).rstrip("/")


def caller(place: Place) -> str:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        return stranger(ours, place)


@contextmanager
def elsewhere() -> Iterator[str]:
    """Yield the path of another network namespace's file."""
    made = netns.create()
    try:
        yield f"/proc/{os.getpid()}/fd/{made}"
    finally:
        os.close(made)


def numbered(pid: int, argv: list[str]) -> subprocess.Popen[bytes]:
    """Return *argv* as the process *pid*, which reads its input to the end: other programs may take
    the number first, and end.
    """
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        if process.pid == pid:
            return process
        process.communicate()


def eventually_in(pid: int, namespace: str) -> None:
    """Wait until the process *pid* has entered *namespace*."""
    while os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat(namespace).st_ino:
        os.sched_yield()


def test_a_process_of_the_pod(own_cgroup: str) -> None:
    assert caller(Place(OWN, own_cgroup)) == ""
    assert caller(Place(OWN, str(Path(own_cgroup).parent))) == "", "in a group below the pod's"
    assert caller(Place(OWN, "")) == ""


def test_a_process_of_another_pod(own_cgroup: str) -> None:
    for other in (
        f"{own_cgroup}/below",
        f"{own_cgroup}x",
        own_cgroup[:-1] + "/" if own_cgroup != TOP else "/elsewhere",
    ):
        assert caller(Place(OWN, other)) == "its process is in another cgroup"
    assert "no network any more" in caller(Place("/proc/self/ns/nothing", own_cgroup)), (
        "a pod without a network has no processes"
    )
    with elsewhere() as path:
        assert caller(Place(path, own_cgroup)) == "its socket is of another network namespace"
    file = Path(OWN).stat()
    assert caller(Place(OWN, own_cgroup, network=(file.st_dev, file.st_ino))) == ""
    assert "another network namespace by now" in caller(Place(OWN, own_cgroup, network=(file.st_dev, 1)))


def test_a_number_that_is_a_process_of_the_pod_by_now_helps_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.5: a child connects and dies, its number goes to a process in the victim's
    pod, and the stranger keeps the connection.
    """
    monkeypatch.setattr(peer, "SO_PEERPIDFD", 9999)
    path = str(tmp_path / "socket")
    with elsewhere() as victim, socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as kept:
        listener.bind(path)
        listener.listen()
        child = subprocess.Popen(
            [sys.executable, "-c", f"import socket; socket.socket(fileno={kept.fileno()}).connect({path!r})"],
            pass_fds=[kept.fileno()],
        )
        assert child.wait() == 0
        connection, _ = listener.accept()
        with connection, numbered(child.pid, ["nsenter", f"--net={victim}", "cat"]) as reborn:
            eventually_in(reborn.pid, victim)
            assert stranger(connection, Place(victim, "")) == "its socket is of another network namespace"
            assert stranger(connection, Place(OWN, "")) != "", "and the process is none of the pod whose socket it was"


def test_a_process_that_has_died_is_nobody(tmp_path: Path, own_cgroup: str) -> None:
    """Its number may be another's by now."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        subprocess.run(
            [sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"], check=True
        )
        connection, _ = listener.accept()
        with connection:
            assert stranger(connection, Place(OWN, own_cgroup)).startswith("its process is gone")


def test_before_linux_6_5_too(monkeypatch: pytest.MonkeyPatch, own_cgroup: str) -> None:
    monkeypatch.setattr(peer, "SO_PEERPIDFD", 9999)
    assert caller(Place(OWN, own_cgroup)) == ""


def test_no_descriptor_is_left(own_cgroup: str) -> None:
    before = open_descriptors()
    for place in (Place(OWN, own_cgroup), Place("/nothing", "")):
        caller(place)
    assert open_descriptors() == before
