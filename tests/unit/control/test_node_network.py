"""Which addresses count as the node's: those of its network namespace, and none of a pod's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from nodeagent.control.concern import Snapshot
from nodeagent.control.node_network import NodeNetwork, node_addresses
from nodeagent.errors import KernelError
from nodeagent.parts import Parts
from nodeagent.places import own_addresses
from nodeagent.vocabulary import Address
from tests.unit.control.scene import local_pod, play
from tests.waiting import until

INTERNAL = Address("172.18.0.11")
GATEWAY = Address("10.88.1.1")
POD = Address("10.88.1.5")


def test_every_address_of_the_nodes_namespace_counts() -> None:
    assert node_addresses({INTERNAL, GATEWAY}, [INTERNAL], []) == (GATEWAY, INTERNAL)
    assert node_addresses({GATEWAY}, [], []) == (GATEWAY,), "no Node object is known yet"
    assert node_addresses([], [INTERNAL], []) == (INTERNAL,), "the kernel could not be asked"


def test_an_agent_with_a_network_of_its_own_does_not_take_its_pods_for_the_nodes() -> None:
    assert node_addresses({POD}, [INTERNAL], []) == (INTERNAL,)


def test_no_address_of_a_pod_counts() -> None:
    assert node_addresses({INTERNAL, GATEWAY, POD}, [INTERNAL, POD], [POD]) == (GATEWAY, INTERNAL)


def test_it_is_told_with_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a link that comes, a Node object that becomes known, a pod with an address of the node."""
    here = {GATEWAY}
    said: list[Address] = []
    told: list[Sequence[str]] = []
    monkeypatch.setattr(own_addresses, "own_addresses", lambda: frozenset(here))

    async def scene() -> None:
        network = NodeNetwork(told.append, lambda: said)
        network.begin()
        assert told[-1] == (GATEWAY,)
        said.append(GATEWAY)
        here.add(INTERNAL)
        parts = Parts()
        async with network.run(parts):
            await until(lambda: told[-1] == (GATEWAY, INTERNAL))
            pod = replace(local_pod("p"), addresses=(INTERNAL,))
            network.changed(Snapshot(captured={pod.uid: pod}, asking={}, entries={}))
            assert told[-1] == (GATEWAY,)
            assert network.missing() == []
            assert network.routes() == {}
            parts.stop()

    play(scene)


def test_where_the_kernel_cannot_be_asked_the_node_object_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Sequence[str]] = []

    def refused() -> frozenset[Address]:
        raise KernelError("rtnetlink: no")

    monkeypatch.setattr(own_addresses, "own_addresses", refused)

    async def scene() -> None:
        NodeNetwork(told.append, lambda: [INTERNAL]).begin()
        assert told == [(INTERNAL,)]

    play(scene)
