"""Packets as from somebody else, for raw sockets (RFC 791, 8200, 9293)."""

from __future__ import annotations

import socket
import struct


def syn(source: str, source_port: int, destination: str, port: int) -> bytes:
    """Return a packet with a TCP SYN from the numeric address *source*; the kernel fills in an IPv4
    header's checksum.
    """
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    tcp = struct.pack("!2H2I2B3H", source_port, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    words = ends + struct.pack("!2H", socket.IPPROTO_TCP, len(tcp)) + tcp
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    tcp = tcp[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + tcp[18:]
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + ends + tcp
    return struct.pack("!2B3H2BH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends + tcp
