"""What several pods' configurations become, as one section ``logs``: agent.yaml has one, for all of a cluster. Pure.

Each pod keeps what is its own: sinks and parsers have its name, and its annotations say them. What is the same
for several is there once. Who has secrets is never the same as another: which they are, nobody knows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from nodeagent.logs.fluentd.convert import MULTILINE, PARSER, SINKS, Imported
from nodeagent.logs.fluentd.reading import Entry
from nodeagent.logs.fluentd.syntax import ImportNote

NAMED: Final = ("parsers", "multiline", "sinks")
"""Rows of entries that others refer to by name."""
_ROWS: Final = ("files", "rules", "podSinks", "routes", "fluentdPositions")
_MAX_NAME: Final = 30
_DIGITS: Final = 6


def names(pods: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return what names have that come of *pods*, each by kind, namespace and name: another one for each of them,
    whatever the others are, but for those that are alike but for a dash or their ends.
    """
    plain = [_plain(f"{namespace}-{name}") for _, namespace, name in pods]
    return [
        name if len(name) <= _MAX_NAME and plain.count(name) == 1 else f"{name[:_MAX_NAME].rstrip('-')}-{_digest(pod)}"
        for pod, name in zip(pods, plain, strict=True)
    ]


def merged(found: Sequence[Imported]) -> list[Imported]:
    """Return *found*, of which each has the section of all, and annotations that go by it."""
    logs: Entry = {"containers": "all" if any(each.logs["containers"] == "all" for each in found) else "none"}
    known: dict[str, str] = {}
    by_name = [_Renamed(each, logs, known) for each in found]
    for row in _ROWS:
        if entries := list(chain.from_iterable(each.entries(row) for each in by_name)):
            logs[row] = _once(entries)
    if files := list(chain.from_iterable(each.node_files() for each in by_name)):
        logs["node"] = {"files": _once(files)}
    buffer = _buffer([each.logs.get("buffer", {}) for each in found])
    if buffer:
        logs["buffer"] = buffer
    return [
        replace(one, logs=logs, annotations=each.annotations(), notes=(*one.notes, *_notes(one, buffer)))
        for one, each in zip(found, by_name, strict=True)
    ]


class _Renamed:
    """What one pod brings, by the names that it has in the section of all."""

    def __init__(self, imported: Imported, logs: Entry, known: dict[str, str]) -> None:
        """What is not *known* yet of those with names is put into *logs*."""
        self._imported = imported
        self._names: dict[tuple[str, str], str] = {}
        for row in NAMED:
            for entry in imported.logs.get(row, ()):
                content = {key: value for key, value in entry.items() if key != "name"}
                name = known.setdefault(row + json.dumps(content, sort_keys=True), entry["name"])
                if name == entry["name"]:
                    logs.setdefault(row, []).append(entry)
                self._names[row, entry["name"]] = name

    def _named(self, row: str, name: str) -> str:
        return self._names.get((row, name), name)

    def _sinks(self, sinks: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(self._named("sinks", each) for each in sinks))

    def entries(self, row: str) -> list[object]:
        """Return the entries of *row*."""
        found = self._imported.logs.get(row, ())
        if row == "podSinks":
            return [*self._sinks(found)]
        return [self._entry(each) if isinstance(each, dict) else each for each in found]

    def node_files(self) -> list[object]:
        """Return the entries of ``logs.node.files``."""
        return [self._entry(each) for each in self._imported.logs.get("node", {}).get("files", ())]

    def _entry(self, entry: Entry) -> Entry:
        made = dict(entry)
        for key, row in (("parser", "parsers"), ("multiline", "multiline")):
            if key in made:
                made[key] = self._named(row, made[key])
        if "sinks" in made:
            made["sinks"] = self._sinks(made["sinks"])
        return made

    def annotations(self) -> Mapping[str, str]:
        """Return the pod's annotations."""
        made = dict(self._imported.annotations)
        for name, row in ((PARSER, "parsers"), (MULTILINE, "multiline")):
            if name in made:
                made[name] = self._named(row, made[name])
        if SINKS in made:
            made[SINKS] = ",".join(self._sinks(made[SINKS].split(",")))
        return made


def _buffer(wishes: Sequence[Entry]) -> Entry:
    """Return ``logs.buffer``: the largest, and what loses least."""
    sizes = [each["bytes"] for each in wishes if "bytes" in each]
    found: Entry = {"bytes": max(sizes)} if sizes else {}
    if all(each.get("full") == "dropOldest" for each in wishes):
        found["full"] = "dropOldest"
    return found


def _notes(imported: Imported, buffer: Entry) -> list[ImportNote]:
    """Return what is different for one pod as there are others."""
    notes = []
    if imported.logs.get("buffer", {}).get("full") == "dropOldest" and "full" not in buffer:
        text = "overflow_action: is not taken: logs.buffer.full is one for all sinks, and others want none dropped"
        notes.append(ImportNote(imported.place, text))
    if any("namespaces" not in rule for rule in imported.logs.get("rules", ())):
        notes.append(ImportNote(imported.place, "<filter>: its rules are for the files of the other pods too"))
    return notes


def _once(entries: Sequence[object]) -> list[object]:
    return [each for number, each in enumerate(entries) if each not in entries[:number]]


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9-]", "-", text.lower()).strip("-")


def _digest(pod: tuple[str, str, str]) -> str:
    return hashlib.sha256("/".join(pod).encode()).hexdigest()[:_DIGITS]
