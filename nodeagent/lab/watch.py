"""Follow the folder of objects: what it holds, parsed, and a call when that changes (inotify, no polling)."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path

from nodeagent.lab.layout import Draft

_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_DELETE = 0x200
_SETTLE_SECONDS = 0.02
"""Changes come in bursts; one call for a burst."""

_libc = ctypes.CDLL(None, use_errno=True)


class Objects:
    """The objects of the cluster. Writers rename whole files into place, so no half of one is ever read."""

    def __init__(self, directory: Path, changed: Callable[[], None]) -> None:
        self._directory = directory
        self._changed = changed
        self._files: dict[str, tuple[tuple[int, int], Draft]] = {}
        self._pending = False
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if (
            self._fd < 0
            or _libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE) < 0
        ):
            number = ctypes.get_errno()
            raise OSError(number, f"inotify on {directory}: {os.strerror(number)}")
        asyncio.get_running_loop().add_reader(self._fd, self._on_event)
        self.refresh()

    def of_kind(self, kind: str) -> list[Draft]:
        """Return the objects of *kind* in the order of their file names."""
        return [value for name, (_, value) in sorted(self._files.items()) if name.startswith(f"{kind}.")]

    def get(self, kind: str, namespace: str, name: str) -> Draft | None:
        """Return one object, or None."""
        found = self._files.get(f"{kind}.{namespace}.{name}.json")
        return found[1] if found else None

    def refresh(self) -> bool:
        """Read what changed on disk since the last time; return whether anything did."""
        seen: dict[str, tuple[tuple[int, int], Draft]] = {}
        for entry in os.scandir(self._directory):
            if entry.name.startswith(".") or not entry.name.endswith(".json"):
                continue
            try:
                stat = entry.stat()
                version = (stat.st_ino, stat.st_mtime_ns)
                known = self._files.get(entry.name)
                seen[entry.name] = (
                    known if known and known[0] == version else (version, json.loads(Path(entry.path).read_bytes()))
                )
            except FileNotFoundError:
                continue
        changed = seen != self._files
        self._files = seen
        return changed

    def _on_event(self) -> None:
        os.read(self._fd, 65536)
        if not self._pending:
            self._pending = True
            asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._pending = False
        if self.refresh():
            self._changed()
