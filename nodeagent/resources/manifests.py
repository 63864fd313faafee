"""Folders of ordinary YAML files with policies, watched: several documents a file, and one that is
wrong never takes a good one away.

A document is known by kind, namespace and name. While it is wrong, its last good version stays,
also over a restart; where there is none, it closes what it selects (``security.stand_in``). While a
file holds a wrong document, it takes no policy away: the document may be a policy under a mistyped
name, and the file cut off. One of another API beside it is told and keeps nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import ConfigError, ResourceError, translated
from nodeagent.resources import inotify, not_taken, regular_file, security, yaml_text
from nodeagent.resources.changes import Refused
from nodeagent.resources.last_good import Documents, LastGood
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import ObjectKey

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_FILE_BYTES: Final = 64 << 20
MAX_DOCUMENTS: Final = 100_000
"""Documents of one file."""
log = logging.getLogger("nodeagent.resources")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one document came to: a policy, or an error and, if that can be said, whose."""

    policy: Policy | None
    key: ObjectKey | None
    error: str = ""
    document: bytes = b""
    """A good one, as JSON."""
    stand_in: Policy | None = None
    """Takes the place of a wrong one that never was right."""
    is_text: bool = False
    """It is no YAML: what else stands there, or once stood there, is not seen."""
    ignored: bool = False
    """It is another API's: no policy is behind it."""
    displaced: bool = False
    """An earlier document of the file is the same policy."""

    def refused(self, path: Path, number: int, known: _File) -> Refused:
        """Return how a wrong one is told: *number* says where it stands in *path*."""
        held = self.key in known.documents if self.key else bool(known.held)
        return Refused(
            *(self.key or ("", "", "")),
            str(path),
            f"document {number}: {self.error}",
            stays=held and not self.ignored and not self.displaced,
            ignored=self.ignored,
            displaced=self.displaced,
        )


@dataclass(slots=True)
class _File:
    held: dict[ObjectKey, Policy] = field(default_factory=dict)
    documents: Documents = field(default_factory=dict)
    """Those of ``held`` that are good."""
    refused: list[Refused] = field(default_factory=list)
    outcomes: dict[str, tuple[_Outcome, ...]] = field(default_factory=dict)
    """Of good documents, by their text: a file of thousands of documents is read anew at the cost
    of those that changed.
    """


class Manifests:
    """The policies of *folders*. Call :meth:`open`, then :meth:`everything`, then :meth:`changed`
    whenever the descriptor is readable.
    """

    def __init__(self, folders: Sequence[Path], last_good: LastGood) -> None:
        self._folders = folders
        self._last_good = last_good
        self._files: dict[Path, _File] = {}
        self._watches: dict[int, Path] = {}
        self._inotify = -1

    def open(self) -> int:
        """Begin to watch; return the descriptor to wait on, -1 where there are no folders. Raises
        ConfigError for a folder that is not there, KernelError.
        """
        if self._folders:
            self._inotify = inotify.open_instance()
            self._watches.clear()
        for index, folder in enumerate(self._folders):
            try:
                mask = inotify.CREATE | inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE
                self._watches[inotify.watch(self._inotify, folder, mask)] = folder
            except FileNotFoundError:
                self.close()
                why = "is no folder; a folder is expected" if os.path.lexists(folder) else "no such folder"
                raise ConfigError(f"resources[{index}]: {folder}: {why}") from None
        return self._inotify

    def close(self) -> None:
        """Stop watching."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def everything(self) -> list[Path]:
        """Read every file; return those whose policies differ from what was known."""
        for path, why in _unread(self._folders):
            log.warning("%s: %s", path, why)
        return self._look_at(self._folders)

    def changed(self) -> list[Path]:
        """Read the files behind the events that wait; return those whose policies differ."""
        folders: dict[Path, None] = {}
        names: dict[Path, None] = {}
        for number, mask, name in inotify.events(self._inotify) if self._inotify >= 0 else ():
            folder = self._watches.get(number)
            if mask & inotify.OVERFLOW:
                folders.update(dict.fromkeys(self._folders))
            elif folder is None:
                continue
            elif mask & inotify.IGNORED:
                del self._watches[number]
                log.warning("resources: %s: the folder is gone; what was known of it stays in force", folder)
            elif name.startswith(".."):
                folders[folder] = None  # the link behind which all files of a mounted ConfigMap change at once
            elif _is_manifest(name) and not (mask & inotify.CREATE and not (folder / name).is_symlink()):
                # A file is read when its writer closes it; a link is complete at once.
                names[folder / name] = None
        return self._look_at(folders) + [path for path in names if path.parent not in folders and self._look(path)]

    def held(self, path: Path) -> dict[ObjectKey, Policy]:
        """Return the policies in force that *path* gives."""
        known = self._files.get(path)
        return known.held if known else {}

    def refused(self) -> list[Refused]:
        """Return the documents that are wrong, and what stands in the folders and is not read."""
        found = [Refused("", "", "", str(path), why, False, ignored=True) for path, why in _unread(self._folders)]
        for _, file in sorted(self._files.items()):
            found += file.refused
        return found

    def _look_at(self, folders: Iterable[Path]) -> list[Path]:
        differing = []
        for folder in folders:
            try:
                found = {folder / name for name in os.listdir(folder) if _is_manifest(name)}
            except OSError as error:
                log.error("resources: %s: cannot be listed: %s (what was known of it stays)", folder, error.strerror)
                continue
            known = {path for path in self._files if path.parent == folder}
            differing += [path for path in sorted(found | known) if self._look(path)]
        return differing

    def _look(self, path: Path) -> bool:
        """Read *path* anew and say whether its policies differ."""
        known = self._files.get(path)
        before = known.held if known is not None else {}
        if known is None:
            known = self._files[path] = _File(*self._last_good.of(path))
        try:
            self._take(path, known, _read(path))
        except FileNotFoundError:
            del self._files[path]
            self._last_good.keep(path, {})
            return bool(before)
        except ResourceError as error:
            self._refuse(known, [Refused("", "", "", str(path), str(error), bool(known.held))])
        return known.held != before

    def _take(self, path: Path, known: _File, text: str) -> None:
        """Bring *known* to the documents of *text*: the good ones, the last good ones of those that
        are wrong, and what stands in for the others.
        """
        held: dict[ObjectKey, Policy] = {}
        documents: Documents = {}
        wrong: list[tuple[int, _Outcome]] = []
        numbers: dict[ObjectKey, int] = {}
        for number, outcome in enumerate(_outcomes(known, text), 1):
            key = outcome.key
            if number > MAX_DOCUMENTS:
                wrong.append(
                    (number, _Outcome(None, None, f"more documents: at most {MAX_DOCUMENTS} are allowed in a file"))
                )
                break
            if outcome.policy is None:
                wrong.append((number, outcome))
            elif outcome.policy.key in held:
                first = numbers[outcome.policy.key]
                why = f"stands in document {first} of {path} too, and that one is in force"
                wrong.append(
                    (number, _Outcome(None, key, f"metadata.name: {outcome.policy.name!r}: {why}", displaced=True))
                )
            else:
                numbers[outcome.policy.key] = number
                held[outcome.policy.key] = outcome.policy
                documents[outcome.policy.key] = outcome.document
        doubtful = [outcome for _, outcome in wrong if not outcome.ignored]
        named = {outcome.key for outcome in doubtful}
        unseen = any(outcome.key is None or outcome.is_text for outcome in doubtful)
        for kept, policy in known.held.items() if doubtful else ():
            if kept not in held and (not policy.refused or unseen or kept in named):
                held[kept] = policy
                if not policy.refused:
                    documents[kept] = known.documents[kept]
        for _, outcome in wrong:
            closing = outcome.stand_in
            if closing is None or closing.key in documents or (closing.unseen and closing.key in held):
                continue  # what was seen of it before goes before what is not seen now
            held[closing.key] = closing
        known.held = held
        known.documents = documents
        self._last_good.keep(path, documents)
        self._refuse(known, [outcome.refused(path, number, known) for number, outcome in wrong])

    def _refuse(self, known: _File, refused: list[Refused]) -> None:
        """Log what is wrong, once."""
        for each in refused:
            if each.ignored and each not in known.refused:
                log.warning("%s: %s (%s %s/%s)", each.file, each.error, each.kind, each.namespace, each.name)
            elif each not in known.refused:
                whose = f" ({each.kind} {each.namespace}/{each.name})" if each.kind else ""
                log.error(
                    "%s: %s%s (%s)",
                    each.file,
                    each.error,
                    whose,
                    "the last good one stays" if each.stays else self._instead(known, each),
                )
        if any(not each.ignored for each in known.refused) and all(each.ignored for each in refused):
            log.info("%s: good again", known.refused[0].file)
        known.refused = refused

    @staticmethod
    def _instead(known: _File, refused: Refused) -> str:
        closing = known.held.get((refused.kind, refused.namespace, refused.name))
        return closing.closing if closing is not None and not refused.displaced else "left out"


def _unread(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield what of *folders* looks as if it were read, and is not, and why."""
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # told where it is listed
        for name in names:
            if name.startswith("."):
                continue
            if not name.endswith(SUFFIXES) and name.lower().endswith(SUFFIXES):
                yield folder / name, f"not read: a name that ends in {', '.join(SUFFIXES)} is expected"
            elif not name.endswith(SUFFIXES) and (folder / name).is_dir():
                yield folder / name, "not read: of a folder within, nothing is; name it in resources too"


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _read(path: Path) -> str:
    """Return the text of *path*. Raises FileNotFoundError, ResourceError."""
    content = regular_file.content(path, MAX_FILE_BYTES, links=True)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ResourceError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def _outcomes(known: _File, text: str) -> list[_Outcome]:
    """Return what the documents of *text* come to; good ones whose text *known* has are not read anew."""
    outcomes: list[_Outcome] = []
    good: dict[str, tuple[_Outcome, ...]] = {}
    for line, part in yaml_text.split(text):
        found = known.outcomes.get(part) or _parse(part, line)
        if all(outcome.policy for outcome in found):
            good[part] = found
        outcomes += found
    known.outcomes = good
    return outcomes


def _parse(text: str, lines_before: int) -> tuple[_Outcome, ...]:
    try:
        values = yaml_text.load(text, lines_before)
    except ResourceError as error:
        return _unreadable(text, str(error))
    outcomes: list[_Outcome] = []
    for value in values:
        outcomes += [_outcome(item) for item in yaml_text.items(value)]
    return tuple(outcomes)


def _unreadable(text: str, error: str) -> tuple[_Outcome, ...]:
    """Return what a document that is no YAML comes to: whose it is can often be seen all the same."""
    outcomes = []
    for item in yaml_text.items(yaml_text.glimpse(text)):
        key = security.whose(item)
        instead = security.stand_in(key, item, error) if key is not None else None
        if instead is not None:
            outcomes.append(_Outcome(None, key, error, stand_in=instead, is_text=True))
    return tuple(outcomes) or (_Outcome(None, None, error),)


def _outcome(value: object) -> _Outcome:
    if isinstance(value, dict) and not_taken.is_anothers(value):
        why = not_taken.lost(value) or "agents read no such kind here"
        return _Outcome(None, security.whose(value), why, ignored=True)
    try:
        with translated(ResourceError, "the document cannot be read"):
            policy = security.parse(value)
    except ResourceError as error:
        key = security.whose(value)
        return _Outcome(
            None, key, str(error), stand_in=security.stand_in(key, value, str(error)) if key is not None else None
        )
    return _Outcome(policy, policy.key, document=orjson.dumps(value))
