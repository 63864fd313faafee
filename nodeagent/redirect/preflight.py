"""What `nodeagent check` tries: each kernel feature and tool by itself, then the whole capture with
real connections.

Nothing is concluded from version numbers. Every trial happens in a cgroup, network namespaces and
pins of its own, which are gone afterwards, also when it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from nodeagent.config import MapSizes, Redirect
from nodeagent.errors import KernelError
from nodeagent.places import cgroups
from nodeagent.redirect import (
    bypass,
    hooks,
    layout,
    loader,
    maps,
    netns,
    others,
    pins,
    rights,
    sock_diag,
    syscall,
    transparency,
)
from nodeagent.redirect.original import OriginalDestinations
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.pod import EnrolledPod, Listeners
from nodeagent.redirect.preflight_ground import Ground, ground
from nodeagent.vocabulary import family_of

# r0 = 1; exit: a program that lets everything pass (include/uapi/linux/bpf.h, struct bpf_insn).
_PASS: Final = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_SECONDS: Final = 60.0
"""From a client's start to its connection's arrival, on an emulated processor that others use too;
what is refused is known at once.
"""
_LOOK_SECONDS: Final = 0.005
_NOBODY: Final = 65534


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: ``ok``, the details or the kernel's refusal, whether the agent can do
    without, and what is lost then.
    """

    feature: str
    ok: bool
    needed: bool
    detail: str
    lost: str


@dataclass(frozen=True, slots=True)
class Check:
    """``attempt`` returns the details, and raises OSError, KernelError or
    subprocess.SubprocessError when the feature is not there.
    """

    feature: str
    attempt: Callable[[Ground], str]
    lost: str
    needed: bool = True
    takes: frozenset[str] = frozenset()
    """Capabilities without which the trial itself would fail, and say nothing of the feature: it is left
    out then, since they are named as missing anyway.
    """


def _message(_: Ground) -> str:
    """A program of a map: neither a cgroup's nor a namespace's."""
    hook = hooks.BYPASS_MESSAGE
    spec = next(spec for spec in maps.specifications(MapSizes.model_validate({})) if spec.name == "bypass_sockets")
    with contextlib.ExitStack() as stack:
        program = syscall.program_load(hook.program_type, hook.attach_type, _PASS)
        stack.callback(os.close, program)
        sockets = syscall.map_create(spec.kind, spec.name, spec.key_size, spec.value_size, 2, spec.flags)
        stack.callback(os.close, sockets)
        syscall.program_attach(program, sockets, hook.attach_type)
    return "loaded, attached to a sockhash"


def _unread(_: Ground) -> str:
    return f"counted, at byte {bypass.struct_places().unread} of struct sock"


def _transparent(_: Ground) -> str:
    if found := transparency.differences():
        raise KernelError("; ".join(found))
    return "like others, as far as was tried"


def _hook(hook: hooks.Hook) -> Callable[[Ground], str]:
    if hook is hooks.BYPASS_MESSAGE:
        return _message

    def attempt(where: Ground) -> str:
        with contextlib.ExitStack() as stack:
            program = syscall.program_load(hook.program_type, hook.attach_type, _PASS)
            stack.callback(os.close, program)
            target = where.client if hook is hooks.LOOKUP else os.open(where.cgroup, os.O_RDONLY)
            if target != where.client:
                stack.callback(os.close, target)
            link = syscall.link_create(program, target, hook.attach_type)
            stack.callback(os.close, link)
            syscall.link_update(link, program)
        return "loaded, attached by a link, replaced in place"

    return attempt


def _bpffs(_: Ground) -> str:
    pins.mount_bpffs()
    return f"mounted at {pins.BPFFS}"


def _netns_cookie(_: Ground) -> str:
    return f"SO_NETNS_COOKIE: {netns.own_cookie()}"


def _destroy(_: Ground) -> str:
    """Close a connection from outside, as control does with one that policy refuses now: in this
    process's network, for in one of its making it might have the right to and in pods' not.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as client,
        ):
            if not sock_diag.destroy(home, (client.getsockname(), client.getpeername()), sock_diag.ANY_COOKIE):
                raise KernelError("the connection was not found")
            if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.ECONNABORTED:
                raise KernelError("the connection was not closed")
    finally:
        os.close(home)
    return "SOCK_DESTROY over sock_diag"


def _order(where: Ground) -> str:
    """Attach in front of what others attached to the same cgroup."""
    hook = next(hook for hook in hooks.CGROUP_HOOKS if hook.name in hooks.FIRST)
    with contextlib.ExitStack() as stack:
        program = syscall.program_load(hook.program_type, hook.attach_type, _PASS)
        stack.callback(os.close, program)
        target = os.open(where.cgroup, os.O_RDONLY)
        stack.callback(os.close, target)
        os.close(syscall.link_create(program, target, hook.attach_type, syscall.BEFORE))
    return "BPF_F_BEFORE"


def _unprivileged_lookup(_: Ground) -> str:
    """What a proxy worker does as nobody: take an entry out of an LRU map by a descriptor that it was given."""
    spec = next(spec for spec in maps.specifications(MapSizes.model_validate({})) if spec.name == "by_source")
    fd = syscall.map_create(spec.kind, spec.name, spec.key_size, spec.value_size, 64, spec.flags)
    try:
        key = layout.SourceKey(netns=1, port=2)
        key.address[:] = layout.pack_address("127.0.0.1")
        syscall.map_update(fd, bytes(key), bytes(layout.OriginalValue(asked=layout.EndpointKey(port=3))))
        child = os.fork()
        if not child:
            _take_as_nobody(fd)
        if os.waitpid(child, 0)[1]:
            raise KernelError("refused: Linux 5.19 and newer allow it whatever kernel.unprivileged_bpf_disabled says")
    finally:
        os.close(fd)
    return "lookup-and-delete on an LRU map as nobody"


def _take_as_nobody(fd: int) -> NoReturn:
    """In a forked process, which must not go on: its exit status is the answer."""
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        found = OriginalDestinations(fd).take(1, "127.0.0.1", 2)
        os._exit(0 if found and found[1] == 3 else 1)
    finally:
        os._exit(1)


def _capture(where: Ground) -> str:
    """The real thing: loader, enrolment of the client and, in turn, of the server, connections of both families."""
    began = time.monotonic()
    try:
        plane = asyncio.run(
            DataPlane.load(Redirect.model_validate({"cgroup": where.cgroup, "pinDirectory": where.pins}), slots=2)
        )
        took = time.monotonic() - began
        try:
            for address in ("192.0.2.2", "2001:db8::2"):
                _outbound(where, plane, address)
                _inbound(where, plane, address)
        finally:
            plane.close()
    finally:
        pins.cleanup(where.pins)
    return (
        f"compiled, loaded and attached in {took:.1f} s; connections captured both ways, IPv4 and IPv6, two "
        "listeners sharing them"
    )


def _enroll(plane: DataPlane, namespace: int, address: str) -> Listeners:
    return plane.enroll(EnrolledPod("check", plane.pod_netns(Path(f"/proc/self/fd/{namespace}")), (address,)))


def _outbound(where: Ground, plane: DataPlane, address: str) -> None:
    listeners = _enroll(plane, where.client, address.removesuffix("2") + "1")
    with _dialling(where, address) as dialler, _accepted(plane, listeners, dialler, "outbound", address) as connection:
        peer = connection.getpeername()
        if (
            found := OriginalDestinations(plane.original_map_fd).take(netns.cookie_of(connection), peer[0], peer[1])
        ) != (address, 80, None):
            raise KernelError(
                f"a connection to {address} port 80 was redirected, but its destination was found to be {found}"
            )
    plane.release("check")


def _inbound(where: Ground, plane: DataPlane, address: str) -> None:
    listeners = _enroll(plane, where.server, address)
    with _dialling(where, address) as dialler, _accepted(plane, listeners, dialler, "inbound", address) as connection:
        if connection.getsockname()[:2] != (address, 80):
            raise KernelError(
                f"a connection to {address} port 80 was steered to the listener, but its local address is "
                f"{connection.getsockname()[:2]}"
            )
    plane.release("check")


@contextlib.contextmanager
def _dialling(where: Ground, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the client's cgroup and network namespace connects to port 80 of *address*; it
    ends when it cannot.
    """

    def enter() -> None:
        (where.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        syscall.setns(where.client)

    code = f"import socket; socket.create_connection(({address!r}, 80), {_SECONDS}).recv(1)"
    process = subprocess.Popen([sys.executable, "-IS", "-c", code], preexec_fn=enter, stderr=subprocess.PIPE)  # noqa: PLW1509 - this process has one thread
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _accepted(
    plane: DataPlane, listeners: Listeners, dialler: subprocess.Popen[bytes], direction: str, address: str
) -> Iterator[socket.socket]:
    """The connection that *dialler* opens, when it arrives at any slot's listener. Meanwhile the
    daemon lives, as far as the programs can tell: without it they would let everything pass.
    """
    waiting = [
        listener
        for (towards, family, _), listener in listeners.fds.items()
        if (towards, family) == (direction, family_of(address))
    ]
    deadline = time.monotonic() + _SECONDS
    ended = False
    while not ended and time.monotonic() < deadline:
        plane.beat()
        ended = dialler.poll() is not None  # before the last look, as it may have ended after it connected
        for listener in waiting:
            with contextlib.suppress(BlockingIOError):
                connection, _ = listener.accept()
                with connection:
                    yield connection
                return
        time.sleep(_LOOK_SECONDS)
    why = _last_words(dialler) if ended else f"nothing came within {_SECONDS:.0f} s"
    raise KernelError(f"no {direction} connection to {address} reached the listener: {why}")


def _last_words(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line), f"the client ended with status {process.returncode}")


def _ipv6(where: Ground) -> str:
    with netns.inside(where.client), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return "::1 answers in a new network namespace"


def _tls13(_: Ground) -> str:
    if not ssl.HAS_TLSv1_3:
        raise OSError(errno.EOPNOTSUPP, f"{ssl.OPENSSL_VERSION} has no TLS 1.3")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return ssl.OPENSSL_VERSION


def _memfd(_: Ground) -> str:
    os.close(os.memfd_create("nodeagent-check"))
    return "memfd_create"


def _nftables(where: Ground) -> str:
    balance = "ip daddr 192.0.2.9 tcp dport 80 dnat to numgen random mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 };"
    rules = f"table ip check {{ chain out {{ type nat hook output priority -100; {balance} }}; }}"
    with netns.inside(where.server):
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(done.stderr.strip().splitlines()[0])
    return "balancing DNAT accepted"


def _tool(name: str) -> Callable[[Ground], str]:
    def attempt(_: Ground) -> str:
        found = shutil.which(name)
        if not found:
            raise FileNotFoundError(errno.ENOENT, f"not found; apt-get install {_PACKAGES[name]}")
        return found

    return attempt


FOR_THE_LAB: Final = frozenset({"nftables", "tcpdump", "wrk"})
"""Checks of what only the lab and benchmarks use."""
_PACKAGES: Final = {"tcpdump": "tcpdump", "wrk": "wrk"}
_LOST: Final = {
    "connect4": "IPv4 connections of pods are not captured",
    "connect6": "IPv6 connections of pods are not captured",
    "getpeername4": "apps see 127.0.0.1 as their peer",
    "getpeername6": "apps see ::1 as their peer",
    "getsockname4": "apps see 127.0.0.1 as their own address",
    "getsockname6": "apps see ::1 as their own address",
    "sockops": "the agent does not learn where a connection wanted to go",
    "node_sockops": "probes of protected pods fail while no daemon lives",
    "sock_release": "the map of open connections fills up",
    "http_egress": "no HTTP metrics of connections on the kernel path",
    "bypass_message": "no socket bypass",
    "setsockopt": "joined sockets could be given to kTLS",
    "sk_lookup": "connections to pods are not captured: no mTLS, no policy on the receiving side",
}

CHECKS: Final = (
    Check("bpffs", _bpffs, "captures end with the daemon, and STRICT pods are open while it restarts"),
    *(Check(hook.name, _hook(hook), _LOST[hook.name]) for hook in hooks.HOOKS),
    Check(
        "unread bytes past TCP",
        _unread,
        "no socket bypass: a receiver that does not read could be flooded",
        needed=False,
    ),
    Check(
        "joined sockets",
        _transparent,
        "nodeagent.io/bypass is refused, unless redirect.bypass is `asked`",
        needed=False,
    ),
    Check(
        "closing connections",
        _destroy,
        "connections on the kernel path that policy refuses now go on",
        needed=False,
    ),
    Check(
        "order of programs",
        _order,
        "a program that somebody else attached to the pods' cgroup before sees a connection first",
        needed=False,
    ),
    Check("netns cookie", _netns_cookie, "pods cannot be told apart"),
    Check(
        "map lookup without privilege",
        _unprivileged_lookup,
        "proxy workers need CAP_BPF",
        takes=frozenset({"SETUID", "SETGID"}),
    ),
    Check("IPv6", _ipv6, "pods have IPv4 only", needed=False),
    Check("capture (BCC, all programs)", _capture, "the data plane"),
    Check("TLS 1.3", _tls13, "no mTLS between nodes"),
    Check("memfd", _memfd, "private keys would have to touch a disk"),
    Check("nftables", _nftables, "the lab has no ClusterIPs for pods that are not captured", needed=False),
    Check("tcpdump", _tool("tcpdump"), "the demo cannot show that the wire carries no plaintext", needed=False),
    Check("wrk", _tool("wrk"), "no benchmark", needed=False),
)


def run(captured: Path | None = None, pinned: Path | None = None) -> Iterator[Finding]:
    """Try everything, one finding at a time. Needs root. *captured*: the cgroup that a daemon captures
    here, and *pinned* where its pins are; programs of others are looked for there.
    """
    there = rights.held()
    yield from _rights(there)
    try:
        with ground(loader.root_of(captured) if captured is not None else None) as where:
            yield Finding("cgroup2, network namespaces", True, True, str(where.cgroup.parent), "")
            for check in CHECKS:
                if check.takes <= there:
                    yield _try(check, where)
        if captured is not None and captured.is_dir():
            yield _others(captured, pinned)
            yield _try(_seen(captured), where)
    except (OSError, KernelError) as error:
        yield Finding("cgroup2, network namespaces", False, True, str(error), "everything: nothing else can be tried")


def _rights(there: Collection[str]) -> Iterator[Finding]:
    """Name each capability that is missing *there*, with what is lost."""
    for right in rights.lacking(there):
        yield Finding(
            f"CAP_{right.name}",
            False,
            right.needed,
            f"this process does not have it; it is for: {right.use}",
            right.lost,
        )
    if held := ", ".join(right.name for right in rights.RIGHTS if right.name in there):
        yield Finding("capabilities", True, False, held, "")


def _seen(captured: Path) -> Check:
    def attempt(_: Ground) -> str:
        found = cgroups.processes(captured)
        if found and not any(found):
            raise KernelError("they are of a process namespace that is not seen: the agent's pod needs hostPID: true")
        return f"{len(found)} seen" if found else "there are none yet"

    return Check("processes of pods", attempt, "no Workload API", needed=False)


def _others(captured: Path, pinned: Path | None) -> Finding:
    """Name what somebody else attached to the pods' cgroup or above it."""
    own = pins.program_ids(pinned) if pinned is not None else frozenset()
    found = others.others(captured, own)
    wrong = any(other.when != "after" for other in found)
    told = "; ".join(others.told(found, harmless=True))
    return Finding("programs of others", not wrong, any(other.when == "alone" for other in found), told or "none", "")


def _try(check: Check, where: Ground) -> Finding:
    try:
        return Finding(check.feature, True, check.needed, check.attempt(where), "")
    except OSError as error:
        said = error.strerror or str(error)
    except (KernelError, subprocess.SubprocessError) as error:
        said = str(error)
    return Finding(check.feature, False, check.needed, said, check.lost)
