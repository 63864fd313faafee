"""The buffer on disk: what was promised comes back, in order, whatever becomes of the process or the file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.delivery import buffer as buffer_module
from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.counts import PodName
from nodeagent.logs.delivery.known import Taking
from nodeagent.logs.delivery.segments import MAGIC, DamagedSegment, SegmentReader, SegmentWriter, copy_frames, survey
from nodeagent.logs.records import LogRecords
from tests.unit.logs.made_records import origin, records

ROOT = Path(__file__).parents[4]
MOST = 1 << 30


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def opened(folder: Path, most: int = MOST, segment: int = 8 << 20) -> DiskBuffer:
    buffer = DiskBuffer(folder, most, segment)
    buffer.open()
    return buffer


async def all_there_is(buffer: DiskBuffer, at_once: int = 1) -> tuple[list[Taking], Counter[PodName]]:
    """Take everything; return it, and what turned out to be lost."""
    result: list[Taking] = []
    lost: Counter[PodName] = Counter()
    while buffer.unread:
        taken, gone = await buffer.take(at_once)
        result += taken
        lost += gone
    return result, lost


async def everything(buffer: DiskBuffer) -> list[Taking]:
    taken, lost = await all_there_is(buffer)
    assert not lost
    return taken


async def fill(buffer: DiskBuffer, pods: int = 0) -> None:
    """Append 100 records that hardly compress, each for itself and with its number; of so many *pods* in turn."""
    for each in range(100):
        source = origin(f"pod-{each % pods}") if pods else origin()
        await buffer.append([records([f"{each} {os.urandom(1000).hex()}"], each, source)])


def texts(taken: list[Taking]) -> list[bytes]:
    result: list[bytes] = []
    for each in taken:
        result += each.records.texts
    return result


def test_records_come_back_as_they_were_and_the_disk_is_empty_then(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path)
        written = [records(["a", {"b": 1}]), records(["c"], source=origin("web-2")), records(["d"], 500)]
        await buffer.append(written[:2])
        await buffer.append(written[2:])
        assert buffer.pods == {("shop", "web-1"): 3, ("shop", "web-2"): 1}
        taken = await everything(buffer)
        assert [each.records for each in taken] == written
        assert buffer.pods.total() == 4
        for each in taken:
            buffer.done(each)
        assert not buffer.pods and buffer.bytes == 0
        assert [each.name for each in tmp_path.iterdir()] == []

    run(test)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**62), st.binary(max_size=60), st.sampled_from([b"", b"stdout"])),
        min_size=1,
        max_size=30,
    )
)
def test_any_content_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bytes, bytes]]) -> None:
    path = tmp_path_factory.mktemp("segment") / "s"
    found = LogRecords(origin(labels={"é": "\x00"}), b"id", 9)
    for offset, text, stream in rows:
        found.offsets.append(offset)
        found.times.append(b"2026")
        found.streams.append(stream)
        found.texts.append(text)
        found.objects.append(text)
    writer = SegmentWriter(path)
    writer.append(writer.frames([found, found]))
    writer.close()
    reader = SegmentReader(path)
    assert [reader.next(writer.size), reader.next(writer.size), reader.next(writer.size)] == [found, found, None]
    reader.close()


def test_what_was_not_settled_is_found_by_the_next_process(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        for each in range(200):
            await buffer.append([records([f"{each} {os.urandom(500).hex()}"], each)])
        assert len(list(tmp_path.glob("*.segment"))) > 2
        taken: list[Taking] = []
        for _ in range(90):
            taken += (await buffer.take(1))[0]
        for each in taken[:80]:
            buffer.done(each)
        await buffer.close()
        left = opened(tmp_path)
        assert left.pods == {("shop", "web-1"): 120}
        found = await everything(left)
        assert [int(each.split()[0]) for each in texts(found)] == list(range(80, 200))
        await left.append([records(["new"])])
        assert texts(await everything(left)) == [records(["new"]).texts[0]]
        await left.close()

    run(test)


def test_settling_out_of_order_keeps_what_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path)
        await buffer.append([records([f"{each}"], each) for each in range(4)])
        taken = await everything(buffer)
        for each in (1, 2, 3):
            buffer.done(taken[each])
        await buffer.close()
        assert texts(await everything(opened(tmp_path))) == [b"0", b"1", b"2", b"3"]

    run(test)


def test_a_torn_end_ends_a_segment_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    writer = SegmentWriter(path)
    writer.append(writer.frames([records(["a"]), records(["b"])]))
    first = writer.size
    writer.append(writer.frames([records(["c"])]))
    writer.close()
    whole = path.read_bytes()
    for length in range(len(MAGIC), len(whole)):
        torn = tmp_path / "torn"
        torn.write_bytes(whole[:length])
        size, pods, _ = survey(torn, 0)
        assert size <= length
        if length >= first:
            assert pods.total() == 2
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    reader = SegmentReader(path)
    assert reader.next(len(whole)) == records(["a"])
    assert reader.next(len(whole)) == records(["b"])
    with pytest.raises(DamagedSegment, match="checksum"):
        reader.next(len(whole))
    reader.close()


def test_what_is_damaged_is_counted_put_aside_and_stops_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        await fill(buffer)
        await buffer.close()
        first = min(tmp_path.glob("*.segment"))
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 255
        first.write_bytes(content)
        (tmp_path / "000000000000.segment").write_bytes(b"nonsense")
        (tmp_path / "others").write_bytes(b"kept")
        buffer = opened(tmp_path)
        taken, lost = await all_there_is(buffer)
        assert len(taken) == 99
        assert lost == {("shop", "web-1"): 1}, "what follows is not damaged"
        for each in taken:
            buffer.done(each)
        assert not buffer.pods
        assert sorted(each.name for each in tmp_path.iterdir()) == ["cursor", "damaged", "others"]

    run(test)


def one_segment(folder: Path) -> tuple[Path, dict[bytes, str]]:
    """Leave a segment of three pods' records in *folder*; return it, and each text's pod."""

    async def write() -> None:
        buffer = opened(folder)
        for number in range(6):
            await buffer.append([records([f"{number} {'x' * 40}"], number, origin(f"pod-{number % 3}"))])
        await buffer.close()

    run(write)
    (path,) = folder.glob("*.segment")
    return path, {f"{number} {'x' * 40}".encode(): f"pod-{number % 3}" for number in range(6)}


def test_a_byte_that_is_changed_takes_what_it_is_in_and_makes_nothing_another_pods(tmp_path: Path) -> None:
    """Any byte of a segment: the records of one frame are lost, or of an origin's pod; what is lost is counted."""
    path, pods = one_segment(tmp_path)
    whole = path.read_bytes()

    async def test() -> None:
        for at in range(len(whole)):
            for child in tmp_path.iterdir():
                child.unlink()
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
            buffer = opened(tmp_path)
            offered = buffer.pods.total()
            taken, lost = await all_there_is(buffer, 1 << 20)
            for each in taken:
                assert pods[each.records.texts[0]] == each.records.origin.pod, at
                buffer.done(each)
            assert len(taken) + lost.total() == offered, at
            assert len(taken) >= (4 if at >= len(MAGIC) else 6), at
            assert not buffer.pods
            await buffer.close()

    run(test)


@pytest.mark.parametrize("beginning", [bytes(len(MAGIC)), b"nodeagent logs 2\r", b"short", bytes(1 << 12)])
def test_what_begins_as_no_segment_is_put_aside_and_the_cursor_goes_on(tmp_path: Path, beginning: bytes) -> None:
    """It stayed, unread and uncounted, and whatever was delivered behind it came again after each restart."""

    async def test() -> None:
        (tmp_path / "000000000001.segment").write_bytes(beginning)
        buffer = opened(tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == ["damaged"]
        await buffer.append([records([f"{each}"], each) for each in range(3)])
        for each in (await everything(buffer))[:2]:
            buffer.done(each)
        await buffer.close()
        assert texts(await everything(opened(tmp_path))) == [b"2"]

    run(test)


def test_where_the_sink_was_is_believed_only_as_it_was_written(tmp_path: Path) -> None:
    """A place further on would remove what nobody has: whatever byte of it is changed, all is still there."""

    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        await fill(buffer)
        for each in (await buffer.take(1 << 10))[0]:
            buffer.done(each)
        await buffer.close()
        left = opened(tmp_path).pods.total()
        cursor = tmp_path / "cursor"
        written = cursor.read_bytes()
        for at in range(len(written)):
            for changed in (written[:at], written[:at] + bytes([written[at] ^ 8]) + written[at + 1 :]):
                cursor.write_bytes(changed)
                buffer = opened(tmp_path)
                assert buffer.pods.total() >= left, changed
                await buffer.close()

    run(test)


def test_what_cannot_be_read_at_the_start_is_named_and_stays_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 14)
        await fill(buffer)
        await buffer.close()
        first, second, *_ = sorted(tmp_path.glob("*.segment"))
        left = survey(first, 0)[1].total() + survey(second, 0)[1].total()
        later = second.read_bytes()
        second.write_bytes(b"nodeagent logs 9\n" + later[len(MAGIC) :])
        buffer = DiskBuffer(tmp_path, MOST)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", failing_for(first))
            unread = buffer.open()
        assert [each.partition(":")[0] for each in unread] == [str(first), str(second)]
        assert "of this version" in unread[1]
        for each in await everything(buffer):
            buffer.done(each)
            buffer.save()
        await buffer.append([records(["new"], 100)])
        buffer.save()
        await buffer.close()
        second.write_bytes(later)
        found = {int(each.split()[0]) for each in texts(await everything(opened(tmp_path))) if each != b"new"}
        assert set(range(left)) <= found

    run(test)


def failing_for(path: Path) -> Callable[..., os.stat_result]:
    """Return what fails as a disk does for *path*, and for nothing else."""

    def stat(what: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if what == path:
            raise OSError(5, "Input/output error", str(path))
        return os.stat(what, follow_symlinks=follow_symlinks)

    return stat


def test_one_that_is_cut_while_it_is_read_is_counted_and_stops_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path)
        await buffer.append([records([f"{each} "], each) for each in range(20)])
        taken, _ = await buffer.take(1)
        (path,) = tmp_path.glob("*.segment")
        os.truncate(path, path.stat().st_size // 2)
        more, lost = await all_there_is(buffer)
        assert len(taken) + len(more) + lost.total() == 20 and 0 < lost.total() < 20
        await buffer.append([records(["next"])])
        assert texts(await everything(buffer)) == [b"next"]
        await buffer.close()

    run(test)


def test_one_that_was_only_begun_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for length in range(len(MAGIC)):
        (tmp_path / f"{length + 1:012}.segment").write_bytes(MAGIC[:length])
    assert DiskBuffer(tmp_path, MOST).open() == []
    assert list(tmp_path.iterdir()) == [] and caplog.text == ""


def test_the_oldest_are_dropped_by_segment_and_counted_by_pod(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        await fill(buffer, pods=2)
        taken, _ = await buffer.take(1)
        lost = await buffer.drop_oldest()
        assert lost.total() > 10 and set(lost) == {("shop", "pod-0"), ("shop", "pod-1")}
        buffer.done(taken[0])
        rest = await everything(buffer)
        assert 1 + lost.total() + len(rest) == 100
        assert buffer.pods.total() == len(rest)
        await buffer.close()

    run(test)


def test_a_disk_that_is_full_keeps_nothing_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        buffer = opened(tmp_path)

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", full)
            for _ in range(3):
                with pytest.raises(OSError, match="No space"):
                    await buffer.append([records(["a"])])
        assert list(tmp_path.iterdir()) == [] and not buffer.pods
        await buffer.append([records(["b"])])
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", full)
            with pytest.raises(OSError, match="No space"):
                await buffer.append([records(["c"])])
        await buffer.append([records(["d"])])
        await buffer.close()
        assert texts(await everything(opened(tmp_path))) == [b"b", b"d"]

    run(test)


WRITER = """
import asyncio, sys
from pathlib import Path
from nodeagent.logs.delivery.buffer import DiskBuffer
from tests.unit.logs.made_records import records

async def main():
    buffer = DiskBuffer(Path(sys.argv[1]), 1 << 30, 1 << 16)
    buffer.open()
    number = int(sys.argv[2])
    while True:
        await buffer.append([records([f"{number} " + "x" * 200], number)])
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


def test_nothing_that_was_promised_is_lost_by_kill_9(tmp_path: Path) -> None:
    number = 0
    for round_ in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(number)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            try:
                for _ in range(20 + 37 * round_):
                    number = int(writer.stdout.readline()) + 1
            finally:
                writer.send_signal(signal.SIGKILL)
            # What it promised before it died, but had not been read.
            for line in writer.stdout:
                number = int(line) + 1

    async def test() -> None:
        found = [int(each.split()[0]) for each in texts(await everything(opened(tmp_path)))]
        # The last one of a round may be there without its promise, and again from the next.
        assert set(range(number)) <= set(found)
        assert found == sorted(found)

    run(test)


@given(
    st.lists(st.sampled_from(["append", "take", "done", "drop", "damage", "reclaim", "save"]), max_size=40),
    st.integers(1, 600),
)
def test_what_is_under_way_is_on_disk_until_it_is_settled(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], segment: int
) -> None:
    """Whatever is dropped for room, or damaged: who is killed lost nothing that was not counted."""
    folder = tmp_path_factory.mktemp("buffer")

    async def test() -> None:
        buffer = opened(folder, segment=segment)
        appended = 0
        lost = 0
        under_way: list[Taking] = []
        settled: set[bytes] = set()
        damaged: dict[Path, int] = {}
        for step in steps:
            match step:
                case "append":
                    await buffer.append([records([f"{appended + each} "], appended + each) for each in range(3)])
                    appended += 3
                case "take":
                    taken, gone = await buffer.take(1)
                    under_way += taken
                    lost += gone.total()
                case "done" if under_way:
                    done = under_way.pop(len(under_way) // 2)
                    buffer.done(done)
                    settled.add(done.records.texts[0])
                case "drop":
                    lost += (await buffer.drop_oldest()).total()
                case "save":
                    buffer.save()
                case "reclaim" if not damaged:
                    before = buffer.bytes
                    assert await buffer.reclaim() is (buffer.bytes < before)
                    assert buffer.bytes == sum(each.stat().st_size for each in folder.glob("*.segment"))
                case "damage" if under_way:
                    path = under_way[-1].segment.path
                    content = path.read_bytes()
                    end = damaged[path] = min(under_way[-1].end, damaged.get(path, len(content)))
                    path.write_bytes(content[:end] + bytes(len(content) - end))
            assert buffer.pods.total() == appended - lost - len(settled)
        whole = (each for each in under_way if each.end <= damaged.get(each.segment.path, each.end))
        waits = {each.records.texts[0] for each in whole}
        left = opened(folder)  # without a word of the one before
        found: set[bytes] = set()
        while left.unread:
            taken, gone = await left.take(1)
            found.update(each.records.texts[0] for each in taken)
        assert waits <= found
        if "damage" not in steps:
            assert len(found - settled) == appended - lost - len(settled)
        await left.close()

    run(test)


async def pinned(buffer: DiskBuffer) -> dict[int, Taking]:
    """Return what is under way by its number: every tenth of 100 records, in several segments."""
    await fill(buffer, pods=3)
    taken = await everything(buffer)
    for number, each in enumerate(taken):
        if number % 10:
            buffer.done(each)
    return {number: each for number, each in enumerate(taken) if number % 10 == 0}


def numbers(taken: list[Taking]) -> list[int]:
    return [int(each.split()[0]) for each in texts(taken)]


def test_what_is_settled_beside_what_is_under_way_frees_its_room(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        under_way = await pinned(buffer)
        segments = len(list(tmp_path.glob("*.segment")))
        before = buffer.bytes
        reclaimed = 0
        while await buffer.reclaim():
            reclaimed += 1
        assert reclaimed == segments > 1
        assert buffer.bytes < before / 5
        assert buffer.bytes == sum(each.stat().st_size for each in tmp_path.glob("*.segment"))
        buffer.done(under_way.pop(0))
        buffer.save()
        assert numbers(await everything(opened(tmp_path))) == list(under_way), "in order, and none that is settled"
        for each in under_way.values():
            buffer.done(each)
        assert [each.name for each in tmp_path.iterdir()] == ["cursor"] and not buffer.pods

    run(test)


def test_room_is_freed_by_the_segment_that_is_worth_it_beside_one_that_has_more(tmp_path: Path) -> None:
    """A large one with too little for itself kept a small one that was settled but for a record."""

    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 17)
        while len(list(tmp_path.glob("*.segment"))) < 2:
            await buffer.append([records([os.urandom(1000).hex()])])
        for _ in range(15):
            await buffer.append([records([os.urandom(1000).hex()])])
        taken = await everything(buffer)
        large, small = ([each for each in taken if each.segment is segment] for segment in buffer._segments)
        for each in [*large[: len(large) // 5], *small[1:]]:
            buffer.done(each)
        assert large[0].segment.settled > small[0].segment.settled
        assert await buffer.reclaim() and not await buffer.reclaim()
        assert small[0].segment.size < 2 * small[0].size
        await buffer.close()

    run(test)


def test_a_disk_that_fails_as_a_segment_is_written_anew_has_it_tried_again_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once was enough to keep it for ever."""

    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        under_way = await pinned(buffer)
        segments = len(list(tmp_path.glob("*.segment")))
        first = max(buffer._segments, key=lambda each: each.settled).path

        def failing(path: Path, *others: Any) -> dict[int, tuple[int, int]]:
            if path == first:
                raise OSError(5, "Input/output error", str(path))
            return copy_frames(path, *others)

        with monkeypatch.context() as patched:
            patched.setattr(buffer_module, "copy_frames", failing)
            with pytest.raises(OSError, match="Input/output"):
                await buffer.reclaim()
            for _ in range(segments - 1):
                assert await buffer.reclaim()
            with pytest.raises(OSError, match="Input/output"):
                await buffer.reclaim()
            buffer.save()
        assert await buffer.reclaim() and not await buffer.reclaim()
        assert numbers(await everything(opened(tmp_path))) == list(under_way)
        await buffer.close()

    run(test)


def test_while_a_segment_is_written_anew_both_are_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1 << 18
    held: list[int] = []

    def copied(*arguments: Any) -> dict[int, tuple[int, int]]:
        moved = copy_frames(*arguments)
        held.append(sum(each.stat().st_size for each in tmp_path.iterdir()))
        return moved

    async def test() -> None:
        buffer = opened(tmp_path, most)
        number = 0
        while buffer.room(1 << 11):
            await buffer.append([records([f"{number} {os.urandom(1000).hex()}"], number)])
            number += 1
        assert buffer.bytes > most * 5 // 8
        taken = await everything(buffer)
        for each in taken[::3]:
            buffer.done(each)
        before = buffer.bytes
        monkeypatch.setattr(buffer_module, "copy_frames", copied)
        while await buffer.reclaim():
            pass
        assert buffer.bytes < before * 3 / 4
        assert len(held) > 1 and max(held) <= most
        await buffer.close()

    run(test)


def test_a_buffer_that_is_fuller_than_it_may_be_is_left_as_it_is_until_there_is_room(tmp_path: Path) -> None:
    """As after logs.buffer.bytes was made less: what is written anew would be more of it."""

    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        await pinned(buffer)
        buffer._most = buffer.bytes
        assert not await buffer.reclaim()
        buffer._most = MOST
        assert await buffer.reclaim()
        await buffer.close()

    run(test)


def test_sides_have_shares_of_what_may_be_used_and_leave_room_for_what_moves_to_them(tmp_path: Path) -> None:
    most = 1 << 20
    usable = most - (1 << 17) * 3 // 2

    def made(name: str) -> tuple[DiskBuffer, DiskBuffer, DiskBuffer]:
        buffer = DiskBuffer(tmp_path / name, most, 1 << 17)
        found = (buffer, buffer.side(0), buffer.side(1))
        for each in found:
            each.open()
        return found

    async def append_until(buffer: DiskBuffer, full: Callable[[], bool]) -> int:
        while not full():
            await buffer.append([records([os.urandom(1000).hex()])])
        return buffer.bytes

    async def test() -> None:
        buffer, first, second = made("shared")
        assert usable / 2 <= await append_until(first, first.is_over_share) < usable / 2 + 3000
        assert usable / 4 <= await append_until(second, second.is_over_share) < usable / 4 + 3000
        assert buffer.room(usable // 4 - 6000), "others have the rest"
        buffer, first, _ = made("full")
        await append_until(buffer, lambda: not buffer.room(0))
        assert first.is_over_share() and first.room(1 << 17), "what is there can move, and no more comes"
        buffer.coming = 1 << 17
        assert not first.room(1 << 17), "nor into the room of what is being written"

    run(test)


def test_what_is_damaged_behind_what_is_under_way_is_put_aside_at_once_where_room_is_wanted(tmp_path: Path) -> None:
    async def test() -> None:
        buffer = opened(tmp_path)
        await buffer.append([records([f"{each} {os.urandom(1000).hex()}"], each) for each in range(40)])
        [path] = tmp_path.glob("*.segment")
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))
        taken, lost = await all_there_is(buffer)
        assert len(taken) + lost.total() == 40 and lost.total() > 10
        for each in taken[1:]:
            buffer.done(each)
        assert await buffer.reclaim()
        assert buffer.bytes < 2 * taken[0].size
        assert (tmp_path / "damaged").stat().st_size == size
        assert numbers(await everything(opened(tmp_path))) == [0]

    run(test)


def test_a_segment_that_cannot_be_read_for_now_is_not_passed_by_the_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed at the second start after, as if all of it were settled, and nobody counted it."""

    async def test() -> None:
        buffer = opened(tmp_path, segment=1 << 16)
        await fill(buffer)
        await buffer.close()
        first = min(tmp_path.glob("*.segment"))

        def survey_but_first(path: Path, start: int) -> tuple[int, Counter[PodName], bool]:
            if path == first:
                raise PermissionError(13, "Permission denied", str(path))
            return survey(path, start)

        with monkeypatch.context() as patched:
            patched.setattr(buffer_module, "survey", survey_but_first)
            buffer = DiskBuffer(tmp_path, MOST, 1 << 16)
            assert len(buffer.open()) == 1
            taken = await everything(buffer)
            for each in taken[:-1]:
                buffer.done(each)
            await buffer.close()
        found = numbers(await everything(opened(tmp_path)))
        assert set(range(100 - len(taken))) | {99} <= set(found)

    run(test)


RECLAIMER = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.unit.logs.delivery.test_buffer import opened, pinned

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
step = 0

def dying(call):
    def first(*arguments, **named):
        global step
        if str(folder) in str(arguments[0]) or isinstance(arguments[0], int):
            step += 1
            if step == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return first

async def main():
    buffer = opened(folder, segment=1 << 16)
    under_way = await pinned(buffer)
    buffer.done(under_way.pop(0))
    buffer.save()
    for name in ("open", "write", "fsync", "close", "link", "unlink", "rename"):
        setattr(os, name, dying(getattr(os, name)))
    while await buffer.reclaim():
        buffer.save()

asyncio.run(main())
"""


def test_who_is_killed_at_any_step_of_writing_a_segment_anew_loses_nothing(tmp_path: Path) -> None:
    under_way = set(range(10, 100, 10))
    step = 0
    killed = True
    while killed:
        step += 1
        folder = tmp_path / str(step)
        command = [sys.executable, "-c", RECLAIMER, str(folder), str(step)]
        killed = subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        buffer = opened(folder)
        found = numbers(asyncio.run(everything(buffer)))
        assert under_way <= set(found) and found == sorted(found), f"killed before call {step}"
        assert not (folder / buffer_module.ANEW).exists()
    assert step > 20
