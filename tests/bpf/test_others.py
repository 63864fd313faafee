"""Another eBPF agent at connect(), as Cilium's socket load balancer is: what works beside it, in which
order, and what is said of it.

The other one here makes an endpoint's address of a ClusterIP, as that load balancer does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.redirect import hooks, syscall
from tests.bpf.conftest import Node
from tests.bpf.test_plane import _answer
from tests.bpf.world import Pod, Stage, accept, dial, serve, take
from tests.waiting import eventually

VIP = "10.96.0.1"
PORT = 8800
CONNECT4 = next(hook for hook in hooks.CGROUP_HOOKS if hook.name == "connect4")
ALLOW_OVERRIDE, PREORDER = 1, 64


def _load_balancer(endpoint: str) -> int:
    """Load the other one's program; return its descriptor.

    Source: include/uapi/linux/bpf.h, struct bpf_insn and bpf_sock_addr (user_ip4 is at byte 4).
    """
    before, after = (struct.unpack("=i", socket.inet_aton(address))[0] for address in (VIP, endpoint))
    instructions = (
        (0x61, 0x12, 4, 0),  # r2 = r1->user_ip4
        (0xB4, 0x03, 0, before),  # w3 = the ClusterIP
        (0x5D, 0x32, 2, 0),  # if r2 != r3 goto the end
        (0xB4, 0x03, 0, after),  # w3 = the endpoint
        (0x63, 0x31, 4, 0),  # r1->user_ip4 = r3
        (0xB7, 0, 0, 1), (0x95, 0, 0, 0),  # return 1
    )  # fmt: skip
    code = b"".join(struct.pack("=BBhi", *one) for one in instructions)
    return syscall.program_load(CONNECT4.program_type, CONNECT4.attach_type, code, "other_lb")


class Other:
    """Somebody else's program on *cgroup*, by a link with *flags*, or without one, *attached* with these."""

    def __init__(self, cgroup: Path, endpoint: str, flags: int = 0, *, attached: int | None = None) -> None:
        self.program = _load_balancer(endpoint)
        self.target = os.open(cgroup, os.O_RDONLY)
        self.link = -1
        if attached is None:
            self.link = syscall.link_create(self.program, self.target, CONNECT4.attach_type, flags)
        else:
            syscall.program_attach(self.program, self.target, CONNECT4.attach_type, attached)

    def ordered(self) -> bool:
        """Whether this kernel can put one program of a cgroup before another."""
        try:
            os.close(syscall.link_create(self.program, self.target, CONNECT4.attach_type, syscall.BEFORE))
        except OSError:
            return False
        return True

    def remove(self) -> None:
        if self.link >= 0:
            os.close(self.link)
        else:
            with contextlib.suppress(OSError):  # the cgroup went first
                syscall.program_detach(self.program, self.target, CONNECT4.attach_type)
        os.close(self.target)
        os.close(self.program)


class Beside:
    """A captured cgroup below one that is nobody's, others at both, and two pods: *a*, enrolled, and what it dials."""

    def __init__(self, a: Pod, b: Pod) -> None:
        self.a, self.b = a, b
        self.stage = Stage.below()
        self.others: list[Other] = []
        self.node: Node | None = None

    def other(self, cgroup: Path, flags: int = 0, *, attached: int | None = None) -> None:
        self.others.append(Other(cgroup, self.b.ipv4, flags, attached=attached))

    def capture(self) -> Node:
        self.node = Node(self.stage)
        self.stage.start(self.b, serve, "0.0.0.0", PORT).receive()
        return self.node

    def dialled(self) -> tuple[str, int] | None:
        """Where the enrolled pod's connection to the ClusterIP wanted to go, as the proxy learns it."""
        assert self.node is not None
        listeners = self.node.enroll(self.a)
        child = self.stage.start(self.a, dial, VIP, PORT)
        with accept(listeners.fds["outbound", 4, 0]) as connection:
            found = take(self.node.destinations, connection)
            connection.sendall(b"proxy")
            assert child.receive().data == b"proxy"
        self.node.plane.release("pod")
        return found

    def unenrolled(self) -> bytes:
        """What a pod outside of the mesh is answered at the ClusterIP."""
        assert self.node is not None
        return _answer(self.node, self.a, VIP, PORT)

    def remove(self) -> None:
        for other in self.others:
            other.remove()
        if self.node is not None:
            self.node.remove()
        else:
            self.stage.leave()


@pytest.fixture
def beside(a: Pod, b: Pod) -> Iterator[Beside]:
    made = Beside(a, b)
    yield made
    made.remove()


def test_one_above_runs_after_ours_and_nothing_is_lost(beside: Beside) -> None:
    """Input: Cilium's place, the root. Verdict: the proxy learns the ClusterIP that was dialled; pods outside of the
    mesh have the other's load balancer.
    """
    beside.other(beside.stage.cgroup.parent)
    node = beside.capture()
    assert beside.dialled() == (VIP, PORT)
    assert beside.unenrolled() == b"app 1"
    assert node.plane.others() == []


def test_one_at_the_pods_cgroup_that_was_there_before_runs_after_ours(beside: Beside) -> None:
    """Verdict: where the kernel has an order (Linux 6.17), ours is first; where it has none, it is said."""
    beside.other(beside.stage.cgroup)
    node = beside.capture()
    if beside.others[0].ordered():
        assert beside.dialled() == (VIP, PORT)
        assert node.plane.others() == []
    else:
        assert beside.dialled() == (beside.b.ipv4, PORT)
        assert len(node.plane.others()) == 1
    assert beside.unenrolled() == b"app 1"


def test_one_that_runs_before_ours_hides_the_service_and_is_named(beside: Beside) -> None:
    """Input: one below the captured cgroup's own, as a pod's runtime may have it: it is nearer to the pod. Verdict: the
    connection is captured, with the endpoint for its destination; at the pods' cgroup it is named with the setting.
    """
    node = beside.capture()
    beside.other(beside.stage.cgroup / "pod")
    assert beside.dialled() == (beside.b.ipv4, PORT)
    beside.others.pop().remove()
    beside.other(beside.stage.cgroup.parent, PREORDER)
    assert beside.dialled() == (beside.b.ipv4, PORT)
    (words,) = node.plane.others()
    assert words.startswith(f"{beside.stage.cgroup.parent}: other_lb (connect4, number ")
    assert "run before the agent's" in words
    assert words.endswith("with Cilium set socketLB.hostNamespaceOnly: true (bpf-lb-sock-hostns-only)")


def test_one_that_may_be_overridden_does_nothing_for_pods_any_more_and_is_named(beside: Beside) -> None:
    beside.other(beside.stage.cgroup.parent, attached=ALLOW_OVERRIDE)
    node = beside.capture()
    assert beside.dialled() == (VIP, PORT)
    assert beside.unenrolled() != b"app 1", "nobody makes an endpoint of the ClusterIP"
    (words,) = node.plane.others()
    assert "run for no pod while the agent's are attached" in words


@pytest.mark.parametrize("place", ["above", "here"])
def test_one_that_is_alone_lets_nobody_in_and_is_named(beside: Beside, place: str) -> None:
    cgroup = beside.stage.cgroup.parent if place == "above" else beside.stage.cgroup
    beside.other(cgroup, attached=0)
    with pytest.raises(KernelError, match=r"connect4 cannot be attached to .*attached without BPF_F_ALLOW_MULTI"):
        beside.capture()
    beside.stage = Stage.below()  # that one was removed with the node


def test_one_that_comes_while_the_daemon_runs_is_named_once_it_is_in_the_way(beside: Beside) -> None:
    node = beside.capture()
    assert node.plane.others() == []
    beside.other(beside.stage.cgroup.parent, PREORDER)
    assert len(node.plane.others()) == 1
    beside.others.pop().remove()
    eventually(lambda: node.plane.others() == [], "a link that is closed is gone")
