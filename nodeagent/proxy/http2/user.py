"""What a session tells the codec on top of it, and how a rule is broken."""

from __future__ import annotations

from typing import Final

from mypy_extensions import trait

from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2.stream import Http2Stream

TOO_LARGE: Final[list[Field]] = []
"""In the place of a head whose fields were too many or too long."""


class SessionError(Exception):
    """The peer broke a rule that ends the connection; ``code`` is RFC 9113 section 7's."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


@trait
class SessionUser:
    """The codec on top of a session."""

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        """A header block of *stream* is whole: its head, or, behind ``head_read``, its trailers.
        *fields* is TOO_LARGE itself where it exceeds its bounds.
        """
        raise NotImplementedError

    def on_data(self, stream: Http2Stream, piece: bytes) -> None:
        """*piece*, which is not empty, came of the body."""
        raise NotImplementedError

    def on_end(self, stream: Http2Stream) -> None:
        """The peer has said all of *stream*."""
        raise NotImplementedError

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        """*stream* ended before its time and is forgotten; *ours*: since the peer broke a rule."""
        raise NotImplementedError

    def party(self) -> str:
        """Return who the peer is: what waits for him on all connections is counted together."""
        raise NotImplementedError

    def on_given_up(self, stream: Http2Stream | None) -> None:
        """*stream* was reset, and is forgotten, since too much is held; None: the connection is to
        be cut. It may be within a call of anybody's: what follows waits for the loop's next turn.
        """
        raise NotImplementedError

    def on_full(self, stream: Http2Stream) -> None:
        """Much waits for the peer to take it."""
        raise NotImplementedError

    def on_room(self, stream: Http2Stream) -> None:
        """It has taken most of it."""
        raise NotImplementedError

    def on_goaway(self, code: int) -> None:
        """The peer takes no new streams."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """The peer has said what it takes."""
        raise NotImplementedError
