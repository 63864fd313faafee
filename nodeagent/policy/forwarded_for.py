"""Who asks, as X-Forwarded-For tells: what ``remoteIpBlocks`` and ``remote.ip`` compare.

As Istio's sidecars have it (Envoy: ``use_remote_address`` false, ``xff_num_trusted_hops``): whoever
the peer is, the last entry is believed, which the proxy wrote that asks; what stands before it the
client may have written itself. Where it is no address, the peer is the client. Beyond Envoy, an
entry with a port counts as its address: some load balancers write those, and a DENY policy would be
passed by every client behind them.
https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-for
"""

from __future__ import annotations

import re
from typing import Final

from nodeagent.policy.authorization_match import NOWHERE, number_of

_LONGEST: Final = len("[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535")
_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
"""An address of IPv6 in brackets, or one of IPv4, and perhaps a port (RFC 7239, section 6)."""


def client_address(forwarded_for: str, proxies: int, peer: str) -> str:
    """Return the client's address by *forwarded_for*, the field's lines joined with commas, of which the
    last *proxies* entries are proxies of the mesh; *peer*, the address at the connection's other end,
    where it tells none.
    """
    if not forwarded_for:
        return peer
    entries = forwarded_for.rsplit(",", proxies + 1)
    if len(entries) <= proxies:
        return peer
    entry = entries[-1 - proxies].strip(" \t")
    if len(entry) > _LONGEST:
        return peer
    found = _WITH_PORT.fullmatch(entry)
    address = entry if found is None else found[1] or found[2]
    return peer if number_of(address) == NOWHERE else address
