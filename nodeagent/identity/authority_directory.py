"""The built-in authority's directory, which the nodes share, and the exchange of its root.

======================= ==== ====================================================================================
``root-cert.pem``       0644 every root that is trusted now
``signing.pem``         0600 key and certificate of the intermediate that signs workloads' certificates
``root-key.pem``        0600 key and certificate of the root that signs intermediates; may be kept
                             elsewhere, and brought back once a year
``next-root-key.pem``   0600 between ``prepare`` and ``switch``: the root to come
``ca-key.pem``          0600 the older layout: the root's key, which signed workloads' certificates itself
======================= ==== ====================================================================================

A file is replaced whole, and whatever a step needs stands before what says that it was taken: one
that was interrupted is taken again. All writers and readers hold the lock. A new root is trusted
everywhere before anything is signed by it, and an old one goes when nothing signed by it is in use:
no connection is refused meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nodeagent.errors import IdentityError, translated
from nodeagent.identity import profiles
from nodeagent.identity.profiles import Signer
from nodeagent.identity.spiffe import check_trust_domain

ROOTS = "root-cert.pem"
SIGNING = "signing.pem"
ROOT_KEY = "root-key.pem"
NEXT = "next-root-key.pem"
OLD_KEY = "ca-key.pem"
LOCK = ".lock"
BEGUN: Final = ".begun"
"""While an authority is made: what is there was never used."""
MAX_BYTES: Final = 256 << 10
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)
Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Authority:
    """What signs, what follows a leaf in its chain, and what is trusted."""

    signer: Signer
    chain: tuple[x509.Certificate, ...]
    """The intermediate; empty in the older layout, where the root signs itself."""
    root: x509.Certificate
    """The one above the signer."""
    roots: tuple[x509.Certificate, ...]


def certificates(text: bytes) -> list[x509.Certificate]:
    """Return all certificates of a PEM file, in their order. Raises ValueError."""
    return [x509.load_pem_x509_certificate(match) for match in _CERTIFICATE.findall(text)]


def stamp(directory: Path) -> Stamp:
    """Return a value that changes when what is trusted or what signs changes. Raises IdentityError."""
    return tuple(_file_stamp(directory, name) for name in (ROOTS, SIGNING))


def open_or_create(directory: Path, trust_domain: str, now: float) -> Authority:
    """Return the authority kept in *directory*, made when it is not there, with a new intermediate
    when the present one has lived for half its time.

    Raises IdentityError when it cannot be read or made, does not fit together, or belongs to
    another trust domain.
    """
    check_trust_domain(trust_domain)
    with opened(directory, create=True):
        if not (directory / ROOTS).exists():
            _check_new(directory)
            _create(directory, trust_domain, now)
        (directory / BEGUN).unlink(missing_ok=True)  # also of a maker that died before it came to this
        authority = _read(directory, trust_domain, now)
        if _is_due(authority, now) and (directory / ROOT_KEY).exists():
            root = _pair(directory / ROOT_KEY)
            _check_root(directory, root, authority)
            _write_pair(directory / SIGNING, profiles.intermediate(root, trust_domain, now))
            authority = _read(directory, trust_domain, now)
    if authority.signer.not_after <= now:
        raise IdentityError(
            f"{directory / SIGNING}: the intermediate has ended: put {ROOT_KEY} back, and the next start makes another"
        )
    return authority


def prepare(directory: Path, now: float) -> None:
    """First step of an exchange of the root: make another and have it trusted beside the present
    one. Raises IdentityError.
    """
    with opened(directory):
        authority = _read_own(directory, now)
        if not (directory / NEXT).exists():
            _write_pair(directory / NEXT, profiles.root(_trust_domain(authority.root), now))
        coming = _pair(directory / NEXT).certificate
        if coming not in authority.roots:
            _write_roots(directory, (*authority.roots, coming))


def switch(directory: Path, now: float) -> None:
    """Second step: sign with the new root from now on. Raises IdentityError when it was not prepared."""
    with opened(directory):
        authority = _read_own(directory, now)
        if not (directory / NEXT).exists():
            raise IdentityError(f"{directory}: there is no root to switch to: prepare comes first")
        coming = _pair(directory / NEXT)
        if coming.certificate not in authority.roots:
            raise IdentityError(f"{directory}: the root to come is not trusted yet: prepare comes first")
        _write_pair(directory / SIGNING, profiles.intermediate(coming, _trust_domain(coming.certificate), now))
        (directory / NEXT).replace(directory / ROOT_KEY)
        (directory / OLD_KEY).unlink(missing_ok=True)


def finish(directory: Path, now: float) -> None:
    """Last step: trust the root that signs, and no other. Raises IdentityError in the middle of an exchange."""
    with opened(directory):
        if (directory / NEXT).exists():
            raise IdentityError(f"{directory}: the new root does not sign yet: switch comes first")
        authority = _read_own(directory, now)
        if authority.roots != (authority.root,):
            _write_roots(directory, (authority.root,))


def last_step(directory: Path) -> float:
    """Return when the last step of an exchange was taken, in Unix seconds. Raises IdentityError."""
    with opened(directory):
        return max((directory / name).stat().st_mtime for name in (ROOTS, SIGNING) if (directory / name).exists())


def _file_stamp(directory: Path, name: str) -> tuple[int, int, int]:
    try:
        status = (directory / name).stat()
    except FileNotFoundError:
        return (0, 0, 0)
    except OSError as error:
        raise _unreadable(directory, error) from None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _unreadable(directory: Path, error: OSError) -> IdentityError:
    return IdentityError(
        f"identity.caDirectory {directory}: {error.strerror or error}: every node's agent must be able to "
        "read and write it"
    )


@contextmanager
def opened(directory: Path, *, create: bool = False) -> Iterator[None]:
    """Hold the directory's lock; whatever is raised becomes IdentityError."""
    with translated(IdentityError, f"identity.caDirectory {directory}: a file of it cannot be read"):
        try:
            if create:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(directory / LOCK, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(directory, error) from None


def _create(directory: Path, trust_domain: str, now: float) -> None:
    """Make an authority; what is trusted last, so that it always has its keys."""
    (directory / BEGUN).touch(0o600)
    root = profiles.root(trust_domain, now)
    _write_pair(directory / ROOT_KEY, root)
    _write_pair(directory / SIGNING, profiles.intermediate(root, trust_domain, now))
    _write_roots(directory, (root.certificate,))


def _check_new(directory: Path) -> None:
    """Raises IdentityError where keys are there: what is trusted is away, for a moment perhaps, and may be more
    than one root; a key that was written over would be lost for good.
    """
    keys = [name for name in (ROOT_KEY, SIGNING, NEXT, OLD_KEY) if (directory / name).exists()]
    if keys and not (directory / BEGUN).exists():
        raise IdentityError(
            f"{directory}: {ROOTS} is missing, and {', '.join(keys)} is there: restore the files that belong "
            "together, or remove all of them to make a new authority"
        )


def _is_due(authority: Authority, now: float) -> bool:
    begin = profiles.begins(authority.signer.certificate)
    end = authority.signer.not_after
    return bool(authority.chain) and now >= (begin + end) / 2


def _read_own(directory: Path, now: float) -> Authority:
    return _read(directory, None, now)


def _read(directory: Path, trust_domain: str | None, now: float) -> Authority:
    """Read and check everything; *trust_domain* None: whichever it is."""
    path = directory / ROOTS
    try:
        roots = tuple(certificates(path.read_bytes()[:MAX_BYTES]))
        for root in roots:
            root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise _foreign(path, error) from None
    if not roots:
        raise _foreign(path, "it holds no certificate")
    old = not (directory / SIGNING).exists()
    signer = _old_signer(directory / OLD_KEY, roots) if old else _pair(directory / SIGNING)
    above = (
        signer.certificate
        if old
        else next((root for root in roots if profiles.signed_by(signer.certificate, root)), None)
    )
    if above is None:
        raise IdentityError(
            f"{directory}: {SIGNING} is not signed by a root of {ROOTS}: restore the files that belong together"
        )
    for certificate in (signer.certificate, above):
        if trust_domain is not None and profiles.uris(certificate.extensions) != [f"spiffe://{trust_domain}"]:
            found = ", ".join(profiles.uris(certificate.extensions)) or "no trust domain"
            raise IdentityError(f"{directory}: the authority of {found}, not of identity.trustDomain {trust_domain}")
    if profiles.ends(above) <= now:
        raise IdentityError(
            f"{directory / ROOTS}: the root ended at {profiles.end(above)}: remove all files of the directory "
            "to make a new authority"
        )
    return Authority(signer, () if old else (signer.certificate,), above, roots)


def _trust_domain(root: x509.Certificate) -> str:
    names = profiles.uris(root.extensions)
    if len(names) != 1 or not names[0].startswith("spiffe://"):
        raise IdentityError(f"the root {root.subject.rfc4514_string()} names no trust domain")
    return names[0].removeprefix("spiffe://")


def _check_root(directory: Path, root: Signer, authority: Authority) -> None:
    if root.certificate not in authority.roots:
        raise IdentityError(
            f"{directory}: {ROOT_KEY} is of a root that {ROOTS} does not hold: restore the files that belong together"
        )


def _old_signer(path: Path, roots: tuple[x509.Certificate, ...]) -> Signer:
    key = _key(path, read_private(path))
    for root in roots:
        if _same_key(key, root):
            return Signer(key, root)
    raise IdentityError(
        f"{path.parent}: {path.name} is not the key of a root of {ROOTS}: restore the files that belong together"
    )


def _pair(path: Path) -> Signer:
    content = read_private(path)
    key = _key(path, content)
    try:
        certificate = x509.load_pem_x509_certificate(content)
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise _foreign(path, error) from None
    if not _same_key(key, certificate):
        raise IdentityError(f"{path}: its key is not its certificate's: restore the file")
    return Signer(key, certificate)


def read_private(path: Path) -> bytes:
    """Read a file that must be its owner's alone."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise IdentityError(
                f"{path}: others than its owner may read or write the key: chmod 600 it, and replace it if it may "
                "have been copied"
            )
        return file.read(MAX_BYTES)


def _key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError):
        raise _foreign(path, "no private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _foreign(path, "an elliptic-curve key is expected")
    return key


def _foreign(path: Path, why: object) -> IdentityError:
    return IdentityError(
        f"{path}: not what this program wrote: {why}: restore it, or remove all files of the directory to "
        "make a new authority"
    )


def _same_key(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bool:
    public = certificate.public_key()
    return (
        isinstance(public, ec.EllipticCurvePublicKey) and public.public_numbers() == key.public_key().public_numbers()
    )


def _write_pair(path: Path, pair: Signer) -> None:
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(path, key + profiles.pem(pair.certificate), 0o600)


def _write_roots(directory: Path, roots: tuple[x509.Certificate, ...]) -> None:
    write(directory / ROOTS, b"".join(profiles.pem(root) for root in roots), 0o644)


def write(path: Path, content: bytes, mode: int) -> None:
    """Write *path* whole or not at all, with *mode* from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
