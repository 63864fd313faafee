"""A whole Fluentd configuration as the ``logs:`` section of agent.yaml, and the annotations of the pod that it
came from. Pure.

Every tail is followed through Fluentd's routing to its outputs: a filter that its tag fits becomes rules,
the first match that it fits a sink. What then says whose files go where: for a sidecar's files its pod's
annotations (or, where its files are read in several ways, an entry of ``logs.files`` each), for the
runtime's files of all containers ``logs.containers``, for the node's own files ``logs.node.files``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from nodeagent.errors import ConfigError, shown
from nodeagent.logs.fluentd import filters, outputs, tags
from nodeagent.logs.fluentd.inputs import CONTAINER_LOGS, NAME, Mounted, TailedFiles, located, tail
from nodeagent.logs.fluentd.reading import Entry, SectionReader
from nodeagent.logs.fluentd.syntax import ConfigLine, FluentSection, ImportNote

FILES: Final = "nodeagent.io/log-files"
PARSER: Final = "nodeagent.io/log-parser"
MULTILINE: Final = "nodeagent.io/log-multiline"
SINKS: Final = "nodeagent.io/log-sinks"
_MAX_RELABELS: Final = 16
_LINK: Final = re.compile(
    r"(?P<pod>[a-z0-9-]*\*?)(?:_(?P<namespace>[a-z0-9-]+\*?|\*)_(?:(?P<container>[a-z0-9-]+)-\*|\*))?(?:\.log)?"
)
_WORKERS: Final = re.compile(r"(?P<first>\d{1,4})(?:-(?P<last>\d{1,4}))?")
_FLUENTDS_LABELS: Final = ("@FLUENT_LOG", "@ERROR")
_OF_ITSELF: Final = (
    "monitor_agent",
    "prometheus",
    "prometheus_monitor",
    "prometheus_output_monitor",
    "prometheus_tail_monitor",
)
"""Sources that read no logs."""
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class FluentdSidecar:
    """The container in which Fluentd ran, as far as it is known."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mounted, ...] = ()
    namespace: str = ""
    """Empty: no pod is known."""
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    """What names of its sinks and parsers have, where several become one section."""
    apart: bool = False
    """What its pod's annotations would say is said of its files alone: others read the pod's output."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What has become of a configuration."""

    logs: Entry
    """The section ``logs`` of agent.yaml."""
    annotations: Mapping[str, str]
    """Of the pod, in Fluentd's place."""
    notes: tuple[ImportNote, ...]
    """What is not taken, or different here, by file and line."""
    pos_files: tuple[str, ...]
    """Where Fluentd noted how far it has read, as its container sees them."""
    place: ConfigLine
    """Where its configuration begins."""

    @property
    def lost(self) -> tuple[ImportNote, ...]:
        """The notes of sources and outputs that nothing takes the place of."""
        return tuple(each for each in self.notes if each.lost)


@dataclass(frozen=True, slots=True)
class _Way:
    """How files are read."""

    parser: str
    multiline: str
    sinks: tuple[str, ...]


def convert(root: FluentSection, sidecar: FluentdSidecar) -> Imported:
    """Return what *root*, a whole configuration, becomes. Raises ConfigError where nothing of it is left."""
    return _Conversion(root, sidecar).made()


class _Conversion:
    def __init__(self, root: FluentSection, sidecar: FluentdSidecar) -> None:
        self._root = root
        self._sidecar = sidecar
        self._notes: list[ImportNote] = []
        self._sinks: dict[ConfigLine, Entry] = {}
        self._tags: dict[ConfigLine, str] = {}
        """Of the first events that came to each sink."""
        self._buffers: dict[ConfigLine, Entry] = {}
        """What the outputs' buffers say, for ``logs.buffer``."""
        self._excluded: list[Entry] = []
        """Rules for what of all containers' output is not read."""
        self._rules: dict[ConfigLine, list[list[Entry]]] = {}
        """Of each filter, those for each of the files that come to it."""
        self._filtered: dict[ConfigLine, list[TailedFiles]] = {}
        self._all_tails: list[TailedFiles] = []
        self._read: list[TailedFiles] = []
        self._reached: set[ConfigLine] = set()
        self._pod_files: list[tuple[str, str, _Way]] = []
        self._logs: Entry = {"containers": "none"}

    def made(self) -> Imported:
        tails = list(self._tails())
        self._all_tails = tails
        for each in tails:
            self._follow(each)
        self._unreached(self._root)
        if not self._sinks:
            raise ConfigError(
                f"{self._root.place.file}: no <source> of @type tail comes to an output that a sink is like: "
                + "; ".join(map(str, self._notes[:5]))
            )
        annotations = self._of_the_pod()
        everybodys = self._logs["containers"] == "all"
        of_filters = chain.from_iterable(map(self._of_all, self._rules))
        rules = [*self._excluded, *(each if everybodys else self._selected(each) for each in of_filters)]
        self._logs |= {"rules": rules} if rules else {}
        for each in tails:
            for name, entries in (("parsers", each.parsers), ("multiline", each.starts)):
                if entries:
                    self._logs[name] = [*self._logs.get(name, ()), *entries]
        positions = [found for each in tails if (found := self._position_file(each.pos_file))]
        if positions:
            self._logs["fluentdPositions"] = list(dict.fromkeys(positions))
        logs = {**self._logs, "sinks": list(self._sinks.values())}
        if buffer := self._buffer():
            logs["buffer"] = buffer
        notes = tuple(sorted(set(self._notes), key=_order))
        return Imported(
            logs,
            annotations,
            notes,
            tuple(dict.fromkeys(each.pos_file for each in tails if each.pos_file)),
            self._root.place,
        )

    def _buffer(self) -> Entry:
        """Return ``logs.buffer``, which is one for all sinks: of several wishes, the largest and what loses least."""
        sizes = [each["bytes"] for each in self._buffers.values() if "bytes" in each]
        found: Entry = {"bytes": max(sizes)} if sizes else {}
        for place, each in self._buffers.items():
            if each.get("full") != "dropOldest":
                continue
            if all(other.get("full") == "dropOldest" for other in self._buffers.values()):
                found["full"] = "dropOldest"
                text = "overflow_action: logs.buffer.full is one for all sinks: whichever has no room drops its oldest"
            else:
                text = (
                    "overflow_action: is not taken: logs.buffer.full is one for all sinks, and others want none dropped"
                )
            self._notes.append(ImportNote(place, text))
        return found

    def _position_file(self, path: str) -> str:
        """Return where the position file *path* is on the node; empty: it goes with its pod, or there is none."""
        within = located(path, self._sidecar.mounts)
        if within is not None:
            return f"{within[0].source.rstrip('/')}/{within[1]}" if within[0].kind == "hostPath" else ""
        return path if path.startswith("/var/log/") and not self._sidecar.mounts else ""

    def _tails(self) -> Iterator[TailedFiles]:
        for number, (worker, section) in enumerate(self._sources(), 1):
            reader = self._reader(section)
            if reader.type == "tail":
                yield tail(reader, self._parsers_name(number), worker)
            elif reader.type in _OF_ITSELF:
                reader.note(f"<source> @type {reader.type}: is needless: it tells of Fluentd itself")
            else:
                text = f"<source> @type {reader.type}: is not taken: files are read here, as @type tail does"
                reader.note(text, lost=True)
        for section in self._sections(None):
            if section.name not in ("source", "match", "filter", "label", "system"):
                self._notes.append(
                    ImportNote(section.place, f"<{section.name}>: is not taken: nothing here is like it", lost=True)
                )

    def _sources(self) -> Iterator[tuple[int, FluentSection]]:
        """Yield each source with the worker that has it: the first has what is in no ``<worker>``."""
        for section in self._root.sections:
            numbers = _workers(section)
            for each in section.within("source") if numbers else ():
                yield numbers[0], each
            if section.name == "source":
                yield 0, section

    def _sections(self, worker: int | None) -> Iterator[FluentSection]:
        """Yield the sections that *worker* has, in order; None: that any has."""
        for section in self._root.sections:
            numbers = _workers(section)
            if worker in numbers or (numbers and worker is None):
                yield from section.sections
            elif not numbers:
                yield section

    def _reader(self, section: FluentSection) -> SectionReader:
        return SectionReader(section, self._sidecar.environment, self._notes)

    def _follow(self, found: TailedFiles) -> None:
        label = found.reader.text("@label") or ""
        tag = found.tag.replace("*", found.paths[0].strip("/").replace("/", ".") if found.paths else "")
        sinks = tuple(dict.fromkeys(self._outputs(tag, self._pipeline(label, found.worker), found, 0)))
        if not sinks:
            found.reader.note(
                f"its events (tag {tag}) come to no output that a sink is like: its files are not read", lost=True
            )
            return
        self._read.append(found)
        for path in found.paths:
            self._place(path, found, _Way(found.parser, found.multiline, sinks))

    def _pipeline(self, label: str, worker: int) -> Sequence[FluentSection]:
        sections = list(self._sections(worker))
        if not label:
            return [each for each in sections if each.name in ("match", "filter")]
        labelled = (one.sections for one in sections if (one.name, one.argument) == ("label", label))
        return list(chain.from_iterable(labelled))

    def _outputs(self, tag: str, pipeline: Sequence[FluentSection], found: TailedFiles, depth: int) -> Iterator[str]:
        """Yield the names of the sinks that events of *tag* come to."""
        for section in pipeline:
            try:
                if not tags.fits(section.argument, tag):
                    continue
            except ConfigError as error:
                lost = section.name == "match"
                self._notes.append(ImportNote(section.place, f"<{section.name}>: {error}; it is passed over", lost))
                continue
            self._reached.add(section.place)
            if section.name == "filter":
                self._filter(section, found)
                continue
            yield from self._output(tag, section, found, depth)
            return

    def _of_all(self, place: ConfigLine) -> Sequence[Entry]:
        """Return the rules of the filter at *place* if it is one for all that is read: here they are for whole pods."""
        several = [each for number, each in enumerate(self._rules[place]) if each not in self._rules[place][:number]]
        some = list(filter(None, several))
        if len(some) > 1:
            text = "<filter>: is not taken: it is for the whole line of some files, and for a member of that of others"
            self._notes.append(ImportNote(place, text))
            return ()
        rules = some[0] if some else []
        fits = self._filtered[place]
        if rules and any(each not in fits for each in self._read):
            self._notes.append(
                ImportNote(place, "<filter>: is not taken: it is for some files only, and a rule is for all of a pod's")
            )
            return ()
        return rules

    def _filter(self, section: FluentSection, found: TailedFiles) -> None:
        made = filters.rules(self._reader(section), found)
        self._rules.setdefault(section.place, []).append(made)
        self._filtered.setdefault(section.place, []).append(found)

    def _output(self, tag: str, section: FluentSection, found: TailedFiles, depth: int) -> Iterator[str]:
        reader = self._reader(section)
        if reader.type == "copy":
            for store in reader.sections("store"):
                yield from self._output(tag, store.section, found, depth)
            reader.needless("copy_mode", "deep_copy")
            reader.finish()
        elif reader.type == "relabel":
            label = reader.text("@label") or ""
            reader.finish()
            if depth == _MAX_RELABELS:
                raise ConfigError(f"{section.place}: @label {label}: events go in a circle")
            yield from self._outputs(tag, self._pipeline(label, found.worker), found, depth + 1)
        elif reader.type != "null":
            if section.place not in self._sinks:
                try:
                    tag = found.tag if "*" not in found.tag else ""
                    made, buffer = outputs.sink(reader, self._name(reader.type), self._sidecar.namespace, tag)
                except outputs.Unlike as error:
                    reader.note(f"<{section.name}> {error}", lost=True)
                    return
                self._sinks[section.place] = made
                self._buffers[section.place] = buffer
                self._tags[section.place] = found.tag
            elif found.tag != self._tags[section.place]:
                outputs.tell_of_tags(reader)
            yield self._sinks[section.place]["name"]

    def _name(self, kind: str) -> str:
        base = "-".join(filter(None, (self._sidecar.name, kind.replace("_", "-"))))
        taken = [each["name"] for each in self._sinks.values()]
        return base if base not in taken else f"{base}-{len(taken) + 1}"

    def _parsers_name(self, number: int) -> str:
        """Return the name of the parser of the source of that *number*, and of files of it."""
        return NAME + "-".join(filter(None, (self._sidecar.name, str(number))))

    def _unreached(self, section: FluentSection) -> None:
        for each in section.sections:
            if _workers(each) or (each.name == "label" and each.argument not in _FLUENTDS_LABELS):
                self._unreached(each)
            elif each.name in ("match", "filter") and each.place not in self._reached and not _is_fluentds(each):
                drops = self._reader(each).type == "null"
                more = (
                    ". What it drops is delivered: files of one pattern have one tag here. nodeagent.io/log-exclude on "
                    "a pod leaves it out, and a rule with namespaces or labels (drop: matches: .) those of pods"
                )
                text = f"<{each.name} {each.argument}>: no event of a tail comes here{more if drops else ''}"
                self._notes.append(ImportNote(each.place, text))

    def _place(self, path: str, found: TailedFiles, way: _Way) -> None:
        """Say whose file *path* is."""
        if path.startswith(CONTAINER_LOGS):
            self._containers(path, found, way)
            return
        within = located(path, self._sidecar.mounts)
        if not self._sidecar.namespace:
            found.reader.note(
                f"path {path}: whose volume that is only the pod's YAML says: --pod FILE gives it", lost=True
            )
        elif within is None:
            found.reader.note(
                f"path {path}: is in no volume of the pod: let the application write into an emptyDir", lost=True
            )
        elif within[0].kind == "emptyDir":
            self._pod_files.append((within[0].volume, f"{within[0].source}{within[1]}", way))
        elif within[0].kind == "hostPath" and not _GLOB & set(path):
            entry = {"path": f"{within[0].source.rstrip('/')}/{within[1]}", "parser": way.parser or "json"}
            if way.multiline:
                entry["multiline"] = way.multiline
            self._logs.setdefault("node", {"files": []})["files"].append({**entry, "sinks": list(way.sinks)})
        else:
            found.reader.note(
                f"path {path}: a pattern in a hostPath, or a volume of another kind: only emptyDir is read so",
                lost=True,
            )

    def _containers(self, path: str, found: TailedFiles, way: _Way) -> None:
        self._logs["containers"] = "all"
        if path.rpartition("/")[2] not in ("*.log", "*"):
            found.reader.note(
                f"path {path}: the output of all containers is read: nodeagent.io/log-exclude on a pod, or "
                "logs.containers: labelled, narrows it"
            )
        if way.multiline or way.parser.startswith(NAME):
            asked = [f"{MULTILINE}: {way.multiline}"] if way.multiline else []
            asked += [f"{PARSER}: {way.parser}"] if way.parser.startswith(NAME) else []
            found.reader.note(f"<parse>: is in force for pods that ask for it: {', '.join(asked)}")
        self._exclude(path, found)
        self._route(path, found, way)

    def _exclude(self, path: str, found: TailedFiles) -> None:
        """Make rules of what of all containers' output the source leaves out: a rule is for whole namespaces."""
        others = [each for each in self._all_tails if each is not found and _reads_containers(each)]
        for pattern in found.excluded if path == found.paths[0] else ():
            name = pattern.removeprefix(CONTAINER_LOGS[0])
            match = _LINK.fullmatch(name)
            namespace = match["namespace"] if match is not None else None
            whole = match is not None and match["pod"] == "*" and not match["container"]
            if name.startswith("fluent"):
                continue  # what Fluentd itself writes, which is no more
            if whole and namespace and namespace != "*" and not others:
                self._excluded.append({"namespaces": [namespace], "drop": {"matches": "."}})
                continue
            text = (
                f"exclude_path: {shown(pattern)}: is not taken: nodeagent.io/log-exclude on a pod leaves it out, and a "
                "rule with namespaces or labels (drop: matches: .) those of pods"
            )
            found.reader.note(text, found.reader.section.values["exclude_path"].place)

    def _route(self, path: str, found: TailedFiles, way: _Way) -> None:
        """Send what of all containers' output *path* names to its sinks."""
        tags_of_path = container_tags(path.rpartition("/")[2])
        routes = self._logs.setdefault("routes", [])
        route: Entry = {**({"tags": tags_of_path} if tags_of_path else {}), "sinks": list(way.sinks)}
        if any(not each.get("tags") for each in routes):
            found.reader.note(
                f"path {path}: what is read by an earlier <source> of all containers goes to that one's outputs; a "
                "route of logs.routes with namespaces, labels or tags before it says what goes to this one's",
                lost=True,
            )
        if tags_of_path is None:
            found.reader.note(f"path {path}: whose output that is cannot be told by a tag: its route is for all pods")
        if route not in routes:
            routes.append(route)

    def _of_the_pod(self) -> dict[str, str]:
        """Return the pod's annotations; what they cannot say is an entry of ``logs.files``."""
        ways = {way for *_, way in self._pod_files}
        if not ways:
            return {}
        if self._sidecar.apart or len(ways) > 1 or any(set(" ,") & set(path) for _, path, _ in self._pod_files):
            self._logs["files"] = [self._entry(number, *each) for number, each in enumerate(self._pod_files, 1)]
            return {}
        (way,) = ways
        annotations = {FILES: ",".join(dict.fromkeys(f"{volume}/{path}" for volume, path, _ in self._pod_files))}
        if way.parser not in ("", "json"):  # which is found by itself
            annotations[PARSER] = way.parser
        if way.multiline:
            annotations[MULTILINE] = way.multiline
        if self._sidecar.name or len(self._sinks) > 1 or len(way.sinks) > 1:
            annotations[SINKS] = ",".join(way.sinks)
            self._logs["podSinks"] = list(way.sinks)
        return annotations

    def _entry(self, number: int, volume: str, path: str, way: _Way) -> Entry:
        entry = self._selected({"name": self._parsers_name(number), "volume": volume, "path": path})
        entry |= {"parser": way.parser or "json"}
        if way.multiline:
            entry["multiline"] = way.multiline
        return {**entry, "sinks": list(way.sinks)}

    def _selected(self, entry: Entry) -> Entry:
        """Return *entry* for no other pods than Fluentd's."""
        if not self._sidecar.namespace:
            return entry
        of_pod: Entry = {"namespaces": [self._sidecar.namespace]}
        if self._sidecar.labels:
            of_pod["labels"] = dict(self._sidecar.labels)
        return {**of_pod, **entry}


def _workers(section: FluentSection) -> range:
    """Return which of Fluentd's workers have what is in *section*, if it says so."""
    match = _WORKERS.fullmatch(section.argument) if section.name == "worker" else None
    return range(int(match["first"]), int(match["last"] or match["first"]) + 1) if match else range(0)


def container_tags(name: str) -> list[str] | None:
    """Return the tags of the containers whose links in /var/log/containers fit the glob *name*,
    ``POD_NAMESPACE_CONTAINER-ID.log``; empty: all have. None: no tag says which.
    """
    if name in ("*.log", "*"):
        return []
    match = _LINK.fullmatch(name)
    if match is None:
        return None
    return [f"kube.{match['namespace'] or '*'}.{match['pod']}.{match['container'] or '**'}"]


def _reads_containers(tailed: TailedFiles) -> bool:
    return any(each.startswith(CONTAINER_LOGS) for each in tailed.paths)


def _order(note: ImportNote) -> tuple[str, int, str]:
    return note.place.file, note.place.line, note.text


def _is_fluentds(section: FluentSection) -> bool:
    """Say whether *section* is for Fluentd's own events, as most configurations have one."""
    patterns = section.argument.split()
    return bool(patterns) and all(each.startswith("fluent.") for each in patterns)
