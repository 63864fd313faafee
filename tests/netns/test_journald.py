"""systemd's own journald, in the room's /run: what it is told is read once, over its rotation and its vacuuming."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.logs.tail.interfaces import LogSource, SourceKey
from nodeagent.vocabulary import PodUid
from tests.unit.logs.tail.rig import Rig
from tests.waiting import eventually

JOURNALD = "/lib/systemd/systemd-journald"
FOLDER = Path("/run/log/journal")
SOCKET = Path("/run/systemd/journal/socket")
CONTROL = SOCKET.with_name("io.systemd.journal")
SOURCE = LogSource(SourceKey("journal//run/log/journal/system.journal"), PodUid(""), journal=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return where journald, which runs as long as the test, writes."""
    FOLDER.mkdir(parents=True)  # a machine's own is there, and is not to be removed
    with subprocess.Popen([JOURNALD]) as process:
        try:
            eventually(lambda: SOCKET.exists() and CONTROL.exists(), "journald listens")
            yield eventually(lambda: next(FOLDER.glob("*/system.journal"), None), "it has a file").parent
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(FOLDER)
            shutil.rmtree(SOCKET.parent)


def journalctl(*words: str) -> None:
    subprocess.run(["journalctl", *words], check=True, capture_output=True)


def write(begin: int, end: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.connect(str(SOCKET))
        for number in range(begin, end):
            told.send(b"TEST=1\nMESSAGE=%d\nLONG=%b\n" % (number, b"%d " % number * 400))
    journalctl("--sync")


def numbers(rig: Rig) -> list[int]:
    rig.scan(SOURCE)
    rig.run(2.0)
    entries = map(json.loads, rig.sink.texts())
    return [int(each["MESSAGE"]) for each in entries if "TEST" in each]


def test_each_entry_is_read_once_over_rotation_vacuuming_and_restarts(tmp_path: Path, folder: Path) -> None:
    rig = Rig(tmp_path)
    rig.logs = folder
    write(0, 200)
    assert numbers(rig) == list(range(200))
    write(200, 300)
    journalctl("--rotate")
    write(300, 400)
    rig.restart()
    assert numbers(rig) == list(range(400))
    rig.restart()
    write(400, 500)
    journalctl("--rotate")
    write(500, 600)
    assert numbers(rig) == list(range(600))
    journalctl("--directory", str(FOLDER), "--vacuum-files=1")
    assert len(list(folder.iterdir())) == 1
    write(600, 700)
    assert numbers(rig) == list(range(700))
    rig.run(60.0)
    assert [status.name for status in rig.tail.status()] == ["system.journal"]
    assert not rig.sink.repeated
    assert not rig.tail.counts()[PodUid("")].bytes_lost
    rig.tail.close()
