"""What sinks promise that speak OTLP, Fluentd's forward protocol and Loki's push API, against OpenTelemetry's
receivers of these: run by ``make sinks``. Loki itself is not here: its build takes too long.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.delivery.lane import Lane
from nodeagent.logs.delivery.making import make_lane
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.settings import BufferSettings, SinkSettings
from tests.sinks.servers import FORWARD_PORT, LOKI_PORT, OTLP_PORT, Receivers, receiving
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)
WAIT = 240.0
SINKS: dict[str, dict[str, Any]] = {
    "otlp": {"otlp": {"address": f"127.0.0.1:{OTLP_PORT}", "plaintext": True}},
    "forward": {"forward": {"addresses": [f"127.0.0.1:{FORWARD_PORT}"]}},
    "loki": {"loki": {"urls": [f"http://127.0.0.1:{LOKI_PORT}"]}},
}


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receivers]:
    with receiving(tmp_path_factory.mktemp("receivers")) as found:
        yield found


@asynccontextmanager
async def delivering(folder: Path, protocol: str, **more: Any) -> AsyncIterator[Lane]:
    ((kind, given),) = SINKS[protocol].items()
    settings = SinkSettings.model_validate({"name": protocol, kind: {**given, **more}})
    lane = make_lane(settings, BufferSettings.model_validate({"bytes": 1 << 28}), folder)
    task = asyncio.create_task(lane.run())
    try:
        yield lane
    finally:
        await lane.close(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def offer(lane: Lane, objects: list[Any], pod: str, start: int = 0) -> None:
    lane.offer(records(objects, start, origin(pod), file=pod.encode()), Receipt(1, lambda: None))


async def settled(lane: Lane) -> None:
    """All that was offered is delivered."""

    def done() -> bool:
        total = lane.counts.total()
        return total.offered == total.settled

    await until(done, f"all is settled: {lane.troubles()}", WAIT)
    assert lane.counts.total().delivered == lane.counts.total().offered


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * WAIT))  # type: ignore[arg-type]


def of(receivers: Receivers, protocol: str, pod: str) -> list[tuple[dict[str, Any], Any]]:
    return [each for each in receivers.records(protocol) if pod in str(each)]


def test_otlp_has_whose_it_is_time_text_and_an_id(receivers: Receivers, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, "otlp") as lane:
            offer(lane, ["first", {"level": "info"}], "otlp-1")
            await settled(lane)
        await until(lambda: len(of(receivers, "otlp", "otlp-1")) == 2, "both", WAIT)
        (first, text), (second, written) = of(receivers, "otlp", "otlp-1")
        assert text == "first"
        assert json.loads(written) == {"level": "info"}
        assert (first["k8s.namespace.name"], first["k8s.pod.name"]) == ("shop", "otlp-1")
        assert first["k8s.container.name"] == "app"
        assert (first["log.iostream"], first["time"]) == ("stdout", 1_795_946_400_000_000_000)
        assert first["log.record.uid"] != second["log.record.uid"]

    run(test)


@pytest.mark.parametrize("gzip", [True, False])
def test_a_forward_input_acknowledges_and_has_records_as_they_are(
    receivers: Receivers, tmp_path: Path, gzip: bool
) -> None:
    pod = f"forward-{gzip}".lower()

    async def test() -> None:
        async with delivering(tmp_path, "forward", gzip=gzip) as lane:
            offer(lane, ["first", {"level": "info", "deep": {"n": 7}}], pod)
            await settled(lane)
        await until(lambda: len(of(receivers, "forward", pod)) == 2, "both", WAIT)
        (first, text), (second, _) = of(receivers, "forward", pod)
        assert text == "first", "the receiver takes member log for the body"
        assert first["fluent.tag"] == f"kube.shop.{pod}.app"
        assert first["kubernetes"]["pod_name"] == pod
        assert (second["level"], second["deep"]) == ("info", {"n": 7})
        assert first["time"] == 1_795_946_400_000_000_000

    run(test)


def test_lokis_push_api_has_labels_metadata_and_the_line(receivers: Receivers, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, "loki") as lane:
            offer(lane, ["first", {"level": "info"}], "loki-1")
            await settled(lane)
        await until(lambda: len(of(receivers, "loki", "loki-1")) == 2, "both", WAIT)
        (first, line), (_, written) = of(receivers, "loki", "loki-1")
        assert line == "first"
        assert json.loads(written) == {"level": "info"}
        assert (first["namespace"], first["container"], first["pod"]) == ("shop", "app", "loki-1")
        assert first["time"] == 1_795_946_400_000_000_000

    run(test)


@pytest.mark.parametrize("protocol", SINKS)
def test_receivers_that_are_killed_under_load_have_each_record(
    receivers: Receivers, tmp_path: Path, protocol: str
) -> None:
    pod = f"killed-{protocol}"

    async def test() -> None:
        async with delivering(tmp_path, protocol) as lane:
            for number in range(40):
                offer(lane, [f"{pod} {100 * number + each:05}" for each in range(100)], pod, 10000 * number)
                if number == 10:
                    await until(lambda: lane.counts.total().delivered > 0, "some are there", WAIT)
                    if protocol == "forward":
                        # It acknowledges what waits in its memory, and drops that at its end.
                        await until(lambda: len(numbers(receivers, protocol, pod)) == 1100, "all are written", WAIT)
                    receivers.stop()  # in order: what it has acknowledged is in its file
            await until(lambda: bool(lane.trouble), "they are missed", WAIT)
            await asyncio.to_thread(receivers.start)
            await settled(lane)
        await until(lambda: len(numbers(receivers, protocol, pod)) == 4000, "each record", WAIT)

    run(test)


def numbers(receivers: Receivers, protocol: str, pod: str) -> set[str]:
    """Return the last five digits of each line."""
    lines = (str(body) for _, body in of(receivers, protocol, pod))
    return {line.partition(f"{pod} ")[2][:5] for line in lines if f"{pod} " in line}
