"""The last good policies of every file, on disk: a restart while a document is wrong loses none of
them.

One file for each source file: its path on the first line, then the documents as a JSON list. They
are read as any document is, so what a later version of this program refuses is lost, and closes
what it selects.
"""

from __future__ import annotations

import logging
import os
from hashlib import sha256
from pathlib import Path

import orjson

from nodeagent.errors import ResourceError, translated
from nodeagent.resources import security
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import ObjectKey

Documents = dict[ObjectKey, bytes]
"""As JSON."""
log = logging.getLogger("nodeagent.resources")


class LastGood:
    """Kept in *directory*, which its owner alone may read; None: nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._kept: dict[Path, bytes] = {}
        """Digests of what was written last."""

    def of(self, file: Path) -> tuple[dict[ObjectKey, Policy], Documents]:
        """Return the policies of *file* when it was good last, by an earlier process; empty where nothing is known."""
        policies: dict[ObjectKey, Policy] = {}
        documents: Documents = {}
        if self._directory is None:
            return policies, documents
        try:
            with translated(ResourceError, f"the last good policies of {file} cannot be read"):
                _, _, listed = self._place(file).read_bytes().partition(b"\n")
                for document in orjson.loads(listed):
                    policy = security.parse(document)
                    policies[policy.key] = policy
                    documents[policy.key] = orjson.dumps(document)
        except ResourceError as error:
            if self._place(file).exists():
                log.error("%s", error)
        return policies, documents

    def keep(self, file: Path, documents: Documents) -> None:
        """Write what *file* holds that is good; nothing: forget it."""
        if self._directory is None:
            return
        content = b"%s\n[%s]" % (os.fsencode(file), b",".join(documents.values()))
        digest = sha256(content).digest() if documents else b""
        if self._kept.get(file) == digest:
            return
        place = self._place(file)
        try:
            if documents:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                fresh = place.with_suffix(".new")
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as written:
                    written.write(content)
                fresh.replace(place)
            else:
                place.unlink(missing_ok=True)
        except OSError as error:
            log.error(
                "%s: the last good policies of %s cannot be kept for the next start: %s",
                self._directory,
                file,
                error.strerror,
            )
            return
        self._kept[file] = digest

    def prune(self) -> None:
        """Forget files that are gone from folders that are there."""
        for place in self._directory.glob("*.json") if self._directory is not None else ():
            try:
                with place.open("rb") as written:
                    file = Path(os.fsdecode(written.readline().rstrip(b"\n")))
                if file.parent.is_dir() and not os.path.lexists(file):
                    place.unlink()
            except (OSError, ValueError) as error:
                log.error("%s: cannot be looked at: %s", place, error)

    def _place(self, file: Path) -> Path:
        assert self._directory is not None
        return self._directory / f"{sha256(os.fsencode(file)).hexdigest()[:32]}.json"
