"""What the HTTP/2 connections of one pod make a worker hold."""

from __future__ import annotations


class HeldBytes:
    """Bytes that wait for somebody to take them, on all connections of a pod, towards it and from it: of bodies,
    and of whatever a transport keeps.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.widened = 0
        """Bytes that peers may send of streams beyond the windows with which they began."""
