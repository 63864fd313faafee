"""DNS answers, byte by byte, and whatever bytes come in."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.lab.dns import answer

NAMES = {
    "web.default.svc.cluster.local": ("10.96.0.1", "fd00::1"),
    "many.svc.cluster.local": tuple(f"10.0.0.{number}" for number in range(1, 101)),
}
A, AAAA, MX = 1, 28, 15


def query(name: str, kind: int, *, edns: int | None = None, flags: int = 0x0100, klass: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack("!HHHHHH", 0x1234, flags, 1, 0, 0, 0 if edns is None else 1)
    return (
        header
        + labels
        + b"\0"
        + struct.pack("!HH", kind, klass)
        + (b"" if edns is None else b"\0" + struct.pack("!HHIH", 41, edns, 0, 0))
    )


def read(reply: bytes | None) -> tuple[int, bool, set[str]]:
    """Return response code, truncation, addresses."""
    assert reply is not None
    ident, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert ident == 0x1234
    assert flags & 0x8000
    offset = 12
    if questions:
        while reply[offset]:
            offset += 1 + reply[offset]
        offset += 5
    found = set()
    for _ in range(answers):
        pointer, _, _, _, length = struct.unpack_from("!HHHIH", reply, offset)
        assert pointer == 0xC00C
        found.add(str(ip_address(reply[offset + 12 : offset + 12 + length])))
        offset += 12 + length
    assert offset == len(reply)
    return flags & 15, bool(flags & 0x0200), found


def test_addresses_of_the_family_asked_for() -> None:
    assert read(answer(query("web.default.svc.cluster.local", A), NAMES.get)) == (0, False, {"10.96.0.1"})
    assert read(answer(query("web.default.svc.cluster.local", AAAA), NAMES.get)) == (0, False, {"fd00::1"})
    assert read(answer(query("WEB.Default.svc.cluster.LOCAL", A), NAMES.get)) == (0, False, {"10.96.0.1"})


def test_no_data_is_not_no_name() -> None:
    assert read(answer(query("web.default.svc.cluster.local", MX), NAMES.get)) == (0, False, set())
    assert read(answer(query("many.svc.cluster.local", AAAA), NAMES.get)) == (0, False, set())
    assert read(answer(query("nope.default.svc.cluster.local", A), NAMES.get)) == (3, False, set())
    assert read(answer(query("svc.cluster.local", A), NAMES.get)) == (0, False, set())
    assert read(answer(query("example.com", A), NAMES.get)) == (3, False, set())


def test_what_does_not_fit_is_cut_and_marked() -> None:
    everyone = set(NAMES["many.svc.cluster.local"])
    asked = query("many.svc.cluster.local", A)
    assert read(answer(asked, NAMES.get)) == (0, True, set())
    assert read(answer(asked, NAMES.get, limit=65535)) == (0, False, everyone)
    assert read(answer(query("many.svc.cluster.local", A, edns=4096), NAMES.get)) == (0, False, everyone)
    assert read(answer(query("many.svc.cluster.local", A, edns=1232), NAMES.get)) == (0, True, set())


def test_what_is_no_query() -> None:
    assert answer(b"", NAMES.get) is None
    assert answer(query("a.b", A, flags=0x8000), NAMES.get) is None
    assert read(answer(query("a.b", A, flags=0x2800), NAMES.get))[0] == 4
    assert read(answer(query("a.b", A)[:-3], NAMES.get))[0] == 1
    assert read(answer(query("a.b", A)[:12] + b"\xc0\x0c\0\1\0\1", NAMES.get))[0] == 1


@given(st.binary(max_size=80))
def test_any_bytes_are_answered_or_ignored(message: bytes) -> None:
    reply = answer(message, NAMES.get)
    assert reply is None or len(reply) >= 12
