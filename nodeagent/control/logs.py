"""The logs of the node's pods, as a concern of control: who has the files found and handed to the
collector, and tells how that fares. A sink that cannot begin keeps no other one waiting.

Without section ``logs:`` of agent.yaml there is none of it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from nodeagent.config import AgentConfig, load
from nodeagent.control.concern import Snapshot
from nodeagent.control.log_collector import Answer, LogCollector
from nodeagent.control.log_finder import LogFinder
from nodeagent.control.log_metrics import LogMetrics
from nodeagent.control.log_text import LogText
from nodeagent.control.worker_process import TellsSupervisor
from nodeagent.errors import ConfigError
from nodeagent.istio import USER
from nodeagent.logs.settings import LogSettings
from nodeagent.messages import StartCollector
from nodeagent.parts import Parts
from nodeagent.places.log_folders import LogFolders
from nodeagent.redirect.rights import LOG_RIGHTS, held
from nodeagent.resources.objects import PodObject
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.store import Store
from nodeagent.wire import Unchecked

_LEFT_OUT: Final = "by logs.containers of agent.yaml or its annotations, and it names no files"
log = logging.getLogger("nodeagent.logs")
MAX_TOLD: Final = 4
"""Of what is refused of one pod, in an Event."""
ASK_SECONDS: Final = 5.0
"""Between two looks at how the collector fares, for readiness' warnings."""


class NodeLogs:
    """A concern."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        supervisor: TellsSupervisor,
        config: AgentConfig,
        store: Store,
        settings: LogSettings,
        unloaded: str = "",
    ) -> None:
        """*settings*: section ``logs`` to go by; *unloaded*: why that of agent.yaml as it is now is not. *store* has
        the metrics.
        """
        self._settings = settings
        self._metrics = LogMetrics(store)
        self._warnings: tuple[str, ...] = ()
        self._lacking = _lacking()
        self._unprepared = ""
        """Why nothing is read; empty: it is."""
        self._unmade: dict[str, str] = {}
        """Sinks that cannot begin, each with why."""
        self._config = config
        self._services: Callable[[PodObject], tuple[Path, ...]] = lambda _: ()
        self._unit: Callable[[PodObject], str] = lambda _: ""
        self._unloaded = unloaded
        """Why section ``logs`` of agent.yaml is not what is in force; empty: it is, as far as is known."""
        start = self._first_words(settings)
        self.collector = LogCollector(
            loop,
            supervisor,
            start,
            self._metrics.count,
            self._metrics.died,
            self._metrics.ended,
            stop_seconds=settings.stop_seconds,
        )
        self._finder = LogFinder(settings, self._folders(settings), self.collector)
        self._text = LogText(settings, self._folders(settings), self._finder.pods)

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Find and read, once the folder of positions is there: where it cannot be had, that is said, and nothing
        else of the daemon waits for it. Leaving lets what was read be delivered.
        """
        async with AsyncExitStack() as stops:
            parts.start("the beginning of the logs", partial(self._begin, parts, stops))
            yield

    async def _begin(self, parts: Parts, stops: AsyncExitStack) -> None:
        while unprepared := self._prepare():
            if unprepared != self._unprepared:
                log.error("%s", unprepared)
            self._unprepared = unprepared
            await asyncio.sleep(ASK_SECONDS)
        self._unprepared = ""
        self._make_sinks_folders()
        await stops.enter_async_context(self._finder.run(parts))
        await stops.enter_async_context(self.collector.run(parts, self._finder))
        parts.start("the look at the logs' collector", self._keep_asking)

    def _prepare(self) -> str:
        """Make the folder of positions; return what is in the way, in words."""
        try:
            prepare(self._settings.state_directory, "logs.stateDirectory")
        except ConfigError as error:
            return str(error)
        return ""

    def _make_sinks_folders(self) -> None:
        """Make the folders that sinks write to; what is in the way of one is that sink's trouble alone."""
        before = self._unmade
        self._unmade = unmade(self._settings)
        for name, why in self._unmade.items():
            if before.get(name) != why:
                log.error("sink %s: %s", name, why)

    def _first_words(self, settings: LogSettings) -> StartCollector:
        return StartCollector(settings.model_dump(mode="json", by_alias=True), self._config.node, os.getppid())

    def _folders(self, settings: LogSettings) -> LogFolders:
        kubelet = self._config.kubernetes is not None
        return LogFolders(settings.pod_logs, settings.pod_volumes, kubelet, self._service_folders, self._service_unit)

    def _service_folders(self, pod: PodObject) -> tuple[Path, ...]:
        return self._services(pod)

    def _service_unit(self, pod: PodObject) -> str:
        return self._unit(pod)

    def serve(self, services: Callable[[PodObject], tuple[Path, ...]], unit: Callable[[PodObject], str]) -> None:
        """Services of the machine are known by now: *services* returns the folders of logs of the one that a pod is,
        *unit* what systemd calls it.
        """
        self._services = services
        self._unit = unit

    @property
    def settings(self) -> LogSettings:
        """Section ``logs`` that is in force."""
        return self._settings

    def reload(self, settings: LogSettings | None) -> None:
        """Go by *settings*, section ``logs`` of agent.yaml as it is now, all of it. Raises ConfigError for one that
        cannot be: it has no effect, and readiness warns.
        """
        try:
            if settings is None:
                raise ConfigError("logs: that nothing is read any more takes a restart of the daemon")
            prepare(settings.state_directory, "logs.stateDirectory")
        except ConfigError as error:
            self._unloaded = str(error)
            log.error("%s; the logs go on as before", error)
            raise
        self._unloaded = ""
        if settings == self._settings:
            return
        self._settings = settings
        self._make_sinks_folders()
        self._finder.reconfigure(settings, self._folders(settings))
        self._text = LogText(settings, self._folders(settings), self._finder.pods)
        self.collector.restart(self._first_words(settings), stop_seconds=settings.stop_seconds)
        log.info("the logs go by agent.yaml as it is now")

    def resign(self) -> None:
        """Let the other daemon's collector have the folder of positions."""
        self.collector.let_go()

    def changed(self, snapshot: Snapshot) -> None:
        """Follow this node's pods as they are now."""
        self._finder.follow(snapshot.objects)
        self._metrics.follow((pod.namespace, pod.name) for pod in snapshot.objects.values())

    def grown(self, snapshot: Snapshot) -> None:
        """Those that are new were told by :meth:`changed`: reading them forbids nothing."""

    def missing(self) -> list[str]:
        """Say nothing: logs keep no traffic back; :meth:`warnings` tells."""
        return []

    def warnings(self) -> list[str]:
        """Return, in words, what is not read or delivered, and why."""
        if self._unprepared:
            return [f"logs: {self._unprepared}"]
        refused = [f"logs: {self._unloaded}; they go on as before"] if self._unloaded else []
        found = [*self.collector.missing(), *self._lacking, *self._unmade_words(), *self._warnings]
        return [*refused, *found, *self._finder.warnings()]

    def _unmade_words(self) -> list[str]:
        return [f"logs: sink {name}: {why}" for name, why in self._unmade.items()]

    def routes(self) -> Routes:
        """``nodeagent get logs`` and ``nodeagent logs``."""
        return {
            ("GET", "/logs"): self._page,
            ("GET", "/logs/files"): self._files,
            ("GET", "/logs/pods"): self._names,
            ("GET", "/logs/text"): self._lines,
        }

    async def _names(self, query: Mapping[str, str]) -> Response:
        return await self._text.names(query)

    async def _lines(self, query: Mapping[str, str]) -> Response:
        return await self._text.page(query)

    async def _ask(self) -> Answer:
        """Return how the collector fares, with what it cannot know of its sinks."""
        answer = await self.collector.ask()
        return replace(answer, sinks=list(with_unmade(answer.sinks, self._unmade)))

    async def _page(self, query: Mapping[str, str]) -> Response:
        """Tell files, sinks, refusals and warnings."""
        answer = await self._ask()
        warnings = [*self.collector.missing(), *self._unmade_words(), *answer.warnings]
        refused = list(self._refused())
        return Response.json({"files": answer.files, "sinks": answer.sinks, "refused": refused, "warnings": warnings})

    async def _files(self, query: Mapping[str, str]) -> Response:
        """Tell a row for each file, and one for each pod or wish that is not read, with the reason."""
        answer = await self._ask()
        rows: list[Mapping[str, object]] = list(with_troubles(answer.files, answer.sinks))
        rows += unnamed_troubles(answer.files, answer.sinks)
        for followed, refusals in self._finder.rows():
            namespace, _, name = followed.name.partition("/")
            of = {"namespace": namespace, "pod": name} if followed.object is not None else {"pod": followed.name}
            rows += [{**of, "state": "refused", "why": words} for words in refusals]
            if followed.plan is not None and followed.plan.empty:
                rows.append({**of, "state": "not read", "why": followed.plan.kept_out or _LEFT_OUT})
        return Response.json(rows)

    async def report(self) -> None:
        """Bring the metrics up to date."""
        answer = await self._ask()
        self._metrics.tell(answer.files, answer.sinks, len(answer.warnings) + len(self._unmade))
        self._warnings = tuple(answer.warnings)

    async def _keep_asking(self) -> None:
        """Readiness is told by what is known, and asks nobody."""
        while True:
            await asyncio.sleep(ASK_SECONDS)
            if self._unmade:
                self._make_sinks_folders()
            await self.report()

    def faulty_pods(self) -> Iterator[dict[str, object]]:
        """Yield a row for each pod of which something is not read, as ``nodeagent get pods`` has them."""
        for followed, refusals in self._finder.rows():
            pod = followed.object
            if pod is not None and refusals and not followed.gone_at:
                faults = [f"its logs: {words}" for words in refusals[:MAX_TOLD]]
                yield {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid, "state": "", "faults": faults}

    def _refused(self) -> Iterator[dict[str, str]]:
        for followed, refusals in self._finder.rows():
            for words in refusals:
                yield {"pod": followed.name, "refusal": words}


def with_troubles(files: Iterable[Unchecked], sinks: Iterable[Unchecked]) -> Iterator[Unchecked]:
    """Yield the rows of *files*, each with what its sinks complain of: what is settled may be in the buffer only."""
    troubles = {each["name"]: f"sink {each['name']}: {each['trouble']}" for each in sinks if each["trouble"]}
    for row in files:
        own = [row["why"]] if row.get("why") else []
        found = [*own, *(troubles[name] for name in row["sinks"] if name in troubles)]
        yield {**row, "why": "; ".join(found)} if found else row


def unnamed_troubles(files: Iterable[Unchecked], sinks: Iterable[Unchecked]) -> Iterator[Unchecked]:
    """Yield a row for each of *sinks* that complains and that no file goes to: a former one with records on disk."""
    named = set().union(*(row["sinks"] for row in files))
    for each in sinks:
        if each["trouble"] and each["name"] not in named:
            why = f"sink {each['name']}: {each['trouble']}"
            yield {"sinks": [each["name"]], "state": "not delivered", "why": why}


def in_force(path: Path | None, settings: LogSettings) -> tuple[LogSettings, str]:
    """Return section ``logs`` of the agent.yaml at *path* as it is now, for a control that succeeds another one, which
    may have been told to reload; where it is wrong or none, *settings*, as the daemon was started with, and why.
    """
    if path is None:
        return settings, ""
    try:
        return load(path).logs or settings, ""
    except ConfigError as error:
        log.error("%s; the logs go by what the daemon was started with", error)
        return settings, str(error)


def unmade(settings: LogSettings) -> dict[str, str]:
    """Make the folders that sinks write files to, where they are missing; return the sinks whose folder cannot be
    made, each with why.
    """
    found: dict[str, str] = {}
    for sink in settings.sinks:
        if sink.file is None:
            continue
        folder = sink.file.path.parent
        try:
            if not os.path.lexists(folder):
                prepare(folder, "its folder")
        except ConfigError as error:
            mounted = f"; a path below {settings.state_directory}/sinks is mounted wherever logs.stateDirectory is"
            found[sink.name] = f"{error}{mounted if not folder.is_relative_to(settings.state_directory) else ''}"
    return found


def with_unmade(sinks: Iterable[Unchecked], whys: Mapping[str, str]) -> Iterator[Unchecked]:
    """Yield the rows of *sinks*; those that cannot begin say why, by *whys*, before what the collector knows."""
    for row in sinks:
        why = whys.get(str(row["name"]))
        yield {**row, "trouble": "; ".join(filter(None, (why, row["trouble"])))} if why else row


def prepare(folder: Path, what: str) -> None:
    """Make *folder* user 1337's, who writes to it, and its group root's, who may remove it again. Raises ConfigError
    that begins with *what* it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != USER and os.geteuid() == 0:
            folder.chmod(0o2770)
            os.chown(folder, USER, -1)
    except OSError as error:
        raise ConfigError(
            f"{what} {folder}: cannot be made user {USER}'s: {error.strerror}; {_next_step(folder, error)}"
        ) from None


def _next_step(folder: Path, error: OSError) -> str:
    """Return what is to be done about *error*, which came of making *folder*."""
    if error.errno == errno.EROFS:  # as the root of the DaemonSet's containers is
        return (
            "that file system is read-only, as a container's own is on a cluster: a path is expected that is mounted "
            "to be written to (daemonset/components/logs mounts /var/lib/nodeagent/logs), or a hostPath volume there"
        )
    return f"give the agent CAP_CHOWN, or make the folder beforehand: install -d -m 2770 -o {USER} {folder}"


def _lacking() -> list[str]:
    """Return, in words, what is lost for a capability that is missing."""
    missing = [right for right in LOG_RIGHTS if right.name not in held()]
    return [f"logs: CAP_{right.name} is missing: {right.lost}" for right in missing]
