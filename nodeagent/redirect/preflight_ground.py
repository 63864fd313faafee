"""Where `nodeagent check` tries things: a cgroup and two network namespaces of its own, joined by a
wire, which are gone afterwards, also when a check fails.

To make a wire takes CAP_NET_ADMIN, which the agent can do without. Without it the namespaces are
made within a user namespace, by a process that has every right there; whoever may enter pods may
enter those too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Final, NoReturn

from nodeagent import links
from nodeagent.errors import KernelError
from nodeagent.places.cgroups import cgroup2_mounts, own_mountinfo
from nodeagent.redirect import netns, pins, rights, syscall

_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the checks try: a cgroup, two network namespaces with the addresses 192.0.2.1 and .2
    (RFC 5737), 2001:db8::1 and ::2 (RFC 3849).
    """

    cgroup: Path
    client: int
    server: int

    @property
    def pins(self) -> Path:
        return pins.BPFFS / self.cgroup.name


def find_cgroup2() -> Path:
    """Return where the cgroup2 hierarchy is mounted. Raises KernelError."""
    for mount in cgroup2_mounts(own_mountinfo()):
        return mount.point
    raise KernelError("no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


@contextlib.contextmanager
def ground(hierarchy: Path | None = None) -> Iterator[Ground]:
    """Make the ground, its cgroup at the root of *hierarchy*, and take it away. Raises OSError, KernelError."""
    with contextlib.ExitStack() as stack:
        cgroup = (hierarchy or find_cgroup2()) / f"nodeagent-check-{os.getpid()}"
        cgroup.mkdir()
        stack.callback(_remove_cgroup, cgroup)
        namespaces = _made_here() if rights.NET_ADMIN in rights.held() else _made_elsewhere()
        for namespace in namespaces:
            stack.callback(os.close, namespace)
        yield Ground(cgroup, *namespaces)


def _made_here() -> tuple[int, int]:
    client = netns.create()
    server = netns.create()
    asyncio.run(_wire(client, server))
    return client, server


def _made_elsewhere() -> tuple[int, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if not child:
            _make_for(theirs)
        theirs.close()
        said, files, _, _ = socket.recv_fds(ours, 1000, 2)
        os.waitpid(child, 0)
    if len(files) != 2:
        raise KernelError(
            f"without CAP_NET_ADMIN this can only be tried within a user namespace, which cannot be had: "
            f"{said.decode(errors='replace') or 'its process died'}"
        )
    return files[0], files[1]


def _make_for(parent: socket.socket) -> NoReturn:
    """In a forked process, which must not go on: has every right in its own user namespace, and none outside."""
    try:
        syscall.unshare(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET)
        client = netns.create()
        server = netns.create()
        asyncio.run(_wire(client, server))
        socket.send_fds(parent, [b"made"], [client, server])
        os._exit(0)
    except (OSError, KernelError) as error:
        parent.send(str(error).encode())
    finally:
        os._exit(1)


async def _wire(client: int, server: int) -> None:
    """Join the two by a veth pair."""
    async with links.opened(client) as near, links.opened(server) as far:
        await near.add_veth("wire", "wire", server)
        for number, end in ((1, near), (2, far)):
            await end.raise_up("wire")
            await end.add_address("wire", IPv4Interface(f"192.0.2.{number}/24"))
            await end.add_address("wire", IPv6Interface(f"2001:db8::{number}/64"))


def _remove_cgroup(cgroup: Path) -> None:
    """A process that has ended leaves its cgroup a moment later."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
