"""What an earlier daemon left in the kernel of pods that are gone."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Final

from nodeagent.redirect import hooks, pins
from nodeagent.redirect.layout import pack_address
from nodeagent.redirect.maps import Map
from nodeagent.redirect.probed import Probed
from nodeagent.redirect.repair import POD_MAPS, CapturedPod

_COOKIE: Final = 8


def prune(
    opened: Mapping[str, Map],
    pinned: pins.Pins,
    probed: Probed,
    captures: Collection[CapturedPod],
    spared: Collection[str],
) -> list[str]:
    """Remove what is in the maps and links of pods that are none of *captures*; return it in words.

    What protects the pods with the addresses *spared*, which exist and could not be enrolled, stays.
    """
    addresses = {pack_address(address) for address in spared}
    owners = {cookie for address, cookie in opened["addresses"].items() if address in addresses}
    found = []
    for name in POD_MAPS:
        wanted: set[bytes] = set()
        for capture in captures:
            wanted.update(capture.entries[name])
        stale = _stale(opened[name], name, wanted, owners)
        found += [f"an entry of {name}" for key in stale if opened[name].drop(key)]
    known = {capture.pod.netns.cookie for capture in captures}
    known |= {int.from_bytes(owner, sys.byteorder) for owner in owners}
    found += ["an entry of probed"] * probed.prune(known)
    for link in set(pinned.links.glob("lookup-*")) - {pinned.lookup(cookie) for cookie in known}:
        hooks.remove(link)
        found.append(f"the link {link.name}")
    return found


def _stale(one: Map, name: str, wanted: Collection[bytes], owners: Collection[bytes]) -> list[bytes]:
    return [key for key, value in one.items() if key not in wanted and _owner(name, key, value) not in owners]


def _owner(name: str, key: bytes, value: bytes) -> bytes:
    """Return the cookie of the network namespace that an entry of one of POD_MAPS belongs to."""
    return value if name == "addresses" else key[:_COOKIE]
