"""What streams of shared connections make a worker hold: all of it is somebody's, who can be made to give way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.identity.tls import Inside
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, Dialled
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame
from nodeagent.proxy.http2.held import HeldBytes
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.shared.client import SharedUpstream
from nodeagent.proxy.shared.heads import TAKEN
from nodeagent.proxy.shared.stream import KEPT, SharedStream
from tests.unit.proxy.http2_wire import enrolled
from tests.unit.proxy.test_shared import HELD, Asked, Kept, Sending, Taking, closed_windows, reader

SMALL = 16384


def backlogs(held: HeldBytes) -> int:
    """Return the bytes that somebody can give up."""
    return sum(each.size for holder in held._holders for each in holder.backlogs())


def holds_whole(pod: PodState, identity: str, streams: int, size: int = 4 * SMALL) -> Taking:
    """Return the server's side of a connection with so many *streams*, whose readers stand still, though each
    peer has said all of its own, *size* bytes.
    """
    taking = Taking(pod, identity, heldBytesPerPod=HELD)
    for number in range(1, 2 * streams, 2):
        taking.feed(taking.head(number))
        stream = taking.taken[-1]
        stream.pause_reading()
        stream.write_eof()
        for at in range(0, size, SMALL):
            last = at + SMALL >= size
            taking.feed(frame(wire.DATA, wire.END_STREAM if last else 0, number, bytes(SMALL)))
    return taking


@pytest.mark.parametrize("lost", [False, True])
def test_who_ends_streams_that_nobody_reads_loses_them_and_not_another(lost: bool) -> None:
    """Its session has forgotten them, and with *lost* its connection is gone too."""
    pod = enrolled()
    good = Taking(pod, "good", heldBytesPerPod=HELD)
    closed_windows(good)
    good.feed(good.head(1))
    good.taken[0].write(bytes(1 << 20))
    mean = [holds_whole(pod, "mean", 120) for _ in range(2)]
    assert [len(each.link.session.streams) for each in mean] == [0, 0]
    if lost:
        for each in mean:
            each.link.connection_lost(None)
    readers = [reader(stream) for each in mean for stream in each.taken]
    good.taken[0].write(bytes(1 << 20))
    for each in mean:
        each.turns.run()
    assert pod.held.bytes <= HELD
    assert set(good.link.streams) == {1}
    assert 0 < sum(each.lost for each in readers) < len(readers)


def test_what_a_peer_has_not_taken_gives_way_and_not_another() -> None:
    async def scene() -> None:
        sending = Sending(1, heldBytesPerPod=HELD)
        (mean,) = sending.links
        pod = sending.pool._dial.pod
        good = Taking(pod, "good", heldBytesPerPod=HELD)
        closed_windows(good)
        good.feed(good.head(1))
        good.taken[0].write(bytes(1 << 20))
        mean.data_received(wire.settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),)))
        asked = [Asked(mean.open("tcp")) for _ in range(100)]
        for each in asked:
            each.stream.write(bytes(3 * KEPT))
            mean.data_received(wire.window_update(0, 3 * KEPT))
            await sending.turns()
        assert mean.session.queued == 0
        good.taken[0].write(b"more")
        good.said()
        await sending.turns()
        assert pod.held.bytes <= HELD
        assert set(good.link.streams) == {1}
        assert 0 < sum(each.lost for each in asked) < len(asked)

    asyncio.run(scene())


async def own_connection(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
    """Dial a connection to a peer that shares none."""
    dialled = Dialled()
    dialled.transport = Kept()
    return dialled


class Scene:
    """Both sides of shared connections of one pod, whose peers take nothing but by a window that is filled at
    once: all that is counted stands.
    """

    def __init__(self) -> None:
        self.sending = Sending(2)
        self.pod = self.sending.pool._dial.pod
        self.taking = [Taking(self.pod, identity) for identity in ("one", "two")]
        for each in self.taking:
            closed_windows(each)
        for link in self.sending.links:
            link.data_received(wire.settings(((wire.INITIAL_WINDOW_SIZE, 0),)) + wire.window_update(0, 1 << 30))
        self.next = [1, 1]

    def accepts(self, at: int) -> None:
        side = self.taking[at % 2]
        if len(side.link.session.streams) < 20:
            side.feed(side.head(self.next[at % 2]))
            self.next[at % 2] += 2

    def opens(self, at: int) -> None:
        link = self.sending.links[at % 2]
        if link.free():
            Asked(link.open("tcp"))

    def peer_says(self, at: int) -> None:
        self._said(at, 0)

    def peer_ends(self, at: int) -> None:
        self._said(at, wire.END_STREAM)

    def _said(self, at: int, flags: int) -> None:
        taking = self.taking[at % 2]
        open_ones = [each for each in taking.link.session.streams.values() if not each.remote_ended]
        if open_ones:
            taking.feed(frame(wire.DATA, flags, open_ones[at % len(open_ones)].number, bytes(1000 + at)))

    def peer_takes(self, at: int) -> None:
        """A client's stream, and it says something on it to its end."""
        link, stream = self._asked(at)
        if stream is not None and not stream.head_read:
            head = frame(wire.HEADERS, wire.END_HEADERS, stream.number, Encoder().encode(TAKEN))
            link.data_received(head + frame(wire.DATA, wire.END_STREAM, stream.number, bytes(500)))

    def peer_refuses(self, at: int) -> None:
        link, stream = self._asked(at)
        if stream is not None and not stream.head_read:
            link.data_received(wire.rst_stream(stream.number, wire.REFUSED_STREAM))

    def peer_resets(self, at: int) -> None:
        link, stream = self._asked(at)
        if stream is not None:
            link.data_received(wire.rst_stream(stream.number, wire.CANCEL))

    def window(self, at: int) -> None:
        link, stream = self._asked(at)
        if stream is not None:
            link.data_received(wire.window_update(stream.number, 1 + 40 * at))

    def _asked(self, at: int) -> tuple[SharedUpstream, Http2Stream | None]:
        """Return one of the clients' connections, and one of its streams if it has any."""
        link = self.sending.links[at % 2]
        streams = list(link.session.streams.values())
        return link, streams[at % len(streams)] if streams else None

    def user(self, at: int, does: Callable[[SharedStream], None]) -> None:
        """Have the user of some stream do something."""
        sides = [*(each.taken for each in self.taking), *(link.streams.values() for link in self.sending.links)]
        streams = [each for side in sides for each in side]
        if streams:
            does(streams[at % len(streams)])

    def writes(self, at: int) -> None:
        self.user(at, lambda stream: stream.write(bytes(10 + 600 * at)))

    def pauses(self, at: int) -> None:
        self.user(at, lambda stream: stream.pause_reading())

    def reads(self, at: int) -> None:
        self.user(at, lambda stream: stream.resume_reading())

    def finishes(self, at: int) -> None:
        self.user(at, lambda stream: stream.write_eof())

    def closes(self, at: int) -> None:
        self.user(at, lambda stream: stream.close())

    def aborts(self, at: int) -> None:
        self.user(at, lambda stream: stream.abort())

    def blocks(self, at: int) -> None:
        self.taking[at % 2].link.pause_writing()

    def unblocks(self, at: int) -> None:
        link = self.taking[at % 2].link
        if not link.lost:
            link.resume_writing()

    def loses(self, at: int) -> None:
        links: list[Taking | SharedUpstream] = [*self.taking, *self.sending.links]
        one = links[at % 4]
        link = one if isinstance(one, SharedUpstream) else one.link
        if at > 95 and not link.lost:
            link.transport.close()
            link.connection_lost(None)

    def relieves(self, at: int) -> None:
        self.pod.held.relieve(at << 10)
        assert self.pod.held.bytes <= at << 10

    async def settle(self) -> None:
        for each in self.taking:
            each.turns.run()
        await self.sending.turns()


STEPS = [
    *("accepts", "opens", "peer_says", "peer_ends", "peer_takes", "peer_refuses", "peer_resets", "window", "loses"),
    *("writes", "pauses", "reads", "finishes", "closes", "aborts", "blocks", "unblocks", "relieves"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 99)), min_size=20, max_size=80))
def test_whatever_is_held_somebody_can_give_up(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        monkeypatch.setattr(Dial, "connect", own_connection)
        scene = Scene()
        held = scene.pod.held
        for step, at in [("accepts", 0), ("opens", 0), ("accepts", 1), ("opens", 1), *steps]:
            getattr(scene, step)(at)
            await scene.settle()
            assert backlogs(held) == held.bytes, step
        for at in range(2):
            scene.unblocks(at)  # else what is said of the ends waits there
        held.relieve(0)
        await scene.settle()
        assert (held.bytes, backlogs(held)) == (0, 0)

    asyncio.run(play())
