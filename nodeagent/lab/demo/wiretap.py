"""What passes between the nodes: recorded by tcpdump on the underlay's bridge, then searched.
:func:`examine` is pure.
"""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import LabError
from nodeagent.lab import Lab

_STOP_SECONDS = 60.0
_SETTLE_SECONDS = 0.1
_IPV4 = 0x0800
_IPV6 = 0x86DD
_TCP = 6
_RECORD_TYPES: Final = range(20, 24)
"""TLS: change_cipher_spec, alert, handshake, application_data (RFC 8446, 5.1)."""

Flow = tuple[bytes, bytes]
"""Both addresses, both ports, as they stand in the packet: one direction of a connection."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The payload of one TCP packet."""

    flow: Flow
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """What a recording holds."""

    packets: int
    marked: int
    """Packets that show the marker in plaintext."""
    marked_bytes: int
    """Bytes of the marker in plaintext, also where it is spread over two packets."""
    records: int
    """TLS records."""
    dropped: int = 0
    """Packets that tcpdump missed."""


class Recording:
    """What tcpdump has written; filled when the ``with`` of :func:`record` ends."""

    def __init__(self) -> None:
        self.pcap = b""
        self.dropped = 0

    def examine(self, marker: bytes) -> Seen:
        """Return what has been recorded."""
        return examine(self.pcap, marker, self.dropped)


@contextmanager
def record(lab: Lab) -> Iterator[Recording]:
    """Record all TCP between the nodes of *lab* meanwhile. Raises LabError if tcpdump does not
    work; no file with a name is made.
    """
    argv = ["tcpdump", "-i", "node1", "-U", "--immediate-mode", "-B", "16384", "-s", "0", "-w", "-", "tcp"]
    with (
        tempfile.TemporaryFile() as file,
        lab.popen("underlay", argv, stdout=file, stderr=subprocess.PIPE, text=True) as tcpdump,
    ):
        recording = Recording()
        try:
            _started(tcpdump)
            yield recording
            time.sleep(_SETTLE_SECONDS)
        finally:
            tcpdump.terminate()
            _, said = tcpdump.communicate(timeout=_STOP_SECONDS)
        missed = re.search(r"(\d+) packets? dropped by kernel", said)
        file.seek(0)
        recording.pcap = file.read()
        recording.dropped = int(missed[1]) if missed else 0
        if tcpdump.returncode not in (0, -signal.SIGTERM):
            raise LabError(f"tcpdump on the underlay ended with {tcpdump.returncode}: {said.strip()[-300:]}")


def _started(tcpdump: subprocess.Popen[str]) -> None:
    assert tcpdump.stderr is not None
    words: list[str] = []
    while "listening on" not in (line := tcpdump.stderr.readline()):
        if not line:
            raise LabError(
                f"tcpdump does not run on the underlay (is it installed?): {' '.join(words) or 'it says nothing'}"
            )
        words.append(line.strip())


def examine(pcap: bytes, marker: bytes, dropped: int = 0) -> Seen:
    """Return what *pcap*, a file as tcpdump writes it, shows of *marker* and of TLS."""
    frames = list(_frames(pcap))
    streams: defaultdict[Flow, dict[int, bytes]] = defaultdict(dict)
    for segment in filter(None, map(_segment, frames)):
        if len(segment.payload) > len(streams[segment.flow].get(segment.sequence, b"")):
            streams[segment.flow][segment.sequence] = segment.payload
    texts = [_assembled(segments) for segments in streams.values() if segments]
    return Seen(
        packets=len(frames),
        marked=sum(marker in frame for frame in frames),
        marked_bytes=len(marker) * sum(text.count(marker) for text in texts),
        records=sum(_records(text) for text in texts),
        dropped=dropped,
    )


def _frames(pcap: bytes) -> Iterator[bytes]:
    """Yield the Ethernet frames of *pcap* (24 bytes of header, then each frame after 16 bytes of its own)."""
    order = "<" if pcap[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(pcap):
        length = int(struct.unpack_from(f"{order}I", pcap, at + 8)[0])
        yield pcap[at + 16 : at + 16 + length]
        at += 16 + length


def _segment(frame: bytes) -> Segment | None:
    """Return the TCP segment in *frame*; None if there is none. Extension headers of IPv6 do not occur here."""
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if kind == _IPV4 and packet[9] == _TCP:
        addresses = packet[12:20]
        whole = int.from_bytes(packet[2:4], "big")
        start = (packet[0] & 15) * 4
    elif kind == _IPV6 and packet[6] == _TCP:
        addresses = packet[8:40]
        whole = 40 + int.from_bytes(packet[4:6], "big")
        start = 40
    else:
        return None
    tcp = packet[start:whole]
    return Segment((addresses, tcp[:4]), int.from_bytes(tcp[4:8], "big"), tcp[(tcp[12] >> 4) * 4 :])


def _assembled(segments: dict[int, bytes]) -> bytes:
    """Return the bytes of a stream in order, what was sent again only once; sequence numbers may wrap."""
    first = next(iter(segments))
    text = bytearray()
    end = 0
    for offset, payload in sorted(
        ((sequence - first + (1 << 31)) % (1 << 32) - (1 << 31), payload) for sequence, payload in segments.items()
    ):
        text += payload[max(0, end - offset) :] if text else payload
        end = max(end, offset + len(payload))
    return bytes(text)


def _records(text: bytes) -> int:
    """Return how many whole TLS records *text*, a stream from its start, consists of."""
    at = count = 0
    while at + 5 <= len(text) and text[at] in _RECORD_TYPES and text[at + 1] == 3:
        at += 5 + int.from_bytes(text[at + 3 : at + 5], "big")
        count += at <= len(text)
    return count
