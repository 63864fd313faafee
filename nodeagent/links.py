"""Links, addresses and routes of one network namespace over rtnetlink, by pyroute2.

For commands that end (the lab, ``nodeagent check``): importing pyroute2 adds 8.6 MB of memory and
0.14 s of processor time, and the daemon's processes together have 71 MB. So this module is imported
by nothing that the daemon runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, TypeVar

from pyroute2 import AsyncIPRoute, NetlinkError

from nodeagent.redirect import netns

Interface = IPv4Interface | IPv6Interface
"""An address with the length of its network's prefix."""
Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_NO_DUPLICATE_DETECTION: Final = 0x02
"""IFA_F_NODAD: duplicate address detection would keep an IPv6 address from being used for a second."""
_NO_LINK_LOCAL: Final = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
"""IFLA_AF_SPEC with IN6_ADDR_GEN_MODE_NONE: the kernel gives the link no address of its own."""
_T = TypeVar("_T")
_SCOPE_LINK: Final = 253
"""RT_SCOPE_LINK: who is reached without a gateway is on the link itself."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Links:
    """What one network namespace has of links, addresses and routes, for as long as it is
    :func:`opened`.

    Links are named as in ip(8). Every method waits for the kernel's answer and raises OSError, whose
    text says what was tried, when it refuses.
    """

    def __init__(self, routes: AsyncIPRoute) -> None:
        self._routes = routes
        self._known: dict[str, int] = {}

    async def add_veth(self, name: str, peer: str, namespace: int) -> None:
        """Make a veth pair: *name* here, *peer* in the network namespace *namespace* (a descriptor)."""
        await _answered(
            f"add the link {name}",
            self._routes.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": namespace}),
        )

    async def add_bridge(self, name: str) -> None:
        """Make a bridge that forwards at once and does not look into multicast."""
        await _answered(
            f"add the bridge {name}",
            self._routes.link("add", ifname=name, kind="bridge", br_forward_delay=0, br_mcast_snooping=0),
        )

    async def delete(self, name: str) -> None:
        """Remove the link *name*, and with a veth its other end."""
        await _answered(f"delete the link {name}", self._routes.link("del", ifname=name))
        self._known.pop(name, None)

    async def join_bridge(self, name: str, bridge: str) -> None:
        """Make the link *name* a port of *bridge*."""
        master = await self._index(bridge)
        await _answered(f"join {name} to {bridge}", self._routes.link("set", ifname=name, master=master))

    async def raise_up(self, name: str) -> None:
        """Set the link *name* up."""
        await _answered(f"set the link {name} up", self._routes.link("set", ifname=name, state="up"))

    async def without_link_local(self, name: str) -> None:
        """Keep the kernel from giving *name* an IPv6 address of its own when it comes up."""
        await _answered(
            f"set the address generation of {name}", self._routes.link("set", ifname=name, IFLA_AF_SPEC=_NO_LINK_LOCAL)
        )

    async def add_address(self, name: str, address: Interface) -> None:
        """Give the link *name* the *address*, to be used at once."""
        index = await self._index(name)
        await _answered(
            f"add the address {address} to {name}",
            self._routes.addr(
                "add",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                flags=_NO_DUPLICATE_DETECTION if address.version == 6 else 0,
            ),
        )

    async def add_route(
        self,
        to: Network | None,
        *,
        via: Address | None = None,
        link: str | None = None,
        source: Address | None = None,
        onlink: bool = False,
    ) -> None:
        """Lead what goes to *to* (None: everything that has no other route) to the gateway *via*,
        or out at *link*.

        *onlink*: *via* is reached at *link* though it is in no network of it. What this namespace
        itself sends there comes from *source*.
        """
        end = to or via
        if end is None:
            raise ValueError("a default route needs a gateway, which says of which family it is")
        wanted: dict[str, object] = {"dst": str(to) if to else "default", "family": _FAMILIES[end.version]}
        if via:
            wanted["gateway"] = str(via)
        elif end.version == 4:
            wanted["scope"] = _SCOPE_LINK
        if link:
            wanted["oif"] = await self._index(link)
        if onlink:
            wanted["flags"] = ["onlink"]
        if source:
            wanted["prefsrc"] = str(source)
        await _answered(f"add the route to {to or 'everything'}", self._routes.route("add", **wanted))

    async def _index(self, name: str) -> int:
        if name not in self._known:
            found = await _answered(f"find the link {name}", self._routes.link("get", ifname=name))
            self._known[name] = found[0]["index"]
        return self._known[name]


@contextlib.asynccontextmanager
async def opened(namespace: int | None = None) -> AsyncIterator[Links]:
    """Within, the links of the network namespace *namespace* (a descriptor), by default of the
    calling thread's. Raises OSError if it cannot be entered.
    """
    with netns.inside(namespace) if namespace is not None else contextlib.nullcontext():
        connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with connection:
        async with AsyncIPRoute(use_socket=connection, groups=0) as routes:
            yield Links(routes)


async def _answered(what: str, request: Awaitable[_T]) -> _T:
    try:
        return await request
    except NetlinkError as error:
        raise OSError(error.code, f"{what}: {os.strerror(error.code)}") from None
