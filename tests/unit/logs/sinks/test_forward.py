"""The forward sink against an input after the protocol's specification."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
import uvloop

from nodeagent.logs.sinks.forward import ForwardSink, first_message
from nodeagent.logs.sinks.settings import ForwardSettings
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.fakes.forward import ForwardInput
from tests.unit.logs.made_records import origin, records
from tests.waiting import DEADLINE, until

TWO = [records([{"a": 1, "big": 2**70}, "b"]), records(["c"], source=origin("web-2"))]


def sent(found: ForwardInput, *batches: Any, **more: Any) -> list[Outcome]:
    async def test() -> list[Outcome]:
        server = await found.start()
        settings = ForwardSettings.model_validate({"addresses": [f"127.0.0.1:{found.port}"], **more})
        sink = ForwardSink("forward", settings, 5)
        outcomes = [await sink.send(sink.encode(each)) for each in batches]
        await sink.close()
        server.close()
        return outcomes

    return asyncio.run(asyncio.wait_for(test(), DEADLINE))


@pytest.mark.parametrize("compressed", [True, False])
def test_records_arrive_under_their_tag_with_time_and_metadata(compressed: bool) -> None:
    found = ForwardInput()
    assert sent(found, TWO, gzip=compressed) == [Taken()]
    assert set(found.received) == {"kube.shop.web-1.app", "kube.shop.web-2.app"}
    [(first, record), (second, other)] = found.received["kube.shop.web-1.app"]
    assert (first, second) == (1795946400.0, 1795946401.000000001)
    kubernetes = {"namespace_name": "shop", "pod_name": "web-1", "container_name": "app"}
    assert record == {"stream": "stdout", "kubernetes": kubernetes, "a": 1, "big": float(2**70)}
    assert other["log"] == "b"


def test_what_was_acknowledged_does_not_come_again() -> None:
    found = ForwardInput(acknowledges=1)
    [outcome] = sent(found, TWO)
    assert isinstance(outcome, Taken) and list(outcome.again) == [2] and "closed the connection" in outcome.why


def test_the_same_records_have_the_same_chunk() -> None:
    found = ForwardInput()
    sent(found, [TWO[0]], [TWO[0]])
    assert len(found.chunks) == 2 and len(set(found.chunks)) == 1


def test_records_of_one_tag_are_one_message_however_many_pieces_they_came_in() -> None:
    found = ForwardInput()
    pieces = [records([f"{pod} {piece}"], source=origin(pod)) for piece in range(20) for pod in ("web-1", "web-2")]
    assert sent(found, pieces) == [Taken()]
    assert len(found.chunks) == 2
    for pod in ("web-1", "web-2"):
        lines = [record["log"] for _, record in found.received[f"kube.shop.{pod}.app"]]
        assert lines == [f"{pod} {piece}" for piece in range(20)]


def test_what_comes_again_are_the_records_of_the_tags_that_were_not_acknowledged() -> None:
    pieces = [records([f"{pod} {piece}"] * 2, source=origin(pod)) for piece in range(2) for pod in ("web-1", "web-2")]
    [outcome] = sent(ForwardInput(acknowledges=1), pieces)
    assert isinstance(outcome, Taken) and list(outcome.again) == [2, 3, 6, 7]


def test_nobody_waits_for_an_acknowledgement_to_send_the_next_message() -> None:
    """As an input that answers only once it has all, the last first."""

    async def test() -> None:
        chunks: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = b""
            while len(chunks) < 3:
                data += await reader.read(1 << 16)
                while data:
                    message, data = first_message(data)
                    chunks.append(message[2]["chunk"])  # type: ignore[index]
            answers = b"".join(ormsgpack.packb({"ack": each}) for each in reversed(chunks))
            for at in range(0, len(answers), 7):
                writer.write(answers[at : at + 7])
                await writer.drain()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sink = ForwardSink("f", ForwardSettings.model_validate({"addresses": [f"127.0.0.1:{port}"]}), 5)
        batch = [records(["x"], source=origin(f"web-{number}")) for number in range(3)]
        assert await sink.send(sink.encode(batch)) == Taken()
        await sink.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), DEADLINE))


def _noticed(sink: ForwardSink) -> bool:
    assert sink._connection is not None
    return sink._connection._writer.transport.is_closing()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_was_lost_while_idle_is_made_anew_without_a_word(run: Any, reset: bool) -> None:
    async def test() -> None:
        found = ForwardInput()
        server = await found.start()
        settings = ForwardSettings.model_validate({"addresses": [f"127.0.0.1:{found.port}"]})
        sink = ForwardSink("forward", settings, 5)
        for _ in range(3):
            assert await sink.send(sink.encode(TWO)) == Taken()
            connection = found.connections[-1]
            if reset:  # as a load balancer does
                linger = struct.pack("ii", 1, 0)
                connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
            await until(lambda: not reset or _noticed(sink), "the sink's end has noticed")
        assert len(found.connections) == 3
        await sink.close()
        server.close()

    run(asyncio.wait_for(test(), DEADLINE))


def secrets(folder: Path, key: str = "abc", password: str = "") -> dict[str, str]:
    (folder / "key").write_text(key)
    more = {"sharedKeyFile": str(folder / "key")}
    if password:
        (folder / "password").write_text(password)
        more |= {"user": "me", "passwordFile": str(folder / "password")}
    return more


def test_both_sides_prove_that_they_know_the_key(tmp_path: Path) -> None:
    found = ForwardInput(key="abc", password="pw")
    assert sent(found, TWO, **secrets(tmp_path, password="pw")) == [Taken()]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ForwardInput(key="other"), "shared_key mismatch"),
        (ForwardInput(key="other", liar=True), "not whom it pretends"),
        (ForwardInput(key="abc", password="pw"), "refuses"),
    ],
)
def test_no_record_goes_to_who_does_not_know_it(tmp_path: Path, found: ForwardInput, why: str) -> None:
    [outcome] = sent(found, TWO, **secrets(tmp_path))
    assert isinstance(outcome, Untaken) and why in outcome.why and "abc" not in outcome.why
    assert found.received == {}


def test_a_server_that_says_nonsense_or_nothing_is_tried_again() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"\xc1" * 70_000)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sink = ForwardSink("f", ForwardSettings.model_validate({"addresses": [f"127.0.0.1:{port}"]}), 5)
        outcome = await sink.send(sink.encode(TWO))
        assert isinstance(outcome, Untaken) and str(port) in outcome.why
        await sink.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), DEADLINE))
