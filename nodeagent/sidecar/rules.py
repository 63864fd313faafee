"""Istio's iptables rules for a pod with a sidecar: settings in, text for ``iptables-restore
--noflush`` out. Pure.

Order and chain names are those of Istio's ``istio-iptables``; both address families come from the
same lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from nodeagent import istio
from nodeagent.vocabulary import Family

CHAINS: Final = ("ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT")
_JUMPS: Final = ("-j ISTIO_INBOUND", "-j ISTIO_OUTPUT")
_LOOPBACK: Final[dict[Family, str]] = {4: "127.0.0.1/32", 6: "::1/128"}
Network = IPv4Network | IPv6Network
MAX_ITEMS: Final = 1024
"""Of a setting: each is a rule, which every connection passes."""


@dataclass(frozen=True, slots=True)
class PodCapture:
    """What is led to the sidecar. ``inbound`` and ``ranges`` None: everything; a list: only that."""

    inbound: tuple[int, ...] | None = None
    exclude_inbound: tuple[int, ...] = ()
    include_outbound: tuple[int, ...] = ()
    """Ports that are captured whatever address they are at."""
    exclude_outbound: tuple[int, ...] = ()
    ranges: tuple[Network, ...] | None = None
    exclude_ranges: tuple[Network, ...] = ()
    uid: int = istio.USER
    gid: int = istio.USER
    proxy_port: int = istio.OUTBOUND_PORT
    inbound_port: int = istio.INBOUND_PORT


def install(capture: PodCapture, family: Family, present: str) -> str:
    """Return the transaction that makes the nat table hold *capture*'s rules once, whatever it held
    of them before.

    *present* is what ``iptables-save -t nat`` of that family says now.
    """
    lines = [*_declared(), *_dropped(present), *_inbound(capture), *_output(capture, family)]
    return _transaction(lines)


def remove(present: str) -> str:
    """Return the transaction after which nothing of :func:`install` is left; empty when nothing is there."""
    chains = [name for name in CHAINS if f":{name} " in present]
    if not chains:
        return ""
    return _transaction(
        [*(f":{name} - [0:0]" for name in chains), *_dropped(present), *(f"-X {name}" for name in chains)]
    )


def _transaction(lines: Iterable[str]) -> str:
    return "\n".join(["*nat", *lines, "COMMIT", ""])


def _declared() -> Iterator[str]:
    # To declare a chain also empties it (iptables-restore(8) with --noflush): that is what makes a
    # second run change nothing.
    yield from (f":{name} - [0:0]" for name in CHAINS)


def _dropped(present: str) -> Iterator[str]:
    """Every jump from a built-in chain to ours, as often as it is there."""
    for line in present.splitlines():
        if line.startswith(("-A PREROUTING ", "-A OUTPUT ")) and line.endswith(_JUMPS):
            yield f"-D{line[2:]}"


def _inbound(capture: PodCapture) -> Iterator[str]:
    yield f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {capture.inbound_port}"
    if capture.inbound == ():
        return
    yield "-A PREROUTING -p tcp -j ISTIO_INBOUND"
    for port in dict.fromkeys((*istio.UNCAPTURED_PORTS, *capture.exclude_inbound)):
        yield f"-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN"
    if capture.inbound is None:
        yield "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT"
    for port in capture.inbound or ():
        yield f"-A ISTIO_INBOUND -p tcp --dport {port} -j ISTIO_IN_REDIRECT"


def _output(capture: PodCapture, family: Family) -> Iterator[str]:
    loopback = _LOOPBACK[family]
    own = f"{istio.OWN_SOURCE[family]}/{32 if family == 4 else 128}"
    yield f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {capture.proxy_port}"
    yield "-A OUTPUT -p tcp -j ISTIO_OUTPUT"
    yield f"-A ISTIO_OUTPUT -s {own} -o lo -j RETURN"
    for owner in (f"--uid-owner {capture.uid}", f"--gid-owner {capture.gid}"):
        # The sidecar calls its own pod by the pod's address (an application that calls its own
        # Service): that comes in as from outside.
        yield (
            f"-A ISTIO_OUTPUT ! -d {loopback} -o lo -p tcp -m tcp ! --dport {istio.TUNNEL_PORT} -m owner {owner} "
            "-j ISTIO_IN_REDIRECT"
        )
        yield f"-A ISTIO_OUTPUT -o lo -m owner ! {owner} -j RETURN"
        yield f"-A ISTIO_OUTPUT -m owner {owner} -j RETURN"
    yield f"-A ISTIO_OUTPUT -d {loopback} -j RETURN"
    yield from _outbound(capture, family)


def _outbound(capture: PodCapture, family: Family) -> Iterator[str]:
    for port in capture.exclude_outbound:
        yield f"-A ISTIO_OUTPUT -p tcp --dport {port} -j RETURN"
    for network in capture.exclude_ranges:
        if network.version == family:
            yield f"-A ISTIO_OUTPUT -d {network} -j RETURN"
    for port in capture.include_outbound:
        yield f"-A ISTIO_OUTPUT -p tcp --dport {port} -j ISTIO_REDIRECT"
    if capture.ranges is None:
        yield "-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT"
    for network in capture.ranges or ():
        if network.version == family:
            yield f"-A ISTIO_OUTPUT -d {network} -p tcp -j ISTIO_REDIRECT"
