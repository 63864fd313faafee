"""What a sink of logs promises, against real servers: run by ``make sinks``."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.delivery.lane import Lane
from nodeagent.logs.delivery.making import make_lane
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.settings import BufferSettings, SinkSettings
from tests.sinks.servers import NGINX_PORT, Search, in_front, searching
from tests.unit.logs.made_records import NOW, origin, records
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)
PASSWORD = "open sesame"
WAIT = 240.0
"""Seconds; a busy machine takes minutes to start OpenSearch."""


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    with searching(tmp_path_factory.mktemp("search")) as found:
        yield found


@pytest.fixture(scope="module")
def roots(search: Search, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with in_front(tmp_path_factory.mktemp("nginx"), PASSWORD) as found:
        yield found


@asynccontextmanager
async def delivering(
    folder: Path, roots: Path, index: str, template: Mapping[str, Any] | None = None, **tls: str
) -> AsyncIterator[Lane]:
    password = folder / "password"
    if not password.exists():
        password.write_text(PASSWORD)
    described = {
        "name": "search",
        "requestBytes": 1 << 20,
        "elasticsearch": {
            "urls": [f"https://localhost:{NGINX_PORT}"],
            "index": index,
            "template": template,
            "auth": {"basic": {"user": "agent", "passwordFile": str(password)}},
            "tls": {"caFile": str(roots), **tls},
        },
    }
    buffer = BufferSettings.model_validate({"bytes": 1 << 28})
    lane = make_lane(SinkSettings.model_validate(described), buffer, folder, lambda: NOW)
    task = asyncio.create_task(lane.run())
    try:
        yield lane
    finally:
        await lane.close(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def offer(lane: Lane, objects: list[Any], start: int = 0, pod: str = "web-1") -> None:
    lane.offer(records(objects, start, origin(pod), file=pod.encode()), Receipt(1, lambda: None))


async def settled(lane: Lane) -> None:
    """All that was offered is where it belongs."""

    def done() -> bool:
        total = lane.counts.total()
        return total.offered == total.settled

    await until(done, f"all is settled: {lane.troubles()}", WAIT)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * WAIT))  # type: ignore[arg-type]


def test_documents_arrive_once_over_tls_and_a_login(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, roots, "once-{namespace}-{date}") as lane:
            for _ in range(2):
                for pod in ("web-1", "web-2"):
                    offer(lane, [{"level": "info", "number": each} for each in range(300)], pod=pod)
            await settled(lane)
            assert lane.counts.total().delivered == 1200, "what is there already is delivered"
            assert search.count("once-shop-2026.11.29") == 600
            found = search.documents("once-shop-2026.11.29")[0]
            assert found["kubernetes"]["namespace_name"] == "shop" and found["level"] == "info"
            assert found["stream"] == "stdout" and found["@timestamp"].startswith("2026-11-29T10:00:00")

    run(test)


def test_a_mapping_conflict_is_a_dead_letter_and_the_others_arrive(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, roots, "conflict") as lane:
            offer(lane, [{"number": 1}])
            await settled(lane)
            offer(lane, [{"number": 2}, {"number": "many"}, {"number": 3}], 500)
            await settled(lane)
            assert [each["number"] for each in search.documents("conflict")] == [1, 2, 3]
            [letter] = (tmp_path / "dead-letters" / "search.jsonl").read_text().splitlines()
            assert json.loads(letter)["record"]["number"] == "many"
            reason = json.loads(letter)["reason"]
            assert reason.startswith("400 mapper_parsing_exception") and 'For input string: "many"' in reason

    run(test)


def test_an_index_has_the_mappings_of_the_template(search: Search, roots: Path, tmp_path: Path) -> None:
    """Put where there is none, left where there is one; records wait for one that is refused, with the reason."""
    properties = {"number": {"type": "keyword"}}
    body = {"template": {"mappings": {"dynamic": False, "properties": properties}}}

    async def test() -> None:
        for number in range(2):
            async with delivering(tmp_path, roots, "mapped-{date}", {"name": "mapped", "body": body}) as lane:
                offer(lane, [{"number": each} for each in range(3)], 1000 * number)
                await settled(lane)
        assert search.count("mapped-2026.11.29") == 6
        mapped = search.ask("GET", "/mapped-2026.11.29/_mapping")["mapped-2026.11.29"]["mappings"]
        assert mapped == {"dynamic": "false", "properties": properties}
        wrong = {"template": {"mappings": {"properties": {"number": {"type": "nonsense"}}}}}
        async with delivering(tmp_path, roots, "unmapped", {"name": "unmapped", "body": wrong}) as lane:
            offer(lane, [{"number": 1}])
            await until(lambda: "its index template unmapped: 400" in lane.trouble, "it is refused", WAIT)
            assert "nonsense" in lane.trouble
            assert lane.counts.total().dead_lettered == 0

    run(test)


def test_requests_that_nginx_finds_too_large_are_made_smaller(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, roots, "large") as lane:
            for pod in range(4):
                text = "".join(chr(33 + (each * each * 7919 + pod) % 94) for each in range(900))
                offer(lane, [f"{each * 7 % 1000} {text[each:]}" for each in range(300)], pod=f"web-{pod}")
            await settled(lane)
            assert search.count("large") == 1200

    run(test)


def test_an_index_that_is_blocked_is_waited_for(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        search.ask("PUT", "/blocked", {"settings": {"index.blocks.write": True}})
        async with delivering(tmp_path, roots, "blocked") as lane:
            offer(lane, ["a", "b"])
            await until(lambda: lane.counts.total().retried >= 2, "asked for again", WAIT)
            search.ask("PUT", "/blocked/_settings", {"index.blocks.write": False})
            await settled(lane)
            assert search.count("blocked") == 2 and lane.counts.total().dead_lettered == 0

    run(test)


def test_a_wrong_password_is_waited_for_until_its_file_has_the_right_one(
    search: Search, roots: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        (tmp_path / "password").write_text("wrong")
        async with delivering(tmp_path, roots, "login") as lane:
            offer(lane, ["a"])
            await until(lambda: "401" in lane.trouble, "refused", WAIT)
            assert "wrong" not in lane.trouble
            (tmp_path / "password").write_text(PASSWORD)
            await settled(lane)
            assert search.count("login") == 1

    run(test)


def test_nothing_is_said_to_a_server_whose_name_is_another(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, roots, "name", serverName="search.example") as lane:
            offer(lane, ["a"])
            await until(lambda: "not trusted" in lane.trouble, "refused", WAIT)
            assert lane.counts.total().delivered == 0

    run(test)


def test_a_server_that_is_killed_under_load_has_each_record_once(search: Search, roots: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with delivering(tmp_path, roots, "killed") as lane:
            for number in range(20):
                offer(lane, [{"number": number * 100 + each} for each in range(100)], 10000 * number)
                await asyncio.sleep(0)
                if number == 10:
                    await until(lambda: lane.counts.total().delivered > 0, "some are there", WAIT)
                    search.stop(signal.SIGKILL)
            await until(lambda: bool(lane.trouble), "it is missed", WAIT)
            await asyncio.to_thread(search.start)
            await settled(lane)
            assert lane.counts.total().delivered == 2000
            assert sorted(each["number"] for each in search.documents("killed")) == list(range(2000))

    run(test)
