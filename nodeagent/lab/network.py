"""Links, addresses and routes of a lab's nodes and pods.

A node's pods hang on it by one veth pair each, routed, not bridged: so traffic between pods of one
node also passes the node's nftables, and a ClusterIP works from every pod to every pod, itself
included.

Every function raises OSError when the kernel refuses a step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from pyroute2 import netns as namespaces

from nodeagent import links
from nodeagent.lab import linux
from nodeagent.lab.layout import GATEWAY6, OUTSIDE, POD6, UNDERLAY, Layout, Node
from nodeagent.links import Links

Addresses = tuple[IPv4Address, IPv6Address]


def keep_namespace(path: Path, pid: int) -> None:
    """Keep the network namespace of the process or thread *pid* at *path*, as ``ip netns attach`` does."""
    namespaces.attach(str(path), pid)


async def build(layout: Layout, nodes: Sequence[Node]) -> None:
    """Make the namespaces of the underlay and of the *nodes*, and what joins them."""
    for name in ("underlay", *(node.name for node in nodes)):
        with linux.new_network_namespace():
            keep_namespace(layout.netns(name), threading.get_native_id())
    await _underlay(layout, nodes)
    for own in nodes:
        await _node(layout, own, nodes)


async def _underlay(layout: Layout, nodes: Sequence[Node]) -> None:
    """A bridge with an address of its own and a port per node."""
    async with _opened(layout.netns("underlay")) as underlay:
        await underlay.raise_up("lo")
        await underlay.add_bridge("br0")
        await underlay.without_link_local("br0")
        await _add_addresses(underlay, "br0", OUTSIDE)
        await underlay.raise_up("br0")
        for node in nodes:
            with _descriptor(layout.netns(node.name)) as namespace:
                await underlay.add_veth(node.name, "eth0", namespace)
            await underlay.without_link_local(node.name)
            await underlay.join_bridge(node.name, "br0")
            await underlay.raise_up(node.name)


async def _node(layout: Layout, own: Node, nodes: Sequence[Node]) -> None:
    """A node's underlay address, routes to the other nodes' pods, the rest to the outside."""
    async with _opened(layout.netns(own.name)) as node:
        await node.raise_up("lo")
        await node.without_link_local("eth0")
        await _add_addresses(node, "eth0", own.addresses)
        await node.raise_up("eth0")
        for other in nodes:
            if other == own:
                continue
            await node.add_route(other.pods[0], via=other.addresses[0])
            await node.add_route(other.pods[1], via=other.addresses[1])
        for outside in OUTSIDE:
            await node.add_route(None, via=outside)


async def add_pod_link(node: Links, own: Node, link: str, netns: Path, addresses: Addresses) -> None:
    """Make a pod's *link* from *own*, whose namespace *node* is, to *netns*.

    What the node itself sends to the pod comes from the gateway, not from an InternalIP: so it is
    on most networks.
    """
    with _descriptor(netns) as namespace:
        await node.add_veth(link, "eth0", namespace)
    await node.without_link_local(link)
    await node.add_address(link, IPv6Interface((GATEWAY6, 64)))
    await node.add_address(link, IPv4Interface(own.gateways[0]))
    await node.add_address(link, IPv6Interface(own.gateways[1]))
    await node.raise_up(link)
    await node.add_route(IPv4Network(addresses[0]), link=link, source=own.gateways[0])
    await node.add_route(IPv6Network(addresses[1]), link=link, source=own.gateways[1])


async def connect_pod(own: Node, netns: Path, addresses: Addresses) -> None:
    """Set up a pod's own end."""
    async with _opened(netns) as pod:
        await pod.raise_up("lo")
        await pod.without_link_local("eth0")
        await pod.add_address("eth0", IPv4Interface(addresses[0]))
        await pod.add_address("eth0", IPv6Interface(addresses[1]))
        await pod.add_address("eth0", IPv6Interface((POD6, 64)))
        await pod.raise_up("eth0")
        await pod.add_route(None, via=own.gateways[0], link="eth0", onlink=True)
        await pod.add_route(None, via=GATEWAY6, link="eth0")


def pair(addresses: Sequence[str]) -> Addresses:
    """Return a pod's two *addresses*, IPv4 first, parsed."""
    return IPv4Address(addresses[0]), IPv6Address(addresses[1])


async def _add_addresses(links: Links, link: str, addresses: Addresses) -> None:
    """A router asks for its neighbours from a link-local address when it forwards
    (ndisc_solicit), so it must have one.
    """
    local = IPv6Address(f"fe80::{int(addresses[1]) & 0xFFFF:x}")
    await links.add_address(link, IPv4Interface((addresses[0], UNDERLAY[0].prefixlen)))
    await links.add_address(link, IPv6Interface((addresses[1], UNDERLAY[1].prefixlen)))
    await links.add_address(link, IPv6Interface((local, 64)))


@asynccontextmanager
async def _opened(netns: Path) -> AsyncIterator[Links]:
    with _descriptor(netns) as namespace:
        async with links.opened(namespace) as opened:
            yield opened


@contextmanager
def _descriptor(netns: Path) -> Iterator[int]:
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
