"""Section ``logs:`` of agent.yaml: whose logs are read, how, and where they are delivered; validated
whole, names that refer to one another too.

What pods may ask for by annotations within it: ``pods.py``; the sinks' own sections: ``sinks/settings.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from nodeagent.errors import ConfigError
from nodeagent.logs.patterns import path_pattern
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.times import time_form
from nodeagent.logs.sinks.settings import BufferSettings, SinkSettings
from nodeagent.sections import AbsolutePath, ConfigSection, Size

RUNTIME_PARSERS: Final = ("cri", "docker")
"""Formats of container runtimes, in which a container's output stands: found by itself, never asked for."""
BUILT_IN_PARSERS: Final = ("auto", "json", "logfmt", "none", "journal", *RUNTIME_PARSERS)
"""Parsers that need no entry in ``logs.parsers``; ``auto``: what is a JSON object is one, all else is text;
``journal``: what ``journalctl -o export`` writes.
"""
MULTILINE_PRESETS: Final = ("java", "python", "go", "ruby", "dotnet", "indented")
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9A-Z]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$")]
"""Of a parser, a sink, a file: what others refer to it by."""
Expression = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""A regular expression as RE2 has it: linear time, no back-references."""


def _member(value: str) -> str:
    """Return *value* if it is a member's path, or empty. Raises ValueError."""
    if value:
        RecordMember(value)
    return value


Member = Annotated[str, AfterValidator(_member)]
"""A member's path: up to eight names with dots between them; or nothing."""


class PodSelection(ConfigSection):
    """Pods: all that fit everything that is given."""

    namespaces: tuple[str, ...] = Field((), max_length=256)
    """Names; ``*`` within one stands for any text. Empty: all."""
    labels: dict[str, str] = Field({}, max_length=64)
    """Labels that a pod has to have."""


class LogFiles(PodSelection):
    """Files in a volume of the selected pods."""

    name: Name
    volume: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """The name of an emptyDir volume."""
    path: str = "*.log"
    """Below the volume: names with ``*`` and ``?``; ``**`` for any folders."""
    parser: str = ""
    """Empty: what the pod's annotation says, or ``auto``."""
    multiline: str = ""
    """A preset or the name of an entry of ``logs.multiline``; empty: each line is a record."""
    sinks: tuple[str, ...] = ()
    """Empty: by ``logs.routes``."""

    @field_validator("path")
    @classmethod
    def _within(cls, value: str) -> str:
        return _checked(path_pattern, value)


class NodeFile(ConfigSection):
    """A file of the node itself, as the kubelet's or what ``journalctl -o export`` writes (parser ``journal``)."""

    path: Path
    """Absolute; its rotated names beside it are read too."""
    parser: str = "auto"
    multiline: str = ""
    sinks: tuple[str, ...] = ()

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute() or ".." in value.parts:
            raise ValueError("an absolute path without .. is expected")
        return value


class ParserSettings(ConfigSection):
    """How a line becomes an object."""

    name: Name
    type: Literal["json", "logfmt", "regex", "none"]
    pattern: Expression | None = None
    """Of a regex: its named groups become members."""
    time_key: Member = ""
    """The member that says when; empty: the runtime's time, or when the line was read."""
    time_format: str = ""
    """As strptime(3) has it, with ``%L`` for fractions of a second; empty: RFC 3339, or seconds since 1970."""

    @field_validator("time_format")
    @classmethod
    def _is_one(cls, value: str) -> str:
        return _checked(time_form, value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.type == "regex") != (self.pattern is not None):
            raise ValueError("pattern goes with type regex, which needs one")
        if self.pattern is not None:
            _checked(lambda text: LinePattern(text, named=True), self.pattern)
        return self


class MultilineSettings(ConfigSection):
    """Which lines belong together: a record begins with each line that *start* finds."""

    name: Name
    start: Expression
    max_lines: int = Field(1000, ge=2, le=100_000)
    flush_seconds: float = Field(2, gt=0, le=600)
    """How long the last line of a record is waited for."""

    @field_validator("start")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _checked(LinePattern, value)


class Match(ConfigSection):
    """What of a record: its text, or a member of it."""

    matches: Expression
    field: Member = ""
    """The name of a member, with dots for one within another; empty: the whole text."""

    @field_validator("matches")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _checked(LinePattern, value)


class Redaction(Match):
    """What is found is replaced."""

    replacement: str = Field("***", alias="with", max_length=256)


class LogRule(PodSelection):
    """What is done to records before they are delivered: exactly one of *drop* and *redact*."""

    drop: Match | None = None
    redact: Redaction | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.drop is None) == (self.redact is None):
            raise ValueError("exactly one of drop and redact must be given")
        return self


class LogRoute(PodSelection):
    """Where the records of the selected pods go; of several that fit, the first."""

    tags: tuple[str, ...] = Field((), max_length=64)
    """Fluentd's: ``kube.NAMESPACE.POD.CONTAINER``, ``*`` for a part, ``**`` for any."""
    sinks: tuple[str, ...] = Field(min_length=1, max_length=8)


class LogLimits(ConfigSection):
    """Bounds per pod, so that none harms another's logs."""

    line_bytes: Size = Field(1 << 20, ge=1024, le=16 << 20)
    """A longer line is cut into several records, and counted."""
    bytes_per_second_per_pod: Size = Field(0, ge=0)
    """More is dropped, and counted; 0: no bound, and a pod that writes faster than sinks take waits."""
    files_per_pod: int = Field(100, ge=1, le=10_000)
    files: int = Field(8192, ge=1, le=100_000)
    """Of all pods together."""


def _text_member(value: str) -> str:
    """Return *value* if records may have a text under this name. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
        raise ValueError(f"{value!r:.80}: up to 64 letters, digits and _ are expected, not first a digit")
    if value in ("stream", "kubernetes", "log_file"):
        raise ValueError(f"{value!r}: records have something else there")
    return value


class LogMetadata(ConfigSection):
    """What each record says of where it comes from."""

    labels: Literal["flat", "as-is", "none"] = "flat"
    """Names of labels with ``_`` for dots and slashes, which index engines would take for objects; as
    they are; or no labels.
    """
    annotations: tuple[str, ...] = Field((), max_length=32)
    """Of pods, by name, that records have too."""
    text: Annotated[str, AfterValidator(_text_member)] = "log"
    """The member of a line that is no JSON object. ``message`` for indices with records in the Elastic Common
    Schema, whose ``log`` is an object: ``log.level``.
    """


STATE_DIRECTORY: Final = Path("/var/lib/nodeagent/logs")


class NodeJournal(ConfigSection):
    """systemd's journal of the node: its files are read, whoever writes to it."""

    folders: tuple[AbsolutePath, ...] = Field((Path("/var/log/journal"), Path("/run/log/journal")), max_length=8)
    """Each with a folder a machine (journald.conf(5), ``Storage=``)."""
    units: tuple[str, ...] = Field((), max_length=256)
    """Of which units entries are read; ``*`` within a name stands for any text. Empty: all there are. Services of
    agent.yaml are asked for by themselves.
    """
    sinks: tuple[str, ...] = ()
    """Empty: by ``logs.routes``."""


class NodeLogFiles(ConfigSection):
    """Logs of the node itself."""

    files: tuple[NodeFile, ...] = Field((), max_length=32)
    journal: NodeJournal | None = None
    """None: it is not read."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything of the node to be read."""
        return bool(self.files) or self.journal is not None


class LogSettings(ConfigSection):
    """Without this section nothing of the logs' collector runs."""

    containers: Literal["none", "labelled", "all"] = "all"
    """Whose output is read: no container's, that of pods with ``nodeagent.io/logs: enabled`` (label or
    annotation), or that of all that do not ask to be left out.
    """
    state_directory: AbsolutePath = STATE_DIRECTORY
    """Positions, buffer and dead letters; user 1337's, made where it is missing."""
    pod_logs: AbsolutePath = Path("/var/log/pods")
    """``NAMESPACE_POD_UID/CONTAINER/N.log``, as the kubelet has it."""
    pod_volumes: AbsolutePath = Path("/var/lib/kubelet/pods")
    """``UID/volumes/kubernetes.io~empty-dir/VOLUME``, as the kubelet has it; ``UID/VOLUME`` in a lab."""
    docker_containers: AbsolutePath = Path("/var/lib/docker/containers")
    """Where the links of ``podLogs`` lead on nodes with Docker."""
    fluentd_positions: tuple[AbsolutePath, ...] = Field((), max_length=16)
    """Position files of a Fluentd that read this node's files before: what it has read is not read again."""
    files: tuple[LogFiles, ...] = Field((), max_length=256)
    node: NodeLogFiles = NodeLogFiles()  # type: ignore[call-arg]
    parsers: tuple[ParserSettings, ...] = Field((), max_length=64)
    multiline: tuple[MultilineSettings, ...] = Field((), max_length=64)
    rules: tuple[LogRule, ...] = Field((), max_length=256)
    limits: LogLimits = LogLimits()  # type: ignore[call-arg]
    metadata: LogMetadata = LogMetadata()  # type: ignore[call-arg]
    sinks: tuple[SinkSettings, ...] = Field(min_length=1, max_length=16)
    routes: tuple[LogRoute, ...] = Field((), max_length=256)
    """What no route fits goes to the first sink."""
    pod_sinks: tuple[str, ...] = ()
    """The sinks that pods may choose by ``nodeagent.io/log-sinks``; by default none."""
    buffer: BufferSettings = BufferSettings()  # type: ignore[call-arg]
    stop_seconds: float = Field(5, ge=0, le=600)
    """How long what was read may take to be delivered when the daemon ends; the rest is read again."""

    @model_validator(mode="after")
    def _referring(self) -> Self:
        _once("sinks", (each.name for each in self.sinks))
        _once("files", (each.name for each in self.files))
        _once("parsers", (*BUILT_IN_PARSERS, *(each.name for each in self.parsers)))
        _once("multiline", (*MULTILINE_PRESETS, *(each.name for each in self.multiline)))
        users: list[tuple[str, LogFiles | NodeFile]] = [(f"files.{each.name}", each) for each in self.files]
        users += [(f"node.files {each.path}", each) for each in self.node.files]
        for where, user in users:
            _known(f"{where}.parser", (user.parser,) if user.parser else (), self.parser_names())
            _known(f"{where}.multiline", (user.multiline,) if user.multiline else (), self.multiline_names())
            self._are_sinks(f"{where}.sinks", user.sinks)
        if self.node.journal is not None:
            self._are_sinks("node.journal.sinks", self.node.journal.sinks)
        self._are_sinks("podSinks", self.pod_sinks)
        self._are_apart()
        for index, route in enumerate(self.routes):
            self._are_sinks(f"routes.{index}.sinks", route.sinks)
        return self

    def _are_sinks(self, where: str, names: Iterable[str]) -> None:
        """Raises ValueError for a name that no sink has, or that is there twice: each would have a record for it."""
        _known(where, names, self.sink_names())
        _once(where, names)

    def _are_apart(self) -> None:
        """Raises ValueError for a sink's file that is read here, or that another sink writes: both would rename it,
        each by its own count of bytes and files.
        """
        written: dict[str, str] = {}
        for sink in self.sinks:
            if sink.file is None:
                continue
            self._apart(sink.name, sink.file.path)
            path = os.path.normpath(sink.file.path)
            other = next((each for each in written if _may_be_one(each, path)), None)
            if other is not None:
                raise ValueError(
                    f"sinks.{sink.name}: {path} is written by sink {written[other]}, which has {other}: a file of its "
                    "own is expected for each; routes send records of several pods to one sink"
                )
            written[path] = sink.name

    def _apart(self, sink: str, path: Path) -> None:
        """Raises ValueError for a sink's file that is read here, itself or renamed: its lines would come for ever."""
        written = Path(os.path.normpath(path))
        for each in self.node.files:
            read = os.path.normpath(each.path)
            if f"{written}.".startswith(f"{read}.") or re.fullmatch(rf"{re.escape(str(written))}\.\d+", read):
                raise ValueError(f"sinks.{sink}: {written} is read by node.files; a sink writes where nothing is read")
        journal = self.node.journal.folders if self.node.journal is not None else ()
        for folder in (self.pod_logs, self.pod_volumes, self.docker_containers, *journal):
            if written.is_relative_to(folder):
                raise ValueError(f"sinks.{sink}: {written} is below {folder}, where files of logs are read")

    def parser_names(self) -> tuple[str, ...]:
        """Return what a file or annotation may name as its parser."""
        asked = (name for name in BUILT_IN_PARSERS if name not in RUNTIME_PARSERS)
        return (*asked, *(each.name for each in self.parsers))

    def multiline_names(self) -> tuple[str, ...]:
        """Return what a file or annotation may name as how lines belong together."""
        return (*MULTILINE_PRESETS, *(each.name for each in self.multiline))

    def sink_names(self) -> tuple[str, ...]:
        """Return the names of all sinks."""
        return tuple(each.name for each in self.sinks)


def _may_be_one(path: str, other: str) -> bool:
    """Say whether two sinks' files are one, or one is what the other is renamed to."""
    longer, shorter = sorted((path, other), key=len, reverse=True)
    return longer == shorter or re.fullmatch(rf"{re.escape(shorter)}\.\d+", longer) is not None


def _once(where: str, names: Iterable[str]) -> None:
    """Raises ValueError for a name that is given twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"{where}: a name that is given once is expected, {name!r:.80} is given twice, or built in"
            )
        seen.add(name)


def _known(where: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    """Raises ValueError for a name that nothing has."""
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: one of {', '.join(known)} is expected, not {name!r:.80}")


def _checked(check: Callable[[str], object], value: str) -> str:
    """Return *value*, which *check* takes. Raises ValueError with its words."""
    try:
        check(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return value
