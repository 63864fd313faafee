"""Who calls on a unix socket: this process is of its own network namespace and cgroup, and of no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.identity import peer
from nodeagent.identity.peer import PodPlace, stranger

OWN = "/proc/self/ns/net"


@pytest.fixture
def own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return peer._hierarchy() + next(line[3:] for line in lines if line.startswith("0::")).rstrip("/")


def caller(place: PodPlace) -> str:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        return stranger(ours, place)


def test_a_process_of_the_pod(own_cgroup: str) -> None:
    assert caller(PodPlace(OWN, own_cgroup)) == ""
    assert caller(PodPlace(OWN, str(Path(own_cgroup).parent))) == "", "in a group below the pod's"
    assert caller(PodPlace(OWN, "")) == ""


def test_a_process_of_another_pod(own_cgroup: str) -> None:
    for other in (f"{own_cgroup}/below", f"{own_cgroup}x", own_cgroup[:-1] + "/" if own_cgroup != peer._hierarchy() else "/elsewhere"):
        assert caller(PodPlace(OWN, other)) == "its process is in another cgroup"
    assert caller(PodPlace("/proc/self/ns/mnt", own_cgroup)) == "its process is in another network namespace"
    assert "gone" in caller(PodPlace("/proc/self/ns/nothing", own_cgroup)), "a pod without a network has no processes"


def test_a_process_that_has_died_is_nobody(tmp_path: Path, own_cgroup: str) -> None:
    """Its number may be another's by now."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        subprocess.run([sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"], check=True)
        connection, _ = listener.accept()
        with connection:
            assert stranger(connection, PodPlace(OWN, own_cgroup)).startswith("its process is gone")


def test_before_linux_6_5_too(monkeypatch: pytest.MonkeyPatch, own_cgroup: str) -> None:
    monkeypatch.setattr(peer, "SO_PEERPIDFD", 9999)
    assert caller(PodPlace(OWN, own_cgroup)) == ""


def test_no_descriptor_is_left(own_cgroup: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for place in (PodPlace(OWN, own_cgroup), PodPlace("/nothing", "")):
        caller(place)
    assert len(os.listdir("/proc/self/fd")) == before
