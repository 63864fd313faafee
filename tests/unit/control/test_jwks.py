"""Key sets over real HTTP: what is fetched, kept, refused."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nodeagent.control.jwks import MAX_BYTES, KeySets, wanted_by
from nodeagent.errors import ControlError
from nodeagent.policy.model import Jwks, JwtRule, RequestAuthentication
from tests.unit.policy.jwt_issuer import Clock, accepted, authenticator, bearer, ec_jwk, key_set, rule, token
from tests.waiting import packet, until

Write = Callable[[bytes], Awaitable[None]]
Script = Callable[[str, Write], Awaitable[None]]
"""Takes the request's target; writes the answer as it likes."""
DISCOVERY = "/.well-known/openid-configuration"


class Server:
    """An HTTP server on loopback that says exactly what a test wants."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.script, self.context = script, context
        self.requests: list[str] = []
        self.heads: list[bytes] = []
        self.open = self.most = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        self.uri = f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            target = head.split()[1].decode()
            self.requests.append(target)
            await self.script(target, write)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client gave up: what several tests want
        finally:
            self.open -= 1
            writer.transport.abort() if writer.is_closing() else writer.close()


def answer(body: bytes | str, status: str = "200 OK", *fields: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + data


def says(*answers: bytes) -> Script:
    """One answer after the other, the last one for ever."""
    left = list(answers)

    async def script(_: str, write: Write) -> None:
        await write(left.pop(0) if len(left) > 1 else left[0])

    return script


async def fetched(script: Script, path: str = "/keys", seconds: float = 60.0) -> str:
    async with Server(script) as server:
        return await KeySets(lambda _: None, local=True).fetch(server.uri + path, seconds)


def error_of(script: Script, path: str = "/keys", seconds: float = 60.0) -> str:
    with pytest.raises(ControlError) as caught:
        uvloop.run(fetched(script, path, seconds))
    assert path in str(caught.value)
    return str(caught.value)


def authenticates(entry: Jwks) -> None:
    accepted(
        authenticator(rule(jwks_uri=entry.uri), clock=Clock(), fetched={entry.uri: entry}).authenticate(bearer(token()))
    )


# -- one fetch --


@pytest.mark.parametrize(
    "whole",
    [
        answer(key_set()),
        answer(key_set(), "200 OK", "Content-Encoding: identity", "Content-Type: text/plain"),
        b"HTTP/1.0 200 OK\r\n\r\n" + key_set().encode(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(key_set()), key_set().encode()),
    ],
)
def test_fetch(whole: bytes) -> None:
    authenticates(Jwks("http://x", uvloop.run(fetched(says(whole)))))


def test_answer_in_pieces() -> None:
    async def script(_: str, write: Write) -> None:
        data = answer(key_set())
        for start in range(0, len(data), 100):
            await write(data[start : start + 100])
            await asyncio.sleep(0)

    authenticates(Jwks("http://x", uvloop.run(fetched(script))))


def test_request_is_a_plain_one() -> None:
    async def run() -> None:
        async with Server(says(answer(key_set()))) as server:
            await KeySets(lambda _: None, local=True).fetch(f"{server.uri}/a%20b?c=d#fragment", 5)
            assert server.requests == ["/a%20b?c=d"]
            assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.heads[0]

    uvloop.run(run())


def test_only_what_verifying_needs_is_kept() -> None:
    keys = json.loads(key_set())["keys"]
    fat = json.dumps(
        {"keys": [{**key, "x5c": ["A" * 5000], "d": "secret"} for key in keys] + [{"kty": "oct", "k": "secret"}]}
    )
    kept = uvloop.run(fetched(says(answer(fat))))
    assert json.loads(kept)["keys"] == keys


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (answer("<html>"), "is not JSON (6 bytes)"),
        (answer(""), "is not JSON"),
        (answer('{"keys": [], "keys": []}'), "is not JSON"),
        (answer("[" * 100_000), "is not JSON"),
        (answer("[]"), '{"keys": […]} is expected'),
        (answer('{"keys": {}}'), '{"keys": […]} is expected'),
        (answer('{"keys": []}'), "holds no public key"),
        (answer('{"keys": [1, {"kty": "oct", "k": "c2VjcmV0"}]}'), "holds no public key"),
        (answer(json.dumps({"keys": [{"kty": "RSA"}] * 256})), "none of its 256 keys can verify a token"),
        (answer(json.dumps({"keys": [{**ec_jwk(), "use": "enc"}]})), "none of its 1 keys can verify a token"),
        (answer(json.dumps({"keys": [{"kty": "RSA"}] * 257})), "257 keys, at most 256"),
        (answer(b"x" * (MAX_BYTES + 1)), f"larger than {MAX_BYTES} bytes"),
        (answer(key_set(), "200 OK", *(f"X-{n}: {'a' * 8000}" for n in range(200))), f"larger than {MAX_BYTES} bytes"),
        (answer("", "302 Found", "Location: /other"), "answered 302, 200 is expected; redirects are not followed"),
        (answer("{}", "404 Not Found"), "answered 404, 200 is expected"),
        (answer(key_set(), "503 Busy"), "answered 503, 200 is expected"),
        (answer(key_set(), "204 Nothing"), "answered 204, 200 is expected"),
        (answer(key_set(), "200 OK", "Content-Encoding: gzip"), "compressed"),
        (answer(key_set())[:-10], "cut off"),
        (b"HTTP/1.1 200 OK\r\n", "cut off"),
        (b"", "cut off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "is not valid HTTP"),
    ],
)
def test_bad_answers(whole: bytes, words: str) -> None:
    assert words in error_of(says(whole))


def test_endless_answer() -> None:
    async def script(_: str, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await write(b" " * 65536)

    assert f"larger than {MAX_BYTES} bytes" in error_of(script)


@pytest.mark.parametrize(
    ("begin", "drip"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\nX: ", b"a"), (answer(key_set())[:-20], b""), (b"HTTP/1.1 200 OK\r\n\r\n", b" ")],
)
def test_slow_answer(begin: bytes, drip: bytes) -> None:
    """Neither silence nor a byte now and then holds a fetch up for longer than it may take."""

    async def script(_: str, write: Write) -> None:
        await write(begin)
        while True:
            await packet()
            await write(drip)

    assert "no whole answer within 0.2 s" in error_of(script, seconds=0.2)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:1/keys", "cannot connect"),
        ("http://no-such-host.invalid/keys", "cannot connect"),
        ("ftp://127.0.0.1/keys", "an http or https URI"),
        ("file:///etc/passwd", "an http or https URI"),
        ("http://user:password@127.0.0.1/keys", "an http or https URI"),
        ("http:///keys", "an http or https URI"),
        ("http://127.0.0.1:99999/keys", "an http or https URI"),
        ("http://127.0.0.1/a b", "an http or https URI"),
        ("http://127.0.0.1/a\r\nX: y", "an http or https URI"),
        ("http://[::1/keys", "an http or https URI"),
    ],
)
def test_bad_uris(uri: str, words: str) -> None:
    with pytest.raises(ControlError, match=words):
        uvloop.run(KeySets(lambda _: None, local=True).fetch(uri, 10))


LOCAL = ["127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0", "[::]", "169.254.169.254", "[fe80::1]", "[ff02::1]", "224.0.0.1"]
MAPPED = ["[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]"]


@pytest.mark.parametrize("host", [*LOCAL, *MAPPED, "localhost", "2130706433", "127.1"])
def test_nothing_local_is_asked(host: str) -> None:
    """Whatever form the address has, and whoever names it: no connection is tried."""
    with pytest.raises(ControlError, match=r"are not asked unless agent.yaml says jwks.allowLocal"):
        uvloop.run(KeySets(lambda _: None, local=False).fetch(f"http://{host}:1/keys", 10))


def test_a_name_whose_addresses_are_not_all_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the others are asked, and those that were looked at, not what a second look-up says."""
    asked: list[str] = []

    async def looked_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        found = ("127.0.0.1", "192.0.2.1", "192.0.2.1", "::1", "2001:db8::1")
        return [(0, 0, 0, "", (address, 80)) for address in found]

    async def connect(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise ConnectionRefusedError(host)

    async def scene() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up)
        with pytest.raises(ControlError, match="cannot connect: 2001:db8::1"):
            await KeySets(lambda _: None, local=False).fetch("http://keys.example/", 10)

    monkeypatch.setattr(asyncio, "open_connection", connect)
    asyncio.run(scene())
    assert asked == ["192.0.2.1", "2001:db8::1"]


# -- TLS --


def _self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "keys")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    chain, secret = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, secret)
    return chain, context


def test_tls_needs_a_root_that_is_trusted(tmp_path: Path) -> None:
    chain, context = _self_signed(tmp_path)

    async def run() -> None:
        async with Server(says(answer(key_set())), context) as server:
            authenticates(Jwks("https://x", await KeySets(lambda _: None, chain, local=True).fetch(server.uri, 5)))
            with pytest.raises(ControlError, match="TLS failed"):
                await KeySets(lambda _: None, local=True).fetch(server.uri, 5)
            with pytest.raises(ControlError, match=r"cannot connect|TLS failed"):
                await KeySets(lambda _: None, chain, local=True).fetch(server.uri.replace("127.0.0.1", "localhost"), 5)
            assert len(server.requests) == 1

    uvloop.run(run())


def test_roots_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"missing\.pem: cannot be read as PEM certificates"):
        uvloop.run(KeySets(lambda _: None, tmp_path / "missing.pem", local=True).fetch("https://127.0.0.1:1/", 5))


# -- discovery --


def test_discovery() -> None:
    async def run() -> None:
        async def script(target: str, write: Write) -> None:
            await write(
                answer(
                    json.dumps({"issuer": server.uri, "jwks_uri": f"{server.uri}/certs"})
                    if target.endswith(DISCOVERY)
                    else key_set()
                )
            )

        anywhere = KeySets(lambda _: None, local=True)
        async with Server(script) as server:
            authenticates(
                Jwks(
                    "http://x",
                    await anywhere.fetch(JwtRule(f"{server.uri}/realm/").keys_uri, 5),
                )
            )
            assert server.requests == [f"/realm{DISCOVERY}", "/certs"]

    uvloop.run(run())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{}", "has no jwks_uri"),
        ("[]", "has no jwks_uri"),
        ('{"jwks_uri": 7}', "has no jwks_uri"),
        ("x", "is not JSON"),
    ],
)
def test_bad_discovery(document: str, words: str) -> None:
    assert words in error_of(says(answer(document)), DISCOVERY)


def test_discovery_leads_to_no_other_scheme(tmp_path: Path) -> None:
    chain, context = _self_signed(tmp_path)

    async def run(elsewhere: str) -> None:
        async with Server(says(answer(json.dumps({"jwks_uri": elsewhere}))), context) as server:
            with pytest.raises(ControlError, match="not an https URI"):
                await KeySets(lambda _: None, chain, local=True).fetch(server.uri + DISCOVERY, 5)

    for elsewhere in ("http://127.0.0.1:1/", "file:///etc/passwd"):
        uvloop.run(run(elsewhere))


# -- kept --


def test_wanted_by() -> None:
    rules = (
        JwtRule("a", jwks="{}"),
        JwtRule("b", jwks_uri="http://b", timeout_seconds=1),
        JwtRule("c", jwks_uri="http://b", timeout_seconds=3),
        JwtRule("http://d"),
    )
    assert wanted_by([RequestAuthentication("ns", "n", rules)]) == {"http://b": 3, f"http://d{DISCOVERY}": 5}


def test_one_flight_for_each_uri() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def script(_: str, write: Write) -> None:
            await release.wait()
            await write(answer(key_set()))

        told: list[Jwks] = []
        async with Server(script) as server:
            keys = KeySets(told.append, local=True)
            for _ in range(20):
                assert keys.wanted({f"{server.uri}/a": 10, f"{server.uri}/b": 10}) == ()
                await packet()
            await until(lambda: len(server.requests) == 2)
            assert server.most == 2
            release.set()
            await until(lambda: len(told) == 2)
            keys.wanted({f"{server.uri}/a": 10, f"{server.uri}/b": 10})
            await keys.close()
            assert sorted(server.requests) == ["/a", "/b"]
        assert {entry.uri for entry in told} == {f"{server.uri}/a", f"{server.uri}/b"}
        assert not any(entry.error for entry in told)

    uvloop.run(run())


class Pauses:
    """Waits for nothing, and says for how long it should have."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def test_failure_is_told_once_and_tried_again_until_it_works() -> None:
    async def run() -> None:
        told: list[Jwks] = []
        async with Server(says(answer("busy", "503 Busy"), answer("busy", "503 Busy"), answer(key_set()))) as server:
            keys = KeySets(told.append, local=True, sleep=Pauses())
            keys.wanted({server.uri: 5})
            await until(lambda: len(told) == 2)
            await keys.close()
        assert told[0].keys == "" and "answered 503" in told[0].error
        assert told[1].error == ""
        authenticates(told[1])
        assert len(server.requests) >= 3

    uvloop.run(run())


def test_last_good_keys_stay_when_a_refresh_fails() -> None:
    async def run() -> None:
        told: list[Jwks] = []
        first, second = key_set(), json.dumps({"keys": json.loads(key_set())["keys"][:1]})
        answers = says(answer(first), answer(first), answer("<html>"), answer("<html>"), answer(second))
        async with Server(answers) as server:
            keys = KeySets(told.append, local=True, sleep=Pauses())
            keys.wanted({server.uri: 5})
            await until(lambda: len(told) == 3)
            await keys.close()
        assert [bool(entry.error) for entry in told] == [False, True, False]
        assert told[1].keys == told[0].keys != told[2].keys
        authenticates(told[1])

    uvloop.run(run())


def test_pauses() -> None:
    """After a success Istio's interval; after failures one, two, four seconds and so on, never more
    than the interval; a success starts over.
    """

    async def run() -> None:
        pauses = Pauses()
        good, bad = answer(key_set()), answer("x")
        async with Server(says(good, *[bad] * 13, good, bad)) as server:
            keys = KeySets(lambda _: None, local=True, sleep=pauses)
            keys.wanted({server.uri: 5})
            await until(lambda: len(pauses.seconds) >= 16)
            await keys.close()
        expected = [1200, *(2**n for n in range(11)), 1200, 1200, 1200, 1]
        assert all(0.9 * due <= pause <= 1.1 * due for pause, due in zip(pauses.seconds, expected, strict=False)), (
            pauses.seconds
        )

    uvloop.run(run())


def test_what_is_no_longer_wanted_ends() -> None:
    async def run() -> None:
        told: list[Jwks] = []

        async def script(target: str, write: Write) -> None:
            if target == "/slow":
                await asyncio.sleep(3600)  # until it is ended
            await write(answer(key_set()))

        async with Server(script) as server:
            keys = KeySets(told.append, local=True)
            slow, quick = f"{server.uri}/slow", f"{server.uri}/quick"
            keys.wanted({slow: 3600, quick: 5})
            await until(lambda: "/slow" in server.requests and len(told) == 1)
            assert keys.wanted({quick: 5}) == (f"jwks/{slow}",)
            assert keys.wanted({}) == (f"jwks/{quick}",)
            await until(lambda: len(asyncio.all_tasks()) <= 2)  # this one, and the server's that sleeps
            assert [entry.uri for entry in told] == [quick]
            # Wanted again: fetched anew.
            keys.wanted({quick: 5})
            await until(lambda: len(told) == 2)
            await keys.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    uvloop.run(run())


def test_what_nobody_foresaw_is_named_and_the_key_set_is_kept_all_the_same() -> None:
    """Input: who takes the keys fails once. Verdict: they are fetched and told again."""

    async def run() -> None:
        told: list[Jwks] = []

        def changed(entry: Jwks) -> None:
            told.append(entry)
            if len(told) == 1:
                raise RuntimeError("no room")

        async with Server(says(answer(key_set()))) as server:
            keys = KeySets(changed, local=True, sleep=Pauses())
            keys.wanted({server.uri: 5})
            await until(lambda: len(told) == 2)
            assert keys.failing() == [f"the keeper of the key set {server.uri} failed 1 times: RuntimeError: 'no room'"]
            await keys.close()
            assert keys.failing() == []
        assert told[0] == told[1]

    uvloop.run(run())


def test_what_nobody_foresaw_takes_no_good_keys_away() -> None:
    """Input: who takes the keys fails once, and from then on the server does. Verdict: the last good
    keys are told with the failure.
    """

    async def run() -> None:
        told: list[Jwks] = []

        def changed(entry: Jwks) -> None:
            told.append(entry)
            if len(told) == 1:
                raise RuntimeError("no room")

        async with Server(says(answer(key_set()), answer("busy", "503 Busy"))) as server:
            keys = KeySets(changed, local=True, sleep=Pauses())
            keys.wanted({server.uri: 5})
            await until(lambda: len(told) == 2)
            await keys.close()
        assert "answered 503" in told[1].error
        assert told[1].keys == told[0].keys != ""

    uvloop.run(run())
