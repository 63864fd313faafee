"""An HTTP authorizer as a worker asks it, over real connections: sound, slow, broken and hostile."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from nodeagent.extension_providers import ExtensionProvider
from nodeagent.proxy.dial import Dialled
from nodeagent.proxy.external import bounds, http_call
from nodeagent.proxy.external.http_authz import HttpAuthz
from nodeagent.proxy.external.model import Body, CheckVerdict, HttpFacts, Party, Way
from nodeagent.proxy.external.providers import Providers
from tests.unit.proxy.stage import read_request
from tests.waiting import DEADLINE, until

CLIENT = Party("10.0.0.1", 4000, "cluster.local/ns/shop/sa/cart")
SERVER = Party("10.0.0.2", 8080, "cluster.local/ns/shop/sa/stock")
REQUEST = HttpFacts("GET", "/items?id=1", "stock.shop", (("Host", "stock.shop"), ("Authorization", "Bearer t")))
Reply = Callable[[bytes, bytes], bytes | None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NO = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"


class Authorizer:
    """A strict HTTP/1.1 server in the test's loop; *reply* returns an answer, None: it closes without one."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.heads: list[bytes] = []
        self.connections = 0
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while True:
                head, body = await read_request(reader)
                self.heads.append(head)
                answer = self.reply(head, body)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()


Asking = Callable[..., Awaitable[CheckVerdict]]


def played(reply: Reply, scene: Callable[[Authorizer, Asking], Awaitable[None]], **settings: Any) -> None:
    """Run *scene* with an authorizer that replies so, and with what asks it."""

    async def run() -> None:
        authorizer = Authorizer(reply)
        await authorizer.start()
        document = {"service": "authz", "port": 8000, "timeout": "5s", **settings}
        provider = ExtensionProvider.model_validate({"name": "authz", "envoyExtAuthzHttp": document})
        made = Providers((provider,), lambda service, port, asker: Way("127.0.0.1", authorizer.port))

        async def check(http: HttpFacts | None = REQUEST) -> CheckVerdict:
            return await made.check("authz", CLIENT, SERVER, http)

        try:
            async with asyncio.timeout(DEADLINE):
                await scene(authorizer, check)
        finally:
            made.close()
            await until(lambda: not authorizer.open)
            await authorizer.stop()

    uvloop.run(run())


def checked(reply: Reply, http: HttpFacts | None = REQUEST, **settings: Any) -> CheckVerdict:
    found: list[CheckVerdict] = []

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        found.append(await check(http))

    played(reply, scene, **settings)
    return found[0]


def test_what_is_asked_stands_on_the_wire() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert await check() == CheckVerdict(True)
        body = Body(b"a\xff" * 100_000, True)
        assert (await check(HttpFacts("POST", "/p", "h", (), body=body))).allowed
        first, second = authorizer.heads
        assert first == (
            b"GET /check/items?id=1 HTTP/1.1\r\nhost: stock.shop\r\ncontent-length: 0\r\n"
            b"authorization: Bearer t\r\n\r\n"
        )
        assert second == (
            b"POST /check/p HTTP/1.1\r\nhost: h\r\ncontent-length: 200000\r\nx-envoy-auth-partial-body: true\r\n\r\n"
        )
        assert authorizer.connections == 1, "it is used again"

    played(lambda head, body: OK if body in (b"", b"a\xff" * 100_000) else NO, scene, pathPrefix="/check")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "PATCH", "OPTIONS"])
def test_the_refusal_is_the_authorizers_own(method: str) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: https://login/\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
    body = b"" if method == "HEAD" else b"go"

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        for _ in range(2):
            assert await check(HttpFacts(method, "/", "h", ())) == CheckVerdict(
                False,
                status=302,
                headers=(("location", "https://login/"), ("set-cookie", "a=1"), ("set-cookie", "b=2")),
                body=body,
            )
        assert authorizer.connections == 1

    played(lambda _, __: head + b"Content-Length: 2\r\n\r\n" + body, scene)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nn\r\n1\r\no\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\nno",
    ],
)
def test_an_answer_as_http_may_be_written(answer: bytes) -> None:
    assert checked(lambda head, body: answer) == CheckVerdict(False, status=403, body=b"no")


# -- no answer --


def test_a_failure_follows_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\nsecret"
    assert checked(lambda head, body: answer) == CheckVerdict(False, failed="the answer's status is 502")
    assert checked(lambda head, body: answer, failOpen=True).allowed
    assert checked(lambda head, body: answer, statusOnError="503").status == 503
    assert "secret" not in caplog.text
    assert "extension provider authz (authz:8000) does not answer: the answer's status is 502" in caplog.text


def test_a_connection_that_is_not_http_is_refused() -> None:
    verdict = checked(lambda head, body: OK, None, failOpen=True)
    assert not verdict.allowed
    assert "not HTTP" in verdict.failed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-x\r\n", "not valid HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "not valid HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "not valid HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nX-A\x00: 2\r\nContent-Length: 0\r\n\r\n", "not valid HTTP/1.1"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not valid HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: %b\r\n" % (b"y" * 100) * 100_000, "not valid HTTP/1.1"),
        (b"HTTP/1.1 103 Hint\r\n\r\n" * 100_000, "not valid HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (bounds.MAX_ANSWER + 1), "longer than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (bounds.MAX_ANSWER + 1), "longer than"),
        (None, "closed before the answer"),
    ],
)
def test_what_is_no_answer(answer: bytes | None, words: str) -> None:
    verdict = checked(lambda head, body: answer)
    assert (verdict.allowed, verdict.status) == (False, 403)
    assert words in verdict.failed


@pytest.mark.parametrize(
    ("rest", "closes"),
    [
        (b"Content-Length: %d\r\n\r\n" % (bounds.MAX_ANSWER + 1), False),
        (b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 0xFFFFF, False),
        (b"Content-Length: 10\r\n\r\nno", True),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", False),
        (b"Content-Length: 10\r\n\r\nno", False),
    ],
    ids=["too long by its word", "too long", "cut", "broken", "stops"],
)
def test_a_refusal_that_is_not_whole_stays_one(rest: bytes, closes: bool) -> None:
    """Where no answer means that the request passes, too."""

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        asking = asyncio.ensure_future(check())
        if closes:
            await until(lambda: authorizer.heads)
            await authorizer.stop()
            await authorizer.start(authorizer.port)
        verdict = await asking
        assert (verdict.allowed, verdict.status, verdict.body) == (False, 401, b"")
        assert "not whole" in verdict.failed

    answer = b"HTTP/1.1 401 Unauthorized\r\n" + rest
    played(lambda head, body: answer, scene, failOpen=True, timeout="5s" if closes else "2s")


@pytest.mark.parametrize("status", [200, 204, 302, 403, 500, 503])
@pytest.mark.parametrize(
    ("rest", "ends"),
    [
        (b"Location: https://login/?rd=%b\r\n" % (b"y" * 100_000), "by itself"),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n", "by itself"),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "by itself"),
        (b"X-A\x00: 2\r\n", "by itself"),
        (b"X-A: 2", "closed"),
        (b"X-A: 2", "late"),
    ],
    ids=["too long", "two lengths", "two framings", "NUL", "cut", "stops"],
)
def test_a_refusal_whose_head_is_broken_stays_one(status: int, rest: bytes, ends: str) -> None:
    """Where no answer means that the request passes, too: what the client writes may make the head so long."""

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        asking = asyncio.ensure_future(check())
        if ends == "closed":
            await until(lambda: authorizer.heads)
            await authorizer.stop()
        verdict = await asking
        no = status not in (200, 500, 503)
        assert verdict.allowed is not no
        if no:
            assert (verdict.status, verdict.headers) == (403 if status == 302 else status, ())
            assert "refusal is not whole" in verdict.failed

    answer = b"HTTP/1.1 %d Word\r\n" % status + rest
    played(lambda head, body: answer, scene, failOpen=True, timeout="2s" if ends == "late" else "5s")


def test_what_was_said_to_another_question_is_no_refusal() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert not (await check()).allowed
        authorizer.reply = lambda head, body: None
        assert (await check()).allowed

    played(lambda head, body: NO, scene, failOpen=True)


def test_a_body_of_200_that_is_not_whole_does_not_allow() -> None:
    verdict = checked(lambda head, body: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", timeout="2s")
    assert (verdict.allowed, verdict.failed) == (False, "there is no whole answer: it was not whole in time")


def test_a_provider_that_is_not_there() -> None:
    async def run() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            ways: list[Way | None] = [Way("127.0.0.1", unused.getsockname()[1]), None]
            made = provider(lambda *_: ways[0])
            assert (await made.check(CLIENT, SERVER, REQUEST)).failed.startswith("cannot connect")
            del ways[0]
            failed = (await made.check(CLIENT, SERVER, REQUEST)).failed
            assert failed == "no such Service, or it has no ready endpoint"
            made.close()

    uvloop.run(run())


def test_the_next_endpoint_is_asked_where_one_is_not_there() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            places = iter([unused.getsockname()[1], authorizer.port])
            made = provider(lambda *_: Way("127.0.0.1", next(places)))
            assert (await made.check(CLIENT, SERVER, REQUEST)).allowed
            made.close()

    played(lambda head, body: OK, scene)


def test_the_next_endpoint_is_asked_whoever_else_takes_a_turn_meanwhile() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            places = itertools.cycle([unused.getsockname()[1], authorizer.port])
            made = provider(lambda *_: Way("127.0.0.1", next(places)))
            asked = [made.check(CLIENT, SERVER, REQUEST) for _ in range(40)]
            assert all(verdict.allowed for verdict in await asyncio.gather(*asked))
            made.close()

    played(lambda head, body: OK, scene)


def test_the_next_endpoint_is_asked_where_nobody_takes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 0.1)

    async def never(inside: object) -> Dialled:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody says so")

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        ways = itertools.cycle([Way("192.0.2.1", 80, "pod", never), Way("127.0.0.1", authorizer.port)])
        made = provider(lambda *_: next(ways))
        assert (await made.check(CLIENT, SERVER, REQUEST)).allowed
        made.close()

    played(lambda head, body: OK, scene)


def provider(resolve: Callable[[str, int, str], Way | None]) -> HttpAuthz:
    document = {"name": "authz", "envoyExtAuthzHttp": {"service": "authz", "port": 8000, "timeout": "5s"}}
    settings = ExtensionProvider.model_validate(document).envoy_ext_authz_http
    assert settings is not None
    return HttpAuthz("authz", settings, resolve)


def test_a_silent_provider_costs_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def run() -> None:
            document = {"service": "authz", "port": 8000, "timeout": "100ms"}
            settings = ExtensionProvider.model_validate({"name": "a", "envoyExtAuthzHttp": document})
            made = Providers((settings,), lambda *_: Way("127.0.0.1", silent.getsockname()[1]))
            for _ in range(2):
                assert (await made.check("a", CLIENT, SERVER, REQUEST)).failed == "no answer within 0.1 s"
            made.close()

        uvloop.run(run())
        silent.settimeout(60)
        for _ in range(2):
            silent.accept()[0].close()


# -- connections --


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_restart_between_two_requests_is_not_noticed(method: str) -> None:
    """Whatever the method: what is asked once more is a question."""
    request = HttpFacts(method, "/", "h", ())

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert (await check(request)).allowed
        # closes as the next question comes
        authorizer.reply = lambda head, body: None if len(authorizer.heads) == 2 else OK
        assert (await check(request)).allowed
        assert (authorizer.connections, len(authorizer.heads)) == (2, 3)

    played(lambda head, body: OK, scene)


def test_a_connection_that_ended_while_it_idled_is_forgotten() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        for _ in range(2):
            assert (await check()).allowed
            await until(lambda: not authorizer.open)
        assert (authorizer.connections, len(authorizer.heads)) == (2, 2)

    played(lambda head, body: OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), scene)


def test_bytes_that_nobody_asked_for_are_not_the_next_answer() -> None:
    """A refusal must not be taken for the answer to somebody else's question."""

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert not (await check()).allowed
        authorizer.reply = lambda head, body: NO
        assert not (await check()).allowed
        assert authorizer.connections == 2

    played(lambda head, body: NO + OK, scene)


def test_requests_at_once_have_a_connection_each_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "MAX_CONNECTIONS", 3)

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert all(verdict.allowed for verdict in await asyncio.gather(*[check() for _ in range(10)]))
        assert authorizer.connections == 10
        await until(lambda: authorizer.open == 3)

    played(lambda head, body: OK, scene)


def test_calls_beyond_the_bound_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_CALLS", 2)

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert [each.allowed for each in await asyncio.gather(*[check() for _ in range(3)])] == [True, True, False]

    played(lambda head, body: OK, scene, failOpen=True)


@pytest.mark.parametrize("constant", ["IDLE_SECONDS", "OLDEST_SECONDS"])
def test_a_connection_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch, constant: str) -> None:
    monkeypatch.setattr(http_call, constant, 0.0)

    async def scene(authorizer: Authorizer, check: Asking) -> None:
        assert (await check()).allowed
        await until(lambda: not authorizer.open)

    played(lambda head, body: OK, scene)


def test_a_client_that_goes_ends_its_question() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        asking = asyncio.ensure_future(check())
        await until(lambda: authorizer.heads)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not authorizer.open)

    played(lambda head, body: b"HTTP/1.1 200 OK\r\n", scene)


def test_ways_that_differ_share_no_connection() -> None:
    async def scene(authorizer: Authorizer, check: Asking) -> None:
        ways = [Way("127.0.0.1", authorizer.port), Way("127.0.0.1", authorizer.port, "a pod", None)]
        made = provider(lambda service, port, asker: ways[asker == "other"])
        for asker in ("one", "other", "one", "other"):
            assert (await made.check(CLIENT, SERVER, REQUEST, "", asker)).allowed
        assert authorizer.connections == 2
        made.close()

    played(lambda head, body: OK, scene)
