"""Places by the container runtime: which sandboxes this node has, kept up to date.

A sandbox is in the runtime's list 190 to 450 ms before its pod's first instruction, and before the
API says the pod's address. So it is looked for often while a pod that shall run here has none
(:meth:`CriPlaces.expect`), at once when the runtime has an event or a namespace comes or goes where it
keeps them, and else every few seconds, or every second where neither can be seen. What is told is
always the whole list compared with the last one: an event that was lost, doubled or late changes
nothing.

A sandbox that is ready no more, as when the process that holds its namespaces was killed, is there for as
long as its network namespace is: containers may run in it, until the kubelet has the network taken down.
Where a process stood for the namespace, any other one of the pod that is in it does. Of a sandbox that was
so before its status was known, as for who starts meanwhile, the runtime is asked until it has told what is left:
:meth:`CriPlaces.untold` names it so long, for its pod is not to be let go.

While the runtime does not answer (it restarts; pods go on), the last answer holds, and it is asked
again after growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.places.bundles import FOLDERS, Bundles, Network, Reader
from nodeagent.places.cgroups import processes
from nodeagent.places.place import Place
from nodeagent.places.runtime import ContainerRuntime, EventsUnserved, QuestionRefused, RuntimeUnavailable
from nodeagent.places.sandbox import Listed, Sandbox, SandboxError, SandboxGone, SandboxReport
from nodeagent.resources import inotify
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import PodUid

FAST_SECONDS: Final = 0.075
SLOW_SECONDS: Final = 1.0
WATCHED_SECONDS: Final = 10.0
"""Between two looks: while a pod waits for its sandbox, else, and where namespaces are seen to come and
go or events come. A list of a hundred sandboxes costs the runtime and control some ms each.
"""
SILENT_SECONDS: Final = 1.0
"""A stream of events that the runtime has not refused in this time is served, whether one comes or not."""
UNSERVED_SECONDS: Final = 60.0
"""Until a runtime that has no events is asked for them again: it may be another release by then."""
PATIENCE: Final = 40.0
"""A pod that has waited for this many times a pause is looked for no more often: its volume or its
node's network may take hours.
"""
ALARM_SECONDS: Final = 3.0
"""How long looks follow each other quickly after a namespace was mounted: its sandbox is ready when its
network is.
"""
BUILDING_SECONDS: Final = 60.0
"""For so long they do while a namespace is there that no sandbox has: on a busy node its network and
its first process take longer than that.
"""
SETTLE_SECONDS: Final = 0.02
"""Between an event and the look for it: events come several at once."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Between two attempts, while the runtime does not answer."""
AT_ONCE: Final = 8
"""Verbose statuses that are asked for at once."""
TOGETHER_SECONDS: Final = 0.02
"""For so long a look waits for them: one that takes longer, as on a busy node, keeps back no other."""
STUCK_SECONDS: Final = 0.5
"""A status that takes longer is in no other's way: the shim of its container may hang."""
STILL_SECONDS: Final = 1.5
"""The first look waits for all statuses, but no longer than for so long after the last one that came."""
LONGEST_PUT_OFF: Final = 60.0
"""Between two questions after a sandbox that has ended, of which the runtime does not tell."""
NETNS_FOLDERS: Final = (Path("/run/netns"), Path("/var/run/netns"))
MIRROR: Final = "kubernetes.io/config.mirror"
"""Annotation of a static pod's mirror: the uid that the kubelet and the runtime know the pod by."""
_PROC: Final = "/proc/"
log = logging.getLogger("nodeagent.places")


def pause(waited: float | None, since_alarm: float, *, events: bool, watched: bool) -> float:
    """Return the seconds until the next look: *waited* is how long the pod that waits least has had
    no sandbox (None: none waits), *since_alarm* how long ago something was mounted, *events* whether
    the runtime tells what happens, *watched* whether mounts are seen.
    """
    if since_alarm < ALARM_SECONDS:
        return FAST_SECONDS
    if waited is not None:
        return SLOW_SECONDS if events else min(max(FAST_SECONDS, waited / PATIENCE), SLOW_SECONDS)
    return WATCHED_SECONDS if events or watched else SLOW_SECONDS


@dataclass(slots=True)
class _Ended:
    """A sandbox that is ready no more, and of which it is not known what is left."""

    listed: Listed
    due: float = float("-inf")
    """When it is asked for again, by the loop's clock."""
    pause: float = SLOW_SECONDS


class CriPlaces:
    """Where this node's pods run, by *runtime*; *read* makes a sandbox of what it reports.

    *uniform* is injected for tests; *folders* is where runtimes mount network namespaces. *network*
    says which addresses are in one; with it sandboxes are found before the runtime tells of them, in *bundles*.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        read: Reader,
        *,
        folders: Iterable[Path] = NETNS_FOLDERS,
        network: Network | None = None,
        bundles: Iterable[Path] = FOLDERS,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._runtime = runtime
        self._read = read
        self._folders = tuple(folders)
        self._uniform = uniform
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, Sandbox | None] = {}
        """By the runtime's id; None: it shares the node's network, or cannot be read yet."""
        self._retry: dict[str, float] = {}
        """When a sandbox that could not be read is asked for again, by the loop's clock."""
        self._current: dict[PodUid, Sandbox] = {}
        self._lost = False
        """One of them is ready no more."""
        self._fresh: Mapping[PodUid, Listed] = {}
        """What the runtime listed last as ready."""
        self._ended: dict[PodUid, _Ended] = {}
        """Those that are not ready, and of which the runtime has yet to tell."""
        self._held: dict[PodUid, Sandbox] = {}
        """What is left of those, as it came since the last look."""
        self._untold: Mapping[PodUid, Listed] = {}
        self._expected: dict[PodUid, float] = {}
        self._faults: dict[PodUid, str] = {}
        self._failures = 0
        self._trouble = "the container runtime has not been asked yet"
        self._asked = False
        self._wake = asyncio.Event()
        self._alarm = float("-inf")
        self._left = float("-inf")
        self._asking: dict[str, asyncio.Task[None]] = {}
        """Whose status is being asked for, by the runtime's id."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._building: dict[str, float] = {}
        """Names of mounted namespaces without a sandbox, and when they were mounted, by the loop's clock."""
        self._events = False
        self._listener: asyncio.Task[None] | None = None
        self._inotify = -1
        self._watched = False
        """Namespaces are seen to come and go."""
        self._bundles = Bundles(read, network, self._wake_early, folders=bundles) if network is not None else None
        self._is_early = False
        """There is news of a sandbox of which the runtime does not tell yet."""

    def of(self, pod: PodObject) -> Place | None:
        """Return where *pod* runs. A pod that names another's sandbox, as mirrors name their static
        pod's, is nowhere unless that one has its name.
        """
        found = self._current.get(pod.uid) or self._current.get(PodUid(pod.annotations.get(MIRROR, "")))
        if found is None or (found.namespace, found.name) != (pod.namespace, pod.name):
            return None
        return found.place

    def sandbox(self, uid: PodUid) -> Sandbox | None:
        """Return the sandbox of the pod *uid*, None while there is none that can be entered."""
        return self._current.get(uid)

    def all(self) -> Mapping[PodUid, Sandbox]:
        """Return all sandboxes with a network of their own."""
        return self._current

    def untold(self) -> Mapping[PodUid, Listed]:
        """Return the sandboxes that are or may be there, and of which is not known where: none is to be let go."""
        return self._untold

    def faults(self) -> Mapping[PodUid, str]:
        """Return, for pods whose sandbox is there and cannot be used, why."""
        return self._faults

    def faults_of(self, uid: PodUid) -> list[str]:
        """Return why the sandbox of the pod *uid* cannot be used, none where it can."""
        return [f"its sandbox: {self._faults[uid]}"] if uid in self._faults else []

    def warnings(self) -> list[str]:
        """Return what readiness shall tell: pods go on while the runtime does not answer."""
        return [self._trouble] if self._trouble else []

    def missing(self) -> list[str]:
        """Return why no pod of this node can be found, in words: no runtime has answered yet, or not
        one sandbox can be used, as where the agent's container does not see the node's namespaces.
        An agent that is blind must not take another one's place.
        """
        if not self._asked:
            return [self._trouble]
        faults = [why for uid, why in self._faults.items() if uid not in self._ended]
        if not faults or self._current:
            return []
        return [f"no sandbox of this node can be used, as of one of {len(faults)}: {min(faults)}"]

    def trouble(self) -> str:
        """Return why what is known may be old; empty: the runtime answers."""
        return self._trouble

    def known(self) -> bool:
        """Say whether the runtime has ever answered: until then pods of this node may not be known."""
        return self._asked

    def expect(self, uids: Collection[PodUid]) -> None:
        """The pods *uids* shall run here: look often while one of them has no sandbox."""
        now = self._loop.time()
        before = self._expected
        self._expected = {uid: before.get(uid, now) for uid in uids if uid not in self._fresh}
        if self._expected.keys() - before.keys():
            self._wake.set()

    def made(self, listed: Listed, report: SandboxReport) -> None:
        """The runtime has made the sandbox *listed*, of which it says *report*, and lists it soon."""
        if self._bundles is not None and listed.id not in self._seen:
            self._bundles.take(listed, report)

    async def changed(self) -> frozenset[PodUid]:
        """Wait until a pod's sandbox has come, gone or become another; return whose. The first call
        returns what is there, and does not wait for a runtime that does not answer.

        For one caller at a time. A call that is cancelled has told nothing; one that has returned is
        not told again. Never raises for what the runtime does: see :meth:`trouble`.
        """
        if self._listener is None:
            self._listener = self._loop.create_task(self._listen(), name="the container runtime's events")
            self._watch()
            return await self._look()
        while True:
            await self._next()
            if found := self._early() or await self._look():
                return found

    def close(self) -> None:
        """Stop following; idempotent."""
        if self._listener is not None:
            self._listener.cancel()
        if self._bundles is not None:
            self._bundles.close()
        for asking in self._asking.values():
            asking.cancel()
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
        self._runtime.close()

    async def _next(self) -> None:
        """Wait until the next look is due."""
        try:
            async with asyncio.timeout(self._due()):
                await self._wake.wait()
        except TimeoutError:
            return
        if not self._is_early:
            await asyncio.sleep(SETTLE_SECONDS)

    def _due(self) -> float:
        if self._failures:
            return min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16), LONGEST_PAUSE) * self._uniform(0.8, 1.2)
        now = self._loop.time()
        waited = now - max(self._expected.values()) if self._expected else None
        self._building = {name: since for name, since in self._building.items() if now - since < BUILDING_SECONDS}
        since_alarm = float("-inf") if self._building else now - self._alarm
        usual = pause(waited, since_alarm, events=self._events, watched=self._watched)
        if self._retry or self._lost or now - self._left < ALARM_SECONDS:
            return min(usual, SLOW_SECONDS)
        asked_again = min((each.due for each in self._ended.values()), default=float("inf"))
        return min(usual, max(asked_again - now, SLOW_SECONDS))

    def _wake_early(self) -> None:
        self._is_early = True
        self._wake.set()

    def _early(self) -> frozenset[PodUid]:
        """Return for which pods there is a sandbox that the runtime does not tell of yet, and was not known;
        the runtime is asked after that.
        """
        if not self._is_early or self._bundles is None:
            return frozenset()
        self._is_early = False
        found = self._bundles.early(self._seen)
        differ = frozenset(uid for uid, sandbox in found.items() if self._current.get(uid) != sandbox)
        self._current = {**self._current, **found}
        return differ

    async def _look(self) -> frozenset[PodUid]:
        """Ask the runtime; return the pods for which it answers otherwise than before."""
        self._wake.clear()
        if self._bundles is not None:
            self._bundles.follow()
        try:
            listed = await self._runtime.sandboxes()
            fresh = _newest(listed)
            if not self._asked:
                ended = _newest(await self._runtime.sandboxes(ready=False))
                self._ended = {uid: _Ended(each) for uid, each in ended.items() if uid not in fresh}
            await self._read_new(fresh.values())
        except RuntimeUnavailable as error:
            self._failed(str(error))
            return frozenset()
        self._well()
        return self._take(fresh, {each.id for each in listed})

    async def _read_new(self, sandboxes: Iterable[Listed]) -> None:
        """Ask for those of *sandboxes* that are not known yet, and for those that have ended; what comes later than
        this look is told by the next one, which it wakes. The first look waits for all that come. Raises
        RuntimeUnavailable.
        """
        listed = {each.id: each for each in sandboxes}
        now = self._loop.time()
        for each in listed.values():
            due = each.id not in self._seen or self._retry.get(each.id, now + 1) <= now
            if due and each.id not in self._asking:
                self._begin(each.id, self._ask(each))
        for ended in self._ended.values():
            listed[ended.listed.id] = ended.listed
            if ended.due <= now and ended.listed.id not in self._asking:
                self._begin(ended.listed.id, self._ask_ended(ended))
        waiting = set(self._asking.values())
        while waiting:
            patience = TOGETHER_SECONDS if self._asked else STILL_SECONDS
            until = asyncio.ALL_COMPLETED if self._asked else asyncio.FIRST_COMPLETED
            done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=until)
            for asking in done:
                asking.result()
            if self._asked or not done:
                break
        # a task that has ended calls back in the loop's next turn only
        self._asking = {name: asking for name, asking in self._asking.items() if not asking.done()}
        for name in self._asking.keys() & listed.keys() if not self._asked else ():
            self._fault(listed[name], f"the container runtime has not told of it for {STILL_SECONDS:g} s")

    def _begin(self, sandbox: str, question: Coroutine[None, None, None]) -> None:
        asking = self._asking[sandbox] = self._loop.create_task(question)
        asking.add_done_callback(partial(self._asked_for, sandbox))

    def _asked_for(self, sandbox: str, asking: asyncio.Task[None]) -> None:
        """Let the next look tell what came; what failed is asked for again by it, when it is due."""
        if self._asking.get(sandbox) is asking:
            del self._asking[sandbox]
        if not asking.cancelled() and asking.exception() is None and sandbox in self._seen:
            self._wake.set()

    async def _ask(self, listed: Listed) -> None:
        try:
            report = await self._reported(listed.id)
        except QuestionRefused as error:  # one sandbox that is broken is no other's
            self._seen.setdefault(listed.id, None)
            self._retry[listed.id] = self._loop.time() + SLOW_SECONDS
            self._fault(listed, str(error))
            return
        if report is None or not report.ready:
            return
        self._retry.pop(listed.id, None)
        self._seen[listed.id] = None
        if report.host_network:
            return
        try:
            found = self._seen[listed.id] = self._read(listed, report)
        except (SandboxError, OSError) as error:
            self._retry[listed.id] = self._loop.time() + SLOW_SECONDS
            self._fault(listed, str(error))
            return
        self._faults.pop(listed.uid, None)
        if not found.addresses:
            self._retry[listed.id] = self._loop.time() + SLOW_SECONDS

    async def _ask_ended(self, ended: _Ended) -> None:
        """Ask what is left of *ended*; it is asked for again where that cannot be known. Raises RuntimeUnavailable."""
        listed = ended.listed
        ended.due = self._loop.time() + ended.pause
        ended.pause = min(ended.pause * 2, LONGEST_PUT_OFF)
        held: Sandbox | None = None
        why = ""
        try:
            report = await self._reported(listed.id)
            if report is not None and report.ready:
                raise SandboxError("the container runtime lists it as ended, and says that it is ready")
            if report is not None and not report.host_network:
                held = self._read(listed, report)
        except SandboxGone as error:
            log.debug("the sandbox of pod %r/%r: %s", listed.namespace, listed.name, error)
        except (QuestionRefused, SandboxError, OSError) as error:
            why = str(error)
        if self._ended.get(listed.uid) is not ended:
            return  # its pod has another sandbox by now
        if why:
            self._fault(listed, why)
            return
        del self._ended[listed.uid]
        self._faults.pop(listed.uid, None)
        if held is not None:
            self._held[listed.uid] = held
        self._wake.set()

    async def _reported(self, sandbox: str) -> SandboxReport | None:
        """Ask for the status of *sandbox* when there is room. Raises RuntimeUnavailable."""
        await self._room.acquire()
        room = ExitStack()
        room.callback(self._room.release)
        stuck = self._loop.call_later(STUCK_SECONDS, room.close)
        try:
            return await self._runtime.report(sandbox)
        finally:
            stuck.cancel()
            room.close()

    def _fault(self, listed: Listed, why: str) -> None:
        if self._faults.get(listed.uid) != why:
            self._faults[listed.uid] = why
            log.error("the sandbox of pod %r/%r cannot be used: %s", listed.namespace, listed.name, why)

    def _take(self, fresh: Mapping[PodUid, Listed], ids: Collection[str]) -> frozenset[PodUid]:
        """Make *fresh* what is known, and what is left of those that have ended; forget all but *ids*.
        Return who differs.
        """
        before = self._current
        held, self._held = self._held, {}
        now: dict[PodUid, Sandbox] = {}
        for uid, each in fresh.items():
            # what holds of a pod holds until its next sandbox is known
            found = before.get(uid) if each.id in self._asking else self._seen.get(each.id)
            if found is not None:
                now[uid] = found
        if self._bundles is not None:
            now |= self._bundles.early(ids)  # what is not told yet is later than what is
        missed = {uid: each for uid, each in {**held, **before}.items() if uid not in now}
        lost = {uid: found for uid, each in missed.items() if (found := self._kept(each)) is not None}
        self._lost = bool(lost)
        now |= lost
        differ = {uid for uid in now.keys() | before.keys() if now.get(uid) != before.get(uid)}
        differ |= self._leave_untold(fresh, now)
        self._seen = {name: found for name, found in self._seen.items() if name in ids}
        self._retry = {name: due for name, due in self._retry.items() if name in ids}
        self._faults = {uid: why for uid, why in self._faults.items() if uid in fresh or uid in self._ended}
        self._current = now
        for sandbox in now.values():
            self._building.pop(PurePosixPath(sandbox.place.netns).name, None)
        self._fresh = fresh
        self._expected = {uid: since for uid, since in self._expected.items() if uid not in fresh}
        return frozenset(differ)

    def _leave_untold(self, fresh: Mapping[PodUid, Listed], now: Mapping[PodUid, Sandbox]) -> Set[PodUid]:
        """Bring to *fresh* and *now* of which sandboxes is not known where they are; return of which it was so, and
        is no more. One that ended meanwhile is asked for on.
        """
        before = self._untold
        self._ended = {uid: each for uid, each in self._ended.items() if uid not in fresh and uid not in now}
        for uid, each in before.items():
            if each is self._fresh.get(uid) and uid not in fresh and uid not in now:
                self._ended[uid] = _Ended(each)
        unread = {
            uid: each
            for uid, each in fresh.items()
            if uid not in now and (uid in self._faults or each.id not in self._seen)
        }
        self._untold = unread | {uid: each.listed for uid, each in self._ended.items()}
        return before.keys() - self._untold.keys()

    @staticmethod
    def _kept(sandbox: Sandbox) -> Sandbox | None:
        """Return *sandbox*, which is ready no more, where its network namespace is now; None: it is gone."""
        place = sandbox.place
        if place.network is None:
            return None
        if _network_at(place.netns) == place.network:
            return sandbox
        if not place.netns.startswith(_PROC):
            return None
        paths = (f"{_PROC}{pid}/ns/net" for pid in processes(Path(place.cgroup)))
        path = next((path for path in paths if _network_at(path) == place.network), None)
        return replace(sandbox, place=replace(place, netns=path)) if path is not None else None

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._trouble != why:
            self._trouble = why
            held = f"what is known of {len(self._current)} pods holds" if self._asked else "no pod's place is known"
            log.error("%s; %s, and it is asked again", why, held)

    def _well(self) -> None:
        if self._failures:
            log.info("the container runtime answers")
        self._failures = 0
        self._trouble = ""
        self._asked = True

    async def _listen(self) -> None:
        """Wake the look at each event; where none are served, looks are frequent instead."""
        while True:
            seconds = LONGEST_PAUSE
            silence = self._loop.call_later(SILENT_SECONDS, self._events_served)
            try:
                async for _ in self._runtime.events():
                    self._events_served()
                    self._wake.set()
            except EventsUnserved:
                seconds = UNSERVED_SECONDS
            except RuntimeUnavailable:
                pass
            finally:
                silence.cancel()
            if self._events:  # what happens from now on is not told
                self._events = False
                self._wake.set()
            await asyncio.sleep(seconds * self._uniform(0.8, 1.2))

    def _events_served(self) -> None:
        self._events = True

    def _watch(self) -> None:
        """Follow where the runtime mounts network namespaces, as far as that can be seen from here."""
        try:
            self._inotify = inotify.open_instance()
        except KernelError as error:
            log.warning("%s; new pods are found a little later", error)
            return
        for folder in self._folders:
            try:
                inotify.watch(self._inotify, folder, inotify.CREATE | inotify.DELETE)
            except (KernelError, FileNotFoundError):
                continue
            self._watched = True
        self._loop.add_reader(self._inotify, self._mounted)

    def _mounted(self) -> None:
        now = self._loop.time()
        for _, mask, name in inotify.events(self._inotify):
            if mask & inotify.CREATE:
                self._alarm = self._building[name] = now
            else:  # the runtime says that the sandbox has gone a little later
                self._left = now
                self._building.pop(name, None)
        self._wake.set()


def _network_at(path: str) -> tuple[int, int] | None:
    """Return the file that the network namespace at *path* is, by device and number; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _newest(listed: Iterable[Listed]) -> dict[PodUid, Listed]:
    """Return the sandbox of each pod: of several, as after a crash, the one that was made last."""
    found: dict[PodUid, Listed] = {}
    for each in sorted(listed, key=lambda one: (one.attempt, one.created)):
        found[each.uid] = each
    return found
