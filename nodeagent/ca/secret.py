"""An authority that is kept in a Secret: the files of :mod:`nodeagent.identity.authority_directory`, by their names.

Several replicas use one Secret, and none leads: each step (the first start, a new intermediate, an
exchange of the root) is carried out on a copy and written back only if nobody has written since it
was read, else carried out again on what is there then. What serves reads another folder, which
holds what signs and what is trusted, and never the root's key.

It must never write a key anywhere but into the Secret and those two folders, which belong in memory.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from nodeagent.errors import IdentityError
from nodeagent.identity import authority_directory
from nodeagent.identity.authority_directory import LOCK, NEXT, ROOT_KEY, ROOTS, SIGNING
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import MERGE

FILES: Final = (ROOTS, SIGNING, ROOT_KEY, NEXT)
SERVED: Final = (SIGNING, ROOTS)
CHANGED: Final = "nodeagent.io/changed"
"""The annotation that says when the files were written last, in Unix seconds."""
ATTEMPTS: Final = 10
"""How often a step is carried out when others write at the same time."""
NOT_FOUND: Final = 404
CONFLICT: Final = 409
Clock = Callable[[], float]
Step = Callable[[Path], object]
log = logging.getLogger("nodeagent.ca")


class KeepsObjects(Protocol):
    """What is done with objects of the API server: ``KubeClient``."""

    async def get(self, path: str) -> KubeObject:
        """Return the object at *path*. Raises ApiError."""

    async def post(self, path: str, document: Mapping[str, object]) -> KubeObject:
        """Make *document* in the collection *path*. Raises ApiError."""

    async def patch(self, path: str, patch: object, content_type: str) -> KubeObject:
        """Change the object at *path*. Raises ApiError."""


class AuthoritySecret:
    """The Secret *name* of *namespace*."""

    def __init__(self, api: KeepsObjects, namespace: str, name: str, clock: Clock = time.time) -> None:
        """*clock* returns Unix seconds."""
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self._name = f"{namespace}/{name}"
        self._clock = clock

    async def take(self, step: Step, served: Path | None = None) -> None:
        """Carry *step* out on a copy of the authority's files, and keep what it changed.

        *served*: a folder that gets what signs and what is trusted. Raises ApiError, and what *step*
        raises; the Secret is as it was then.
        """
        for _ in range(ATTEMPTS):
            found = await self._read()
            with tempfile.TemporaryDirectory(prefix="authority-", dir=_memory()) as name:
                copy = Path(name)
                before = self._unpack(found, copy)
                try:
                    step(copy)
                except IdentityError as error:
                    raise IdentityError(str(error).replace(name, f"Secret {self._name}")) from None
                after = _files(copy)
                if after != before and not await self._write(found, before, after):
                    continue
            if served is not None:
                _serve(served, after)
            return
        raise ApiError(f"Secret {self._name}: others have written it {ATTEMPTS} times meanwhile: try again", CONFLICT)

    async def _read(self) -> KubeObject:
        try:
            return await self._api.get(self._path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                raise ApiError(
                    f"Secret {self._name} is not there: apply daemonset/ca; if it was removed, its authority is lost "
                    "with it, and an empty Secret of that name begins another",
                    NOT_FOUND,
                ) from None
            raise

    def _unpack(self, secret: KubeObject, folder: Path) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        (folder / LOCK).touch(0o600)
        held = secret.get("data") or {}
        for name in FILES:
            if name not in held:
                continue
            try:
                files[name] = base64.b64decode(held[name], validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise IdentityError(f"Secret {self._name}: data.{name}: not base64: restore it") from None
            authority_directory.write(folder / name, files[name], _mode(name))
        if files and ROOTS not in files:
            raise IdentityError(
                f"Secret {self._name}: data.{ROOTS} is missing, and {', '.join(files)} is there: restore the files "
                "that belong together, or remove all of data to make a new authority"
            )
        changed = _changed(secret)
        for name in files:
            os.utime(folder / name, (changed, changed))
        return files

    async def _write(self, found: KubeObject, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Replace what *before* says by *after*; False: somebody else was faster. Raises ApiError."""
        data: dict[str, str | None] = dict.fromkeys(before)
        data |= {name: base64.b64encode(content).decode() for name, content in after.items()}
        metadata = {
            "resourceVersion": found["metadata"]["resourceVersion"],
            "annotations": {CHANGED: str(int(self._clock()))},
        }
        patch = {"metadata": metadata, "data": data}
        try:
            await self._api.patch(self._path, patch, MERGE)
        except ApiError as error:
            if error.status == CONFLICT:
                return False
            raise
        log.info("Secret %s: the authority's files are written: %s", self._name, ", ".join(sorted(after)))
        return True


class ClusterAuthority:
    """The authority of a Secret, as a service uses it: *directory* follows the Secret."""

    def __init__(self, secret: AuthoritySecret, directory: Path, trust_domain: str, clock: Clock = time.time) -> None:
        self._secret = secret
        self._directory = directory
        self._trust_domain = trust_domain
        self._clock = clock

    async def open(self) -> CertificateAuthority:
        """Return the authority, made when the Secret is empty. Raises ApiError, IdentityError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self.follow()
        return CertificateAuthority.open_or_create(self._directory, self._trust_domain, self._clock)

    async def follow(self) -> None:
        """Take up what the Secret has, and renew the intermediate in time. Raises ApiError, IdentityError."""
        await self._secret.take(
            lambda folder: authority_directory.open_or_create(folder, self._trust_domain, self._clock()),
            self._directory,
        )

    def roots_pem(self) -> bytes:
        """Return what is trusted, as it was followed last."""
        return (self._directory / ROOTS).read_bytes()


class RootsConfigMap:
    """What agents trust: the ConfigMap *name* of *namespace*, which they mount."""

    def __init__(self, api: KeepsObjects, namespace: str, name: str) -> None:
        self._api = api
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._namespace = namespace
        self._name = name

    async def keep(self, authority: ClusterAuthority) -> None:
        """Follow *authority*, then have the ConfigMap say what it trusts.

        The ConfigMap is read first: whoever read an older Secret finds it changed, and writes
        nothing. Raises ApiError, IdentityError.
        """
        try:
            found = await self._api.get(f"{self._folder}/{self._name}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            found = None
        await authority.follow()
        wanted = {ROOTS: authority.roots_pem().decode()}
        if found is None:
            await self._make(wanted)
        elif (found.get("data") or {}).get(ROOTS) != wanted[ROOTS]:  # other keys are their writers'
            version = found["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": wanted}
            await self._api.patch(f"{self._folder}/{self._name}", patch, MERGE)
            log.info("ConfigMap %s/%s: what is trusted is set", self._namespace, self._name)

    async def _make(self, data: Mapping[str, str]) -> None:
        labels = {"app.kubernetes.io/part-of": "nodeagent"}
        metadata = {"name": self._name, "namespace": self._namespace, "labels": labels}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        try:
            await self._api.post(self._folder, body)
        except ApiError as error:
            if error.status != CONFLICT:
                raise  # another replica has made it: the next look compares


def _changed(secret: KubeObject) -> float:
    """Return when the files of *secret* were written last; 0: that cannot be known."""
    try:
        return float(secret["metadata"]["annotations"][CHANGED])
    except (KeyError, TypeError, ValueError):
        return 0.0


def _memory() -> str | None:
    """Return a folder in memory; None: this machine has none where it is usual."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _mode(name: str) -> int:
    return 0o644 if name == ROOTS else 0o600


def _files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def _serve(folder: Path, files: Mapping[str, bytes]) -> None:
    """Give *folder* what has changed of what is served; a reader that is between the two asks again."""
    for name in SERVED:
        path = folder / name
        if name in files and (not path.exists() or path.read_bytes() != files[name]):
            authority_directory.write(path, files[name], _mode(name))
