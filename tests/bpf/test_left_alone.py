"""Where unknown pods are refused: those that are known and outside of the mesh pass, before and after
a restart; and who was refused is told.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.places.place import Place
from nodeagent.redirect import netns
from nodeagent.vocabulary import PodUid
from tests.bpf.conftest import Node, growth, in_use
from tests.bpf.test_plane import _answer
from tests.bpf.world import Pod, Stage, serve

PORT = 8600
PLAIN = PodUid("plain")


@pytest.fixture(scope="module")
def _denying() -> Iterator[Node]:
    node = Node(Stage.make(), unknownPods="deny")
    yield node
    node.remove()


@pytest.fixture
def denying(_denying: Node, b: Pod) -> Iterator[Node]:
    """A node that denies pods it does not know, and somebody to dial."""
    with in_use(_denying) as node:
        for every in ("0.0.0.0", "::"):
            node.stage.start(b, serve, every, PORT).receive()
        yield node
        node.plane.left_alone.dismiss(node.plane.left_alone.known())


def admit(node: Node, **pods: Path) -> list[str]:
    return node.plane.left_alone.admit({PodUid(uid): Place(str(path), "") for uid, path in pods.items()})


@pytest.mark.parametrize("kind", ["4", "6", "mapped"])
def test_who_is_known_to_be_outside_passes(denying: Node, a: Pod, b: Pod, kind: str) -> None:
    counted = growth(denying)
    assert _answer(denying, a, b.address(kind), PORT) == b"EPERM"
    assert admit(denying, plain=a.path) == []
    assert _answer(denying, a, b.address(kind), PORT).startswith(b"app ")
    assert counted() == {"outbound_unknown_denied": 1, "outbound_left_alone": 1}
    assert denying.plane.verify_node() == []
    denying.plane.left_alone.dismiss([PLAIN])
    assert _answer(denying, a, b.address(kind), PORT) == b"EPERM"


def test_no_moment_between_the_mesh_and_outside_of_it(denying: Node, a: Pod, b: Pod) -> None:
    """Input: a pod is captured, released and captured again, in the order in which control does it.
    Verdict: it is never unknown, and while it is captured nothing says that it is left alone.
    """
    denying.enroll(a, PLAIN)
    denying.plane.stop_beating()
    assert admit(denying, plain=a.path) == []
    assert _answer(denying, a, b.ipv4, PORT) == b"app 1"
    denying.plane.release(PLAIN)
    assert _answer(denying, a, b.ipv4, PORT) == b"app 1"
    denying.enroll(a, PLAIN, protected=True)
    assert denying.plane.left_alone.known() == frozenset()
    assert denying.plane.verify_node() == []
    assert _answer(denying, a, b.ipv4, PORT) == b"EPERM"
    denying.plane.release(PLAIN)
    counted = growth(denying)
    assert _answer(denying, a, b.ipv4, PORT) == b"EPERM"
    assert counted() == {"outbound_unknown_denied": 1}, "nobody has said that it is outside"


def test_a_pod_that_shall_be_captured_and_cannot_is_not_left_alone(denying: Node, a: Pod, b: Pod) -> None:
    assert admit(denying, plain=a.path) == []
    thief = denying.stage.start(a, serve, "127.0.0.1", 15006)
    thief.receive()
    with pytest.raises(Exception, match="listens on port 15006"):
        denying.enroll(a, PLAIN, protected=True)
    assert _answer(denying, a, b.ipv4, PORT) == b"EPERM"


def test_a_new_sandbox_of_the_same_pod(denying: Node, a: Pod, b: Pod) -> None:
    before = netns.create()
    try:
        admit(denying, plain=Path(f"/proc/{os.getpid()}/fd/{before}"))
        admit(denying, plain=a.path)
        assert _answer(denying, a, b.ipv4, PORT) == b"app 1"
        assert denying.plane.verify_node() == [], "nothing is left of the old one"
    finally:
        os.close(before)


def test_what_cannot_be_entered_is_named_and_keeps_no_other_out(denying: Node, a: Pod, b: Pod) -> None:
    wrong = admit(denying, gone=Path("/proc/self/ns/nothing"), plain=a.path)
    assert len(wrong) == 1
    assert wrong[0].startswith("pod gone cannot be told from an unknown one: /proc/self/ns/nothing: the network")
    assert _answer(denying, a, b.ipv4, PORT) == b"app 1"


def test_a_place_that_is_another_pods_by_now_opens_nothing_to_that_one(denying: Node, a: Pod, b: Pod) -> None:
    file = b.path.stat()
    known = denying.plane.left_alone
    (wrong,) = known.admit({PLAIN: Place(str(a.path), "", network=(file.st_dev, file.st_ino))})
    assert "another network namespace by now" in wrong
    assert dict(denying.plane._maps["left_alone"].items()) == {}


def test_the_check_repairs(denying: Node, a: Pod, b: Pod) -> None:
    admit(denying, plain=a.path)
    one = denying.plane._maps["left_alone"]
    mine, alien = struct.pack("=Q", netns.cookie_at(a.path)), struct.pack("=Q", 1 << 60)
    one.drop(mine)
    one.put(alien, struct.pack("=I", 1))
    assert denying.plane.verify_node() == denying.plane.repair_node()
    assert dict(one.items()) == {mine: struct.pack("=I", 1)}
    assert denying.plane.verify_node() == []
    assert _answer(denying, a, b.ipv4, PORT) == b"app 1"


def test_it_outlives_the_daemon_and_is_removed_with_the_pod(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    node = make_node(unknownPods="deny")
    node.stage.start(b, serve, "0.0.0.0", PORT).receive()
    admit(node, plain=a.path, other=b.path)
    node.plane.close()
    assert _answer(node, a, b.ipv4, PORT) == b"app 1"
    node.plane = node.load(maps={"pods": 2048})
    assert _answer(node, a, b.ipv4, PORT) == b"app 1", "before anybody is classified anew, and in another map"
    assert node.plane.verify_node() == []
    admit(node, plain=a.path)
    assert node.plane.prune() == ["an entry of left_alone"]
    assert node.plane.verify_node() == []
    assert _answer(node, a, b.ipv4, PORT) == b"app 1"


def test_a_full_map_refuses_and_is_named(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    node = make_node(unknownPods="deny", maps={"pods": 1})
    node.stage.start(b, serve, "0.0.0.0", PORT).receive()
    wrong = node.plane.left_alone.admit({PodUid("other"): Place(str(b.path), ""), PLAIN: Place(str(a.path), "")})
    (words,) = wrong
    assert words.startswith("pod plain cannot be told from an unknown one: the BPF map left_alone is full (1 entries):")
    assert words.endswith("raise redirect.maps.pods")
    assert node.plane.statistics().maps["left_alone"] == (1, 1)
    assert _answer(node, a, b.ipv4, PORT) == errno.errorcode[errno.EPERM].encode()


def test_who_was_refused_is_told(denying: Node, a: Pod, b: Pod) -> None:
    before = {denial.cookie: denial.refused for denial in denying.plane.denials()}
    cookie = netns.cookie_at(a.path)
    for _ in range(3):
        assert _answer(denying, a, b.ipv4, PORT) == b"EPERM"
    (told,) = [denial for denial in denying.plane.denials() if denial.cookie == cookie]
    assert told.refused - before.get(cookie, 0) == 3
    assert told.uid is None
    assert denying.plane.cgroup_names([told.cgroup]) == {told.cgroup: "pod"}
    assert denying.plane.cgroup_names([1 << 60]) == {}
    admit(denying, plain=a.path)
    assert [denial.uid for denial in denying.plane.denials() if denial.cookie == cookie] == [PLAIN]
    denying.enroll(a, "captured")
    assert [denial.uid for denial in denying.plane.denials() if denial.cookie == cookie] == ["captured"]
