"""What is counted after a hand-over reaches who has the node, once."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from nodeagent import local_listener
from nodeagent.channel import decode, receive
from nodeagent.control import late_counts
from nodeagent.control.late_counts import CountsSender, NodeCounts
from nodeagent.hand_over import COUNTS_SOCKET
from nodeagent.local_listener import LocalListener
from nodeagent.messages import FROM_DRAINING, CountsTaken, LateCounts
from nodeagent.telemetry import metrics
from nodeagent.telemetry.late_reports import VERSION
from nodeagent.telemetry.store import Store
from nodeagent.wire import Unchecked, encode
from tests.waiting import DEADLINE, until


def cut(number: int) -> Unchecked:
    """Return what a worker reports that cut so many connections."""
    return {"counts": [[metrics.DRAIN_CUT.name, [], number]]}


class Daemon:
    """As far as it counts."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.counts = NodeCounts(asyncio.get_running_loop(), folder, self.store)

    @property
    def cut(self) -> float:
        return self.store.value(metrics.DRAIN_CUT)

    @property
    def rejected(self) -> float:
        return sum(self.store.value(metrics.REJECTED, (cause,)) for cause in ("malformed", "series"))


class Node:
    """Daemons, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / COUNTS_SOCKET
        self.daemons: list[Daemon] = []

    def daemon(self) -> Daemon:
        """Return one that has the node."""
        made = Daemon(self.folder)
        self.daemons.append(made)
        made.counts.listen()
        return made


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Node], Coroutine[object, object, None]]], None]:
    def run(scene: Callable[[Node], Coroutine[object, object, None]]) -> None:
        async def whole() -> None:
            node = Node(tmp_path)
            async with asyncio.timeout(DEADLINE):
                await scene(node)
            for each in node.daemons:
                each.counts.close()

        asyncio.run(whole())

    return run


class Other:
    """Who listens there, and does as the test says."""

    def __init__(self, path: Path) -> None:
        self._listener = LocalListener(path)
        self.end: socket.socket | None = None

    def heard(self) -> list[LateCounts]:
        """Return what waits to be read."""
        self.end = self.end or self._listener.accept()
        return list(self._read(self.end)) if self.end is not None else []

    def _read(self, end: socket.socket) -> Iterator[LateCounts]:
        try:
            while True:
                yield decode(receive(end), FROM_DRAINING)
        except BlockingIOError:
            return

    def say(self, payload: bytes) -> None:
        assert self.end is not None
        self.end.send(payload)

    def close(self) -> None:
        self._listener.close()
        if self.end is not None:
            self.end.close()


def test_only_what_comes_after_the_hand_over_is_told_and_that_once(play: Callable[..., None]) -> None:
    async def scene(node: Node) -> None:
        old = node.daemon()
        old.counts.count(cut(100))
        new = node.daemon()
        sender = old.counts.pass_on()
        for _ in range(2):
            old.counts.count(cut(1))
        await sender.tell()
        await sender.tell()
        assert (old.cut, new.cut) == (100, 2)
        old.counts.count(cut(3))
        await sender.tell_the_rest()
        assert (old.cut, new.cut) == (100, 5)
        assert not new.rejected

    play(scene)


def test_what_nobody_takes_waits_summed_up(play: Callable[..., None]) -> None:
    """Input: the daemon that has the node is dead, and one comes later."""

    async def scene(node: Node) -> None:
        old = node.daemon()
        sender = old.counts.pass_on()
        assert not node.path.exists()
        for number in range(10):
            old.counts.count(cut(number))
            await sender.tell()
        new = node.daemon()
        await sender.tell()
        assert new.cut == sum(range(10))

    play(scene)


def test_who_drained_before_tells_whoever_has_the_node(play: Callable[..., None]) -> None:
    """Input: three daemons, of which the first still drains when the third comes. Verdict: the third is told by
    both, and nothing twice; the second is told nothing any more.
    """

    async def scene(node: Node) -> None:
        first, second = node.daemon(), node.daemon()
        of_first = first.counts.pass_on()
        first.counts.count(cut(1))
        await of_first.tell()
        third = node.daemon()
        first.counts.count(cut(10))
        await of_first.tell()
        assert second.cut == 11, "it has the ports yet"
        of_second = second.counts.pass_on()
        assert node.path.exists()
        first.counts.count(cut(100))
        second.counts.count(cut(1000))
        await until(lambda: of_first._channel is None, "the first one hears of the end")
        await of_first.tell()
        await of_second.tell()
        assert (second.cut, third.cut) == (11, 1100)

    play(scene)


@pytest.mark.parametrize("answers", [False, True])
def test_a_report_is_told_again_where_it_was_not_taken(play: Callable[..., None], answers: bool) -> None:
    """Input: who has the node is succeeded when a report is under way: before it has read it, or right after."""

    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        sender.count(cut(1))
        second = Other(node.path)
        telling = asyncio.ensure_future(sender.tell())
        if answers:
            heard = await until(second.heard)
            second.say(encode(CountsTaken(heard[0].number))[0])
        else:
            await asyncio.sleep(0)
        third = node.daemon()
        second.close()
        await telling
        sender.count(cut(10))
        await sender.tell()
        assert third.cut == (10 if answers else 11)

    play(scene)


def test_one_report_is_under_way_at_a_time(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: two reports, and who has the node is slow, and hangs then. Verdict: the second one waits; the end does
    not.
    """
    monkeypatch.setattr(late_counts, "LAST_SECONDS", 0.0)

    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        sender.count(cut(1))
        sender.count({"tcp": [[["source"], ["x"] * len(metrics.TCP_LABELS), [1, 1, 1, 1]]]})
        slow = Other(node.path)
        telling = asyncio.ensure_future(sender.tell())
        first = await until(slow.heard)
        assert [list(each.report) for each in first] == [["tcp"]]
        slow.say(encode(CountsTaken(first[0].number))[0])
        second = await until(slow.heard)
        assert [list(each.report) for each in second] == [["counts"]]
        assert second[0].number != first[0].number
        await sender.tell_the_rest()
        assert not telling.done()
        telling.cancel()
        slow.close()

    play(scene)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (encode(LateCounts(VERSION + 1, 1, cut(1)))[0], f"they are of version {VERSION + 1}, spoken is {VERSION}"),
        (b'{"op": "LaterCounts"}', "no message of this direction is called 'LaterCounts'"),
    ],
)
def test_who_speaks_another_version_costs_others_nothing(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, payload: bytes, why: str
) -> None:
    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        new = node.daemon()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(str(node.path))
                stranger.setblocking(False)
                stranger.send(payload)
                await until(lambda: hung_up(stranger))
        sender.count(cut(1))
        await sender.tell()
        assert new.cut == 1

    play(scene)
    assert caplog.text.count(why) == 1


def hung_up(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b""
    except BlockingIOError:
        return False


def test_what_is_no_answer_ends_the_connection_and_not_the_daemon(play: Callable[..., None]) -> None:
    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        sender.count(cut(1))
        strange = Other(node.path)
        telling = asyncio.ensure_future(sender.tell())
        await until(strange.heard)
        strange.say(encode(CountsTaken(77))[0])
        strange.say(b"{}")
        await telling
        strange.close()
        new = node.daemon()
        await sender.tell()
        assert new.cut == 1

    play(scene)


def test_a_report_that_is_none_is_counted_and_not_told_for_ever(play: Callable[..., None]) -> None:
    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        new = node.daemon()
        assert await sender._is_taken({"tcp": 7})
        sender.count(cut(1))
        await sender.tell()
        assert (new.cut, new.rejected) == (1, 1)

    play(scene)


def test_callers_are_bounded(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_counts, "CALLERS", 1)

    async def scene(node: Node) -> None:
        new = node.daemon()
        senders = [CountsSender(asyncio.get_running_loop(), node.path) for _ in range(2)]
        for sender in senders:
            sender.count(cut(1))
            await sender.tell()
        assert new.cut == 1
        await senders[0].tell_the_rest()
        await until(lambda: not new.counts._receiver._callers)
        await senders[1].tell()
        assert new.cut == 2
        await senders[1].tell_the_rest()

    play(scene)


@pytest.mark.parametrize("where", [local_listener, late_counts])
def test_other_users_are_no_daemons(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, where: object) -> None:
    """Input: by turns who calls and who listens is another user."""
    monkeypatch.setattr(where, "calling_uid", lambda _: os.getuid() + 1)

    async def scene(node: Node) -> None:
        sender = node.daemon().counts.pass_on()
        new = node.daemon()
        sender.count(cut(1))
        await sender.tell()
        assert new.cut == 0
        monkeypatch.undo()
        await sender.tell()
        assert new.cut == 1

    play(scene)


def test_a_daemon_runs_where_there_is_no_room_for_the_socket(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(node: Node) -> None:
        node.path.mkdir()
        new = node.daemon()
        new.counts.count(cut(1))
        assert new.cut == 1

    play(scene)
    assert "is in no metric" in caplog.text
