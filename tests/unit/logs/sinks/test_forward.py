"""The forward sink against an input after the protocol's specification."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.sinks.forward import ForwardSink
from nodeagent.logs.sinks.settings import ForwardSettings
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.fakes.forward import ForwardInput
from tests.unit.logs.made_records import origin, records
from tests.waiting import DEADLINE

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
