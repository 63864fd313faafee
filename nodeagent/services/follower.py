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
from nodeagent.services.as_pods import UNIT, Machine, Network, ServicePod, absent, service_pod
from nodeagent.services.settings import ServiceSettings
from nodeagent.services.units import Unit, Units, namespace_file
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid

RUNNING: Final = Path("/run/systemd/units")
LOOK_SECONDS: Final = 5.0
SOON_SECONDS: Final = 0.25
"""Between two looks; the shorter while something passes."""
SETTLE_SECONDS: Final = 0.02
"""Between an event and the look for it: a unit that starts anew makes several."""
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
        self._faults: dict[str, str] = {}
        self._created: dict[PodUid, str] = {}
        self._passing = False
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

    # -- what runs --

    async def look(self) -> None:
        """See what runs. Raises KernelError where systemd does not answer; all is then as it was."""
        units = await self._units.look([setting.unit for setting in self._settings])
        if not self._created:
            self._remember()
        pods: dict[PodUid, ServicePod] = {}
        faults: dict[str, str] = {}
        for setting in self._settings:
            found = self._found(setting, units[setting.unit])
            if isinstance(found, ServicePod):
                pods[found.uid] = found
            elif found:
                faults[setting.unit] = found
        self._pods = pods
        self._passing = any(unit.passing for unit in units.values())
        self._tell(faults)

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
        return ServicePod(pod.uid, pod.place, {**pod.document, "metadata": metadata}, pod.logs)

    def _remember(self) -> None:
        """Take in when an earlier daemon saw its services first."""
        for _, document in objects.own_files(self._folder, self._machine.node):
            metadata = document.get("metadata")
            if isinstance(metadata, dict):
                self._created[PodUid(str(metadata.get("uid")))] = str(metadata.get("creationTimestamp", ""))

    def _tell(self, faults: dict[str, str]) -> None:
        """Log what is wrong now, once."""
        for unit, fault in faults.items():
            if self._faults.get(unit) != fault:
                log.error("services: %s: %s", unit, fault)
        for unit in self._faults.keys() - faults.keys():
            log.info("services: %s: well again", unit)
        self._faults = faults

    def publish(self) -> None:
        """Have the folder say what was found. Raises ResourceError."""
        if not self._resigned:
            documents = {objects.file_name(pod.document): pod.document for pod in self._pods.values()}
            objects.put(self._folder, documents, self._machine.node)

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
                    async with asyncio.timeout(SOON_SECONDS if self._passing else LOOK_SECONDS):
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
