"""Follows the units of agent.yaml's ``services``, and keeps the pods that they are.

systemd makes and removes a file for each unit that runs (/run/systemd/units, which journald reads):
what happens there is looked at anew at once. What happens without that (an address that comes
later, a unit that says that it is ready) is seen by looking now and then, and oftener while a unit's
state is one that does not last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nodeagent.control.concern import Snapshot
from nodeagent.errors import KernelError
from nodeagent.parts import Parts
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.places.place import Place
from nodeagent.resources import inotify
from nodeagent.resources.objects import PodObject
from nodeagent.services import objects
from nodeagent.services.as_pods import UNIT, Machine, Network, ServicePod, absent, clashes, service_pod
from nodeagent.services.settings import ServiceSettings
from nodeagent.services.units import Unit, Units, namespace_file
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid

RUNNING: Final = Path("/run/systemd/units")
LOOK_SECONDS: Final = 5.0
SOON_SECONDS: Final = 0.25
"""Between two looks; the shorter while something passes."""
SOON_LOOKS: Final = 40
"""Looks, 10 s of them, after which a unit's state lasts after all."""
SETTLE_SECONDS: Final = 0.02
"""Between an event and the look for it: a unit that starts anew makes several."""
RENAME: Final = "give the service another `name` in agent.yaml"
log = logging.getLogger("nodeagent.services")


class Services:
    """A concern, and the Places of its pods."""

    def __init__(
        self,
        settings: Sequence[ServiceSettings],
        machine: Machine,
        folder: Path,
        units: Units,
        network: Callable[[Path], Network],
        *,
        running: Path = RUNNING,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """*folder*: the source's. *network* enters a namespace by its file, and raises KernelError."""
        self._settings = tuple(settings)
        self._machine = machine
        self._folder = folder
        self._units = units
        self._network = network
        self._running = running
        self._clock = clock
        self._pods: dict[PodUid, ServicePod] = {}
        self._wrong: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._files: objects.OwnFiles | None = None
        self._created: dict[PodUid, str] = {}
        self._passing: dict[str, int] = {}
        self._resigned = False
        self._wake = asyncio.Event()
        self._others = AnnotationPlaces()

    # -- where pods run --

    def of(self, pod: PodObject) -> Place | None:
        """As Places says. What a document says of a service's place is not believed: it may be of an earlier boot."""
        if UNIT not in pod.annotations:
            return self._others.of(pod)
        found = self._pods.get(pod.uid)
        return found.place if found is not None else None

    def logs(self, pod: PodObject) -> tuple[Path, ...]:
        """Return the folders of logs of the service that *pod* is; none for any other pod."""
        found = self._pods.get(pod.uid)
        return found.logs if found is not None else ()

    def unit(self, pod: PodObject) -> str:
        """Return what systemd calls the service that *pod* is; empty for any other pod, whatever it says of itself."""
        found = self._pods.get(pod.uid)
        return found.unit if found is not None else ""

    # -- what runs --

    async def look(self) -> None:
        """See what runs. Raises KernelError where systemd does not answer; all is then as it was."""
        units = await self._units.look([setting.unit for setting in self._settings])
        self._remember()
        pods: list[ServicePod] = []
        wrong: dict[str, str] = {}
        for setting in self._settings:
            found = self._found(setting, units[setting.unit])
            if isinstance(found, ServicePod):
                pods.append(found)
            elif found:
                wrong[setting.unit] = found
        self._wrong = wrong | clashes(pods)
        self._pods = {pod.uid: pod for pod in pods if pod.unit not in self._wrong}
        self._created = {pod.uid: self._created[pod.uid] for pod in pods}
        self._passing = {name: self._passing.get(name, 0) + 1 for name, unit in units.items() if unit.passing}
        self._tell()

    def pause(self) -> float:
        """Return in how many seconds the next look is due, whatever happens."""
        return SOON_SECONDS if any(looks < SOON_LOOKS for looks in self._passing.values()) else LOOK_SECONDS

    def _found(self, setting: ServiceSettings, unit: Unit) -> ServicePod | str:
        """Return the pod, what is wrong, or an empty text: it is simply not there."""
        where = namespace_file(unit)
        if absent(unit, where):
            return ""
        network = Network(0, frozenset())
        if unit.loaded == "loaded" and where is not None:
            try:
                network = self._network(where)
            except KernelError as error:
                return str(error) if unit.state != "inactive" else ""
        found = service_pod(setting, unit, network, self._machine, self._clock().strftime("%Y-%m-%dT%H:%M:%SZ"))
        if not isinstance(found, ServicePod):
            return found
        return self._as_created(found)

    def _as_created(self, pod: ServicePod) -> ServicePod:
        """Return *pod* with the time at which it was seen first: of two pods with one address the younger has it."""
        metadata = dict(pod.document["metadata"])  # type: ignore[arg-type]
        metadata["creationTimestamp"] = self._created.setdefault(pod.uid, str(metadata["creationTimestamp"]))
        return replace(pod, document={**pod.document, "metadata": metadata})

    def _remember(self) -> None:
        """Take in, once, what an earlier daemon told of its services, and when it saw them first."""
        if self._files is not None:
            return
        self._files = objects.OwnFiles(self._folder, self._machine.node)
        for document in self._files.documents():
            metadata = document.get("metadata")
            if isinstance(metadata, dict):
                self._created[PodUid(str(metadata.get("uid")))] = str(metadata.get("creationTimestamp", ""))

    def _tell(self) -> None:
        """Log what is wrong now, once."""
        faults = self._taken | self._wrong
        for unit, fault in faults.items():
            if self._faults.get(unit) != fault:
                log.error("services: %s: %s", unit, fault)
        for unit in self._faults.keys() - faults.keys():
            log.info("services: %s: well again", unit)
        self._faults = faults

    def publish(self) -> None:
        """Have the folder say what was found. Raises ResourceError."""
        if self._resigned or self._files is None:
            return
        named = {objects.file_name(pod.namespace, pod.name): pod for pod in self._pods.values()}
        taken = self._files.put({name: pod.document for name, pod in named.items()})
        self._taken = {named[name].unit: f"objects/{name} of the source is another's: {RENAME}" for name in taken}
        self._tell()

    # -- a concern --

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Follow the units. What they are as pods stays when the daemon ends: it is protected by what is pinned."""
        parts.start("the services of this machine", self._follow)
        yield

    async def _follow(self) -> None:
        with self._watching():
            while True:
                self.publish()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.pause()):
                        await self._wake.wait()
                        await asyncio.sleep(SETTLE_SECONDS)
                self._wake.clear()
                await self.look()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Be woken by units that come and go, where systemd tells that. Raises KernelError."""
        descriptor = inotify.open_instance()
        loop = asyncio.get_running_loop()
        try:
            with contextlib.suppress(FileNotFoundError):
                inotify.watch(descriptor, self._running, inotify.CREATE | inotify.MOVED_TO | inotify.DELETE)
            loop.add_reader(descriptor, self._happened, descriptor)
            yield
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def _happened(self, descriptor: int) -> None:
        names = {name.partition(":")[2] for _, _, name in inotify.events(descriptor)}
        if not names.isdisjoint(setting.unit for setting in self._settings):
            self._wake.set()

    def resign(self) -> None:
        """Another daemon writes the pods from now on."""
        self._resigned = True

    def changed(self, snapshot: Snapshot) -> None:
        """It is where some of the changes come from."""

    def grown(self, snapshot: Snapshot) -> None:
        """It is where some of the changes come from."""

    def missing(self) -> list[str]:
        """One service that cannot be captured is a warning."""
        return []

    def warnings(self) -> list[str]:
        """Return, in words, which services are not captured, and why."""
        return [f"services: {unit}: {fault}" for unit, fault in sorted(self._faults.items())]

    def routes(self) -> Routes:
        """``nodeagent get pods`` has them."""
        return {}
