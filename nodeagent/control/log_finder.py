"""Finds the files of the node's logs, whatever is being read: pods that come, containers that start,
files that are rotated.

A pod is looked at anew (``log_scan.py``) whenever something happened in one of its folders (inotify:
names that come, go or change; never contents), when it was told differently, and now and then in any
case; while a folder that it should have is missing, often. What is told is always the whole look
compared with the last one: an event that was lost, doubled or late changes nothing.

A pod that makes and removes files as fast as it can is looked at no oftener for it: after a look that
took long, the next one waits for a multiple of that, up to ten seconds or as long as the look took. A
look goes in slices of some milliseconds, so that nothing of control waits for thousands of names; what
is told meanwhile and makes it wrong ends it, and it begins anew. Milliseconds of the processor: where a
node has none to spare, a look that waited for it did nothing meanwhile. One that waits for a disk has
others of control wait with it: its slices end, and what it waited counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Final

from nodeagent.control.log_followed import NODE, FollowedPod, Tells
from nodeagent.control.log_scan import MAX_ENTRIES, FileId, FoundFile, LogLook, Looker, Steps
from nodeagent.control.log_shares import TimeSlice, room_of
from nodeagent.control.log_watches import LogWatches
from nodeagent.errors import shown
from nodeagent.logs.fluentd.positions import read_positions, starts_of
from nodeagent.logs.pods import PodPlan, plan, routed
from nodeagent.logs.settings import LogSettings, NodeFile
from nodeagent.logs.sources import EVERY_STREAM, Reading, SourceFacts, SourceKind
from nodeagent.parts import Parts
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources.objects import PodObject
from nodeagent.services.as_pods import CONTAINER
from nodeagent.vocabulary import PodUid

SETTLE_SECONDS: Final = 0.01
"""Between an event and the look for it: events come several at once."""
MISSING_SECONDS: Final = 0.25
"""Between two looks for a folder that is not there yet; longer the longer it is waited for."""
PATIENCE: Final = 20.0
SURE_SECONDS: Final = 10.0
"""A pod is looked at so often without any event, too."""
POLL_SECONDS: Final = 0.5
"""Likewise, where folders cannot be watched."""
SHARE: Final = 0.05
"""Of a processor, that looks at one pod may take, as long as the next one comes within SURE_SECONDS."""
SLOW_SECONDS: Final = 1.0
"""That a look may take before it is told."""
IDLE_SOURCES: Final = 64
"""Of a pod that are remembered though they have no open file."""
GONE_SECONDS: Final = 30.0
"""For so long a pod's folders are looked for after it has left the API; the kubelet removes them later."""
LEFT_OUT: Final = Reading(without=EVERY_STREAM)
"""How a service's entries in the journal are read that asks to be left out: they are not the node's for that."""
log = logging.getLogger("nodeagent.logs")


def _queued() -> float:
    """Return for how many seconds this thread waited for a processor; 0: the kernel does not count that."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


class LogFinder:
    """Follows pods, and says what it finds to *tells*."""

    def __init__(
        self,
        settings: LogSettings,
        folders: LogFolders,
        tells: Tells,
        *,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[[], float] = time.thread_time,
        queued: Callable[[], float] = _queued,
    ) -> None:
        """*clock*, *work*, what this thread took of a processor, and *queued*, for how long it waited for one, in
        seconds, are injected for tests.
        """
        self._settings = settings
        self._folders = folders
        self._tells = tells
        self._clock = clock
        self._work = work
        self._queued = queued
        self._pods: dict[PodUid, FollowedPod] = {}
        self._known: dict[FileId, PodUid] = {}
        self._watches = LogWatches(self._happened)
        self._wake = asyncio.Event()
        self._positions = read_positions(settings.fluentd_positions)
        if settings.node.wanted:
            self._pods[NODE] = FollowedPod("the node", None, None)
        self._pods_known = False
        self._journal_begun = False
        """Who hears has been told files of the journal."""

    # -- what is to be followed --

    def follow(self, pods: Mapping[PodUid, PodObject]) -> None:
        """The node's pods are *pods* now."""
        self._pods_known = True
        for uid, pod in pods.items():
            before = self._pods.get(uid)
            if before is None or before.object is not pod or before.gone_at:
                self._describe(uid, pod, before)
        for uid, followed in self._pods.items():
            if uid != NODE and uid not in pods and not followed.gone_at:
                followed.gone_at = self._clock()
                followed.next_look = 0.0
        self._wake.set()

    def _describe(self, uid: PodUid, pod: PodObject, before: FollowedPod | None) -> None:
        made = plan(pod, self._settings)
        if before is None:
            self._pods[uid] = FollowedPod(f"{pod.namespace}/{pod.name}", pod, made)
            if made.refusals:
                log.warning("Pod %s/%s: %s", pod.namespace, pod.name, "; ".join(made.refusals))
            return
        if made.refusals and (before.plan is None or made.refusals != before.plan.refusals):
            log.warning("Pod %s/%s: %s", pod.namespace, pod.name, "; ".join(made.refusals))
        before.told += 1
        before.object = pod
        before.plan = made
        before.gone_at = 0.0
        before.next_look = 0.0
        left_out: list[str] = []
        for key, source in before.sources.items():
            described = self._described(before, source.kind, source.container or source.path)
            if described is None:
                left_out.append(key)
            elif described != source:
                before.sources[key] = described
                self._tells.source(described)
        self._give_up(before, left_out, left_out=True)

    def reconfigure(self, settings: LogSettings, folders: LogFolders) -> None:
        """Go by other *settings*; everything is told anew."""
        self._settings = settings
        self._folders = folders
        self._pods.pop(NODE, None)
        if settings.node.wanted:
            self._pods[NODE] = FollowedPod("the node", None, None)
        for followed in self._pods.values():
            if followed.object is not None:
                followed.plan = plan(followed.object, settings)
        self.forget()

    def forget(self) -> None:
        """Somebody else hears from now on, who knows nothing: tell everything anew."""
        self._known.clear()
        self._journal_begun = False
        for followed in self._pods.values():
            followed.told += 1
            followed.files.clear()
            followed.aside.clear()
            followed.sources.clear()
            followed.next_look = 0.0
            followed.not_before = 0.0
        self._wake.set()

    def closed(self, file: FileId) -> None:
        """Who was told *file* has it no more: if it is still there, it is told anew."""
        self._let_go(file)

    def put_aside(self, file: FileId, size: int, modified: int) -> None:
        """Who was told *file* has read it as it is with that *size*, and closed it to make room: until it changes it is
        not told.
        """
        followed, key = self._let_go(file)
        if followed is not None and key:
            followed.aside[file] = (key, (size, modified))

    def _let_go(self, file: FileId) -> tuple[FollowedPod | None, str]:
        """Return whose *file* was, and the key of its source."""
        uid = self._known.pop(file, None)
        for each in self._pods.values():
            if file in each.others:
                self._alarm(each)  # a new file has that inode
        followed = self._pods.get(uid) if uid is not None else None
        if followed is None:
            return None, ""
        key, _ = followed.files.pop(file, ("", ""))
        self._alarm(followed)
        return followed, key

    # -- what is told --

    def pods(self) -> Iterable[FollowedPod]:
        """Return all that are followed."""
        return self._pods.values()

    def rows(self) -> Iterator[tuple[FollowedPod, tuple[str, ...]]]:
        """Return all that are followed, each with what is refused of it."""
        for followed in self._pods.values():
            told = followed.plan.refusals if followed.plan is not None else ()
            yield followed, (*told, *followed.refusals)

    def warnings(self) -> list[str]:
        """Return, in words, what is not read, and why."""
        why = self._watches.blind
        found = [f"logs: folders cannot be watched, and are looked at each {POLL_SECONDS:g} s: {why}"] if why else []
        for followed, refusals in self.rows():
            if followed.took >= SLOW_SECONDS:
                later = max(followed.took, SURE_SECONDS)
                found.append(
                    f"logs of {followed.name}: a look for files took {followed.took:.1f} s, and the next comes up to "
                    f"{later:.0f} s later; is their disk slow, or are there thousands?"
                )
            if refusals and not followed.gone_at:
                more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
                found.append(f"logs of {followed.name}: {refusals[0]}{more}")
        return found

    def keys(self) -> Iterator[str]:
        """Return the keys of all sources that were told, and are not gone."""
        for followed in self._pods.values():
            yield from followed.sources

    def excluded(self) -> Iterator[str]:
        """Return the keys of containers' outputs that are left out of pods that live."""
        for followed in self._pods.values():
            if followed.object is not None and followed.plan is not None and not followed.gone_at:
                names = (each.name for each in followed.object.containers)
                left_out = (_key(followed, "output", each) for each in names if followed.plan.reading_of(each) is None)
                yield from (key for key in left_out if key not in followed.sources)

    @property
    def settled(self) -> bool:
        """Everything that is followed has been looked at since it was told."""
        return all(followed.next_look and not followed.waits for followed in self._pods.values())

    # -- the loop --

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """LogLook, for as long as the block runs."""
        self._watches.open()
        parts.start("the search for log files", self._keep_looking)
        try:
            yield
        finally:
            self._watches.close()

    async def _keep_looking(self) -> None:
        while True:
            self._wake.clear()
            for uid in self._due():
                await self._look_safely(uid)
                await asyncio.sleep(0)  # nothing of control waits for more than one pod
            try:
                await asyncio.wait_for(self._wake.wait(), self._pause())
            except TimeoutError:
                continue
            await asyncio.sleep(SETTLE_SECONDS)

    def _due(self) -> list[PodUid]:
        now = self._clock()
        due = [uid for uid, each in self._pods.items() if each.next_look <= now and each.not_before <= now]
        return sorted(due, key=NODE.__eq__)  # whose journal waits for all others

    def _pause(self) -> float:
        now = self._clock()
        nexts = [max(each.next_look, each.not_before) for each in self._pods.values()]
        return min([SURE_SECONDS, *(max(0.0, at - now) for at in nexts)])

    def _alarm(self, followed: FollowedPod) -> None:
        followed.alarmed = True
        followed.next_look = 0.0
        self._wake.set()

    def look_at_all(self) -> None:
        """LogLook at everything that is due, at once; for tests, and for who cannot wait."""
        for uid in self._due():
            for _ in self._look(uid):
                pass

    async def _look_safely(self, uid: PodUid) -> None:
        """Whatever it is that a pod's files make a look raise, control goes on, and so do other pods' logs."""
        try:
            with closing(self._look(uid)) as slices:
                for _ in slices:
                    await asyncio.sleep(0)
        except Exception:
            followed = self._pods.get(uid)
            log.exception("logs of %s: a bug in the look for them; it is tried again", followed and followed.name)
            if followed is not None:
                followed.not_before = followed.next_look = self._clock() + SURE_SECONDS

    def _look(self, uid: PodUid) -> Generator[None]:
        """Look at a pod; yield wherever others of control may have their turn."""
        followed = self._pods.get(uid)
        if followed is None:
            return
        told = followed.told
        followed.alarmed = False
        time_slice = TimeSlice(self._work, self._clock, self._queued)
        look = LogLook()
        try:
            with self._watches.look(uid):
                for _ in self._steps(uid, followed, look):
                    if time_slice.is_over():
                        yield
                        time_slice.begin()
                        if followed.told != told or self._pods.get(uid) is not followed:
                            return  # due again
            self._take(uid, followed, look)
        finally:
            look.close()
        now = self._clock()
        followed.took = time_slice.end()
        followed.not_before = now + min(followed.took * (1 / SHARE - 1), max(followed.took, SURE_SECONDS))
        wait = self._wait(followed, look, now)
        followed.next_look = now if followed.alarmed else now + wait
        if followed.gone_at and not look.names and (not look.there or now - followed.gone_at > GONE_SECONDS):
            self._drop(uid, followed)

    def _wait(self, followed: FollowedPod, look: LogLook, now: float) -> float:
        """Return the seconds until the next look."""
        followed.waits = look.waits
        lacks = look.missing or look.waits or not (look.there or followed.gone_at)
        followed.since = (followed.since or now) if lacks else 0.0
        sure = POLL_SECONDS if self._watches.blind else SURE_SECONDS
        return min(sure, max(MISSING_SECONDS, (now - followed.since) / PATIENCE)) if lacks else sure

    def _room(self, followed: FollowedPod) -> int:
        others = [len(each.files) for each in self._pods.values() if each is not followed and not each.gone_at]
        gone = len(self._known) - sum(others) - len(followed.files)
        return room_of(self._settings.limits, len(followed.files), others, gone)

    def _steps(self, uid: PodUid, followed: FollowedPod, look: LogLook) -> Steps:
        """Look at all that is wanted of a pod."""
        looker = Looker(
            known=self._known.__contains__,
            followed=lambda path: _key(followed, "file", path) in followed.sources,
            watch=lambda folder: self._watches.watch(uid, folder),
            room=self._room(followed),
            aside=lambda file: followed.aside.get(file, ("", None))[1],
        )
        if followed.plan is None:
            yield from self._steps_of_node(looker, followed, look)
        else:
            yield from self._steps_of_pod(looker, followed, followed.plan, look)

    def _steps_of_node(self, looker: Looker, followed: FollowedPod, look: LogLook) -> Steps:
        for each in self._settings.node.files:
            yield from looker.node_file(each.path, look)
        if self._settings.node.journal is None:
            return
        if not self._journal_begun and not self._services_are_told():
            look.waits = True
            return
        self._journal_begun = True
        folders = self._settings.node.journal.folders
        there = look.there
        look.there = False
        for folder in folders:
            yield from looker.journal(folder, look)
        if not look.there:
            look.missing.append(f"the journal: {' and '.join(map(str, folders))}: no such folder")
        look.there = look.there or there

    def _services_are_told(self) -> bool:
        """Say whether it is known whose entries the journal has: once they are read it is too late."""
        return self._pods_known and all(each.next_look for uid, each in self._pods.items() if uid != NODE)

    def _steps_of_pod(self, looker: Looker, followed: FollowedPod, wanted: PodPlan, look: LogLook) -> Steps:
        assert followed.object is not None
        pod = followed.object
        if wanted.output:
            folder = self._folders.output(pod)
            docker = self._settings.docker_containers
            containers: dict[str, bool] = {}

            def is_wanted(name: str) -> bool:
                containers[name] = wanted.reading_of(name) is not None
                return containers[name]

            yield from looker.outputs(folder, is_wanted, docker, look)
            all_are_there = pod.ready or len(containers) >= len(pod.containers)  # one's image may still be pulled
            if pod.phase == "Running" and containers and all_are_there:
                _refuse_unknown(wanted.named, containers, look)
        for each in wanted.files:
            yield from looker.volume(self._folders.volume(pod, each.volume), each.volume, each.pattern, look)

    def _take(self, uid: PodUid, followed: FollowedPod, look: LogLook) -> None:
        """Tell what differs from the last look; the oldest file of a source first."""
        followed.refusals = look.told()
        self._tell_service(followed)
        files = [(_key(followed, each.kind, each.within), each.opened.descriptor) for each in look.found]
        starts = starts_of(files, self._positions, followed.words)
        for found in sorted(look.found, key=lambda each: each.modified):
            source = self._found_source(followed, found)
            if source is None:
                continue
            identity = (found.opened.device, found.opened.inode)
            self._known[identity] = uid
            followed.aside.pop(identity, None)
            followed.files[identity] = (source.key, found.name)
            self._tells.file(source.key, replace(found, start=starts[found.opened.descriptor]))
        for identity, (key, name) in list(followed.files.items()):
            now = look.names.get(identity, "" if look.whole else name)
            if now != name:
                followed.files[identity] = (key, now)
                self._tells.renamed(identity, now)
        unseen = [identity for identity in followed.aside if identity not in look.names]
        if not look.whole:  # they may be where it did not get to
            unseen = unseen[: max(0, len(followed.aside) - MAX_ENTRIES)]
        self._tell_gone(followed, unseen)
        followed.others = frozenset(each for each in look.names if self._known.get(each, uid) != uid)
        self._forget_idle(followed)
        if look.lacking:
            self._tells.room_wanted(uid, look.lacking)

    def _tell_service(self, followed: FollowedPod) -> None:
        """Tell of a pod that is a service of the machine what its entries in the journal are read as."""
        pod = followed.object
        if pod is None or self._settings.node.journal is None or not self._folders.unit(pod):
            return
        key = _key(followed, "output", CONTAINER)
        if key not in followed.sources and (source := self._described(followed, "output", CONTAINER)) is not None:
            followed.sources[key] = source
            self._tells.source(source)

    def _tell_gone(self, followed: FollowedPod, files: Iterable[FileId]) -> None:
        """Some *files* that were put aside are not there any more."""
        for identity in files:
            del followed.aside[identity]
            if identity not in self._known:  # else it is another one by now
                self._tells.renamed(identity, "")

    def _forget_idle(self, followed: FollowedPod) -> None:
        """Give the oldest sources up that have no open file any more: a pod may call each of its files anew. How far
        those that were put aside are read stays known.
        """
        if len(followed.sources) <= IDLE_SOURCES:
            return
        used = {key for key, _ in followed.files.values()}
        idle = [key for key, each in followed.sources.items() if key not in used and not each.unit]
        self._give_up(followed, idle[: len(idle) - IDLE_SOURCES])

    def _give_up(self, followed: FollowedPod, keys: Collection[str], *, left_out: bool = False) -> None:
        """Sources have no more files, or are *left_out* from now on."""
        given = frozenset(keys)
        for identity in [identity for identity, (source, _) in followed.files.items() if source in given]:
            del followed.files[identity]
            self._known.pop(identity, None)
        if left_out:
            followed.aside = {file: each for file, each in followed.aside.items() if each[0] not in given}
        for key in keys:
            del followed.sources[key]
            self._tells.source_gone(key, left_out=left_out)

    def _drop(self, uid: PodUid, followed: FollowedPod) -> None:
        """A pod is gone, and so are its files; whoever has them open reads them to their ends."""
        self._tell_gone(followed, list(followed.aside))
        self._give_up(followed, list(followed.sources))
        self._watches.drop(uid)
        del self._pods[uid]

    # -- sources --

    def _found_source(self, followed: FollowedPod, found: FoundFile) -> SourceFacts | None:
        """Return the source of a file, told; None: it is not to be read after all."""
        key = _key(followed, found.kind, found.within)
        source = followed.sources.get(key)
        if source is None:
            source = self._described(followed, found.kind, found.within)
            if source is not None:
                followed.sources[key] = source
                self._tells.source(source)
        return source

    def _described(self, followed: FollowedPod, kind: SourceKind, within: str) -> SourceFacts | None:
        """Return what is known of a source now; None: it is not to be read."""
        pod = followed.object
        reading = self._reading(followed, kind, within)
        unit = ""
        if pod is not None and (kind, within) == ("output", CONTAINER):
            unit = self._folders.unit(pod)
        if followed.plan is not None and unit:
            reading = followed.plan.reading_of_entries(within) or LEFT_OUT
        if reading is None:
            return None
        facts = SourceFacts(
            key=_key(followed, kind, within),
            kind=kind,
            uid=pod.uid if pod is not None else NODE,
            namespace=pod.namespace if pod is not None else "",
            pod=pod.name if pod is not None else "",
            container=within if kind == "output" else "",
            path="" if kind == "output" else within,
            labels=pod.labels if pod is not None else {},
            annotations=self._annotations(pod) if pod is not None else {},
            reading=reading,
            unit=unit,
        )
        return routed(facts, self._settings)

    def _annotations(self, pod: PodObject) -> dict[str, str]:
        wanted = self._settings.metadata.annotations
        return {name: pod.annotations[name] for name in wanted if name in pod.annotations}

    def _reading(self, followed: FollowedPod, kind: SourceKind, within: str) -> Reading | None:
        if followed.plan is not None:
            return followed.plan.reading_of(within) if kind == "output" else followed.plan.reading_of_file(within)
        journal = self._settings.node.journal
        if kind == "journal":
            return Reading(parser="journal", sinks=journal.sinks) if journal is not None else None
        return next((_of_node(each) for each in self._settings.node.files if str(each.path) == within), None)

    def _happened(self, uid: PodUid | None) -> None:
        """Something has come, gone or been renamed in a folder of *uid*; None: anywhere."""
        if uid is None:
            for followed in self._pods.values():
                self._alarm(followed)
        elif uid in self._pods:
            self._alarm(self._pods[uid])


def _refuse_unknown(named: Mapping[str, str], containers: Iterable[str], look: LogLook) -> None:
    """Tell which of the containers that annotations name are none of a running pod's *containers*."""
    there = sorted(containers)
    for container, annotation in named.items():
        if container not in there:
            look.refuse(f"{annotation}: {shown(container)}: no container of that name; there are {', '.join(there)}")


def _key(followed: FollowedPod, kind: SourceKind, within: str) -> str:
    return f"{kind}/{followed.object.uid if followed.object is not None else ''}/{within}"


def _of_node(file: NodeFile) -> Reading:
    return Reading(parser=file.parser, multiline=file.multiline, sinks=file.sinks)
