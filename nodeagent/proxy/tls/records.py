"""Where TLS records end in a stream of bytes (RFC 8446 section 5.1), without a look into them."""

from __future__ import annotations

HEADER_BYTES = 5


class Records:
    """Cuts what a peer sends into portions of a bounded number of records."""

    def __init__(self) -> None:
        self.waiting = b""
        """What was not handed out yet."""
        self._open = 0  # bytes of the record that was begun and is not whole

    def take(self, limit: int) -> tuple[bytes, int]:
        """Return up to *limit* records of what waits, the last perhaps in part, and how many of them begin there."""
        data = self.waiting
        at = 0
        count = 0
        size = len(data)
        opened = self._open
        while at < size:
            if opened:
                step = min(size - at, opened)
                at += step
                opened -= step
                continue
            if count == limit or size - at < HEADER_BYTES:
                break
            opened = HEADER_BYTES + (data[at + 3] << 8 | data[at + 4])
            count += 1
        self._open = opened
        if at == size:
            self.waiting = b""
            return data, count
        self.waiting = data[at:]
        return data[:at], count

    def ready(self) -> bool:
        """Say whether there is more to take."""
        return len(self.waiting) >= HEADER_BYTES or (self._open > 0 and self.waiting != b"")
