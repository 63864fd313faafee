"""The wire between a cluster's nodes. Pods' links are the CNI plugins' work.

Every function raises OSError when the kernel refuses a step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from pyroute2 import netns as namespaces

from nodeagent import links
from nodeagent.lab import linux
from nodeagent.lab.kube.layout import CONTROL, WIRE, KubeLayout, KubeNode
from nodeagent.links import Links

_BRIDGE = "wire"
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


async def build(layout: KubeLayout, nodes: Sequence[KubeNode]) -> None:
    """Make the namespaces of control plane and *nodes*, and what joins them."""
    for place in (CONTROL, *(node.name for node in nodes)):
        with linux.new_network_namespace():
            namespaces.attach(str(layout.netns(place)), threading.get_native_id())
            for name in _FORWARDING:
                Path("/proc/sys/net", name).write_text("1")
    await _control(layout, nodes)
    for own in nodes:
        await _node(layout, own, nodes)


async def _control(layout: KubeLayout, nodes: Sequence[KubeNode]) -> None:
    """A bridge with the API server's address, which is also the way to all pods."""
    async with _within(layout.netns(CONTROL)) as control:
        await control.raise_up("lo")
        await control.add_bridge(_BRIDGE)
        await control.add_address(_BRIDGE, IPv4Interface((WIRE[0][1], WIRE[0].prefixlen)))
        await control.add_address(_BRIDGE, IPv6Interface((WIRE[1][1], WIRE[1].prefixlen)))
        await control.raise_up(_BRIDGE)
        for node in nodes:
            with _opened(layout.netns(node.name)) as namespace:
                await control.add_veth(node.name, "eth0", namespace)
            await control.join_bridge(node.name, _BRIDGE)
            await control.raise_up(node.name)
        for node in nodes:
            await _lead(control, node)


async def _node(layout: KubeLayout, own: KubeNode, nodes: Sequence[KubeNode]) -> None:
    """A node's address, routes to the other nodes' pods, the rest to the control plane."""
    async with _within(layout.netns(own.name)) as node:
        await node.raise_up("lo")
        await node.add_address("eth0", IPv4Interface((own.addresses[0], WIRE[0].prefixlen)))
        await node.add_address("eth0", IPv6Interface((own.addresses[1], WIRE[1].prefixlen)))
        await node.raise_up("eth0")
        for other in nodes:
            if other != own:
                await _lead(node, other)
        for network in WIRE:
            await node.add_route(None, via=network[1])


async def _lead(way: Links, to: KubeNode) -> None:
    """Lead what is for *to*'s pods to *to*, from where *way* is."""
    await way.add_route(to.pods[0], via=to.addresses[0])
    await way.add_route(to.pods[1], via=to.addresses[1])


@asynccontextmanager
async def _within(netns: Path) -> AsyncIterator[Links]:
    with _opened(netns) as namespace:
        async with links.opened(namespace) as found:
            yield found


@contextmanager
def _opened(netns: Path) -> Iterator[int]:
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
