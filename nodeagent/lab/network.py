"""Links, addresses and routes as batches for ``ip -batch``: one process for many steps. The batches
are pure; :func:`run` carries one out.

A node's pods hang on it by one veth pair each, routed, not bridged: so traffic between pods of one
node also passes the node's nftables, and a ClusterIP works from every pod to every pod, itself
included.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from nodeagent.errors import LabError
from nodeagent.lab.layout import GATEWAY6, OUTSIDE, POD6, UNDERLAY, Layout, Node
from nodeagent.lab.processes import joining

Addresses = tuple[IPv4Address, IPv6Address]


def inside(netns: Path, argv: Sequence[str]) -> list[str]:
    """Return *argv* to be run in *netns*, every other namespace being the caller's (``ip netns
    exec`` would hide the cgroups).
    """
    return ["nsenter", f"--net={netns}", "--", *argv]


def run(lines: Iterable[str], netns: Path | None = None, group: Path | None = None) -> None:
    """Carry the *lines* out by ``ip -batch``, in *netns* and in the cgroup *group* if given.

    Raises LabError with the line that failed and ip's words.
    """
    batch = list(lines)
    argv = inside(netns, ["ip", "-batch", "-"]) if netns else ["ip", "-batch", "-"]
    try:
        done = subprocess.run(
            joining(group, argv) if group else argv,
            input="\n".join(batch) + "\n",
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is not installed: apt-get install iproute2 util-linux") from None
    if done.returncode:
        reason, _, place = done.stderr.strip().rpartition("Command failed -:")
        line = batch[int(place) - 1] if place.isdigit() else "ip -batch"
        raise LabError(f"the kernel refused `ip {line}`: {reason.strip() or done.stderr.strip()}")


def namespaces(layout: Layout, nodes: Sequence[Node]) -> list[str]:
    """Return the batch that adds the underlay's and the nodes' network namespaces."""
    return [f"netns add {layout.netns(name).name}" for name in ("underlay", *(node.name for node in nodes))]


def underlay(layout: Layout, nodes: Sequence[Node]) -> list[str]:
    """Return the batch for the underlay's netns: a bridge with an address and a port per node."""
    lines = [
        "link set lo up",
        "link add br0 type bridge forward_delay 0 mcast_snooping 0",
        "link set br0 addrgenmode none",
    ]
    lines += _underlay_addresses(OUTSIDE, "br0")
    lines.append("link set br0 up")
    for node in nodes:
        lines += [
            f"link add {node.name} type veth peer name eth0 netns {layout.netns(node.name).name}",
            f"link set {node.name} addrgenmode none",
            f"link set {node.name} master br0 up",
        ]
    return lines


def node(own: Node, nodes: Sequence[Node]) -> list[str]:
    """Return the batch for a node's netns: its underlay address, routes to the other nodes' pods,
    the rest to the outside.
    """
    lines = ["link set lo up", "link set eth0 addrgenmode none"]
    lines += _underlay_addresses(own.addresses, "eth0")
    lines.append("link set eth0 up")
    for other in nodes:
        if other != own:
            lines += [
                f"route add {network} via {via}" for network, via in zip(other.pods, other.addresses, strict=True)
            ]
    lines += [f"route add default via {address}" for address in OUTSIDE]
    return lines


def pod_on_node(own: Node, link: str, netns: Path, addresses: Addresses) -> list[str]:
    """Return the batch for the node's end of a pod's *link*. What the node itself sends to the pod
    comes from its InternalIP.
    """
    lines = [
        f"link add {link} type veth peer name eth0 netns {netns.name}",
        f"link set {link} addrgenmode none",
        f"addr add {GATEWAY6}/64 dev {link} nodad",
        f"link set {link} up",
    ]
    return lines + [
        f"route add {address} dev {link} src {source}" for address, source in zip(addresses, own.addresses, strict=True)
    ]


def pod(own: Node, addresses: Addresses) -> list[str]:
    """Return the batch for a pod's netns. Its gateway is the node's InternalIP, which answers ARP on any link."""
    return [
        "link set lo up",
        "link set eth0 addrgenmode none",
        f"addr add {addresses[0]}/32 dev eth0",
        f"addr add {addresses[1]}/128 dev eth0 nodad",
        f"addr add {POD6}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via {own.addresses[0]} dev eth0 onlink",
        f"route add default via {GATEWAY6} dev eth0",
    ]


def pair(addresses: Sequence[str]) -> Addresses:
    """Return a pod's two *addresses*, IPv4 first, parsed."""
    return IPv4Address(addresses[0]), IPv6Address(addresses[1])


def _underlay_addresses(addresses: Addresses, link: str) -> list[str]:
    """Duplicate address detection would keep an IPv6 address from being used for a second:
    ``nodad``.

    A router asks for its neighbours from a link-local address when it forwards (ndisc_solicit), so
    it must have one.
    """
    local = IPv6Address(f"fe80::{int(addresses[1]) & 0xFFFF:x}")
    return [
        f"addr add {addresses[0]}/{UNDERLAY[0].prefixlen} dev {link}",
        f"addr add {addresses[1]}/{UNDERLAY[1].prefixlen} dev {link} nodad",
        f"addr add {local}/64 dev {link} nodad",
    ]
