"""A ``<filter>`` as rules of ``logs.rules``, where one is like it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nodeagent.logs.fluentd.inputs import TailedFiles
from nodeagent.logs.fluentd.parameters import KUBERNETES_METADATA, PARSE, PARSER_FILTER, RECORD_TRANSFORMER
from nodeagent.logs.fluentd.reading import Entry, SectionReader
from nodeagent.logs.fluentd.values import expression

_ANYTHING: Final = "."
_NAMES: Final = re.compile(
    r"(?P<begin>\^)?(?:\((?:\?:)?(?P<several>[a-z0-9-]+(?:\|[a-z0-9-]+)*)\)|(?P<one>[a-z0-9-]+))(?P<end>\$)?"
)


def rules(reader: SectionReader, found: TailedFiles) -> list[Entry]:
    """Return the rules that do what the filter of *reader* does to records of *found*, whose parser becomes the one
    that the filter asks for, if any.
    """
    kind = reader.type
    if kind == "stdout":  # it shows records, and passes them on
        return []
    if kind == "kubernetes_metadata":  # each record has its pod's metadata
        reader.finish(KUBERNETES_METADATA)
        return []
    if kind == "grep":
        dropped = _dropped(reader, found)
        reader.finish()
        return dropped
    if kind == "parser":
        _parse(reader, found)
        return []
    if kind == "record_transformer":
        for record in reader.sections("record"):
            for name, value in record.section.values.items():
                record.note(
                    f"{name}: is not added: records say where they come from (kubernetes.namespace, pod, container, "
                    "node); logs.metadata.annotations adds what a pod's annotations say",
                    value.place,
                )
        reader.finish(RECORD_TRANSFORMER)
        return []
    reader.note(f"<filter> @type {kind}: is not taken: no rule is like it; there are drop and redact")
    return []


def _dropped(reader: SectionReader, found: TailedFiles) -> list[Entry]:
    dropped: list[Entry] = []
    for exclude in reader.sections("exclude"):
        key = exclude.text("key")
        pattern = exclude.get("pattern", expression)
        exclude.finish()
        if key and pattern:
            dropped += _rule(exclude, _member(key), pattern, found)
    for only in reader.sections("regexp"):
        only.note("<regexp>: is not taken: a rule says what is dropped, not what alone is kept")
        only.needless("key", "pattern")
    for both in (*reader.sections("and"), *reader.sections("or")):
        both.note("<and>, <or>: are not taken: give each condition a rule of its own")
    return dropped


def _rule(exclude: SectionReader, member: str, pattern: str, found: TailedFiles) -> Iterator[Entry]:
    """Yield the rule that drops what *pattern* is found in. Rules see what an application wrote; of whose pod it is
    decides which pods a rule is for.
    """
    first, _, rest = member.partition(".")
    if member in found.texts:
        yield {"drop": {"matches": pattern}}
    elif member == "kubernetes.namespace_name" and (names := globs(pattern)):
        yield {"namespaces": names, "drop": {"matches": _ANYTHING}}
    elif first == "kubernetes":
        exclude.note(
            f"{member}: is not taken: rules see what the application wrote. A rule with namespaces or labels drops "
            "what pods of these write (matches: .); nodeagent.io/log-exclude on a pod leaves containers out"
        )
    elif first == "stream" and not rest:
        exclude.note("stream: is not taken: fluentbit.io/exclude_stderr on a pod leaves a stream out, or _stdout")
    elif found.has_members:
        yield {"drop": {"field": member, "matches": pattern}}
    else:
        exclude.note(
            f"{member}: is not taken: lines are text, and Fluentd drops none by a member that they do not have"
        )


def globs(pattern: str) -> list[str]:
    """Return the names in which the expression *pattern* is found, as globs: plain names, alternatives, anchors or
    none. Empty: it is another expression.
    """
    match = _NAMES.fullmatch(pattern)
    if match is None:
        return []
    before = "" if match["begin"] else "*"
    behind = "" if match["end"] else "*"
    return [f"{before}{name}{behind}" for name in (match["several"] or match["one"]).split("|")]


def _member(key: str) -> str:
    """Return Fluentd's ``key`` or ``$.a.b`` or ``$['a']['b']`` as a member's name, with dots."""
    return key.removeprefix("$.").replace("$['", "").replace("']['", ".").removesuffix("']")


def _parse(reader: SectionReader, found: TailedFiles) -> None:
    """Have the text of records of *found* parsed."""
    key = reader.text("key_name")
    kept = reader.truth("reserve_data") and not reader.truth("remove_key_name_field")
    kinds = [reader.text("format") or ""]
    for parse in reader.sections("parse"):
        kinds = [parse.type]
        for name in ("time_key", "time_format"):
            parse.differs(name, "is not taken: timeKey and timeFormat of an entry of logs.parsers say when")
        parse.finish(PARSE)
    reader.finish(PARSER_FILTER)
    if key in ("log", "message", None, *found.texts) and kinds[0] == "json":
        found.parser = "json"
        found.has_members = True
        found.texts = found.texts if kept else frozenset()
        if kept:
            reader.differs("reserve_data", "is not taken: members of a JSON object stand in place of its text")
        return
    reader.note(f"<filter> @type parser of {key} by {kinds[0]}: is not taken: a parser is one of the whole line here")
