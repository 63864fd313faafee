"""The built-in authority: what it signs, what it refuses, and two agents that make it at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeagent.errors import IdentityError
from nodeagent.identity import profiles
from nodeagent.identity.authority_directory import BEGUN, LOCK, OLD_KEY, ROOT_KEY, ROOTS, SIGNING, certificates, write
from nodeagent.identity.ca import CertificateAuthority, private_pem
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.vocabulary import SpiffeId

DOMAIN = "cluster.local"
WEB = spiffe_id(DOMAIN, "default", "web")


def test_a_certificate_is_a_spiffe_svid(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    issued = CertificateAuthority.open_or_create(tmp_path / "ca", DOMAIN, lambda: now).issue(WEB, 3600)
    leaf, intermediate = certificates(issued.chain_pem)
    (root,) = certificates(issued.roots_pem)
    assert leaf.issuer == intermediate.subject
    assert intermediate.issuer == root.subject == root.issuer
    lengths = [
        certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        for certificate in (leaf, intermediate, root)
    ]
    assert lengths == [None, 0, 1]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert [name.value for name in san.value] == [WEB]
    assert not list(leaf.subject)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert issued.not_after == now + 3600 == profiles.ends(leaf)
    assert profiles.begins(leaf) < now
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
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        LOCK: 0o600,
        ROOT_KEY: 0o600,
        SIGNING: 0o600,
        ROOTS: 0o644,
    }


def test_agents_that_start_together_share_one_root(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nodeagent.identity.ca import CertificateAuthority as A\n"
        "sys.stdin.read()\n"
        "a = A.open_or_create(Path(sys.argv[1]), 'cluster.local')\n"
        "sys.stdout.write(a.issue('spiffe://cluster.local/ns/d/sa/s', 60).roots_pem.decode())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ca")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    agents = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    for agent in agents:
        assert agent.stdin is not None
        agent.stdin.close()
        agent.stdin = None  # all are set off; communicate() must not close it again
    roots = {agent.communicate(timeout=60)[0] for agent in agents}
    assert [agent.returncode for agent in agents] == [0] * 4
    assert len(roots) == 1
    assert "BEGIN CERTIFICATE" in roots.pop()


def test_a_maker_that_died_halfway_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    (tmp_path / ROOTS).unlink()
    (tmp_path / BEGUN).touch()
    (tmp_path / f".{ROOTS}.{os.getpid()}").write_text("half")
    CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 60)


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://other/ns/a/sa/b",
        "spiffe://cluster.local/ns/a",
        "https://cluster.local/ns/a/sa/b",
        "",
        "spiffe://cluster.local/ns/../sa/b",
    ],
)
def test_it_signs_only_for_its_trust_domain(tmp_path: Path, identity: str) -> None:
    with pytest.raises(IdentityError):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(SpiffeId(identity), 60)


def exchange(name: str) -> Callable[[Path], None]:
    """Put another authority's file in the place of *name*."""

    def damage(path: Path) -> None:
        other = path / "other"
        CertificateAuthority.open_or_create(other, DOMAIN)
        (path / name).write_bytes((other / name).read_bytes())

    return damage


def exchange_key(path: Path) -> None:
    """Put another authority's key beside the intermediate."""
    mine = (path / SIGNING).read_bytes()
    exchange(SIGNING)(path)
    (path / SIGNING).write_bytes(
        (path / SIGNING).read_bytes().partition(b"-----BEGIN CERT")[0]
        + b"".join(mine.partition(b"-----BEGIN CERT")[1:])
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda path: (path / SIGNING).chmod(0o640), "chmod 600", id="a key that others may read"),
        pytest.param(
            lambda path: (path / SIGNING).write_text("nothing"), "signing.pem: not what this program wrote", id="no key"
        ),
        pytest.param(
            lambda path: (path / ROOTS).write_text("nothing"),
            "root-cert.pem: not what this program wrote",
            id="no root",
        ),
        pytest.param(lambda path: (path / SIGNING).unlink(), "read and write", id="the key is gone"),
        pytest.param(exchange_key, "its key is not its certificate's", id="another key"),
        pytest.param(exchange(SIGNING), "not signed by a root", id="another intermediate"),
        pytest.param(exchange(ROOTS), "not signed by a root", id="another root"),
    ],
)
def test_a_damaged_authority_is_an_error(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    damage(tmp_path)
    with pytest.raises(IdentityError, match=words) as refused:
        CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    assert "PRIVATE" not in str(refused.value)


def test_what_was_read_last_stays_in_force_when_the_directory_is_damaged(tmp_path: Path) -> None:
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    exchange(SIGNING)(tmp_path)
    with pytest.raises(IdentityError, match="not signed by a root"):
        authority.refresh()
    with pytest.raises(IdentityError, match="not signed by a root"):
        authority.refresh()
    assert authority.issue(WEB, 60).roots_pem == (tmp_path / ROOTS).read_bytes()


def old_layout(directory: Path, now: float | None = None) -> None:
    """Make what versions without an intermediate made: the root's key signs."""
    root = profiles.root(DOMAIN, time.time() if now is None else now)
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, content, mode in (
        (OLD_KEY, private_pem(root.key), 0o600),
        (ROOTS, profiles.pem(root.certificate), 0o644),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(mode)


def test_a_directory_of_the_older_layout_goes_on(tmp_path: Path) -> None:
    old_layout(tmp_path)
    issued = CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 60)
    (leaf,), (root,) = certificates(issued.chain_pem), certificates(issued.roots_pem)
    assert profiles.signed_by(leaf, root)
    other = tmp_path / "other"
    old_layout(other)
    (tmp_path / OLD_KEY).write_bytes((other / OLD_KEY).read_bytes())
    with pytest.raises(IdentityError, match="is not the key of a root"):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN)


def test_the_intermediate_is_renewed_at_half_its_life_and_the_root_stays(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN, lambda: now[0])
    first = authority.issue(WEB, 60)
    now[0] += 180 * 86400
    authority.refresh()
    assert certificates(authority.issue(WEB, 60).chain_pem)[1:] == certificates(first.chain_pem)[1:]
    now[0] += 4 * 86400
    authority.refresh()
    second = authority.issue(WEB, 60)
    assert certificates(second.chain_pem)[1:] != certificates(first.chain_pem)[1:]
    assert second.roots_pem == first.roots_pem


def test_the_root_key_may_be_kept_elsewhere_until_the_intermediate_ends(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN, lambda: now[0])
    key = (tmp_path / ROOT_KEY).rename(tmp_path / "elsewhere")
    now[0] += 300 * 86400
    authority.refresh()
    end = authority.issue(WEB, 100 * 86400).not_after
    assert end == 1_800_000_000 + 365 * 86400
    now[0] = end
    with pytest.raises(IdentityError, match=f"the intermediate has ended: put {ROOT_KEY} back"):
        authority.issue(WEB, 60)
    key.rename(tmp_path / ROOT_KEY)
    assert authority.issue(WEB, 60).not_after == end + 60


def test_a_servers_certificate_proves_no_spiffe_id(tmp_path: Path) -> None:
    made = CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue_server(
        ["ca.example", "192.0.2.1", "2001:db8::1"], 60
    )
    leaf = certificates(made.chain_pem)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["ca.example", "192.0.2.1", "2001:db8::1"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert "PRIVATE" not in repr(made)


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
    with pytest.raises(IdentityError, match="the root ended at"):
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


@pytest.mark.parametrize("left", [(ROOT_KEY, SIGNING), (SIGNING,), (ROOT_KEY,)])
def test_no_key_is_written_over_while_the_roots_are_away(tmp_path: Path, left: tuple[str, ...]) -> None:
    """Input: a running agent, and root-cert.pem is away for a moment, as in a restore. Verdict: it says so, touches
    nothing, and goes on when it is back.
    """
    authority = CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    authority.refresh()
    away = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name not in (*left, LOCK)}
    for name in away:
        (tmp_path / name).unlink()
    before = {name: (tmp_path / name).read_bytes() for name in left}
    for _ in range(2):
        with pytest.raises(IdentityError, match=r"root-cert\.pem is missing, and .* is there: restore"):
            authority.refresh()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != LOCK} == before
    for name, content in away.items():
        write(tmp_path / name, content, 0o600)
    authority.refresh()
    assert certificates(authority.issue(WEB, 60).chain_pem)


def test_an_authority_whose_maker_died_last_of_all_is_not_made_again(tmp_path: Path) -> None:
    """Input: it was made whole, and its maker died before it said so; it is used; later its roots are away."""
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    (tmp_path / BEGUN).touch()
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    (tmp_path / ROOTS).unlink()
    before = (tmp_path / ROOT_KEY).read_bytes()
    with pytest.raises(IdentityError, match=r"root-cert\.pem is missing"):
        CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    assert (tmp_path / ROOT_KEY).read_bytes() == before


def test_an_authority_whose_making_was_interrupted_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: the disk is full when the second file is written. Verdict: the next start makes it."""
    written = []

    def full(path: Path, content: bytes, mode: int) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write(path, content, mode)

    with monkeypatch.context() as patched:
        patched.setattr("nodeagent.identity.authority_directory.write", full)
        with pytest.raises(IdentityError, match="No space left"):
            CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    assert written == [ROOT_KEY]
    CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 60)
    assert {path.name for path in tmp_path.iterdir()} == {ROOTS, SIGNING, ROOT_KEY, LOCK}
