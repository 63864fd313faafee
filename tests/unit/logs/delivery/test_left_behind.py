"""Buffers of sinks that are none any more are told, with what waits there for pods that went by themselves."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.left_behind import left_behind
from tests.unit.logs.made_records import origin, records


def test_what_waits_for_pods_that_went_by_themselves_is_told_until_it_is_removed(tmp_path: Path) -> None:
    async def write() -> None:
        buffer = DiskBuffer(tmp_path / "former", 1 << 30)
        side = buffer.side(3)
        for each in (buffer, side):
            each.open()
        await side.append([records(["a", "b"], source=origin("limited"))])
        assert buffer.bytes == 0 and buffer.bytes_of_all == side.bytes > 0
        await side.close()
        await buffer.close()

    asyncio.run(write())
    (found,) = left_behind(tmp_path, ["other"])
    assert found.name == "former" and found.counts.pods[("shop", "limited")].offered == 2
    assert found.trouble.startswith(f"2 records ({found.bytes} bytes)") and found.is_there()
    shutil.rmtree(tmp_path / "former" / "side-3")
    assert not found.is_there()
    assert left_behind(tmp_path, []) == []
