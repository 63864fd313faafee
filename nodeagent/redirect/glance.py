"""A glance at all enrolled pods together: for whom a closer look is due.

The closer look (``redirect/repair.py``) asks the kernel for one thing after another, some twenty times
a pod; most of what control does on an idle node would be that. A glance reads what holds many at once:
maps, of which most are read whole, and the folder of pins. It mends nothing, and says of nobody that
something is wrong: that is the closer look's, which asks anew.

It takes for granted what a closer look has seen and cannot change: which listeners a pod can have, and a
socket's cookie. So a pod is looked at closely until nothing is found, and again after each change of
what it must have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from nodeagent.redirect import hooks, pins, syscall
from nodeagent.redirect import pod as pods
from nodeagent.redirect.maps import SOCKHASH, Map
from nodeagent.redirect.repair import CapturedPod

WHOLE: Final = 256
"""A map is read whole where one in so many of its possible entries is wanted: the kernel walks through
all its buckets, a nanosecond or two each, and a question costs a microsecond.
"""


def suspects(
    captures: Iterable[CapturedPod], opened: Mapping[str, Map], pinned: pins.Pins, program: int
) -> list[CapturedPod]:
    """Return those of *captures* that a closer look has not found as they are now, and those in which
    the kernel differs from that; *program*: the number of the one that they are attached to. Raises OSError.
    """
    known = [capture for capture in captures if capture.is_known]
    wanted: dict[str, list[bytes]] = defaultdict(list)
    for capture in known:
        for name, entries in capture.entries.items():
            wanted[name] += entries
        wanted["listeners"] += capture.cookies
    there = {name: _read(opened[name], keys) for name, keys in wanted.items()}
    names = pins.names(pinned.links)
    links = syscall.infos([capture.link for capture in known])
    well = {
        id(capture)
        for capture, link in zip(known, links, strict=True)
        if hooks.attached(link, hooks.LOOKUP) == (program, capture.pod.netns.inode)
        and pinned.lookup_name(capture.pod.netns.cookie) in names
        and _is_there(capture, there)
        and all(map(pods.is_listening, capture.listeners.fds.values()))
    }
    return [capture for capture in captures if id(capture) not in well]


def _read(one: Map, keys: list[bytes]) -> Mapping[bytes, bytes]:
    """Return what *one* holds under *keys*, perhaps among others. Raises OSError."""
    if one.spec.kind != SOCKHASH and len(keys) * WHOLE > one.spec.entries:
        return dict(one.items(len(keys)))
    return one.held(keys)


def _is_there(capture: CapturedPod, there: Mapping[str, Mapping[bytes, bytes]]) -> bool:
    if not all(entries.items() <= there[name].items() for name, entries in capture.entries.items() if entries):
        return False
    return not capture.cookies or capture.cookies.items() <= there["listeners"].items()
