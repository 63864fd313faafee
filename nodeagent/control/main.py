"""The control process's composition: source → mesh → workers, pods → data plane, certificates, admin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
from typing import Any, Final, assert_never

import orjson
import uvloop

from nodeagent import __version__
from nodeagent.channel import DESCRIPTORS, Channel, memory_file, read_memory_file
from nodeagent.codec import FileDescriptor, MessageError
from nodeagent.config import AgentConfig
from nodeagent.control.admin import Admin
from nodeagent.control.enrolment import Effects, Enrolment
from nodeagent.control.in_force import InForce
from nodeagent.control.jwks import KeySets, wanted_by
from nodeagent.control.kernel_path import KernelPaths
from nodeagent.control.pod_sockets import PodSockets
from nodeagent.control.workers import Needs, Workers
from nodeagent.errors import ControlError, KernelError, NodeagentError, shown, translated
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import open_source
from nodeagent.identity.store import Certificates
from nodeagent.memory import settle
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Delta
from nodeagent.mesh.kernel_plan import KernelPlanSettings
from nodeagent.mesh.local import LocalPod
from nodeagent.messages import (
    FROM_SUPERVISOR,
    Beats,
    Begin,
    CertificateIssued,
    Drop,
    Exited,
    Forked,
    FromSupervisor,
    Heart,
    Keep,
    Kept,
    Orphan,
    StartWorker,
    Still,
    Stilled,
    ToSupervisor,
)
from nodeagent.parts import Parts
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.policy.model import Jwks, RequestAuthentication
from nodeagent.pulse import Pulse
from nodeagent.redirect import heartbeat
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.pod import ListenerId, open_sockets
from nodeagent.redirect.probed import LOOK_SECONDS
from nodeagent.resources.changes import AnyChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.marks import DirectoryMarks
from nodeagent.resources.source import Source
from nodeagent.telemetry import metrics as declared
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Family, SpiffeId

SETTLE_SECONDS: Final = 0.3
"""A connect() that was redirected before the heartbeat stopped reaches its listener within this time."""
STILL_SECONDS: Final = 1.0
"""The supervisor, which never waits for anybody, has stopped the heartbeat within this time."""
log = logging.getLogger("nodeagent.control")


def main(config: AgentConfig, end: socket.socket, pulse: Pulse) -> None:
    """Run control on its end of the supervisor's channel; *pulse* is where it says that its loop
    turns. The process's last call.
    """
    settle()
    try:
        uvloop.run(_run(config, end, pulse))
    except NodeagentError as error:
        log.critical("%s", error)
        raise SystemExit(1) from None


async def _run(config: AgentConfig, end: socket.socket, pulse: Pulse) -> None:
    control = Control(config, end, pulse)
    # what raises here is no stop: workers of an earlier control serve on, and a successor tries
    # again
    await control.start()
    await control.stopped.wait()
    if control.misunderstood is not None:
        raise control.misunderstood  # no stop either
    await control.stop()


class Control:
    """Starts in the order in which things need each other, stops in the reverse."""

    def __init__(self, config: AgentConfig, end: socket.socket, pulse: Pulse) -> None:
        self.config, self._pulse = config, pulse
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        self.store = Store()
        self.store.set(declared.ISTIO_BUILD, ("nodeagent", __version__), 1)
        self.store.set(declared.BUILD_INFO, (__version__, platform.python_version(), config.node), 1)
        self._begun, self._stilled = asyncio.Event(), asyncio.Event()
        self._beats = False
        self._kept: dict[str, dict[ListenerId, socket.socket]] = {}
        self._networks: dict[str, int] = {}
        """Pods' network namespaces that an earlier control opened."""
        self._inherited: list[Certificate] = []
        """What that one held: a death of control while the authority is away shall cost no identity."""
        self.misunderstood: MessageError | None = None
        """What the supervisor said and no supervisor says: what it kept is not known then."""
        self.supervisor: Channel[FromSupervisor, ToSupervisor] = Channel(
            self.loop,
            end,
            FROM_SUPERVISOR,
            heard=self._from_supervisor,
            refused=self._misunderstand,
            closed=self.stopped.set,
        )
        self.parts = Parts(self.loop)
        needs = Needs(
            self._sockets, self.store.merge, lambda slot: self.store.add(declared.WORKER_RESTARTS, (str(slot),))
        )
        self.workers = Workers(self.loop, config.proxy.worker_count(), self.supervisor, needs)
        self.enrolment: Enrolment
        self.plane: DataPlane | None = None
        self.mesh = Mesh(
            config.node,
            config.identity.trust_domain,
            AnnotationPlaces(),
            default_mtls=config.mtls.mode,
            root_namespace=config.mtls.root_namespace,
        )
        self.certificates: Certificates
        self.source: Source
        self.pod_sockets: PodSockets
        self.kernel_paths: KernelPaths
        self.key_sets = KeySets(lambda found: self.workers.apply(Delta((found,))))
        self._admin: Admin | None = None
        self._listed, self._kernel_behind, self._unpruned = False, True, True
        self._kernel_generation = 0
        self.in_force = InForce()

    # -- life --

    async def start(self) -> None:
        """Bring everything up. Raises NodeagentError when something that is needed is missing."""
        config, loop, workers = self.config, self.loop, self.workers
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopped.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.parts.start("the reload", self._reload_on_signal))
        await self._begun.wait()
        if self.misunderstood is not None:
            raise self.misunderstood
        config.runtime_directory.mkdir(parents=True, exist_ok=True)
        source = self.source = DirectorySource(config.source, config.resources, config.runtime_directory / "last-good")
        issuer = open_source(config.identity, config.cluster)
        self.plane = await DataPlane.load(config.redirect, slots=workers.count, wait=False)
        observed = "the access log" if config.telemetry.access_log.path else ""
        settings = KernelPlanSettings(
            config.node, config.identity.trust_domain, observed, client_cert=config.proxy.client_cert_header == "read"
        )
        self.kernel_paths = KernelPaths(self.plane, settings, config.cluster)
        self.certificates = Certificates(
            issuer, config.identity.ttl_seconds, self._certificate, self._certificate_ended
        )
        self.pod_sockets = PodSockets(
            config.runtime_directory,
            self.certificates.current,
            config.identity.ca_directory,
            config.identity.trust_domain,
        )
        effects = Effects(
            publish=DirectoryMarks(config.source).publish,
            keep=self._keep,
            drop=lambda uid: self.supervisor.send(Drop(uid)),
            repaired=lambda fault: self.store.add(declared.REPAIRS, (fault,)),
        )
        self.enrolment = Enrolment(self.plane, workers, self.certificates, effects, config.redirect.when_dead)
        self.enrolment.kept = self._kept
        while self._inherited:
            self.certificates.adopt(self._inherited.pop())
        self._apply(await source.changes())
        start = StartWorker(
            slot=0,
            config=config.model_dump(mode="json", by_alias=True),
            node_addresses=tuple(sorted(self.mesh.node_addresses())),
            supervisor=os.getppid(),
            originals=FileDescriptor(self.plane.original_map_fd),
            announced=FileDescriptor(self.plane.announced_map_fd),
        )
        workers.start(start)
        self.parts.start("what renews certificates", self.certificates.run)
        self._begin()
        self._listed = True
        self.parts.start("the reader of the source", self._watch)
        self.parts.start("what ends earlier workers", self._retire_orphans)
        self.parts.start("what confirms the kernel path", self._confirm)
        self.parts.start("the check of the pods", self._check)
        self.parts.start("the look at probed ports", self._look)
        self.parts.start("the loading of the HTTP counters", self._finish_loading)
        self.parts.start(
            "what serves the pods' sockets", lambda: self.pod_sockets.run(config.redirect.check_interval_seconds)
        )
        self._admin = Admin(self)
        await self._admin.start()
        self.supervisor.send(Heart(config.redirect.heartbeat_timeout_seconds, FileDescriptor(self.plane.heartbeat_fd)))
        self.parts.start("what tells the supervisor that control turns", self._turn)

    def _begin(self) -> None:
        """Take the node over. What fails for what the source says, and not for one pod alone, fails
        for a successor too: pods stay as they are.
        """
        try:
            self._reconcile()
            self._forget_kept()
            self._prune()
        except Exception as error:
            log.error(
                "the node cannot be brought to what the source says: %s; it is tried again",
                shown(str(error)),
                exc_info=error,
            )

    async def stop(self) -> None:
        """Serve while what is open may end, stop the heartbeat, let what came since end, and end.
        Pins stay: protected pods are refused until a daemon is back.

        ``proxy.timeouts.stop`` bounds the whole, half of it each: with a connection open that never
        ends, pods are refused for the second half only.
        """
        patience = self.config.proxy.timeouts.stop / 2
        self.parts.stop()
        await self.key_sets.close()
        if self._listed:
            self.pod_sockets.close()
        await self.workers.finish(patience)
        if self._listed:
            self.enrolment.withdraw()
        self.supervisor.send(Still())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stilled.wait(), STILL_SECONDS)
        # What waits in a backlog when the last listener closes is reset: workers accept until
        # nothing more can come.
        await asyncio.sleep(SETTLE_SECONDS)
        await self.workers.stop(patience)
        if self._admin is not None:
            await self._admin.stop()

    async def reload(self) -> list[int]:
        """Replace all workers without losing a connection; return the new pids."""
        pids = await self.workers.reload(self.config.proxy.timeouts.drain)
        log.info("workers replaced: %s", pids)
        return pids

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except ControlError as error:
            log.error("%s", error)

    def ready(self) -> list[str]:
        """Return what keeps the daemon from being ready; nothing: it is."""
        missing = []
        if not self._listed:
            missing.append("the source has not been read")
        if not self.workers.ready():
            missing.append("a worker is not up")
        if not self._beats:
            missing.append("there is no heartbeat: no worker's event loop turns")
        if self._listed and not self.enrolment.healthy():
            wrong = [row for row in self.enrolment.rows() if row["state"] != "enrolled"]
            missing += [
                f"pod {row['namespace']}/{row['pod']}: {row['state']}: {'; '.join(row['faults'])}" for row in wrong
            ]
        missing += [f"{key} is not in the workers: {why}" for key, why in sorted(self.workers.unsent.items())]
        return (
            missing
            + self.parts.failing()
            + [f"{whose} stays as it was: {why}" for whose, why in sorted(self.mesh.faults.items())]
        )

    def policies(self) -> list[dict[str, Any]]:
        """Return a row for each policy, which says whether it is in force everywhere, and for each
        document that was refused.
        """

        def behind(generation: int) -> list[str]:
            return self.workers.behind(generation) + (
                ["the kernel's maps"] if self._kernel_generation < generation else []
            )

        return self.in_force.tell(self.mesh.policies(self.source.refused()), behind)

    # -- the supervisor's messages --

    def _from_supervisor(self, message: FromSupervisor) -> None:
        match message:
            case Begin():
                self._begun.set()
            case Kept():
                for key, descriptor in message.files.items():
                    self._take_over(key, descriptor)
            case Orphan():
                self.workers.adopt(message.pid, socket.socket(fileno=message.end))
            case Forked():
                self.workers.forked(message.number, message.pid)
            case Exited():
                self.workers.exited(message.pid, message.status)
            case Beats():
                self._beats = message.felt
            case Stilled():
                self._stilled.set()
            case _:
                assert_never(message)

    def _misunderstand(self, error: MessageError) -> None:
        """End, as one that failed: a successor is told everything anew."""
        self.misunderstood = error
        self._begun.set()
        self.stopped.set()

    def _keep(self, kept: dict[str, int]) -> None:
        """Have the supervisor keep descriptors across a death of control, in messages of as many as one can carry."""
        files = [(key, FileDescriptor(descriptor)) for key, descriptor in kept.items()]
        for at in range(0, len(files), DESCRIPTORS):
            self.supervisor.send(Keep(dict(files[at : at + DESCRIPTORS])))

    def _take_over(self, key: str, descriptor: int) -> None:
        """An earlier control had the supervisor keep *descriptor*."""
        owner, _, kind = key.rpartition("/")
        if kind == "certificate":
            self._inherited.append(Certificate.from_json(orjson.loads(read_memory_file(descriptor))))
            return
        if kind == "netns":
            self._networks[owner] = descriptor
            return
        uid, direction, family, slot = key.split("/")
        listener: ListenerId = (
            "outbound" if direction == "outbound" else "inbound",
            4 if family == "4" else 6,
            int(slot),
        )
        self._kept.setdefault(uid, {})[listener] = socket.socket(fileno=descriptor)

    def _forget_kept(self) -> None:
        """Close what was kept of pods that are gone; those that are not have their own."""
        self.enrolment.forget_kept()
        while self._networks:
            os.close(self._networks.popitem()[1])

    def _sockets(self, uid: str, family: Family, count: int) -> list[socket.socket]:
        """Make sockets inside a pod; also for workers of an earlier control, before this one has
        enrolled it. Raises KernelError; KeyError: it is not known.
        """
        if uid in self._networks:
            return open_sockets(uid, self._networks[uid], family, count)
        if self.plane is None:
            raise KeyError(uid)
        return self.plane.sockets(uid, family, count)

    async def _retire_orphans(self) -> None:
        """Workers of an earlier control served on; they drain as soon as their successors are up."""
        while not self.workers.ready():
            await asyncio.sleep(0.02)
        self.workers.retire_adopted(self.config.proxy.timeouts.drain)

    # -- what changes --

    def _apply(self, changes: list[AnyChange]) -> None:
        self._kernel_behind = True  # until the kernel has the change, whatever of the pods fails before
        delta = self.mesh.apply(changes)
        self.workers.node(sorted(self.mesh.node_addresses()))
        self.workers.apply(delta)
        self.in_force.bring(changes, self.workers.generation)
        if any(key.startswith("authentication/") for key in (*delta.removals, *(entry.key for entry in delta.upserts))):
            self._want_keys(self.workers)

    def _want_keys(self, workers: Workers) -> None:
        """Have the key sets that RequestAuthentications name, and no others."""
        wanted = wanted_by(entry for entry in workers.entries() if isinstance(entry, RequestAuthentication))
        workers.apply(
            Delta(
                removals=tuple(
                    entry.key for entry in workers.entries() if isinstance(entry, Jwks) and entry.uri not in wanted
                )
            )
        )
        self.key_sets.wanted(wanted)

    def _reconcile(self) -> None:
        """Bring the node to the snapshot: first what is there already, which a change may forbid,
        then what is new. No certificate is waited for.
        """
        pods, identities = {pod.uid: pod for pod in self._local_pods()}, self._identities()
        self.enrolment.keep(pods)
        if self._listed:
            self._update_kernel_paths()
        self._forget_all_but(identities)
        for identity in identities:
            self.certificates.want(identity)
        self.enrolment.add(pods)
        self.pod_sockets.reconcile({pod.uid: pod for pod in self.mesh.asking_pods()})
        if not self._listed or not self.kernel_paths.knows_all():
            self._update_kernel_paths()

    def _prune(self) -> None:
        """Remove what an earlier daemon left of pods that are gone; not before every pod is known,
        for what is left may protect the others.
        """
        unread = self.source.unread_pods()
        if unread and not self._listed:
            log.error(
                "what protects pods that were captured before stays: it may be for one that cannot be read (%s)",
                ", ".join(unread[:5]),
            )
        if not unread:
            self.enrolment.prune()
            self._unpruned = False

    def _update_kernel_paths(self) -> None:
        """Bring what the kernel decides alone to the snapshot and the pods; a fault there leaves
        connections to the proxy, and is tried again.
        """
        self._kernel_behind = True
        try:
            with translated(KernelError, "the maps cannot be written"):
                self.kernel_paths.update(self.workers.entries())
                self.kernel_paths.close_refused(self.store)
            self._kernel_behind, self._kernel_generation = False, self.workers.generation
        except KernelError as error:
            log.error("the kernel path cannot be brought up to date: %s", error)

    def _local_pods(self) -> tuple[LocalPod, ...]:
        return self.mesh.local_pods() if self.config.redirect.enroll else ()

    def _identities(self) -> set[SpiffeId]:
        return {pod.identity for pod in self._local_pods()} | {pod.identity for pod in self.mesh.asking_pods()}

    def _forget_all_but(self, identities: set[SpiffeId]) -> None:
        """Drop the certificates of identities that no pod of this node has any more."""
        for identity in self.certificates.wanted() - identities:
            self.certificates.forget(identity)
            self.supervisor.send(Drop(identity))
            self.workers.forget(identity)

    async def _watch(self) -> None:
        """Follow the source. Started again after a failure, it reconciles first: the batch at which
        it failed is in the mesh.
        """
        while True:
            self._reconcile()
            if self._unpruned:
                self._prune()
            self._apply(await self.source.changes())

    def _certificate(self, certificate: Certificate) -> None:
        told = certificate.to_json()
        self.workers.certificate(certificate.identity, CertificateIssued(told))
        file = memory_file(orjson.dumps(told))
        self._keep({f"{certificate.identity}/certificate": file})
        os.close(file)
        self.pod_sockets.certified(certificate)
        if self._listed:
            self.enrolment.certified(certificate.identity)

    def _certificate_ended(self, identity: SpiffeId) -> None:
        self.pod_sockets.ended(identity)
        self.enrolment.check()

    async def _finish_loading(self) -> None:
        """What counts HTTP in the kernel is loaded while pods are served already."""
        assert self.plane is not None
        try:
            await self.plane.loaded()
        except KernelError as error:
            log.error("HTTP is not counted on the kernel path: %s", error)
        self._update_kernel_paths()

    async def _confirm(self) -> None:
        """Have the kernel use what it decides alone for as long as this control keeps that up to date."""
        assert self.plane is not None
        while True:
            if not self._kernel_behind:
                self.plane.kernel.confirm()
            await asyncio.sleep(self.config.redirect.kernel_path_timeout_seconds / heartbeat.PER_TIMEOUT)

    async def _look(self) -> None:
        assert self.plane is not None
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.plane.probed.look()

    async def _turn(self) -> None:
        while True:
            self._pulse.turn()
            await asyncio.sleep(1)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self.config.redirect.check_interval_seconds)
            self.enrolment.check()
            if self._kernel_behind:
                self._update_kernel_paths()
