"""The addresses of a network namespace, by rtnetlink: the kernel's messages, and this machine's own."""

from __future__ import annotations

import json
import socket
import struct
import subprocess

import pytest

from nodeagent.places.own_addresses import address_in, drain, messages, own_addresses, watch


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def body(family: int, scope: int, *attributes: bytes) -> bytes:
    return struct.pack("=BBBBI", family, 24, 0, scope, 2) + b"".join(attributes)


FOUR = socket.inet_aton("10.88.1.1")
OTHER = socket.inet_aton("10.88.1.2")
SIX = socket.inet_pton(socket.AF_INET6, "fd00::1")
LOCAL = socket.inet_pton(socket.AF_INET6, "fe80::1")


@pytest.mark.parametrize(
    ("told", "address"),
    [
        (body(2, 0, attribute(1, FOUR), attribute(2, FOUR), attribute(3, b"eth0\0\0\0\0")), "10.88.1.1"),
        (body(2, 0, attribute(1, OTHER), attribute(2, FOUR)), "10.88.1.1"),
        (body(10, 0, attribute(1, SIX), attribute(6, bytes(16))), "fd00::1"),
        (body(2, 253, attribute(2, FOUR)), "10.88.1.1"),
        (body(2, 254, attribute(2, FOUR)), None),
        (body(2, 0, attribute(2, socket.inet_aton("127.0.0.2"))), None),
        (body(10, 253, attribute(1, LOCAL)), None),
        (body(2, 0), None),
        (body(2, 0, struct.pack("=HH", 0, 2)), None),
        (body(2, 0, attribute(2, b"\x01")), None),
    ],
)
def test_an_address_that_others_can_meet_is_told(told: bytes, address: str | None) -> None:
    assert address_in(told) == address


def test_messages_are_told_apart_and_broken_ones_end_it() -> None:
    one = struct.pack("=IHHII", 17, 20, 0, 1, 0) + b"x" + bytes(3)
    assert list(messages(one + one)) == [(20, b"x"), (20, b"x")]
    assert list(messages(struct.pack("=IHHII", 0, 20, 0, 1, 0))) == []
    assert list(messages(b"short")) == []


def test_they_are_what_the_machine_has() -> None:
    links = json.loads(subprocess.run(["ip", "-j", "address"], capture_output=True, check=True).stdout)
    wanted = set()
    for link in links:
        wanted |= {one["local"] for one in link["addr_info"] if one["scope"] == "global"}
    assert own_addresses() >= wanted
    assert not {"127.0.0.1", "::1"} & own_addresses()


def test_a_watch_waits() -> None:
    with watch() as watching:
        drain(watching)
        with pytest.raises(BlockingIOError):
            watching.recv(1)
