"""The demo does what it says, says so when it does not, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.demo.agents import Proof
from nodeagent.lab.demo.application import HOPS, NAMESPACE, PAGE, identity, manifest
from nodeagent.lab.demo.findings import Findings, broken
from nodeagent.lab.demo.logs import Collected
from nodeagent.lab.demo.run import LABS
from nodeagent.lab.demo.traffic import Visit
from nodeagent.lab.demo.wiretap import Seen, examine
from tests.netns.world import left_behind
from tests.waiting import eventually

DEMO = [sys.executable, "-m", "nodeagent.lab.demo"]


@pytest.fixture(autouse=True)
def gone() -> Iterator[None]:
    """No demo's lab is there after a test; a process that was killed may take a moment to end."""
    yield
    try:
        eventually(
            lambda: all(left_behind(name) == [] for name in LABS.values()), "nothing is left of the demo", seconds=60
        )
    finally:
        for name in LABS.values():
            Lab.remove(name)


def test_the_demo_shows_what_it_claims() -> None:
    done = subprocess.run([*DEMO, "--requests", "60"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "no colours into a pipe"
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("60 of 60 pages") for line in lines), done.stdout
    assert any(line.startswith("with agents ") and line.endswith(" 0 0") for line in lines), done.stdout
    assert "ratings → store …ratings …store mTLS 1 TCP connection" in lines
    assert any(line.startswith("60 of 60 lines collected") for line in lines), done.stdout
    assert lines[-1].startswith("✓ Every claim holds")


MOMENTS = [
    ("without agents: two nodes", signal.SIGINT),
    ("agent a node", signal.SIGTERM),
    ("tcpdump again", signal.SIGINT),
]
"""The last step that is through, and what comes then."""


@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_an_interrupted_demo_leaves_nothing(moment: str, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        while moment not in (line := demo.stdout.readline()):
            assert line, "the demo ended"
        time.sleep(0.2)  # wherever the next step is then
        demo.send_signal(number)
        out, said = demo.communicate(timeout=60)
    assert (demo.returncode, said) == (130, "interrupted\n"), out


def test_two_demos_at_once_are_refused() -> None:
    with socket.socket(socket.AF_UNIX) as lock:
        lock.bind("\0nodeagent-demo")
        done = subprocess.run(DEMO, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: another demo is running on this machine: wait for it, or end it\n",
    )


def test_the_application_can_be_had_to_stay() -> None:
    """By the commands that the demo prints at its end."""
    name = "t-demo"
    told = subprocess.run([*DEMO, "--yaml"], capture_output=True, text=True, check=True).stdout
    assert told == manifest()
    agent = [sys.executable, "-m", "nodeagent"]
    try:
        subprocess.run(
            [*agent, "lab", "up", "-f", "-", "--mode", "nodeagent", "--name", name],
            input=told,
            text=True,
            check=True,
            capture_output=True,
        )
        visit = [
            *agent,
            "lab",
            "exec",
            "--name",
            name,
            "-n",
            NAMESPACE,
            "visitor",
            "--",
            "python3",
            "/app/visitor.py",
            "me",
            "10",
            "5",
            PAGE,
        ]
        done = subprocess.run(visit, text=True, check=True, capture_output=True, timeout=60)
        assert json.loads(done.stdout)[PAGE]["failures"] == []
    finally:
        Lab.remove(name)
    assert left_behind(name) == []


# -- claims --

GOOD = Findings(
    reader="reader-1",
    requests=10,
    direct=Visit((1.0,) * 10, Counter(v1=10)),
    agent=Visit((1.0,) * 10, Counter(v1=5, v2=5)),
    direct_underlay=Seen(packets=90, marked=40, marked_bytes=400, records=0),
    agent_underlay=Seen(packets=90, marked=0, marked_bytes=0, records=80),
    paths=Counter(
        {
            ("outbound", "proxy-local"): 1,
            ("outbound", "proxy-mtls"): 4,
            ("inbound", "proxy-mtls"): 4,
            ("inbound", "proxy-plaintext"): 9,
        }
    ),
    proofs=tuple(
        Proof(hop, frozenset({hop.client}), frozenset({hop.server}), frozenset({hop.policy}), 5) for hop in HOPS
    ),
    logs=Collected(written=10, delivered=10),
    latencies=(),
    footprints=(),
)


def test_claims_that_hold() -> None:
    assert broken(GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agent_underlay": Seen(90, 2, 20, 80)}, "plaintext on the underlay: 2 of 90 packets"),
        ({"agent_underlay": Seen(90, 0, 10, 80)}, "plaintext on the underlay"),
        ({"agent_underlay": Seen(0, 0, 0, 0)}, "nothing encrypted"),
        ({"direct_underlay": Seen(90, 0, 0, 0)}, "tcpdump proves nothing"),
        ({"agent_underlay": Seen(90, 0, 0, 80, dropped=3)}, "tcpdump missed 3 packets"),
        (
            {"agent": Visit((1.0,), Counter(v1=5, v2=4), ("503 details: timed out",))},
            "requests failed through the agents: 1, the first: 503 details",
        ),
        ({"agent": Visit((1.0,), Counter(v1=10))}, "reviews v1 and v2 should both have answered"),
        ({"paths": Counter()}, "nothing captured on path proxy-local"),
        (
            {"paths": GOOD.paths + Counter({("outbound", "passthrough"): 1})},
            "neither kept on its node nor encrypted: {'passthrough': 1}",
        ),
        (
            {"proofs": (dataclasses.replace(GOOD.proofs[0], clients=frozenset({identity("details")})),)},
            "identities of visitor -> frontend",
        ),
        ({"logs": Collected(10, 9)}, "of 10 lines of the frontend's log 9 came to the sink"),
        ({"logs": Collected(0, 0)}, "the frontend has written no line about reader-1"),
        ({"proofs": (dataclasses.replace(GOOD.proofs[1], policies=frozenset({"none"})),)}, "by none"),
        ({"proofs": (dataclasses.replace(GOOD.proofs[1], clients=frozenset(), count=0),)}, "client nobody"),
    ],
)
def test_a_claim_that_does_not_hold_is_named(change: dict[str, object], words: str) -> None:
    found = broken(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert any(words in line and "\n" not in line for line in found), found


# -- recordings --


def frame(sequence: int, payload: bytes, version: int = 4) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 1000, 80, sequence % (1 << 32), 0, 5 << 4, 0x18, 100, 0, 0) + payload
    if version == 4:
        packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, b"aaaa", b"bbbb")
    else:
        packet = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, b"a" * 16, b"b" * 16)
    padding = b"\0" * 6  # short frames are padded, which is not payload
    return b"\1" * 12 + (b"\x08\x00" if version == 4 else b"\x86\xdd") + packet + tcp + padding


def pcap(*frames: bytes) -> bytes:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(each), len(each)) + each for each in frames)


@pytest.mark.parametrize("version", [4, 6])
def test_a_marker_is_found_within_and_across_packets(version: int) -> None:
    last = (1 << 32) - 4  # sequence numbers wrap behind these four bytes
    frames = [
        frame(last, b"..MA", version),
        frame(last + 8, b".MARKER.", version),
        frame(last + 4, b"RKER", version),
        frame(last, b"..", version),
    ]
    assert examine(pcap(*frames), b"MARKER") == Seen(packets=4, marked=1, marked_bytes=12, records=0)


@pytest.mark.parametrize("version", [4, 6])
def test_tls_records_are_counted_and_what_was_sent_again_is_not(version: int) -> None:
    hello, data = b"\x16\x03\x01\x00\x05hello", b"\x17\x03\x03\x00\x04data"
    frames = [
        frame(1, hello + data[:3], version),
        frame(14, data[3:] + data, version),
        frame(14, data[3:] + data, version),
        frame(1, hello, version),
    ]
    assert examine(pcap(*frames), b"MARKER") == Seen(packets=4, marked=0, marked_bytes=0, records=3)


def test_other_packets_and_a_torn_end_are_no_error() -> None:
    recorded = pcap(b"\1" * 12 + b"\x08\x06" + b"arp" * 10, frame(1, b"MARKER"))
    assert examine(recorded[:-70], b"MARKER").packets == 1
    assert examine(recorded, b"MARKER").marked == 1
