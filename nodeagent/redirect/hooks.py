"""Where each program is attached, by links that are pinned: made, updated in place, checked, replaced."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import syscall


@dataclass(frozen=True, slots=True)
class Hook:
    """A program, its type and where the kernel calls it (enum bpf_prog_type, enum bpf_attach_type)."""

    name: str
    program_type: int
    attach_type: int


_SKB = 8
_SOCK = 9
_SOCK_OPS = 13
_SK_MSG = 16
_SOCK_ADDR = 18
_SOCKOPT = 25
_SK_LOOKUP = 30

SOCKOPS: Final = Hook("sockops", _SOCK_OPS, 3)
CGROUP_HOOKS: Final = (
    # What remembers and forgets a connection comes before what captures one.
    Hook("sock_release", _SOCK, 34),
    SOCKOPS,
    Hook("getpeername4", _SOCK_ADDR, 29),
    Hook("getpeername6", _SOCK_ADDR, 30),
    Hook("getsockname4", _SOCK_ADDR, 31),
    Hook("getsockname6", _SOCK_ADDR, 32),
    Hook("connect4", _SOCK_ADDR, 10),
    Hook("connect6", _SOCK_ADDR, 11),
)
FIRST: Final = frozenset({"connect4", "connect6"})
"""What another program may have rewritten by then: see others.py."""
NODE_SOCKOPS: Final = Hook("node_sockops", _SOCK_OPS, 3)
"""Attached to the root of the cgroups: it sees the node's own processes."""
LOOKUP: Final = Hook("sk_lookup", _SK_LOOKUP, 36)
HTTP_EGRESS: Final = Hook("http_egress", _SKB, 1)
"""Attached to the cgroup only while HTTP is counted in the kernel: see http_metrics.py."""
BYPASS_MESSAGE: Final = Hook("bypass_message", _SK_MSG, 7)
"""Attached to the map bypass_sockets: it runs for the sockets in it only."""
SETSOCKOPT: Final = Hook("setsockopt", _SOCKOPT, 22)
"""Attached to the cgroup only where sockets are joined: see bypass.py."""
HOOKS: Final = (*CGROUP_HOOKS, NODE_SOCKOPS, LOOKUP, HTTP_EGRESS, BYPASS_MESSAGE, SETSOCKOPT)


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """A cgroup (its id is the inode of its directory) or a network namespace (inode of its file), open."""

    fd: int
    id: int
    what: str

    @classmethod
    def open(cls, path: Path, what: str) -> AttachPoint:
        """Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return cls(fd, os.fstat(fd).st_ino, what)


def program_id(fd: int) -> int:
    """Return the kernel's id of an open program (struct bpf_prog_info)."""
    return int(struct.unpack_from("=I", syscall.info(fd), 4)[0])


def fault(link: int, hook: Hook, target: AttachPoint, program: int) -> str | None:
    """Compare a link with what it should be; return what is wrong in words, None when nothing is.
    *program* is an id.
    """
    actual, attached = _state(link, hook)
    if attached != target.id:
        return f"{hook.name} is not attached to {target.what}"
    if actual != program:
        return f"{hook.name} runs program {actual} instead of {program}"
    return None


def _state(link: int, hook: Hook) -> tuple[int, int]:
    return attached(syscall.info(link), hook)


def attached(link: bytes, hook: Hook) -> tuple[int, int]:
    """Return (program id, id of the target) of a struct bpf_link_info; the target is 0 once detached."""
    program, target = (_OF_NETNS if hook is LOOKUP else _OF_CGROUP).unpack_from(link, 8)
    return int(program), int(target)


_OF_NETNS: Final = struct.Struct("=I4xI")
_OF_CGROUP: Final = struct.Struct("=I4xQ")


def ensure(path: Path, hook: Hook, target: AttachPoint, program: int) -> int:
    """Return a link, pinned at *path*, by which *program* (a descriptor) is attached to *target*.

    A link that is there and alive gets the program in one step; otherwise a new one takes its
    place. Raises KernelError.
    """
    try:
        link = _adopt(path, hook, target, program)
        if link is None:
            link = _create(hook, target, program)
            path.unlink(missing_ok=True)
            syscall.pin(link, path)
    except OSError as error:
        raise KernelError(f"{hook.name} cannot be attached to {target.what}: {error.strerror}; {_why(error)}") from None
    return link


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return (
            "the right to do so is missing, or somebody else's program holds this hook alone, there or above "
            "(attached without BPF_F_ALLOW_MULTI): `nodeagent check` names it"
        )
    return "`nodeagent check` says whether the kernel has what it takes"


def _create(hook: Hook, target: AttachPoint, program: int) -> int:
    """Attach in front of what others attached to the same cgroup, where the kernel can: what is dialled
    is seen as it was dialled.
    """
    if hook.name in FIRST:
        try:
            return syscall.link_create(program, target.fd, hook.attach_type, syscall.BEFORE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return syscall.link_create(program, target.fd, hook.attach_type)


def _adopt(path: Path, hook: Hook, target: AttachPoint, program: int) -> int | None:
    try:
        link = syscall.get(path)
    except FileNotFoundError:
        return None
    current, attached = _state(link, hook)
    if attached != target.id:
        os.close(link)
        return None
    if current != program_id(program):
        syscall.link_update(link, program)
    return link


def elsewhere(path: Path, hook: Hook, target: AttachPoint) -> int | None:
    """Return the link pinned at *path*, open, where it is attached to something else than *target*."""
    try:
        link = syscall.get(path)
    except FileNotFoundError:
        return None
    if _state(link, hook)[1] not in (0, target.id):
        return link
    os.close(link)
    return None


def remove(path: Path) -> None:
    """Detach and unpin the link at *path*, whoever else holds it; nothing happens when there is none."""
    try:
        link = syscall.get(path)
    except FileNotFoundError:
        return
    try:
        syscall.link_detach(link)
    finally:
        os.close(link)
        path.unlink(missing_ok=True)
