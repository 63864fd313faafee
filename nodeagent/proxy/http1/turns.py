"""What a client sent, parsed in portions: it may send thousands of requests at once, in a single
read, and others want the loop too.
"""

from __future__ import annotations

from typing import Any, Final

REQUESTS_A_TURN: Final = 16
PORTION_BYTES: Final = 2048
LARGEST_PORTION: Final = 32768
"""In a body that goes on, portions grow."""


class Turns:
    """Feeds *codec*, an HttpDownstream, and counts the requests that begin meanwhile."""

    __slots__ = ("_codec", "begun", "late")

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self.begun = 0
        self.late = b""
        """What was read and is not parsed yet."""

    def come(self, data: bytes) -> None:
        """Take *data* behind what is late, and parse what this turn may."""
        self.late = self.late + data if self.late else data
        if "turn" not in self._codec.paused:
            self._work()

    def go_on(self) -> None:
        """Parse the rest in the loop's next turn; reading stays paused until then."""
        self._codec.paused.add("turn")
        self._codec.context.loop.call_soon(self._next)

    def _work(self) -> None:
        codec, size = self._codec, PORTION_BYTES
        self.begun = 0
        while self.late and not codec.paused and not codec.reader.closed:
            if self.begun >= REQUESTS_A_TURN:
                codec.pause_reading("turn")
                codec.context.loop.call_soon(self._next)
                return
            portion, self.late, begun = self.late[:size], self.late[size:], self.begun
            codec.parse(portion)
            size = PORTION_BYTES if self.begun > begun else min(2 * size, LARGEST_PORTION)

    def _next(self) -> None:
        codec = self._codec
        codec.paused.discard("turn")
        if codec.paused:
            return  # whoever reads on comes to go_on()
        self._work()
        if not codec.paused and not codec.transport.is_closing():
            codec.transport.resume_reading()
