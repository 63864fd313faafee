"""What a pod may cost the process that serves its socket: frames are counted for all of its
connections, and few are worked off a turn.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack
from typing import Any

import pytest
from grpclib import protocol
from grpclib.client import Channel, StreamStreamMethod
from grpclib.exceptions import StreamTerminatedError
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.identity.allowance import Allowance
from nodeagent.identity.grpc_socket import BURST_FRAMES, MAX_CALLS, PORTION, FrameCount
from nodeagent.identity.sds import SERVICE, TYPE_URL
from nodeagent.protocols.envoy_discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from tests.unit.identity.sockets import World, run, talking
from tests.waiting import until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack("!I", len(content))[1:] + bytes([kind, 0]) + struct.pack("!I", stream) + content


def test_an_allowance_fills_with_time_and_no_further_than_its_burst() -> None:
    now = [0.0]
    allowance = Allowance(10, 2, lambda: now[0])
    assert [allowance.take(5) for _ in range(3)] == [True, True, False]
    now[0] = 1
    assert (allowance.take(2), allowance.take(1)) == (True, False)
    now[0] = 1000
    assert (allowance.take(11), allowance.take(1)) == (False, False), "too much takes all"
    now[0] = 2000
    assert allowance.take(10)


@given(st.lists(st.integers(0, 300), max_size=30), st.lists(st.integers(1, 40), min_size=1))
def test_frames_are_counted_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = PREFACE + b"".join(frame(0x60, 1, b"x" * size) for size in sizes)
    counted, at, found = FrameCount(), 0, 0
    while at < len(sent):
        step = cuts[at % len(cuts)]
        found += counted.of(sent[at : at + step])
        at += step
    assert found == len(sizes)


def flood(path: str, unit: bytes) -> None:
    """Send as many of *unit* as are taken, as the only thing on a connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path)
        try:
            connection.sendall(PREFACE + frame(4, 0) + unit * 1000 + frame(6, 0, b"answer__"))
            answered = b""
            while b"answer__" not in answered and (more := connection.recv(1 << 16)):
                answered += more
            for _ in range(1000):
                connection.sendall(unit * (8000 // len(unit)))
        except OSError:
            pass  # cut


@pytest.mark.parametrize("unit", [frame(4, 0), frame(6, 0, b"12345678"), frame(2, 1, b"\0\0\0\0\x10"), frame(0x60, 0)])
def test_small_frames_without_end_cost_little_and_a_new_connection_brings_no_new_allowance(
    monkeypatch: pytest.MonkeyPatch, unit: bytes
) -> None:
    worked_off: list[int] = []
    take = protocol.H2Protocol.data_received
    monkeypatch.setattr(
        protocol.H2Protocol, "data_received", lambda self, data: (worked_off.append(len(data)), take(self, data))
    )

    async def scenario(world: World) -> None:
        world.renew()
        for _ in range(10):
            await asyncio.get_running_loop().run_in_executor(None, flood, world.path, unit)
        assert max(worked_off) <= PORTION
        assert sum(worked_off) <= 2 * BURST_FRAMES * len(unit)

    run(scenario)


def secret_stream(channel: Channel) -> Any:
    return StreamStreamMethod(channel, f"/{SERVICE}/StreamSecrets", DiscoveryRequest, DiscoveryResponse).open()


async def answer(channel: Channel) -> object:
    """Return the first answer to one who asks for all."""
    async with talking(secret_stream(channel)) as stream:
        await stream.send_message(DiscoveryRequest(type_url=TYPE_URL))
        return await stream.recv_message()


def test_calls_that_go_on_are_few_however_many_connections_there_are() -> None:
    """Input: streams that wait for their pod's first certificate, on several connections. Verdict: those beyond
    the bound are refused as not begun; when one has ended there is room for another.
    """

    async def scenario(world: World) -> None:
        channels = [Channel(path=world.path) for _ in range(4)]
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(secret_stream(channels[0]))
            await first.send_message(DiscoveryRequest(type_url=TYPE_URL))
            for number in range(1, MAX_CALLS):
                stream = await stack.enter_async_context(talking(secret_stream(channels[number % len(channels)])))
                await stream.send_message(DiscoveryRequest(type_url=TYPE_URL))
            await until(lambda: len(world.server.calls) == MAX_CALLS)
            with pytest.raises(StreamTerminatedError):
                await answer(channels[0])
            await first.cancel()
            await until(lambda: len(world.server.calls) == MAX_CALLS - 1)
            world.renew()
            assert await answer(channels[0])
        for channel in channels:
            channel.close()

    run(scenario)
