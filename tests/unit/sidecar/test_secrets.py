"""The sidecar's certificate, from the node agent's own service: taken, renewed, refused when it is
wrong, asked for again when the service was away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import IdentityError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.sidecar import secrets
from nodeagent.sidecar.secrets import SecretsClient
from tests.unit.identity.sockets import WEB, World, run
from tests.waiting import until


@asynccontextmanager
async def following(
    path: str,
    *,
    trust_domain: str = "cluster.local",
    namespace: str = "default",
    took: Callable[[Certificate], None] | None = None,
) -> AsyncIterator[Any]:
    """Run Secrets; yield it and the certificates that it took."""
    taken: list[Certificate] = []
    client = SecretsClient(Path(path), trust_domain, namespace, took or taken.append)
    task = asyncio.create_task(client.run())
    try:
        yield client, taken
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def same(one: Certificate, other: Certificate) -> bool:
    return replace(one, issued=0.0) == replace(other, issued=0.0)


def test_each_certificate_is_taken_as_it_comes() -> None:
    async def scenario(world: World) -> None:
        async with following(world.path) as (client, taken):
            await until(lambda: client.fault)
            assert taken == []
            for number in range(1, 4):
                given = world.renew()
                await until(lambda number=number: len(taken) == number)
                assert same(taken[-1], given)
                assert client.fault == ""

    run(scenario)


@pytest.mark.parametrize(("options", "words"), [
    ({"trust_domain": "example.org"}, "trust domain cluster.local, not example.org"),
    ({"namespace": "other"}, "not for a pod of namespace other"),
])  # fmt: skip
def test_anothers_certificate_is_refused(options: dict[str, str], words: str) -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with following(world.path, **options) as (client, taken):
            await until(lambda: words in client.fault)
            assert taken == []

    run(scenario)


def test_a_wrong_one_is_refused_in_the_protocols_words_and_the_last_good_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = CertificateAuthority.open_or_create(tmp_path / "other", "cluster.local")

    async def scenario(world: World) -> None:
        good = world.renew()
        wrong = {
            "another key": replace(world.authority.issue(WEB, 3600), key_pem=good.key_pem),
            "not accepted by the trusted roots": replace(stranger.issue(WEB, 3600), roots_pem=good.roots_pem),
            "not certificates as PEM": replace(
                good, roots_pem=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
            ),
            "cannot be read": replace(good, chain_pem=b"nonsense"),
            "ended at": world.authority.issue(WEB, 1),
        }
        async with following(world.path) as (client, taken):
            await until(lambda: taken)
            for words, certificate in wrong.items():
                world.subject.certificate.set(certificate)
                await until(lambda words=words: words in client.fault)
                assert len(taken) == 1
            with caplog.at_level(logging.WARNING):
                last = world.renew()
                await until(lambda: len(taken) == 2)
            assert same(taken[-1], last)
            assert client.fault == ""
        assert "PRIVATE KEY" not in caplog.text
        assert "its Envoy refuses the secrets" in caplog.text, "the server heard of it"

    run(scenario)


def test_what_the_sidecar_itself_refuses() -> None:
    def took(certificate: Certificate) -> None:
        raise IdentityError("this pod is somebody else")

    async def scenario(world: World) -> None:
        world.renew()
        async with following(world.path, took=took) as (client, _):
            await until(lambda: "somebody else" in client.fault)

    run(scenario)


def test_a_service_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(secrets, "LONGEST_PAUSE", 0.1)
    path = tmp_path / "late"

    async def scenario(world: World) -> None:
        async with following(str(path)) as (client, taken):
            await until(lambda: "No such file" in client.fault)
            await asyncio.sleep(0.5)  # several attempts more: nothing shows them
            assert caplog.text.count("No such file") == 1, "the same fault is told once"
            path.symlink_to(world.path)
            given = world.renew()
            await until(lambda: taken)
            assert same(taken[0], given)
            assert client.fault == ""

    run(scenario)


def test_a_service_that_speaks_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secrets, "LONGEST_PAUSE", 0.1)

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def scenario(world: World) -> None:
        server = await asyncio.start_unix_server(nonsense, tmp_path / "socket")
        async with following(str(tmp_path / "socket")) as (client, taken):
            await until(lambda: "Connection lost" in client.fault)
            assert taken == []
        server.close()

    run(scenario)
