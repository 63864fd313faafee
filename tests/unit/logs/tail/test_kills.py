"""A real process is killed at random moments while a writer goes on and its files are rotated in every way.

``NODEAGENT_KILLS`` says how often (default 8, some seconds); ``make log-kills``: a hundred, a minute or two.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import eventually

KILLS = int(os.environ.get("NODEAGENT_KILLS", "8"))
READER = Path(__file__).with_name("reader.py")
ROOT = Path(__file__).parents[4]


class Application:
    """Numbers its lines, as fast as it can, and is rotated; at most so many rotated files are there as nobody
    loses what a dead reader could not open.
    """

    def __init__(self, logs: Path, chance: random.Random) -> None:
        self._logs = logs
        self._chance = chance
        self._log = logs / "app.log"
        self._rotations = 0
        self.number = 0

    def write(self, count: int) -> None:
        with open(self._log, "a") as file:
            for _ in range(count):
                self.number += 1
                file.write(f"{self.number:08d} {'x' * (self.number % 50)}\n")

    def rotate(self) -> None:
        self._rotations += 1
        rotated = self._logs / f"app.log.{self._rotations:05d}"
        if self._chance.random() < 0.4:
            shutil.copyfile(self._log, rotated)
            os.truncate(self._log, 0)
            return
        os.rename(self._log, rotated)
        if self._chance.random() < 0.5:
            with gzip.open(f"{rotated}.tmp", "wb", compresslevel=1) as file:
                file.write(rotated.read_bytes())
            os.rename(f"{rotated}.tmp", f"{rotated}.gz")
            rotated.unlink()

    def go_on(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self.write(self._chance.randrange(1, 400))
            if self._chance.random() < 0.1:
                self.rotate()
            ended.wait(self._chance.random() / 20)


@contextmanager
def reader(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(READER), str(folder)], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def taken(folder: Path) -> dict[tuple[str, int], str]:
    """Return every line by id and offset; fail where one of them stands for two lines."""
    found: dict[tuple[str, int], str] = {}
    for row in (folder / "taken").read_bytes().split(b"\n")[:-1]:
        try:
            name, offset, data = json.loads(row)
        except ValueError:
            continue  # the reader was killed while it wrote; what was torn was not settled
        for line in data.splitlines(keepends=True):
            assert found.setdefault((name, offset), line) == line, f"{name} at {offset} stands for two lines"
            offset += len(line)
    return found


@pytest.mark.timeout(3600)
def test_nothing_is_missing_however_often_the_reader_is_killed(tmp_path: Path) -> None:
    chance = random.Random(17)
    for name in ("logs", "state"):
        (tmp_path / name).mkdir()
    application = Application(tmp_path / "logs", chance)
    ended = threading.Event()
    writing = threading.Thread(target=application.go_on, args=(ended,))
    writing.start()
    try:
        for _ in range(KILLS):
            size = _size(tmp_path)
            with reader(tmp_path):
                eventually(partial(_grew, tmp_path, size), "the reader takes something", seconds=100)
                ended.wait(chance.random() / 2)  # any moment of its work
    finally:
        ended.set()
        writing.join()
    with reader(tmp_path):
        eventually(lambda: len(_numbers(tmp_path)) == application.number, "no number is missing", seconds=300)


def _size(folder: Path) -> int:
    path = folder / "taken"
    return path.stat().st_size if path.exists() else 0


def _grew(folder: Path, size: int) -> bool:
    return _size(folder) > size


def _numbers(folder: Path) -> set[str]:
    return {line[:8] for line in taken(folder).values()}
