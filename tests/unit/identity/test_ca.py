"""The built-in authority: what it signs, what it refuses, and two agents that make it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeagent.errors import IdentityError
from nodeagent.identity.ca import KEY, ROOT, CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.mesh.entries import SpiffeId

DOMAIN = "cluster.local"
WEB = spiffe_id(DOMAIN, "default", "web")


def test_a_certificate_is_a_spiffe_svid(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    issued = CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN, lambda: now).issue(WEB, 3600)
    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert [name.value for name in san.value] == [WEB]
    assert not list(leaf.subject)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert issued.not_after == now + 3600 == leaf.not_valid_after.replace(tzinfo=UTC).timestamp()
    assert leaf.not_valid_before.replace(tzinfo=UTC).timestamp() < now
    assert issued.serial == f"{leaf.serial_number:x}"
    assert issued.key_pem.startswith(b"-----BEGIN PRIVATE KEY")


def test_every_certificate_has_its_own_key_and_serial(tmp_path: Path) -> None:
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    one, two = authority.issue(WEB, 60), authority.issue(WEB, 60)
    assert one.key_pem != two.key_pem
    assert one.serial != two.serial


def test_it_is_opened_again_and_keys_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "ca"
    first = CertificateAuthority.open_or_create(directory, DOMAIN).issue(WEB, 60)
    second = CertificateAuthority.open_or_create(directory, DOMAIN).issue(WEB, 60)
    assert first.roots_pem == second.roots_pem
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / KEY).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [".lock", KEY, ROOT]


def test_agents_that_start_together_share_one_root(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nodeagent.identity.ca import CertificateAuthority as A\n"
        "sys.stdin.read()\n"
        "a = A.open_or_create(Path(sys.argv[1]), 'cluster.local')\n"
        "sys.stdout.write(a.issue('spiffe://cluster.local/ns/d/sa/s', 60).roots_pem.decode())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ca")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    agents = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    for agent in agents:
        assert agent.stdin is not None
        agent.stdin.close()
        agent.stdin = None  # all are set off; communicate() must not close it again
    roots = {agent.communicate(timeout=30)[0] for agent in agents}
    assert [agent.returncode for agent in agents] == [0] * 4
    assert len(roots) == 1
    assert "BEGIN CERTIFICATE" in roots.pop()


def test_a_maker_that_died_halfway_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    (tmp_path / ROOT).unlink()
    (tmp_path / f".{ROOT}.{os.getpid()}").write_text("half")
    CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 60)


@pytest.mark.parametrize(
    "identity", ["spiffe://other/ns/a/sa/b", "spiffe://cluster.local/ns/a", "https://cluster.local/ns/a/sa/b", "", "spiffe://cluster.local/ns/../sa/b"]
)
def test_it_signs_only_for_its_trust_domain(tmp_path: Path, identity: str) -> None:
    with pytest.raises(IdentityError):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(SpiffeId(identity), 60)


def exchange_key(path: Path) -> None:
    other = path / "other"
    CertificateAuthority.open_or_create(other, DOMAIN)
    (path / KEY).write_bytes((other / KEY).read_bytes())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda path: (path / KEY).chmod(0o640), "chmod 600", id="a key that others may read"),
        pytest.param(lambda path: (path / KEY).write_text("nothing"), "not what this program wrote", id="no key"),
        pytest.param(lambda path: (path / ROOT).write_text("nothing"), "not what this program wrote", id="no root"),
        pytest.param(lambda path: (path / KEY).unlink(), "read and write", id="the key is gone"),
        pytest.param(exchange_key, "is not the key of", id="another key"),
    ],
)
def test_a_damaged_authority_is_an_error(tmp_path: Path, damage: object, words: str) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(IdentityError, match=words):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN)


def test_another_trust_domain_is_an_error(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    with pytest.raises(IdentityError, match=r"spiffe://cluster\.local, not of identity\.trustDomain other"):
        CertificateAuthority.open_or_create(tmp_path, "other")
    with pytest.raises(IdentityError, match="trust domain"):
        CertificateAuthority.open_or_create(tmp_path, "Not A Domain")


def test_certificates_end_with_the_root_and_an_ended_root_is_an_error(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN, lambda: now[0])
    end = now[0] + 3650 * 86400
    now[0] = end - 100
    assert authority.issue(WEB, 86400).not_after == end
    now[0] = end
    with pytest.raises(IdentityError, match="has ended"):
        authority.issue(WEB, 86400)
    with pytest.raises(IdentityError, match="ended at"):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN, lambda: now[0])


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IdentityError, match=r"identity\.caDirectory"):
        CertificateAuthority.open_or_create(tmp_path / "file" / "ca", DOMAIN)


def test_a_certificate_goes_through_json_and_never_prints_its_key(tmp_path: Path) -> None:
    issued = CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 60)
    assert Certificate.from_json(issued.to_json()) == issued
    assert "PRIVATE" not in repr(issued)
