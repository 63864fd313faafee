"""``nodeagent sidecar-init``, judged by real connections: who is led to the sidecar and who is not, IPv4 and IPv6."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nodeagent.lab import linux
from nodeagent.lab.layout import NETNS_DIRECTORY

ROOT = Path(__file__).resolve().parents[2]
POD, OUTSIDE = "t-sidecar-pod", "t-sidecar-outside"
POD_IP = {4: "10.99.0.2", 6: "fd99::2"}
NEAR = {4: "10.99.0.1", 6: "fd99::1"}
FAR = {4: "10.98.0.1", 6: "fd98::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
OWN = {4: "127.0.0.6", 6: "::6"}
LISTENERS = {
    15001: "outbound",
    15006: "inbound",
    15011: "other outbound",
    15016: "other inbound",
    8080: "app",
    8081: "app",
}
LISTENERS |= dict.fromkeys((15008, 15020, 15021, 15090), "own")
SIDECAR = 1337
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> Iterator[None]:
    """A pod and the world outside, in each of which every port of interest answers with a word."""
    _remove()
    try:
        for name in (POD, OUTSIDE):
            subprocess.run(["ip", "netns", "add", name], check=True)
        _ip(POD, "link set lo up", f"link add eth0 type veth peer name eth0 netns {OUTSIDE}")
        _ip(POD, f"addr add {POD_IP[4]}/24 dev eth0", f"addr add {POD_IP[6]}/64 dev eth0 nodad", "link set eth0 up")
        _ip(
            OUTSIDE,
            "link set lo up",
            f"addr add {NEAR[4]}/24 dev eth0",
            f"addr add {NEAR[6]}/64 dev eth0 nodad",
            "link set eth0 up",
        )
        _ip(OUTSIDE, f"addr add {FAR[4]}/32 dev lo", f"addr add {FAR[6]}/128 dev lo nodad")
        _ip(POD, f"route add default via {NEAR[4]}", f"route add default via {NEAR[6]}")
        with ExitStack() as stack:
            for port, word in LISTENERS.items():
                stack.enter_context(_answering(POD, port, word))
            for port in (80, 81):
                stack.enter_context(_answering(OUTSIDE, port, "outside"))
            yield
    finally:
        _remove()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    assert init("--clean").returncode == 0


def _remove() -> None:
    for name in (POD, OUTSIDE):
        if (NETNS_DIRECTORY / name).exists():
            subprocess.run(["ip", "netns", "del", name], check=True)


def _ip(name: str, *lines: str) -> None:
    subprocess.run(["ip", "-netns", name, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


@contextmanager
def _answering(name: str, port: int, word: str) -> Iterator[None]:
    with linux.network_namespace(NETNS_DIRECTORY / name):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=16)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(word.encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def init(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeagent", "sidecar-init", *arguments]
    return subprocess.run(["ip", "netns", "exec", POD, *argv], cwd=ROOT, text=True, capture_output=True, check=False)


def install(*arguments: str) -> None:
    done = init(*arguments)
    assert done.returncode == 0, done


def table() -> str:
    """Return the whole nat table of the pod, without comments."""
    saving = (["ip", "netns", "exec", POD, f"{name}-save", "-t", "nat"] for name in ("iptables", "ip6tables"))
    texts = [subprocess.run(argv, text=True, capture_output=True, check=True).stdout for argv in saving]
    return "\n".join(line for text in texts for line in text.splitlines() if not line.startswith("#"))


def answer(source: str, host: str, port: int, *, uid: int = 0, gid: int = 0, bind: str = "") -> str:
    """Return who answers a connection from the namespace *source*, made by user *uid* of group *gid*."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with linux.network_namespace(NETNS_DIRECTORY / source):
        os.setegid(gid)
        os.seteuid(uid)
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
            os.setegid(0)
    with connection:
        connection.settimeout(60)
        if bind:
            connection.bind((bind, 0))
        connection.connect((host, port))
        return connection.recv(100).decode()


@VERSIONS
def test_what_istio_captures_by_default(version: int) -> None:
    install()
    assert answer(POD, NEAR[version], 80) == "outbound"
    assert answer(POD, FAR[version], 81) == "outbound"
    assert answer(OUTSIDE, POD_IP[version], 8080) == "inbound"
    assert answer(POD, POD_IP[version], 8080, uid=SIDECAR) == "inbound", (
        "an application that calls its own Service, by way of the sidecar"
    )


@VERSIONS
def test_what_istio_leaves_alone(version: int) -> None:
    install()
    assert answer(POD, NEAR[version], 80, uid=SIDECAR) == "outside"
    assert answer(POD, NEAR[version], 80, gid=SIDECAR) == "outside"
    assert answer(POD, LOOPBACK[version], 8080) == "app"
    assert answer(POD, LOOPBACK[version], 8080, uid=SIDECAR) == "app"
    assert answer(POD, POD_IP[version], 8080) == "app", "an application that calls its own address"
    assert answer(POD, POD_IP[version], 8080, uid=SIDECAR, gid=SIDECAR, bind=OWN[version]) == "app", (
        "the sidecar to its application"
    )
    for port in (15090, 15021, 15020, 15008):
        assert answer(OUTSIDE, POD_IP[version], port) == "own"


@VERSIONS
def test_another_user_and_other_ports(version: int) -> None:
    install("--uid", "4711", "--gid", "4712", "--proxy-port", "15011", "--inbound-capture-port", "15016")
    assert answer(POD, NEAR[version], 80, uid=SIDECAR) == "other outbound"
    assert answer(POD, NEAR[version], 80, uid=4711) == answer(POD, NEAR[version], 80, gid=4712) == "outside"
    assert answer(OUTSIDE, POD_IP[version], 8080) == "other inbound"


@VERSIONS
def test_excluded_ports(version: int) -> None:
    install("--exclude-outbound-ports", "81,443", "--exclude-inbound-ports", "8081")
    assert answer(POD, NEAR[version], 81) == "outside"
    assert answer(POD, NEAR[version], 80) == "outbound"
    assert answer(OUTSIDE, POD_IP[version], 8081) == "app"
    assert answer(OUTSIDE, POD_IP[version], 8080) == "inbound"
    assert answer(OUTSIDE, POD_IP[version], 15020) == "own"


@VERSIONS
def test_excluded_ranges(version: int) -> None:
    install("--exclude-outbound-ranges", "10.98.0.0/16, fd98::/16")
    assert answer(POD, FAR[version], 80) == "outside"
    assert answer(POD, NEAR[version], 80) == "outbound"


@VERSIONS
def test_only_some_ranges_and_ports(version: int) -> None:
    install("--outbound-ranges", "10.98.0.0/16,fd98::/16", "--include-outbound-ports", "81")
    assert answer(POD, FAR[version], 80) == "outbound"
    assert answer(POD, NEAR[version], 80) == "outside"
    assert answer(POD, NEAR[version], 81) == "outbound"


@VERSIONS
def test_only_some_inbound_ports(version: int) -> None:
    install("--inbound-ports", "8080,8081", "--exclude-inbound-ports", "8081")
    assert answer(OUTSIDE, POD_IP[version], 8080) == "inbound"
    assert answer(OUTSIDE, POD_IP[version], 8081) == "app"


@VERSIONS
def test_nothing_inbound_and_nothing_outbound(version: int) -> None:
    install("--inbound-ports", "", "--outbound-ranges", "")
    assert answer(OUTSIDE, POD_IP[version], 8080) == "app"
    assert answer(POD, NEAR[version], 80) == "outside"


def test_twice_is_once_and_other_settings_replace_the_first() -> None:
    install()
    once = table()
    install()
    assert table() == once
    install("--inbound-ports", "", "--exclude-outbound-ports", "81")
    assert "-j ISTIO_INBOUND" not in table()
    install()
    assert table() == once


@VERSIONS
def test_clean_leaves_nothing_but_what_others_made(version: int) -> None:
    before = table()
    other = [
        "ip",
        "netns",
        "exec",
        POD,
        "iptables" if version == 4 else "ip6tables",
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "--dport",
        "7",
        "-j",
        "RETURN",
    ]
    subprocess.run(other, check=True)
    with_other = table()
    install()
    assert init("--clean").returncode == 0
    assert table().replace("-m tcp ", "") == with_other.replace("-m tcp ", "")
    subprocess.run([part if part != "-A" else "-D" for part in other], check=True)
    assert table() == before
    assert init("--clean").returncode == 0, "nothing to remove is nothing wrong"
    assert answer(OUTSIDE, POD_IP[version], 8080) == "app"


@pytest.mark.parametrize("interfaces", [("lo",), ("all", "default", "lo", "eth0")], ids=str)
def test_ipv6_that_is_switched_off_needs_no_address(interfaces: tuple[str, ...]) -> None:
    name = "t-sidecar-no-ipv6"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        _ip(name, "link set lo up", "link add eth0 type veth peer name eth1")
        inside = ["ip", "netns", "exec", name]
        for each in interfaces:
            subprocess.run([*inside, "sysctl", "-qw", f"net.ipv6.conf.{each}.disable_ipv6=1"], check=True)
        for arguments in ((), (), ("--clean",)):
            argv = [*inside, sys.executable, "-m", "nodeagent", "sidecar-init", *arguments]
            done = subprocess.run(argv, cwd=ROOT, text=True, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_dry_run_changes_nothing() -> None:
    before = table()
    done = init("--dry-run")
    assert done.returncode == 0
    assert "-A ISTIO_OUTPUT ! -d ::1/128" in done.stdout
    assert table() == before


def test_without_the_privilege_it_says_what_is_missing() -> None:
    argv: Sequence[str] = [
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--",
        sys.executable,
        "-m",
        "nodeagent",
        "sidecar-init",
    ]
    done = subprocess.run(["ip", "netns", "exec", POD, *argv], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert done.stderr.count("\n") == 1
