"""What of a pod is read, how, and where its records go: by agent.yaml and the pod's own annotations.
Pure.

A pod's annotations are written by whoever may make pods, so they choose within what agent.yaml has:
parsers by name, files within the pod's own volumes, sinks that ``logs.podSinks`` opens to pods. What
is wrong in one is refused by name and has no effect; all else of the pod is read.

=====================================  ==========================================================
``nodeagent.io/logs``                  ``enabled`` or ``disabled`` (a label too)
``nodeagent.io/log-files``             ``VOLUME/PATTERN``, several with commas between them
``nodeagent.io/log-parser``            of the pod's files and output
``nodeagent.io/log-multiline``         a preset, or a name of ``logs.multiline``
``nodeagent.io/log-exclude``           ``true``, or names of containers
``nodeagent.io/log-sinks``             names of sinks
``fluentbit.io/parser``                also ``_stdout``, ``_stderr``, and with ``-CONTAINER``
``fluentbit.io/exclude``               likewise; ``true``
=====================================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

from nodeagent.errors import shown
from nodeagent.logs.patterns import PathPattern, PatternError, path_fits, path_pattern
from nodeagent.logs.settings import LogFiles, LogSettings, PodSelection
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import LOGS

FILES: Final = "nodeagent.io/log-files"
PARSER: Final = "nodeagent.io/log-parser"
MULTILINE: Final = "nodeagent.io/log-multiline"
EXCLUDE: Final = "nodeagent.io/log-exclude"
SINKS: Final = "nodeagent.io/log-sinks"
FLUENT_PARSER: Final = "fluentbit.io/parser"
FLUENT_EXCLUDE: Final = "fluentbit.io/exclude"
OWN_LABEL: Final = "app.kubernetes.io/name"
"""Of the agent's own pods ``nodeagent``."""
KNOWN: Final = (LOGS, FILES, PARSER, MULTILINE, EXCLUDE, SINKS)
MAX_FILES: Final = 32
"""Patterns that a pod may ask for."""
MAX_REFUSALS: Final = 32
"""Of a pod's annotations that are told in words: they may be a quarter of a megabyte of names."""
STREAMS: Final = ("stdout", "stderr")
WRITTEN_TO: Final = "records go to this pod's own output (sink stdout)"
_VOLUME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_YES: Final = ("true", "enabled", "yes", "on")
_NO: Final = ("false", "disabled", "no", "off", "")


@dataclass(frozen=True, slots=True)
class WantedFiles:
    """Files in a volume of the pod."""

    volume: str
    pattern: PathPattern
    reading: Reading


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What of a pod is read."""

    output: bool
    """Its containers' output, but for those that are left out."""
    files: tuple[WantedFiles, ...]
    refusals: tuple[str, ...]
    """What of its annotations is wrong and has no effect, in words."""
    default: Reading
    excluded: frozenset[str]
    """Containers that are left out by the pod's own wish."""
    own: Mapping[str, Reading]
    """How the output of single containers is read."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Containers that annotations name, each with the annotation."""
    kept_out: str = ""
    """Why its output is not read though it would be, in words: no fault of the pod's."""

    def reading_of_file(self, path: str) -> Reading | None:
        """Return how the file *path*, from its volume's name on, is read; None: not at all."""
        volume, _, below = path.partition("/")
        for each in self.files:
            if each.volume == volume and path_fits(each.pattern, below):
                return each.reading
        return None

    def reading_of(self, container: str) -> Reading | None:
        """Return how the output of *container* is read; None: not at all."""
        return self.reading_of_entries(container) if self.output else None

    def reading_of_entries(self, container: str) -> Reading | None:
        """Return the same of what the journal has of *container*, which is read whatever ``logs.containers`` says."""
        if not self.excluded.isdisjoint((EVERY, container)):
            return None
        found = self.own.get(container, self.default)
        return None if set(STREAMS) <= set(found.without) else found

    @property
    def empty(self) -> bool:
        """Nothing of the pod is read."""
        return not self.output and not self.files


def plan(pod: PodObject, settings: LogSettings) -> PodPlan:
    """Return what of *pod* is read."""
    return _Planner(pod, settings).plan()


class _Planner:
    """Reads one pod's annotations."""

    def __init__(self, pod: PodObject, settings: LogSettings) -> None:
        self._pod = pod
        self._settings = settings
        self._annotations = pod.annotations
        self._refusals: list[str] = []

    def plan(self) -> PodPlan:
        asked = self._asked()
        base = Reading(
            parser=self._parser(PARSER, "auto"), multiline=self._multiline(), sinks=self._sinks(self._settings)
        )
        excluded = self._excluded()
        default, own = self._fluent(base)
        every = EVERY in excluded or asked == "disabled"
        output = (
            not every
            and {
                "all": True,
                "labelled": asked == "enabled",
                "none": False,
            }[self._settings.containers]
        )
        written = output and self._is_written_to()
        if written and asked == "enabled":
            self._refuse(LOGS, self._value(LOGS), f"{WRITTEN_TO}: it is not read")
        files = () if asked == "disabled" else (*self._configured(base), *self._annotated(base))
        for name in self._annotations:
            if name.startswith("nodeagent.io/log-") and name not in KNOWN:
                self._refuse(
                    name, self._annotations[name], f"no such annotation is known; there are {', '.join(KNOWN)}"
                )
        self._refuse_unknown_of_fluent()
        return PodPlan(
            output and not written,
            files,
            tuple(self._refusals),
            default,
            frozenset(excluded | ({EVERY} if every else set())),
            own,
            self._named(excluded),
            WRITTEN_TO if written else "",
        )

    def _of_fluent(self) -> Iterator[tuple[str, str, str]]:
        for prefix in (FLUENT_PARSER, FLUENT_EXCLUDE):
            yield from _fluent_names(self._annotations, prefix)

    def _named(self, excluded: set[str]) -> dict[str, str]:
        """Return the containers that annotations name, each with the annotation."""
        named = {container: name for container, _, name in self._of_fluent() if container}
        return dict.fromkeys(sorted(excluded - {EVERY}), EXCLUDE) | named

    def _refuse_unknown_of_fluent(self) -> None:
        known = {name for *_, name in self._of_fluent()}
        allowed = f"{FLUENT_PARSER} or {FLUENT_EXCLUDE} is expected, _stdout or _stderr and -CONTAINER behind it or not"
        for name in self._annotations:
            if name.startswith("fluentbit.io/") and name not in known:
                self._refuse(name, self._annotations[name], allowed)

    def _is_written_to(self) -> bool:
        """Say whether records are written to the pod's own output: they would come back for ever."""
        own = self._pod.labels.get(OWN_LABEL) == "nodeagent"
        return own and any(each.stdout is not None for each in self._settings.sinks)

    def _refuse(self, name: str, value: str, allowed: str) -> None:
        if len(self._refusals) == MAX_REFUSALS:
            self._refusals.append("and more; these are to be mended first")
        elif len(self._refusals) < MAX_REFUSALS:
            self._refusals.append(f"{name}: {shown(value)}: {allowed}")

    def _asked(self) -> str:
        """Return ``enabled``, ``disabled``, or nothing."""
        value = self._value(LOGS)
        if value in _YES:
            return "enabled"
        if value in _NO:
            return "disabled" if value else ""
        self._refuse(LOGS, value, "enabled or disabled is expected")
        return ""

    def _value(self, name: str) -> str:
        """Return what the pod says by an annotation or, without one, a label."""
        return self._annotations.get(name, self._pod.labels.get(name, ""))

    def _parser(self, name: str, default: str) -> str:
        value = self._annotations.get(name, "").strip()
        known = self._settings.parser_names()
        if value in ("", *known):
            return value or default
        self._refuse(
            name, value, f"no parser has that name; there are {', '.join(known)}: see logs.parsers of agent.yaml"
        )
        return default

    def _multiline(self) -> str:
        value = self._annotations.get(MULTILINE, "").strip()
        known = self._settings.multiline_names()
        if value in ("", *known):
            return value
        self._refuse(MULTILINE, value, f"one of {', '.join(known)} is expected: see logs.multiline of agent.yaml")
        return ""

    def _sinks(self, settings: LogSettings) -> tuple[str, ...]:
        """Return where the pod's records go: where it asks for, else by the first route that fits, else to the first
        sink.
        """
        asked = tuple(dict.fromkeys(_listed(self._annotations.get(SINKS, ""))))
        allowed = tuple(name for name in asked if name in settings.pod_sinks)
        for name in asked:
            if name not in allowed:
                open_ones = ", ".join(settings.pod_sinks) or "none"
                self._refuse(
                    SINKS, name, f"a sink that logs.podSinks of agent.yaml opens to pods is expected: {open_ones}"
                )
        return allowed

    def _excluded(self) -> set[str]:
        value = self._annotations.get(EXCLUDE, "")
        if value.strip() in _YES:
            return {EVERY}
        return set() if value.strip() in _NO else set(_listed(value))

    def _fluent(self, base: Reading) -> tuple[Reading, dict[str, Reading]]:
        """Return how outputs are read by Fluent Bit's annotations, those for all and those for single containers."""
        default = base
        own: dict[str, Reading] = {}
        for container, stream, name in sorted(_fluent_names(self._annotations, FLUENT_PARSER)):
            parser = self._parser(name, "")
            if not parser:
                continue
            if container:
                own[container] = _parsed(own.get(container, default), stream, parser)
            else:
                default = _parsed(default, stream, parser)
        for container, stream, name in sorted(_fluent_names(self._annotations, FLUENT_EXCLUDE)):
            value = self._annotations[name].strip().lower()
            if value in _NO:
                continue
            if value not in _YES:
                self._refuse(name, self._annotations[name], "true or false is expected")
                continue
            without = (stream,) if stream else STREAMS
            if container:
                before = own.get(container, default)
                own[container] = replace(before, without=(*before.without, *without))
            else:
                default = replace(default, without=(*default.without, *without))
        return default, own

    def _configured(self, base: Reading) -> Iterator[WantedFiles]:
        for each in self._settings.files:
            if selects(each, self._pod.namespace, self._pod.labels):
                yield WantedFiles(each.volume, path_pattern(each.path), _as_configured(each, base))

    def _annotated(self, base: Reading) -> Iterator[WantedFiles]:
        items = _listed(self._annotations.get(FILES, ""))
        for item in items[:MAX_FILES]:
            volume, slash, path = item.partition("/")
            if not slash or not _VOLUME.fullmatch(volume):
                self._refuse(
                    FILES, item, "VOLUME/PATTERN is expected, such as varlog/app/*.log, of a volume of this pod"
                )
                continue
            try:
                yield WantedFiles(volume, path_pattern(path), base)
            except PatternError as error:
                self._refuse(FILES, item, str(error))
        if len(items) > MAX_FILES:
            self._refuse(FILES, items[MAX_FILES], f"at most {MAX_FILES} patterns are expected, there are {len(items)}")


EVERY: Final = "*"
"""In the names of containers that are left out: all."""


def routed(source: SourceFacts, settings: LogSettings) -> SourceFacts:
    """Return *source* with the sinks that its records go to: those that it has, else those of the first route
    that fits it, else the first sink.
    """
    if source.reading.sinks:
        return source
    for route in settings.routes:
        tags = not route.tags or any(_tag_fits(pattern, source.tag) for pattern in route.tags)
        if tags and selects(route, source.namespace, source.labels):
            return replace(source, reading=replace(source.reading, sinks=route.sinks))
    return replace(source, reading=replace(source.reading, sinks=(settings.sinks[0].name,)))


def selects(selection: PodSelection, namespace: str, labels: Mapping[str, str]) -> bool:
    """Say whether *selection* is for a pod of *namespace* with *labels*."""
    named = not selection.namespaces or any(fnmatchcase(namespace, each) for each in selection.namespaces)
    return named and all(labels.get(name) == value for name, value in selection.labels.items())


def _tag_fits(pattern: str, tag: str) -> bool:
    """Say whether *tag* fits Fluentd's *pattern*: ``*`` is one part, ``**`` none or more."""
    return _parts_fit(pattern.split("."), tag.split("."))


def _parts_fit(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """As :func:`_tag_fits`, part by part. All places of *pattern* that what went before fits up to are followed at
    once: a file's path, which a pod chooses, may have thousands of parts.
    """
    places = _with_nothing(pattern, {0})
    for part in parts:
        there = [place for place in places if place < len(pattern)]
        stays = {place for place in there if pattern[place] == "**"}
        goes_on = {place + 1 for place in there if pattern[place] != "**" and _part_fits(pattern[place], part)}
        places = _with_nothing(pattern, stays | goes_on)
    return len(pattern) in places


def _with_nothing(pattern: Sequence[str], places: set[int]) -> set[int]:
    """Return *places* with those behind each ``**`` that stands for no part."""
    for place, each in enumerate(pattern):
        if each == "**" and place in places:
            places.add(place + 1)
    return places


def _part_fits(pattern: str, part: str) -> bool:
    return fnmatchcase(part, pattern)


def _listed(text: str) -> list[str]:
    return [item for item in re.split(r"[\s,]+", text) if item]


def _fluent_names(annotations: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield (container, stream, annotation) of those that begin with *prefix*; empty: all containers, both streams."""
    for name in annotations:
        match = re.fullmatch(rf"{re.escape(prefix)}(?:_(stdout|stderr))?(?:-(.+))?", name)
        if match:
            yield match[2] or "", match[1] or "", name


def _parsed(reading: Reading, stream: str, parser: str) -> Reading:
    if stream == "stderr":
        return replace(reading, parser_stderr=parser)
    if stream == "stdout":
        return replace(reading, parser=parser, parser_stderr=reading.parser_stderr or reading.parser)
    return replace(reading, parser=parser)


def _as_configured(files: LogFiles, base: Reading) -> Reading:
    return replace(
        base,
        parser=files.parser or base.parser,
        multiline=files.multiline or base.multiline,
        sinks=base.sinks or files.sinks,
    )
