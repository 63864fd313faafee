"""Which source agent.yaml chooses, and the mount that something else renews."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from nodeagent.config import Identity, load
from nodeagent.errors import ConfigError, IdentityError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import CHAIN, KEY, ROOTS, BuiltIn, Files, open_source
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.identity.store import Certificates
from tests.unit.identity.waiting import ensure
from tests.waiting import DEADLINE, LOOK_SECONDS

DOMAIN = "cluster.local"
WEB, SHOP = spiffe_id(DOMAIN, "default", "web"), spiffe_id(DOMAIN, "default", "shop")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN)


def put(directory: Path, certificate: Certificate) -> None:
    """Write a mount as whoever renews it would."""
    directory.mkdir(exist_ok=True)
    for name, content in ((CHAIN, certificate.chain_pem), (KEY, certificate.key_pem), (ROOTS, certificate.roots_pem)):
        (directory / f".{name}").write_bytes(content)
        (directory / f".{name}").rename(directory / name)


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({}, "exactly one of caDirectory, istioCa and files"),
        ({"caDirectory": "/x", "files": {"directory": "/y"}}, "exactly one of caDirectory, istioCa and files"),
        ({"istioCa": {"address": "istiod:15012"}}, r"identity\.istioCa\.tokenFile"),
        ({"istioCa": {"address": "istiod", "tokenFile": "/x", "rootCertFile": "/y"}}, r"identity\.istioCa\.address"),
        ({"files": {}}, r"identity\.files\.directory"),
    ],
)
def test_exactly_one_source(tmp_path: Path, identity: dict[str, Any], words: str) -> None:
    (tmp_path / "agent.yaml").write_text(
        yaml.safe_dump({"node": "node1", "source": "/", "redirect": {"cgroup": "/"}, "identity": identity})
    )
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / "agent.yaml")


def test_each_source_is_opened_and_grpc_only_when_it_is_used(tmp_path: Path) -> None:
    put(tmp_path / "mount", CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN).issue(WEB, 60))
    assert isinstance(open_source(Identity.model_validate({"caDirectory": str(tmp_path / "ca")}), "c"), BuiltIn)
    assert isinstance(
        open_source(Identity.model_validate({"files": {"directory": str(tmp_path / "mount")}}), "c"), Files
    )
    code = (
        "import sys; from nodeagent.config import Identity; from nodeagent.identity.sources import open_source\n"
        "open_source(Identity.model_validate({'caDirectory': sys.argv[1]}), 'c')\n"
        "assert not {'grpc', 'grpclib', 'google.protobuf'} & set(sys.modules)\n"
        "ca = {'address': '[::1]:15012', 'tokenFile': '/x', 'rootCertFile': '/y'}\n"
        "print(type(open_source(Identity.model_validate({'istioCa': ca}), 'c')).__name__, 'grpc' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "ca")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("IstioCa False\n", "")


def test_a_mount_serves_its_identity_and_no_other(tmp_path: Path, authority: CertificateAuthority) -> None:
    made = authority.issue(WEB, 600)
    put(tmp_path / "mount", made)
    source = Files(tmp_path / "mount", DOMAIN)
    taken = asyncio.run(source.issue(WEB, 10))
    assert (taken.chain_pem, taken.key_pem, taken.roots_pem, taken.serial, taken.not_after) == (
        made.chain_pem, made.key_pem, made.roots_pem, made.serial, made.not_after,
    )  # fmt: skip
    with pytest.raises(IdentityError, match=rf"identity\.files .*is for {WEB}, not for {SHOP}"):
        asyncio.run(source.issue(SHOP, 10))


def test_a_key_of_another_pem_form_is_taken(tmp_path: Path, authority: CertificateAuthority) -> None:
    made = authority.issue(WEB, 600)
    put(tmp_path / "mount", made)
    key = serialization.load_pem_private_key(made.key_pem, None)
    old = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (tmp_path / "mount" / KEY).write_bytes(old)
    assert asyncio.run(Files(tmp_path / "mount", DOMAIN).issue(WEB, 10)).key_pem == made.key_pem


def encrypt(mount: Path) -> None:
    key = serialization.load_pem_private_key((mount / KEY).read_bytes(), None)
    form = serialization.BestAvailableEncryption(b"password")
    (mount / KEY).write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda mount: (mount / KEY).unlink(), r"key\.pem: No such file", id="no key"),
        pytest.param(lambda mount: (mount / KEY).write_text("x"), "not an unencrypted private key", id="no key in it"),
        pytest.param(encrypt, "not an unencrypted private key", id="encrypted"),
        pytest.param(lambda mount: (mount / CHAIN).write_text(""), "no certificate as PEM", id="empty chain"),
        pytest.param(lambda mount: (mount / ROOTS).write_bytes(b"x" * 300_000), "at most", id="huge roots"),
        pytest.param(
            lambda mount: (mount / CHAIN).write_bytes((mount / ROOTS).read_bytes()),
            "for another key",
            id="a root as leaf",
        ),
    ],
)
def test_a_mount_that_is_wrong_is_an_error(
    tmp_path: Path, authority: CertificateAuthority, damage: Callable[[Path], None], words: str
) -> None:
    mount = tmp_path / "mount"
    put(mount, authority.issue(WEB, 600))
    damage(mount)
    with pytest.raises(IdentityError, match=rf"identity\.files.*{words}") as refused:
        asyncio.run(Files(mount, DOMAIN).issue(WEB, 10))
    assert "PRIVATE" not in str(refused.value)


def test_a_mount_that_is_renewed_reaches_the_store(tmp_path: Path, authority: CertificateAuthority) -> None:
    mount = tmp_path / "mount"
    first, second = authority.issue(WEB, 600), authority.issue(WEB, 600)
    put(mount, first)
    heard: list[Certificate] = []

    async def scene() -> None:
        store = Certificates(Files(mount, DOMAIN), 600, heard.append, lambda identity: None)
        work = asyncio.create_task(store.run())
        await ensure(store, [WEB, SHOP], 5)
        assert store.current(WEB).serial == first.serial
        with pytest.raises(IdentityError, match="not for"):
            store.current(SHOP)
        put(mount, second)
        async with asyncio.timeout(DEADLINE):
            while store.current(WEB).serial != second.serial:
                store._wake.set()
                await asyncio.sleep(LOOK_SECONDS)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(scene())
    assert [certificate.serial for certificate in heard] == [first.serial, second.serial]


def test_a_hundred_identities_of_the_built_in_authority_need_no_waiting(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    names = [spiffe_id(DOMAIN, "default", f"sa-{number}") for number in range(100)]
    heard: list[Certificate] = []

    async def scene() -> None:
        store = Certificates(BuiltIn(authority), 600, heard.append, lambda identity: None)
        work = asyncio.create_task(store.run())
        await ensure(store, names, 30)
        assert [store.current(name).identity for name in names] == names
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(scene())
    assert len(heard) == 100
    assert all(certificate.not_after <= time.time() + 600 for certificate in heard)
