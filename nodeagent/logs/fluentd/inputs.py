"""What of a ``<source>`` is read here: the files of a tail, and how their lines become objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from nodeagent.errors import ConfigError, shown
from nodeagent.logs.fluentd.parameters import PARSE, TAIL
from nodeagent.logs.fluentd.reading import Entry, SectionReader
from nodeagent.logs.fluentd.values import expression, listed, time_format

NAME: Final = "fluentd-"
"""What names of parsers begin with."""
CONTAINER_LOGS: Final = ("/var/log/containers/", "/var/log/pods/")
_DATE: Final = re.compile(r"(?:%[A-Za-z])+")
_JSON_LINES: Final = ("json", "cri", "docker")
_HTTP: Final = r"\"(?P<method>\S+)(?: +(?P<path>[^\"]*?)(?: +\S*)?)?\" (?P<code>\S*) (?P<size>\S*)"
_AGENT: Final = r"(?: \"(?P<referer>[^\"]*)\" \"(?P<agent>[^\"]*)\""
_HTTP_TIME: Final = "%d/%b/%Y:%H:%M:%S %z"
_KNOWN: Final[Mapping[str, str]] = {
    "nginx": r"^(?P<remote>\S*) (?P<host>\S*) (?P<user>\S*) \[(?P<time>[^\]]*)\] "
    + _HTTP
    + _AGENT
    + r"(?:\s+\"?(?P<forwarder>[^\"]*)\"?)?)?$",
    "apache2": r"^(?P<host>\S*) \S* (?P<user>\S*) \[(?P<time>[^\]]*)\] " + _HTTP + _AGENT + ")?$",
}
"""Formats that Fluentd knows by name, as regular expressions with the same members."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume, where Fluentd's container sees it."""

    path: str
    volume: str
    kind: Literal["emptyDir", "hostPath", "other"]
    source: str = ""
    """Of a hostPath: the node's folder; of an emptyDir, what is mounted of it (subPath), with a slash behind it."""


@dataclass(slots=True)
class TailedFiles:
    """Files that Fluentd tails under one tag."""

    reader: SectionReader
    tag: str
    paths: list[str]
    parser: str = ""
    """A built-in parser or the name of one of ``parsers``; empty: found by itself."""
    multiline: str = ""
    parsers: list[Entry] = field(default_factory=list)
    """Entries of ``logs.parsers``."""
    starts: list[Entry] = field(default_factory=list)
    """Entries of ``logs.multiline``."""
    pos_file: str = ""
    excluded: list[str] = field(default_factory=list)
    """Patterns of files that are not read."""
    worker: int = 0
    """Of Fluentd's several, which reads them."""
    texts: frozenset[str] = frozenset()
    """Members of Fluentd's records that are the whole of what the application wrote."""
    has_members: bool = True
    """Whether Fluentd's records may have members that the application wrote."""


def tail(reader: SectionReader, name: str, worker: int) -> TailedFiles:
    """Return what the ``<source>`` of *reader* tails; *name*: of its parsers, if it has any."""
    delimiter = reader.text("path_delimiter") or ","
    paths = reader.get("path", lambda text: listed(text, delimiter)) or []
    found = TailedFiles(reader, reader.text("tag") or "", [_DATE.sub("*", each) for each in paths], worker=worker)
    if any(map(_DATE.search, paths)):
        reader.note("path: a part of the date is any text here (*)")
    found.pos_file = reader.text("pos_file") or ""
    _rest(reader, found)
    parse = reader.one("parse")
    if reader.section.values.get("format") is not None:  # as before version 1
        parse = reader
        form = reader.text("format") or ""
    else:
        form = parse.type
    try:
        _parser(found, parse, form, name)
    except ConfigError as error:
        parse.note(f"{error}; its lines stay text")
        found.parser = "none"
    _know_texts(found, parse, form)
    if any(each["type"] == "regex" and "timeKey" in each and "timeFormat" not in each for each in found.parsers):
        parse.note(
            "time_format is not set: Fluentd takes many forms of a time; here RFC 3339 and alike, and seconds since "
            "1970, are read, and others leave the time when the line was read: timeFormat of the parser says another"
        )
    if parse is not reader:
        parse.finish(PARSE)
    else:
        reader.by(PARSE)
    reader.finish(TAIL)
    return found


def _rest(reader: SectionReader, found: TailedFiles) -> None:
    """Read where it begins, and what it leaves out."""
    found.excluded = reader.get("exclude_path", listed) or []
    if not reader.truth("read_from_head"):
        reader.note(
            "read_from_head is not set: Fluentd begins at a file's end; here every file is read from its beginning "
            "(where Fluentd was, its position file says)"
        )
    for name in found.excluded:
        if not name.startswith(CONTAINER_LOGS):
            reader.differs("exclude_path", "is not taken: name the files that are to be read more narrowly in path")


def _parser(found: TailedFiles, parse: SectionReader, form: str, name: str) -> None:
    """Say how the lines are parsed. Raises ConfigError for what cannot be parsed here."""
    key = parse.text("time_key")
    format_of_time = parse.get("time_format", time_format)
    if form in _JSON_LINES:
        list(parse.sections("parse"))
        found.parser = "json"
        if (key or format_of_time) and form == "json":
            found.parsers.append(_entry(name, "json", None, key or "time", format_of_time))
            found.parser = name
    elif form in ("none", ""):
        key = parse.text("message_key") or "message"
        if key != "log":
            parse.note(
                f"@type none: the text is in member {shown(key)} with Fluentd, and in log here: "
                f"logs.metadata.text: {shown(key)} has all texts there"
            )
        found.parser = "none"
    elif form == "multi_format":
        _several(found, parse)
    elif form == "regexp" or form.startswith("/"):
        text = form if form.startswith("/") else parse.text("expression") or ""
        found.parsers.append(_entry(name, "regex", expression(text), key or "time", format_of_time))
        found.parser = name
    elif form == "multiline":
        _multiline(found, parse, name, key or "time", format_of_time)
    elif form in _KNOWN:
        found.parsers.append(_entry(name, "regex", _KNOWN[form], "time", _HTTP_TIME))
        found.parser = name
    else:
        raise ConfigError(
            f"@type {form}: no parser here is like it; there are json, regexp, multiline, none, {', '.join(_KNOWN)}"
        )


def _several(found: TailedFiles, parse: SectionReader) -> None:
    """Say how lines of one of several forms are parsed. Raises ConfigError."""
    forms = [each.text("format") or each.type for each in parse.sections("pattern")]
    if all(each.startswith(CONTAINER_LOGS) for each in found.paths):
        found.parser = "json"  # the forms of runtimes, which are found by themselves
    elif set(forms) == {"json", "none"} and forms[-1] == "none":
        found.parser = ""  # what is a JSON object is one, all else is text
    else:
        named = ", ".join(shown(each) for each in forms)
        raise ConfigError(f"@type multi_format of {named}: a file has one parser here, or auto: JSON objects and text")


def _know_texts(found: TailedFiles, parse: SectionReader, form: str) -> None:
    """Say in which members the text is: those of a runtime's lines go by the runtime, others by the parser."""
    of_runtime = all(each.startswith(CONTAINER_LOGS) for each in found.paths)
    if form in ("none", ""):
        found.texts = frozenset((parse.text("message_key") or "message",))
        found.has_members = False
    elif form == "docker" or (form == "json" and of_runtime):
        found.texts = frozenset(("log",))
    elif form == "multi_format" and of_runtime:
        found.texts = frozenset(("log", "message"))
    elif form == "cri" and not any(parse.sections("parse")):
        found.texts = frozenset(("message", "log"))  # often renamed, to what Docker's are called
    elif of_runtime and form not in _JSON_LINES:
        found.texts = frozenset(("log", "message"))  # an expression for the runtime's format


def _multiline(found: TailedFiles, parse: SectionReader, name: str, key: str, format_of_time: str | None) -> None:
    first = parse.get("format_firstline", expression)
    parts = [text for number in range(1, 21) if (text := parse.text(f"format{number}")) is not None]
    if first is None:
        raise ConfigError("@type multiline without format_firstline: which line begins a record is not known")
    found.starts.append({"name": name, "start": first})
    found.multiline = name
    joined = "".join(re.sub(r"^/|/[mx]*$", "", each) for each in parts)
    if joined:
        pattern = expression(f"/{joined}/m")
        found.parsers.append(_entry(name, "regex", pattern, key, format_of_time))
        found.parser = name
    else:
        found.parser = "none"


def _entry(name: str, kind: str, pattern: str | None, key: str, format_of_time: str | None) -> Entry:
    entry: Entry = {"name": name, "type": kind}
    if pattern is not None:
        entry["pattern"] = pattern
    if pattern is None or f"(?P<{key}>" in pattern:
        entry["timeKey"] = key
        if format_of_time:
            entry["timeFormat"] = format_of_time
    return entry


def located(path: str, mounts: Sequence[Mounted]) -> tuple[Mounted, str] | None:
    """Return the volume in which *path*, as Fluentd's container sees it, is, and the path below it; the
    innermost mount decides. None: in no volume.
    """
    inside = [each for each in mounts if path.startswith(each.path.rstrip("/") + "/")]
    if not inside:
        return None
    mount = max(inside, key=lambda each: len(each.path))
    return mount, path[len(mount.path.rstrip("/")) + 1 :]
