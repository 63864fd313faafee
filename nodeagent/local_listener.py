"""A socket of packets at a path of the runtime directory, where daemons of one node meet: those of this process's
user, whom nobody else can pretend to be (SO_PEERCRED).
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_BACKLOG: Final = 4
_CREDENTIALS: Final = struct.Struct("=3i")
"""struct ucred (unix(7)): pid, uid, gid."""


def calling_uid(end: socket.socket) -> int:
    """Return whose process is at the other end, by SO_PEERCRED. Raises OSError."""
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


class LocalListener:
    """The listening end. Nothing here waits."""

    def __init__(self, path: Path) -> None:
        """Listen at *path*, in place of whoever did before. Raises OSError."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)  # before it listens, so nobody can have connected
            self._socket.listen(_BACKLOG)
            self._inode = path.stat().st_ino
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next caller's end, non-blocking; None: there is none of this user."""
        try:
            end, _ = self._socket.accept()
        except OSError:
            return None
        end.setblocking(False)
        try:
            if calling_uid(end) == os.getuid():
                return end
        except OSError:
            pass  # it is gone
        end.close()
        return None

    @property
    def is_there(self) -> bool:
        """Whether who calls at the path comes here."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Nobody can call any more."""
        self._socket.close()
        with suppress(OSError):
            if self.is_there:  # a successor may have its own there
                self._path.unlink()

    def leave(self) -> None:
        """Nobody can call here any more; at the path a successor listens, or will at this very moment, so that who
        looked whose it is, and then removed it, might remove that one's.
        """
        self._socket.close()

    def detach(self) -> int:
        """Return the descriptor, for whoever closes it alone: the path is another process's."""
        return self._socket.detach()
