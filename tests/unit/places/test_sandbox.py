"""What is made of a runtime's verbose status, in each runtime's shape, and of what none would say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.places import sandbox
from nodeagent.places.place import Place
from nodeagent.places.sandbox import (
    MAX_INFO,
    Listed,
    SandboxError,
    SandboxGone,
    SandboxReader,
    SandboxReport,
    addresses,
)
from nodeagent.vocabulary import PodUid
from tests.fakes.cri import containerd_info, crio_info

LISTED = Listed("5af1", PodUid("u-1"), "default", "web", 0, 1)
PID = 4711
PATH = "/kubepods/burstable/podu-1/5af1"


class Node:
    """A node's procfs and cgroups, as far as they are looked at: a process PID with a namespace of its own."""

    def __init__(self, path: Path) -> None:
        self.root = path / "kubepods"
        self.cgroup = self.root / "burstable" / "podu-1"
        self.cgroup.mkdir(parents=True)
        self.proc = path / "proc"
        for who in ("self", str(PID), "1"):
            (self.proc / who / "ns").mkdir(parents=True)
        (self.proc / "self/ns/net").touch()
        (self.proc / str(PID) / "ns/net").touch()
        (self.proc / "1/ns/net").hardlink_to(self.proc / "self/ns/net")

    def read(self, info: str, listed: Listed = LISTED) -> Place:
        report = SandboxReport(("10.0.0.5",), False, info)
        return SandboxReader(self.root, self.proc).read(listed, report).place

    @property
    def place(self) -> Place:
        path = self.proc / str(PID) / "ns/net"
        file = path.stat()
        return Place(str(path), str(self.cgroup), "5af1", (file.st_dev, file.st_ino))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("shape", [containerd_info, crio_info])
def test_a_place_by_the_process_where_no_path_is_said_or_seen(node: Node, shape: Callable[..., str]) -> None:
    for netns in ("", "/run/netns/not-mounted-here"):
        assert node.read(shape(netns, PATH, PID)) == node.place


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("{}", "neither its network namespace nor its process"),
        ("", "neither its network namespace nor its process"),
        ("[]", "neither its network namespace nor its process"),
        ("{", "no JSON"),
        (" " * (MAX_INFO + 1), "at most"),
        ('{"pid": "4711"}', "neither"),
        ('{"pid": -1}', "neither"),
        ('{"pid": true}', "cannot be seen from here"),
        ('{"pid": 99}', "cannot be seen from here: mount the folder"),
        ('{"pid": 1}', "is the node's own network namespace"),
        ('{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/etc/passwd"}]}}}', "below /run"),
        ('{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/../etc/x"}]}}}', "below /run"),
        ('{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/a\\nb"}]}}}', "below /run"),
        ('{"runtimeSpec": {"linux": {"namespaces": {"type": "network"}}}}', "neither"),
        ('{"runtimeSpec": {"linux": {"namespaces": [7, {"type": "network", "path": 7}]}}}', "neither"),
        ('{"runtimeSpec": {"linux": 3}}', "neither"),
    ],
)
def test_what_is_no_place_is_refused_in_words(node: Node, info: str, words: str) -> None:
    with pytest.raises(SandboxError, match=words):
        node.read(info)


def test_a_file_that_is_no_namespace_here_is_not_entered(node: Node) -> None:
    """Input: a folder of namespaces that is mounted without its mounts: each is an empty file there."""
    info = json.loads(containerd_info("/proc/1/ns/net", PATH, PID))
    assert node.read(json.dumps(info)) == node.place, "of another filesystem than this process's namespace"


def test_of_a_sandbox_that_has_ended_what_is_left_says_where_it_was(node: Node) -> None:
    """Input: its process is gone, and its number another one's by now. Verdict: the namespace is that of the pod's
    processes if they are in one together; where there is none it is gone; in several, in the node's, or where they are
    not seen: it is not known.
    """

    def left(*processes: str) -> str:
        (node.cgroup / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
        report = SandboxReport((), False, containerd_info(f"/proc/{PID}/ns/net", PATH, PID), ready=False)
        return SandboxReader(node.root, node.proc).read(LISTED, report).place.netns

    for pid in ("21", "22", "23"):
        (node.proc / pid / "ns").mkdir(parents=True)
    (node.proc / "21/ns/net").touch()
    (node.proc / "22/ns/net").hardlink_to(node.proc / "21/ns/net")
    (node.proc / "23/ns/net").touch()
    assert left("21", "22", "99") in (f"{node.proc}/21/ns/net", f"{node.proc}/22/ns/net")
    for processes in ((), ("99",)):
        with pytest.raises(SandboxGone):
            left(*processes)
    several = (("21", "23"), "in 2 network namespaces")
    for processes, words in (several, (("21", "1"), "the node's own"), (("1",), "the node's own"), (("0",), "hostPID")):
        with pytest.raises(SandboxError, match=f"has ended, .*{words}") as raised:
            left(*processes)
        assert not isinstance(raised.value, SandboxGone)
    (node.cgroup / "cgroup.procs").unlink()
    node.cgroup.rmdir()
    with pytest.raises(SandboxGone, match="cgroup is gone"):
        SandboxReader(node.root, node.proc).read(LISTED, SandboxReport((), False, "{}", ready=False))


def test_a_number_that_was_left_to_another_pods_process_says_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: one of two processes ends while it is looked at, and its number is another pod's before its namespace is
    asked for. Verdict: the pod is where the other one is, and gone where that has ended too.
    """
    for pid in ("21", "22"):
        (node.proc / pid / "ns").mkdir(parents=True)
        (node.proc / pid / "ns/net").touch()
    report = SandboxReport((), False, containerd_info("", PATH), ready=False)
    own = (node.proc / "21/ns/net").stat()
    for after in ([21], []):
        lists = iter(([21, 22], after))
        monkeypatch.setattr(sandbox, "processes", lambda _, lists=lists: next(lists))
        if not after:
            with pytest.raises(SandboxGone):
                SandboxReader(node.root, node.proc).read(LISTED, report)
            return
        place = SandboxReader(node.root, node.proc).read(LISTED, report).place
        assert (place.netns, place.network) == (f"{node.proc}/21/ns/net", (own.st_dev, own.st_ino))


def test_a_cgroup_that_is_not_captured_is_named(node: Node) -> None:
    with pytest.raises(SandboxError, match=r"not below .*kubepods.*'/system.slice/5af1'; see redirect\.cgroup"):
        node.read(containerd_info("", "/system.slice/5af1", PID), Listed("5af1", PodUid("u-2"), "default", "web", 0, 1))


def test_addresses_are_those_that_a_pod_can_have() -> None:
    said = ("10.0.0.5", "", "127.0.0.1", "fe80::1", "::", "nonsense", "FD00:0::5", "10.0.0.5", "224.0.0.1")
    assert addresses(said) == ("10.0.0.5", "fd00::5")
    assert len(addresses(tuple(f"10.0.1.{number}" for number in range(99)))) == 16
