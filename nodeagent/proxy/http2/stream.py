"""One stream of an HTTP/2 connection, as the session keeps it (RFC 9113 section 5.1)."""

from __future__ import annotations

import collections
from typing import Final

from nodeagent.proxy.http.exchange import UNKNOWN, Exchange
from nodeagent.proxy.http.fields import Field

BODY: Final = 1
UPSTREAM: Final = 2
DOWNSTREAM: Final = 4
WANTED: Final = 8
"""Who keeps what came wants more of it: the peer gets new windows, and what came counts as held."""
CAUSES: Final = {"body": BODY | WANTED, "upstream": UPSTREAM}
"""Why what comes of a body is not taken, as bits."""


class Http2Stream:
    """Both directions: what the peer sends is counted here, what goes to it waits here for its window."""

    # what most streams never change stays on the class
    exchange: Exchange | None = None
    head_read = False
    """The peer's head is whole; another one is its trailers."""
    remote_ended = False
    local_ended = False
    closing = False
    """Nothing is added to what waits any more: it ends the stream."""
    trailers: list[Field] | None = None
    """What follows what waits, where it is no END_STREAM alone."""
    held = 0
    """Causes for which the peer gets no new window, WANTED apart."""
    taken = 0
    """Bytes that came, and for which the peer has got no new window of the stream."""
    owed = 0
    """Bytes that came, and that the other half of the exchange has not taken."""
    widened = 0
    """Bytes that the peer may send at once beyond the window with which the stream began."""
    expected = UNKNOWN
    """Bytes of the peer's body by its content-length."""
    read = 0
    """Bytes that came of it."""
    queued = 0
    """Bytes that wait."""
    since = 0.0
    """When the peer opened it, by the session's clock."""
    moved = 0.0
    """When bytes that wait, here or for the other half, were last taken, or the first of them came: by the
    session's clock.
    """
    head_bytes = 0
    """Of the header block by which the peer opened it."""
    ready = False
    """It has a turn to send what waits."""
    waits = False
    """The other half was asked to pause, since much waits."""
    queue: collections.deque[bytes] | None = None
    kept: list[bytes] | None = None
    """What was sent of a request's body, while it may have to be sent once more."""
    kept_bytes = 0

    def __init__(self, number: int, window: int) -> None:
        """*window*: bytes that the peer takes (its SETTINGS_INITIAL_WINDOW_SIZE)."""
        self.number = number
        self.window = window
