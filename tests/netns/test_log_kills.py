"""The whole collector is killed at random moments while its disk is full, and read-only: a real file system."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.logs.collecting import Node, collecting
from tests.unit.logs.test_kills import KILLS, LIFE, at_once, beside, drawn, judge, reported, written
from tests.waiting import until

__all__ = ("at_once",)  # for every test here, too


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A node's folder, whose state is on a disk of a megabyte."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", state], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", state], check=True)


async def said(node: Node, words: str) -> None:
    await until(lambda: any(words in each for each in node.warnings), f"'{words}' is said")


async def collects(node: Node) -> None:
    await until(lambda: node.collector.pid and not node.collector.missing(), "it collects")


def remounted_by_its_death(node: Node, how: str) -> None:
    """Kill the collector and mount its state anew before the next one begins: a file that is written to forbids it."""
    pid = node.collector.pid
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # somebody has waited for it
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    remount(node.state, how)


def remount(state: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", state], check=True)


@pytest.mark.timeout(3600)
def test_nothing_is_missing_where_the_disk_is_full_while_it_is_killed(small_disk: Path) -> None:
    chance = drawn()
    kills = max(4, KILLS // 4)

    async def run() -> None:
        async with collecting(small_disk, chance) as node:
            node.sink.refusing = False  # what it refuses is lost where it cannot be put down
            filler = node.state / "filler"

            async def fill() -> None:
                node.sink.down = chance.random() < 0.7
                with suppress(OSError), filler.open("wb") as file:
                    file.write(bytes(2 << 20))
                await asyncio.sleep(chance.uniform(0.5, 2))  # the disk is full for so long
                filler.unlink()
                await asyncio.sleep(chance.uniform(0.1, 0.5))  # and has room for so long

            async with written(node), beside(fill, lambda: reported(node)):
                for _ in range(kills):
                    await node.kill(chance, LIFE)
                await said(node, "No space left on device")
            filler.unlink(missing_ok=True)
            await judge(node, kills)

    asyncio.run(run())


@pytest.mark.timeout(3600)
def test_nothing_is_missing_where_the_state_is_read_only_at_the_start_and_later(small_disk: Path) -> None:
    chance = drawn()

    async def run() -> None:
        remount(small_disk / "state", "ro")
        async with collecting(small_disk, chance) as node:
            node.sink.refusing = False
            async with written(node), beside(lambda: reported(node)):
                await until(lambda: node.sink.taken, "what is read is delivered all the same")
                await said(node, "Read-only file system")
                await node.kill(chance, LIFE)
                remount(node.state, "rw")
                node.sink.down = True
                await until(lambda: node.segments() > 1 << 12, "records wait on disk")
                await collects(node)
                node.warnings.clear()
                remounted_by_its_death(node, "ro")
                await said(node, "Read-only file system")
                await collects(node)
                await node.kill(chance, LIFE)
                node.sink.down = False
                await collects(node)
                remount(node.state, "rw")
            await judge(node, 3)

    asyncio.run(run())
