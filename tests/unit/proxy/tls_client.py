"""A TLS 1.3 client that writes its own records (RFC 8446 section 5.2), so that it can send what no library would."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

DATA, HANDSHAKE = 23, 22
KEY_UPDATE, KEY_UPDATE_BACK = b"\x18\x00\x00\x01\x00", b"\x18\x00\x00\x01\x01"
"""update_not_requested, update_requested (section 4.6.3)."""


def client_secret(key_log: Path) -> bytes:
    """Return the secret of the client's half of the one session in *key_log*."""
    (line,) = (line for line in key_log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0 "))
    return bytes.fromhex(line.split()[2])


def expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of *secret*, of a session of TLS_AES_256_GCM_SHA384 (section 7.1)."""
    info = struct.pack("!HB", length, 6 + len(label)) + b"tls13 " + label + b"\0"
    return HKDFExpand(hashes.SHA384(), length, info).derive(secret)


class Writer:
    """The client's half of an established session, by the secret in its key log."""

    def __init__(self, session: ssl.SSLObject, key_log: Path) -> None:
        assert session.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        self._secret = client_secret(key_log)
        self._rekey()

    def data(self, content: bytes) -> bytes:
        return self._record(DATA, content)

    def key_update(self, *, back: bool) -> bytes:
        """Return the record that announces new keys, and take them; *back*: the server shall do the same."""
        record = self._record(HANDSHAKE, KEY_UPDATE_BACK if back else KEY_UPDATE)
        self._secret = expand(self._secret, b"traffic upd", 48)
        self._rekey()
        return record

    def _rekey(self) -> None:
        self._key, self._iv, self._sequence = (
            AESGCM(expand(self._secret, b"key", 32)),
            int.from_bytes(expand(self._secret, b"iv", 12)),
            0,
        )

    def _record(self, kind: int, content: bytes) -> bytes:
        inner = content + bytes([kind])
        head = struct.pack("!BHH", DATA, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._sequence).to_bytes(12)
        self._sequence += 1
        return head + self._key.encrypt(nonce, inner, head)


def handshake(context: ssl.SSLContext, connection: Any, key_log: Path) -> Writer:
    """Do the handshake over the blocking socket *connection*; nothing is sent by *context*'s library afterwards."""
    context.keylog_filename = str(key_log)  # of the sessions that are made from now on
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing)
    while True:
        try:
            session.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(1 << 16))
        else:
            connection.sendall(outgoing.read())
            context.keylog_filename = None  # type: ignore[assignment]
            return Writer(session, key_log)
