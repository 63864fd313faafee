"""A daemon with other maps than its predecessor's, of another size or version: what is in force
comes over, or stays.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.mesh.kernel_plan import ALLOWED, KernelDestination, KernelPlan, KernelService, KernelVerdict
from nodeagent.redirect import hooks, layout, loader, netns, syscall
from nodeagent.redirect.pod import Listeners
from nodeagent.vocabulary import PodUid
from tests.bpf.conftest import Node
from tests.bpf.test_plane import _answer, _objects
from tests.bpf.world import Child, Pod, Stage, accept, answering, ip, keep_dialling, serve, take

A, B = PodUid("a"), PodUid("b")
CARRIED = ("pods", "addresses", "exclusions", "port_modes", "destinations", "verdicts", "services", "backends")
PORT = 8500


class Insistent:
    """Clients that go on asking: of the protected pod, from it, and of one without protection."""

    def __init__(self, node: Node, a: Pod, b: Pod, outside: Pod) -> None:
        dialled = ((b, a.ipv4), (a, b.ipv4), (outside, "10.79.0.2"))
        self._children: list[Child] = [node.stage.start(pod, keep_dialling, address, PORT) for pod, address in dialled]

    def answers(self) -> list[set[bytes]]:
        for child in self._children:
            child.send("stop")
        found = [child.receive() for child in self._children]
        assert all(len(one) > 20 for one in found)
        return [set(one) for one in found]


AS_WITHOUT_A_DAEMON = [
    {repr(ConnectionRefusedError(111, "Connection refused")).encode()},
    {repr(PermissionError(1, "Operation not permitted")).encode()},
    {b"app 10.79.0.2"},
]


@pytest.fixture
def outside(b: Pod) -> Iterator[Pod]:
    """What is no pod, and reaches b by another wire."""
    made = Pod(netns.create(), "10.79.0.1", "fd79::1")
    ip(made.fd, f"link add eth1 type veth peer name eth1 netns /proc/{os.getpid()}/fd/{b.fd}")
    for pod, address in ((made, "10.79.0.1"), (b, "10.79.0.2")):
        ip(pod.fd, "link set eth1 up")
        ip(pod.fd, f"addr add {address}/24 dev eth1")
    yield made
    ip(made.fd, "link del eth1")
    os.close(made.fd)


@contextmanager
def abandoned(node: Node, a: Pod, b: Pod, outside: Pod) -> Iterator[None]:
    """A node with a protected pod a, a pod b without protection and a kernel path between them,
    whose daemon is gone; clients ask all the time.
    """
    for pod in (a, b):
        node.stage.start(pod, serve, "0.0.0.0", PORT).receive()
    node.enroll(a, A, protected=True, exclude_inbound=frozenset({1}), ports=((2, False),))
    node.enroll(b, B, addresses=(*b.addresses, "10.79.0.2"))
    to = {(b.ipv4, 8501): KernelDestination(B, {A: ALLOWED, B: KernelVerdict(False, "ns/deny")})}
    node.plane.kernel.sync(
        KernelPlan(to, {("10.99.0.1", 80): KernelService("ns/svc", ((b.ipv4, 8501),))}), node.plane.numbers()
    )
    node.plane.close()
    clients = Insistent(node, a, b, outside)
    yield
    assert clients.answers() == AS_WITHOUT_A_DAEMON


def contents(node: Node) -> dict[str, dict[bytes, bytes]]:
    return {name: dict(node.plane._maps[name].items()) for name in CARRIED}


def loaded(node: Node, **settings: object) -> None:
    """Run the loader; the daemon itself then fails to start."""
    node.plane = node.load(**settings)
    node.plane.stop_beating()


def test_other_sizes_keep_what_is_in_force(make_node: Callable[..., Node], a: Pod, b: Pod, outside: Pod) -> None:
    node = make_node()
    with abandoned(node, a, b, outside):
        loaded(node)
        before = contents(node)
        assert all(before.values())
        node.plane.close()
        loaded(node, maps={"pods": 2048, "exclusions": 8192, "endpoints": 64, "verdicts": 128})
        assert contents(node) == before
        assert node.plane.statistics().maps["pods"] == (2, 2048)
        node.plane.close()
        with pytest.raises(KernelError, match=r"pods is full \(1 entries\): raise redirect.maps.pods"):
            node.load(maps={"pods": 1})
        loaded(node)
        assert contents(node) == before
    assert {path.name for path in node.pin_directory.iterdir()} == {"maps", "progs", "links"}


def _load_grown(_pipe: Connection, request: loader.LoadRequest, source: Path) -> None:
    """Be the loader of a version in which a pod's entry has more at its end."""
    header = source / "nodeagent.h"
    header.write_text(
        header.read_text().replace("  struct address ipv6;\n", "  struct address ipv6;\n  __u64 later[2];\n")
    )
    layout.PodValue = type("Pod", (layout.PodValue,), {"_fields_": [("later", layout._u64 * 2)]})  # type: ignore[misc]
    loader.source_directory = lambda: source
    loader.run(request)


def _load_badly(_pipe: Connection, request: loader.LoadRequest) -> None:
    """Be a loader that cannot attach the very last program."""
    ensure, last = hooks.ensure, hooks.CGROUP_HOOKS[-1]
    refused: list[int] = []

    def failing(path: Path, hook: hooks.Hook, target: hooks.AttachPoint, program: int) -> int:
        if hook is last and not refused:
            refused.append(program)
            raise OSError(1, "not this one")
        return ensure(path, hook, target, program)

    hooks.ensure = failing
    loader.run(request)


def _request(node: Node, **settings: object) -> loader.LoadRequest:
    return loader.LoadRequest(
        redirect=node.redirect(**settings),
        agent_cgroup=node.stage.cgroup / "agent",
        outbound_port=15001,
        inbound_port=15006,
    )


def test_a_grown_struct_keeps_what_is_in_force_and_so_does_an_older_version(
    make_node: Callable[..., Node], a: Pod, b: Pod, outside: Pod, tmp_path: Path
) -> None:
    node = make_node()
    source = tmp_path / "bpf"
    shutil.copytree(loader.source_directory(), source)
    with abandoned(node, a, b, outside):
        node.stage.start(None, _load_grown, _request(node), source, cgroup="agent").receive(60)
        grown = _objects(node)
        pods = syscall.get(node.pin_directory / "maps" / "pods")
        assert [value[-16:] for _, value in syscall.map_items(pods, 8, 64)] == [bytes(16)] * 2
        os.close(pods)
        loaded(node)
        assert _objects(node) != grown
        assert all(contents(node).values())
        assert {len(value) for value in contents(node)["pods"].values()} == {ctypes.sizeof(layout.PodValue)}


@pytest.mark.parametrize("name", ["pods", "port_modes"])
def test_what_protects_in_a_way_that_cannot_be_read_is_closed_and_stuck_is_nobody(
    make_node: Callable[..., Node], a: Pod, b: Pod, name: str
) -> None:
    """Input: the pins of a later version, in which a map that protects pods is another kind of thing.
    Verdict: its pods are refused, both ways, until they are enrolled again; who was no pod is not.
    """
    node = make_node()
    for pod in (a, b):
        node.stage.start(pod, serve, "0.0.0.0", PORT).receive()
    node.enroll(a)
    node.plane.close()
    pin = node.pin_directory / "maps" / name
    pin.unlink()
    other = syscall.map_create(9, name, 16, 64, 16, 0)
    syscall.pin(other, pin)
    os.close(other)
    loaded(node)
    assert [_answer(node, a, b.ipv4, PORT), _answer(node, b, a.ipv4, PORT)] == [b"EPERM", b"ECONNREFUSED"]
    node.plane.beat()
    with answering(node.enroll(a), b"proxy"):
        assert [_answer(node, a, b.ipv4, PORT), _answer(node, b, a.ipv4, PORT)] == [b"proxy"] * 2
    node.plane.release("pod")
    assert _answer(node, a, b.ipv4, PORT) == b"app 1"


@pytest.fixture
def nested() -> Iterator[Node]:
    """A node whose captured cgroup has another one above it that can be captured as well."""
    node = Node(Stage.below())
    yield node
    node.remove()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same cgroup", "another cgroup"])
def test_a_loader_that_fails_at_the_last_step_takes_all_back(
    nested: Node, a: Pod, b: Pod, outside: Pod, elsewhere: bool
) -> None:
    node = nested
    with abandoned(node, a, b, outside):
        loaded(node)
        links = _links(node)
        before, settings = _objects(node), node.plane._maps["settings"].get(bytes(4))
        wanted = {"maps": {"pods": 2048}, "unknownPods": "deny"} | ({"cgroup": node.stage.above} if elsewhere else {})
        failing = node.stage.start(None, _load_badly, _request(node, **wanted), cgroup="agent")
        with pytest.raises(OSError, match="not this one"):
            failing.receive(60)
        assert _objects(node) == before
        assert _links(node) == links
        assert node.plane._maps["settings"].get(bytes(4)) == settings


def _links(node: Node) -> dict[str, bytes]:
    """Of each pinned link what the kernel says: its number, its program's, and where it is attached."""
    found = {}
    for path in (node.pin_directory / "links").iterdir():
        link = syscall.get(path)
        found[path.name] = syscall.info(link)[:24]
        os.close(link)
    return found


def _target(link: int) -> int:
    """Return the number of the cgroup that a link is attached to; 0: to none."""
    return int.from_bytes(syscall.info(link)[16:24], "little")


@contextmanager
def telling(node: Node, listeners: Listeners) -> Iterator[None]:
    """Answer each connection with the port that was asked for, as the programs remember it."""
    listener = listeners.fds["outbound", 4, 0]
    ended = threading.Event()

    def tell() -> None:
        while not ended.is_set():
            with suppress(TimeoutError), accept(listener, 0.05) as connection:
                asked = take(node.destinations, connection)
                connection.sendall(str(asked and asked[1]).encode())

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_another_cgroup_is_captured_and_nothing_is_lost(nested: Node, a: Pod, b: Pod) -> None:
    """Input: the cgroup above what is captured is captured instead, and the one below again; the daemon
    before drains, its links open, while a client connects as fast as it can. Verdict: every
    connection is redirected, and what it asked for is known; the cgroup before is left.
    """
    node = nested
    captured = {hook.name for hook in hooks.CGROUP_HOOKS}
    node.stage.start(b, serve, "0.0.0.0", PORT).receive()
    listeners = node.enroll(a, A, protected=True)
    with telling(node, listeners):
        client = node.stage.start(a, keep_dialling, b.ipv4, PORT)
        drain = []
        for cgroup in (node.stage.above, node.stage.cgroup):
            drain.append(node.plane)
            node.plane = node.load(cgroup=cgroup)
            assert {_target(link) for name, link in drain[-1]._links.items() if name in captured} == {0}
        client.send("stop")
        answers = client.receive()
    for plane in drain:
        plane.close()
    assert set(answers) == {str(PORT).encode()}
    assert len(answers) > 100
