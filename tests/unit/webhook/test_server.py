"""The webhook over real HTTPS on loopback, against well-meaning and hostile clients."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jsonpatch
import pytest

from nodeagent.errors import ControlError
from nodeagent.identity.authority_directory import finish, prepare, switch
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.serving import TTL_SECONDS, ServingCertificate
from nodeagent.inject import Injected, PodNamespace, inject
from nodeagent.webhook.clients import Doing
from nodeagent.webhook.review import Admission, Entry, Review, decide, labels
from nodeagent.webhook.server import WebhookLimits, WebhookServer
from tests.unit.webhook.reviews import POD, SETTINGS, body
from tests.waiting import DEADLINE, LOOK_SECONDS, quiet, until

QUICK = WebhookLimits(
    connections=8,
    body_bytes=100_000,
    held_bytes=150_000,
    handshake_seconds=1.0,
    body_seconds=1.0,
    idle_seconds=1.0,
    grace_seconds=2.0,
)
PATIENT = WebhookLimits(handshake_seconds=DEADLINE, body_seconds=DEADLINE)
JSON = {"Content-Type": "application/json"}
HEAD = b"POST /inject/namespace HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Stage:
    """A server with the authority that vouches for it, and a clock that can be set."""

    def __init__(
        self,
        directory: Path,
        limits: WebhookLimits | None = None,
        judge: Callable[[Review, Entry], Admission] | None = None,
        age: float = 0,
    ) -> None:
        """*age*: since when the first certificate is held, in seconds."""
        self.directory = directory
        self.offset = 0.0
        self.authority = CertificateAuthority.open_or_create(directory, "cluster.local", self.now)
        self.offset = -age
        self.serving = ServingCertificate(self.authority, ("localhost", "127.0.0.1"))
        self.counts: list[tuple[str, str]] = []
        self.entries: list[Entry] = []
        self.server = WebhookServer(
            judge or self._decide, lambda result, reason: self.counts.append((result, reason)), limits or PATIENT
        )
        self.server.use(self.serving.current)

    def now(self) -> float:
        return time.time() + self.offset

    def _decide(self, review: Review, entry: Entry) -> Admission:
        self.entries.append(entry)
        return decide(review, labels(entry, "default"), SETTINGS)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.port}/inject/namespace"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.roots_pem.decode())

    def session(self) -> aiohttp.ClientSession:
        """Return a client that trusts what is trusted now; every connection is kept for the next request."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.trust(), limit=0), timeout=aiohttp.ClientTimeout(total=DEADLINE)
        )

    async def raw(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.server.port, ssl=self.trust(), server_hostname="localhost", local_addr=(source, 0)
        )


@asynccontextmanager
async def running(stage: Stage, address: str = "127.0.0.1") -> AsyncIterator[Stage]:
    await stage.server.start(address, 0)
    try:
        yield stage
    finally:
        await stage.server.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), DEADLINE))


async def post(session: aiohttp.ClientSession, url: str, data: Any, **headers: str) -> tuple[int, str]:
    async with session.post(url, data=data, headers={**JSON, **headers}) as response:
        return response.status, await response.text()


def patched(answer: str) -> Any:
    response = json.loads(answer)["response"]
    assert response["allowed"]
    return jsonpatch.apply_patch(POD, json.loads(base64.b64decode(response["patch"])))


def test_the_patch_is_the_injectors_output(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage, stage.session() as session:
            status, text = await post(session, stage.url, body(POD))
            expected = inject(POD, PodNamespace("shop", {"istio-injection": "enabled"}), SETTINGS)
            assert isinstance(expected, Injected)
            assert (status, patched(text)) == (200, expected.pod)
            _, again = await post(session, stage.url, body(expected.pod))
            assert json.loads(again)["response"] == {"uid": "uid-1", "allowed": True}
            assert [result for result, _ in stage.counts] == ["injected", "skipped"]

    run(test)


def test_the_path_tells_the_entry(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage, stage.session() as session:
            for entry in ("namespace", "object", "revision-namespace", "revision-object"):
                assert (await post(session, stage.url.replace("namespace", entry), body(POD)))[0] == 200
            assert stage.entries == ["namespace", "object", "revision-namespace", "revision-object"]

    run(test)


@pytest.mark.parametrize(
    ("path", "headers", "data", "status", "reason"),
    [
        ("namespace", {"Content-Type": "text/plain"}, body(POD), 415, "content_type"),
        ("namespace", {"Content-Type": "application/json-patch+json"}, body(POD), 415, "content_type"),
        ("namespace", {"Content-Encoding": "gzip"}, body(POD), 415, "content_type"),
        ("namespace", {}, b"{", 400, "malformed"),
        ("namespace", {}, b"", 400, "malformed"),
        ("namespace", {}, b"x" * 100_001, 413, "too_large"),
        ("elsewhere", {}, body(POD), 404, "path"),
        ("namespace/more", {}, body(POD), 404, "path"),
    ],
)
def test_a_bad_request_is_refused_and_counted(
    tmp_path: Path, path: str, headers: dict[str, str], data: bytes, status: int, reason: str
) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path, QUICK)) as stage, stage.session() as session:
            got, text = await post(session, stage.url.replace("namespace", path), data, **headers)
            assert got == status, text
            assert text.strip()
            assert stage.counts == [("refused", reason)]
            assert (await post(session, stage.url, body(POD)))[0] == 200, "the next one is served"

    run(test)


def test_other_methods_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage, stage.session() as session, session.get(stage.url) as response:
            assert response.status == 405

    run(test)


def test_a_body_of_unknown_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10_000

    async def test() -> None:
        async with running(Stage(tmp_path, QUICK)) as stage, stage.session() as session:
            assert (await post(session, stage.url, endless()))[0] == 411

    run(test)


def test_a_huge_body_is_refused_by_its_announcement(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage:
            reader, writer = await stage.raw()
            writer.write(HEAD % 99_999_999_999)
            assert b"413" in await reader.readline()
            writer.close()

    run(test)


def test_reviews_at_once_hold_no_more_than_the_bound(tmp_path: Path) -> None:
    """Two bodies of 90 kB stay under way; a bound of 150 kB does not let both in, and afterwards
    there is room again.
    """

    async def test() -> None:
        async with running(
            Stage(tmp_path, WebhookLimits(body_bytes=100_000, held_bytes=150_000, body_seconds=2))
        ) as stage:
            streams = [await stage.raw() for _ in range(2)]
            for _, writer in streams:
                writer.write(HEAD % 100_000 + b" " * 90_000)
            lines = [asyncio.create_task(reader.readline()) for reader, _ in streams]
            done, pending = await asyncio.wait(lines, return_when=asyncio.FIRST_COMPLETED)
            assert [b"503" in task.result() for task in done] == [True]
            assert len(pending) == 1
            for _, writer in streams:
                writer.transport.abort()
            await asyncio.gather(*pending, return_exceptions=True)
            await until(lambda: not stage.server._held)
            async with stage.session() as session:
                assert (await post(session, stage.url, body(POD)))[0] == 200

    run(test)


def test_a_slow_body_is_refused_and_a_silent_client_let_go(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path, QUICK)) as stage:
            reader, writer = await stage.raw()
            writer.write(HEAD % 100 + b"{")
            assert b"408" in await reader.readline()
            silent, idle = await stage.raw()
            assert await silent.read() == b""
            plain, talker = await asyncio.open_connection("127.0.0.1", stage.server.port)
            assert await plain.read() == b"", "no handshake"
            for each in (writer, idle, talker):
                each.close()
            assert stage.counts == [("refused", "slow")]

    run(test)


def test_many_idle_clients_do_not_keep_out_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path, WebhookLimits(connections=8))) as stage, stage.session() as session:
            idle = [await stage.raw() for _ in range(20)]
            assert (await post(session, stage.url, body(POD)))[0] == 200
            assert len(stage.server._server.connections) <= 8
            for _, writer in idle:
                writer.transport.abort()

    run(test)


def test_many_clients_that_never_shake_hands_do_not_keep_out_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            running(Stage(tmp_path, WebhookLimits(connections=8, handshake_seconds=60))) as stage,
            stage.session() as session,
        ):
            silent = [await asyncio.open_connection("127.0.0.1", stage.server.port) for _ in range(20)]
            assert (await post(session, stage.url, body(POD)))[0] == 200
            assert len(stage.server._handshakes) <= 8
            for _, writer in silent:
                writer.transport.abort()

    run(test)


def test_a_server_that_is_busy_with_all_it_may_hold_lets_nobody_else_in(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path, WebhookLimits(connections=2, body_seconds=5))) as stage:
            busy = [await stage.raw() for _ in range(2)]
            for _, writer in busy:
                writer.write(HEAD % 100 + b"{")
            await until(lambda: stage.server._clients.count(Doing.SENDING) >= 2)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await stage.raw()
            for _, writer in busy:
                writer.transport.abort()

    run(test)


def test_one_client_that_sends_without_end_keeps_no_other_out(tmp_path: Path) -> None:
    """The other's connection stays too: it is not the one that holds the most."""

    async def test() -> None:
        limits = WebhookLimits(connections=4, body_seconds=DEADLINE)
        async with running(Stage(tmp_path, limits), "0.0.0.0") as stage, stage.session() as session:
            assert (await post(session, stage.url, body(POD)))[0] == 200
            sending = [await stage.raw("127.0.0.2") for _ in range(3)]
            for _, writer in sending:
                writer.write(HEAD % 100 + b"{")
            await until(lambda: stage.server._clients.count(Doing.SENDING) >= 3)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await stage.raw("127.0.0.2")
            assert (await post(session, stage.url, body(POD)))[0] == 200
            async with stage.session() as another:
                assert (await post(another, stage.url, body(POD)))[0] == 200
            assert len(session.connector._conns) == 1  # type: ignore[union-attr]

    run(test)


def test_closed_connections_are_forgotten(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path, WebhookLimits(connections=2))) as stage:
            for _ in range(5):
                _, writer = await stage.raw()
                writer.close()
                await writer.wait_closed()
            assert len(stage.server._of) <= 3

    run(test)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_everywhere_is_both_families(tmp_path: Path, address: str, host: str) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path), address) as stage:
            _, writer = await asyncio.open_connection(host, stage.server.port)
            writer.close()

    run(test)


def test_many_reviews_at_once_are_all_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage, stage.session() as session:
            answers = await asyncio.gather(
                *(post(session, stage.url, body(POD, uid=f"uid-{number}")) for number in range(100))
            )
            assert [json.loads(text)["response"]["uid"] for _, text in answers] == [
                f"uid-{number}" for number in range(100)
            ]

    run(test)


def test_no_more_reviews_are_judged_at_once_than_threads(tmp_path: Path) -> None:
    lock, running_now, most = threading.Lock(), 0, 0

    def slow(review: Review, entry: Entry) -> Admission:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        threading.Event().wait(0.02)
        with lock:
            running_now -= 1
        return Admission("skipped", "test", "")

    async def test() -> None:
        async with running(Stage(tmp_path, judge=slow)) as stage, stage.session() as session:
            answers = await asyncio.gather(*(post(session, stage.url, body(POD)) for _ in range(20)))
            assert {status for status, _ in answers} == {200}

    run(test)
    assert most == 2


def test_an_expired_certificate_is_not_accepted_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        stage = Stage(tmp_path, age=2 * TTL_SECONDS)
        async with running(stage), stage.session() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError, match="expired"):
                await post(session, stage.url, body(POD))
            stage.offset = 0.0
            stage.serving.renew()
            stage.server.use(stage.serving.current)
            assert (await post(session, stage.url, body(POD)))[0] == 200
        assert "handshake failed" in caplog.text

    run(test)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_no_older_tls_than_1_2(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage:
            context = stage.trust()
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", stage.server.port, ssl=context, server_hostname="localhost")

    run(test)


def test_rotation_and_root_exchange_under_load_fail_no_request(tmp_path: Path) -> None:
    """Clients on kept connections and clients on new ones, while the certificate is renewed at
    half-life and the root exchanged.
    """

    async def test() -> None:
        async with running(Stage(tmp_path, age=TTL_SECONDS / 2 + 1)) as stage:
            done = asyncio.Event()
            answered = {"kept": 0, "new": 0}
            serials: set[str] = set()

            async def kept() -> None:
                async with stage.session() as session:
                    while not done.is_set():
                        assert (await post(session, stage.url, body(POD)))[0] == 200
                        answered["kept"] += 1

            async def new() -> None:
                while not done.is_set():
                    reader, writer = await stage.raw()
                    serials.add(writer.get_extra_info("peercert")["serialNumber"])
                    data = body(POD)
                    writer.write(HEAD % len(data) + data)
                    assert b"200" in await reader.readline()
                    writer.transport.abort()
                    answered["new"] += 1

            async def settle() -> None:
                before = dict(answered)
                while any(answered[kind] < before[kind] + 5 for kind in answered):
                    await asyncio.sleep(LOOK_SECONDS)

            async def look() -> None:
                stage.authority.refresh()
                stage.serving.renew()
                stage.server.use(stage.serving.current)
                await settle()

            async with asyncio.TaskGroup() as group:
                for client in (kept, kept, new, new):
                    group.create_task(client())
                await look()
                assert len(serials) == 1, "too early"
                stage.offset = 0.0
                await look()
                assert len(serials) == 2, "renewed at half-life"
                for step in (prepare, switch, finish):
                    step(stage.directory, stage.now())
                    await look()
                assert len(serials) == 3, "and by the new root"
                done.set()
            assert {result for result, _ in stage.counts} == {"injected"}

    run(test)


def test_a_request_under_way_ends_before_the_server_does(tmp_path: Path) -> None:
    async def test() -> None:
        started, go_on = threading.Event(), threading.Event()

        def slow(review: Review, entry: Entry) -> Admission:
            started.set()
            go_on.wait(60)
            return Admission("skipped", "test", "")

        stage = Stage(tmp_path, judge=slow)
        await stage.server.start("127.0.0.1", 0)
        async with stage.session() as session:
            request = asyncio.create_task(post(session, stage.url, body(POD)))
            await asyncio.to_thread(started.wait, 10)
            stopping = asyncio.create_task(stage.server.stop())
            await quiet()
            go_on.set()
            assert (await request)[0] == 200
            await stopping

    run(test)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(Stage(tmp_path)) as stage:
            with pytest.raises(ControlError, match=f"port {stage.server.port}.*in use"):
                await Stage(tmp_path).server.start("127.0.0.1", stage.server.port)

    run(test)


def test_logs_hold_names_and_nothing_else_of_a_review(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    pod = json.loads(json.dumps(POD))
    pod["metadata"]["name"] = "web\n\x1b[31mforged"
    pod["spec"]["containers"][0]["env"] = [{"name": "PASSWORD", "value": "hunter2"}]

    async def test() -> None:
        async with running(Stage(tmp_path)) as stage, stage.session() as session:
            await post(session, stage.url, body(pod))

    run(test)
    own = "\n".join(record.getMessage() for record in caplog.records if record.name == "nodeagent.webhook")
    assert "forged" in own
    assert "\x1b" not in own
    assert "hunter2" not in caplog.text
