"""A daemon takes a node over while its predecessor still ends its connections: the old one undoes
nothing, and what it opens is still its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from nodeagent.errors import KernelError
from nodeagent.mesh.kernel_plan import KernelPlan
from nodeagent.places.place import Place
from nodeagent.redirect import layout
from nodeagent.redirect.original import OriginalDestinations
from nodeagent.redirect.plane import DataPlane, Loading
from nodeagent.redirect.pod import EnrolledPod
from nodeagent.vocabulary import PodUid
from tests.bpf.conftest import Node
from tests.bpf.test_plane import _answer, _objects
from tests.bpf.world import Pod, accept, answering, dial, serve, take

PORT = 8700


@pytest.mark.parametrize("settings", [{}, {"maps": {"pods": 2048}}], ids=["same maps", "other maps"])
def test_the_old_daemon_undoes_nothing(
    make_node: Callable[..., Node], a: Pod, b: Pod, settings: dict[str, object]
) -> None:
    node = make_node()
    old: DataPlane = node.plane
    listeners = node.enroll(a, protected=True)
    node.enroll(b, "other")
    assert not old.superseded()
    node.plane = node.load(**settings)
    handed = type(listeners)({one: listener.dup() for one, listener in listeners.fds.items()})
    node.plane.enroll(EnrolledPod("pod", node.plane.pod_netns(a.path), a.addresses), handed)
    assert old.superseded()
    assert not node.plane.superseded()
    before = _objects(node)
    assert old.verify_node() == old.repair_node() == old.verify("pod") == old.repair("pod") == old.prune() == []
    old.kernel.sync(KernelPlan({}, {}), old.numbers())
    assert old.left_alone.admit({PodUid("plain"): Place(str(b.path), "")}) == []
    with pytest.raises(KernelError, match="another daemon has taken this node over"):
        old.enroll(EnrolledPod("new", old.pod_netns(b.path), b.addresses))
    for uid in ("pod", "other"):
        old.release(uid)
    old.close()
    assert _objects(node) == before
    assert node.plane.verify_node() == node.plane.verify("pod") == []
    node.stage.start(b, serve, "0.0.0.0", PORT).receive()
    with answering(node.plane.listeners("pod"), b"new p"):
        assert _answer(node, a, b.ipv4, PORT) == b"new p"


def test_what_a_predecessor_opens_is_not_captured(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    """Input: as DaemonSets both daemons live below the captured cgroup, in cgroups of their own; the
    old one reaches an endpoint from inside its client's pod. Verdict: the connection goes there.
    """
    node = make_node()
    agents = node.stage.cgroup / "agent"
    later = [agents / f"later{number}" for number in range(layout.EARLIER_CGROUPS)]
    try:
        for place in later:
            place.mkdir()
            node.plane.close()
            node.plane = node.load(agent_cgroup=place)
        node.stage.start(b, serve, "0.0.0.0", PORT).receive()
        with answering(node.enroll(a), b"proxy"):
            for cgroup in ("agent/below", *(f"agent/{place.name}" for place in later)):
                assert node.stage.run(a, dial, b.ipv4, PORT, cgroup=cgroup).data.startswith(b"app "), cgroup
            assert _answer(node, a, b.ipv4, PORT) == b"proxy"
    finally:
        node.stage.stop()
        for place in later:
            place.rmdir()


def test_the_old_workers_learn_what_the_new_programs_remember(make_node: Callable[..., Node], a: Pod, b: Pod) -> None:
    """Input: the newcomer's map of original destinations is another one. Verdict: the old daemon can
    have it before it is in use, and finds there what its own does not know; where it is the same,
    there is no other.
    """
    node = make_node()
    old: DataPlane = node.plane
    listeners = node.enroll(a)

    async def succeed(**settings: object) -> int | None:
        loading = await Loading.begin(node.redirect(**settings), agent_cgroup=node.stage.cgroup / "agent")
        found = old.next_originals()
        node.plane = await loading.attached([listeners.fds])
        await node.plane.loaded()
        node.plane.beat()
        return found

    later = asyncio.run(succeed(maps={"connections": 8192, "pods": 64}))
    assert later is not None
    child = node.stage.start(a, dial, b.ipv4, PORT)
    with accept(listeners.fds["outbound", 4, 0]) as connection:
        assert take(OriginalDestinations(old.original_map_fd), connection) is None
        assert take(OriginalDestinations(later), connection) == (b.ipv4, PORT)
        connection.sendall(b"proxy")
        assert child.receive().data == b"proxy"
    os.close(later)
    old.close()
    old = node.plane
    assert asyncio.run(succeed(maps={"connections": 8192, "pods": 64})) is None
    assert old.next_originals() is None
    old.close()
