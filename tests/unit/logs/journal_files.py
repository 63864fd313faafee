"""Files of systemd's journal, written by systemd's own program and read by journalctl."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

REMOTE = "/lib/systemd/systemd-journal-remote"
BOOT = uuid.UUID("0123456789abcdef0123456789abcdef")
BEGIN = 1767225600_000_000
"""Microseconds since 1970, of the first entry."""
Entry = Mapping[str, bytes]


def exported(number: int, entry: Entry) -> bytes:
    """Return the entry of that *number* in the export format."""
    head = {
        "__REALTIME_TIMESTAMP": f"{BEGIN + number}".encode(),
        "__MONOTONIC_TIMESTAMP": f"{1_000_000 + number}".encode(),
        "_BOOT_ID": BOOT.hex.encode(),
    }
    return b"".join(_field(name.encode(), value) for name, value in {**head, **entry}.items()) + b"\n"


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value and value.isascii():
        return b"%b=%b\n" % (name, value)
    return b"%b\n%b%b\n" % (name, len(value).to_bytes(8, "little"), value)


class JournalWriter:
    """Appends to a journal file, as journald does, as long as the block lasts."""

    def __init__(self, path: Path, number: int = 0, **environment: str) -> None:
        self.number = number
        path.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [REMOTE, "--output", path, "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()
        assert not self._process.returncode

    def write(self, entries: Iterable[Entry]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        for each in entries:
            self.number += 1
            pipe.write(exported(self.number, each))
        pipe.flush()


def written(path: Path, entries: Iterable[Entry], number: int = 0, **environment: str) -> Path:
    """Append *entries* to the journal file *path*, and return it."""
    with JournalWriter(path, number, **environment) as writer:
        writer.write(entries)
    return path


def shown(path: Path) -> list[dict[str, str]]:
    """Return what journalctl shows of the file *path*: the fields of each entry, the last of each name."""
    text = subprocess.run(
        ["journalctl", "--output", "export", "--all", "--file", path], capture_output=True, check=True
    ).stdout
    entries: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    while text:
        line, _, text = text.partition(b"\n")
        if not line:
            entries.append(fields)
            fields = {}
            continue
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(text[:8], "little")
            value, text = text[8 : 8 + size], text[9 + size :]
        fields[name.decode()] = value.decode("utf-8", "replace")
    return entries
