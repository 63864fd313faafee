"""The control process's composition: source → mesh → workers, pods → data plane, certificates, admin.

It makes the concerns (:mod:`nodeagent.control.concern`), starts them in the order in which they need
each other, and stops them in the reverse.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import platform
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from nodeagent import __version__
from nodeagent.config import AgentConfig
from nodeagent.control.admin import AdminPorts
from nodeagent.control.certificates import NodeCertificates
from nodeagent.control.concern import Concern, Resigning, merged
from nodeagent.control.config_file import ConfigFile
from nodeagent.control.draining import drains_beside, noted, tell_what_is_open
from nodeagent.control.enrolment import Enrolment
from nodeagent.control.enrolment_neighbours import Effects
from nodeagent.control.flows import Flows
from nodeagent.control.footing import Beside, Footing, open_footing
from nodeagent.control.heartbeat import Heartbeat
from nodeagent.control.jwks import KeySets
from nodeagent.control.kernel_path import KernelPaths
from nodeagent.control.kernel_upkeep import KernelSide, KernelUpkeep
from nodeagent.control.key_sets import NodeKeySets
from nodeagent.control.late_counts import NodeCounts
from nodeagent.control.left_alone import KernelOutside, LeftAlonePods
from nodeagent.control.leftovers import Leftovers, PodSocketMaker
from nodeagent.control.mesh_pages import MeshPages
from nodeagent.control.metrics_pages import MetricsPages
from nodeagent.control.node_metrics import NodeMetrics, unusable
from nodeagent.control.node_network import NodeNetwork
from nodeagent.control.pod_sockets import PodSockets
from nodeagent.control.pods_page import PodsPage, unreached
from nodeagent.control.readiness import Missing, Readiness
from nodeagent.control.source_reader import SourceReader
from nodeagent.control.supervisor_link import SupervisorLink
from nodeagent.control.worker_process import Needs
from nodeagent.control.workers import Workers
from nodeagent.errors import NodeagentError
from nodeagent.hand_over import PORTS
from nodeagent.identity.sources import open_source
from nodeagent.memory import settle
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Delta
from nodeagent.mesh.kernel_plan import KernelPlanSettings
from nodeagent.mesh.membership import MembershipRules
from nodeagent.messages import COLLECTOR, WORKER, AskMetrics, StartWorker
from nodeagent.parts import Parts
from nodeagent.places.place import Places
from nodeagent.pulse import Pulse
from nodeagent.redirect import heartbeat as heartbeat_map
from nodeagent.redirect.plane import DataPlane, Loading
from nodeagent.resources.source import Marks
from nodeagent.telemetry import metrics as declared
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor

if TYPE_CHECKING:
    from nodeagent.control.logs import NodeLogs
    from nodeagent.logs.settings import LogSettings

log = logging.getLogger("nodeagent.control")


def main(config: AgentConfig, path: Path | None, faults: tuple[str, ...], end: socket.socket, pulse: Pulse) -> None:
    """Run control on its end of the supervisor's channel; *path* is agent.yaml's, *faults* what is wrong with
    sections that it has and *config* has not, *pulse* is where it says that its loop turns. The process's last call.
    """
    settle()
    try:
        uvloop.run(run(config, end, pulse, path, faults))
    except NodeagentError as error:
        log.critical("%s", error)
        raise SystemExit(1) from None


async def run(
    config: AgentConfig, end: socket.socket, pulse: Pulse, path: Path | None = None, faults: tuple[str, ...] = ()
) -> None:
    """Start, run until control is told to stop, and stop: serve while what is open may end, stop the
    heartbeat, let what came since end, and end. Pins stay: protected pods are refused until a
    daemon is back. Where another daemon has taken the node over, what is open has
    ``proxy.timeouts.handOver`` to end, and no heartbeat ends.

    What takes long comes first, and changes nothing on the node: another daemon may run until this
    one may begin (hand_over.py).

    ``proxy.timeouts.stop`` bounds the whole, half of it each: with a connection open that never
    ends, pods are refused for the second half only.

    Raises NodeagentError when something that is needed is missing. What raises before the end is no
    stop: workers of an earlier control serve on, and a successor tries again.
    """
    beginning = Beginning(config, asyncio.get_running_loop(), end, path, faults)
    for number in (signal.SIGTERM, signal.SIGINT):
        beginning.loop.add_signal_handler(number, beginning.link.end)
    prepared = await prepare(beginning)
    beginning.link.prepared()
    await beginning.link.begun()
    stops = AsyncExitStack()
    made = await load(beginning, prepared)
    await start(beginning, made, pulse, stops)
    if await beginning.link.ended():
        await step_down(beginning, made)
    else:
        await stops.aclose()


class Beginning:
    """What is there before anything is waited for: it hears what an earlier control left, and serves
    that one's workers meanwhile.
    """

    def __init__(
        self,
        config: AgentConfig,
        loop: asyncio.AbstractEventLoop,
        end: socket.socket,
        path: Path | None = None,
        faults: tuple[str, ...] = (),
    ) -> None:
        """*path*: of agent.yaml; *faults*: what is wrong with sections of it that the daemon started without."""
        self.config = config
        self.loop = loop
        self.parts = Parts()
        self.store = Store()
        self.store.set(declared.ISTIO_BUILD, ("nodeagent", __version__), 1)
        self.store.set(declared.BUILD_INFO, (__version__, platform.python_version(), config.node), 1)
        self.link = SupervisorLink(loop, end)
        self.pod_sockets = PodSocketMaker(self.link.inherited)
        self.counts = NodeCounts(loop, config.runtime_directory, self.store)
        self.workers = Workers(
            loop,
            config.proxy.worker_count(),
            self.link,
            Needs(self.pod_sockets.make, self.counts.count, self._count_restart),
            drain_seconds=config.proxy.timeouts.drain,
            stop_seconds=config.proxy.timeouts.stop / 2,
            hand_over_seconds=config.proxy.timeouts.hand_over,
        )
        self.link.observe(WORKER, self.workers)
        self.logs = self._logs(path)
        if self.logs is not None:
            self.link.observe(COLLECTOR, self.logs.collector)
        self.file = ConfigFile(path, config, self._logs_in_force, faults) if path is not None else None
        self.workers.reloading = self._read_anew
        self.ports = AdminPorts(config.telemetry, config.runtime_directory, self.link.inherited.ports)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _logs(self, path: Path | None) -> NodeLogs | None:
        """Return who has logs read, imported where they are."""
        if self.config.logs is None:
            return None
        from nodeagent.control.logs import NodeLogs, in_force

        return NodeLogs(self.loop, self.link, self.config, self.store, *in_force(path, self.config.logs))

    def _logs_in_force(self) -> LogSettings | None:
        return self.logs.settings if self.logs is not None else None

    def _read_anew(self) -> None:
        """Go by what a reload takes anew of agent.yaml. Raises NodeagentError: it is wrong, and nothing is changed."""
        if self.file is None:
            return
        found = self.file.read()
        if self.logs is not None:
            self.logs.reload(found.logs)

    @property
    def beside(self) -> tuple[Beside, ...]:
        """What has nothing to do with traffic."""
        return (self.logs,) if self.logs is not None else ()

    def _count_restart(self, slot: int) -> None:
        self.store.add(declared.WORKER_RESTARTS, (str(slot),))

    def _reload(self) -> None:
        self.parts.start("the reload", self._reload_on_signal)

    async def _reload_on_signal(self) -> None:
        try:
            await self.workers.reload()
        except NodeagentError as error:
            log.error("%s", error)


@dataclass(frozen=True, slots=True)
class Concerns:
    """Everything of control, made and not started."""

    footing: Footing
    plane: DataPlane
    mesh: Mesh
    reader: SourceReader
    network: NodeNetwork
    certificates: NodeCertificates
    left_alone: LeftAlonePods
    enrolment: Enrolment
    key_sets: NodeKeySets
    kernel_paths: KernelPaths
    kernel: KernelUpkeep
    pod_sockets: PodSockets
    leftovers: Leftovers


@dataclass(frozen=True, slots=True)
class PreparedParts:
    """What is there before the node is this daemon's."""

    footing: Footing
    mesh: Mesh
    reader: SourceReader
    certificates: NodeCertificates
    loading: Loading


async def prepare(beginning: Beginning) -> PreparedParts:
    """Open the source of certificates, read the source of objects, have the programs compiled.
    Raises NodeagentError.
    """
    config = beginning.config
    workers = beginning.workers
    config.runtime_directory.mkdir(parents=True, exist_ok=True)
    footing = open_footing(config)
    if beginning.logs is not None:
        beginning.logs.serve(footing.logs, footing.unit)
    certificates = NodeCertificates(
        open_source(config.identity, config.cluster), config.identity.ttl_seconds, workers, beginning.link
    )
    mesh = make_mesh(config, footing.places)
    reader = SourceReader(footing.source, mesh, workers)
    await reader.read()
    return PreparedParts(footing, mesh, reader, certificates, await Loading.begin(config.redirect, slots=workers.count))


async def load(beginning: Beginning, prepared: PreparedParts) -> Concerns:
    """Take the kernel over, and make the concerns; what counts HTTP follows in the background.
    Raises NodeagentError.
    """
    config = beginning.config
    link = beginning.link
    workers = beginning.workers
    footing = prepared.footing
    mesh = prepared.mesh
    reader = prepared.reader
    certificates = prepared.certificates
    link.relinquish(slots=workers.count)
    plane = await prepared.loading.attached(link.inherited.listeners.values())
    beginning.pod_sockets.captured_by(plane.sockets)
    kernel_paths = KernelPaths(plane, kernel_path_settings(config), config.cluster)
    enrolment = make_enrolment(beginning, plane, certificates, footing.marks)
    check_seconds = config.redirect.check_interval_seconds
    key_sets = KeySets(lambda found: workers.apply(Delta((found,))), local=config.jwks.allow_local)
    return Concerns(
        footing=footing,
        plane=plane,
        mesh=mesh,
        reader=reader,
        network=NodeNetwork(workers.node, mesh.node_addresses),
        certificates=certificates,
        left_alone=LeftAlonePods(outside(plane), check_seconds=check_seconds),
        enrolment=enrolment,
        key_sets=NodeKeySets(key_sets, workers),
        kernel_paths=kernel_paths,
        kernel=KernelUpkeep(
            kernel_paths,
            KernelSide(plane.loaded, plane.kernel.confirm, plane.probed.some, plane.probed.look, plane.statistics),
            reader,
            beginning.store,
            timeout_seconds=config.redirect.kernel_path_timeout_seconds,
            check_seconds=check_seconds,
        ),
        pod_sockets=PodSockets(
            config.runtime_directory,
            certificates.current,
            config.identity.ca_directory,
            config.identity.trust_domain,
            check_seconds=check_seconds,
        ),
        leftovers=Leftovers(link.inherited, link, enrolment.prune),
    )


def make_mesh(config: AgentConfig, places: Places) -> Mesh:
    """Return the mesh of *config*'s node, where pods run as *places* says."""
    return Mesh(
        config.node,
        config.identity.trust_domain,
        places,
        aliases=config.identity.trust_domain_aliases,
        default_mtls=config.mtls.mode,
        root_namespace=config.mtls.root_namespace,
        membership=MembershipRules(config.enroll(), config.redirect.ambient_labels),
        scrapes=config.telemetry.scrapes == "declared",
        providers=config.mesh_settings().providers,
    )


def outside(plane: DataPlane) -> KernelOutside:
    """Return how the kernel hears of pods outside of the mesh."""
    known = plane.left_alone
    return KernelOutside(known.admit, known.dismiss, known.known, plane.denials, plane.cgroup_names)


def kernel_path_settings(config: AgentConfig) -> KernelPlanSettings:
    """Return what of *config* decides which connections take the kernel path."""
    observed = "the access log" if config.telemetry.access_log.path else ""
    client_cert = config.proxy.client_cert_header == "read"
    return KernelPlanSettings(config.node, config.mesh_settings(), observed, client_cert=client_cert)


def make_enrolment(beginning: Beginning, plane: DataPlane, certificates: NodeCertificates, marks: Marks) -> Enrolment:
    """Return the enrolment of this node's pods, told the other nodes by *marks*."""
    config = beginning.config
    link = beginning.link
    effects = Effects(
        publish=marks.publish,
        keep=link.keep,
        drop=link.drop,
        repaired=lambda fault: beginning.store.add(declared.REPAIRS, (fault,)),
    )
    return Enrolment(
        plane,
        beginning.workers,
        certificates,
        effects,
        config.redirect.when_dead,
        inherited=link.inherited.listeners,
        check_seconds=config.redirect.check_interval_seconds,
    )


async def start(beginning: Beginning, made: Concerns, pulse: Pulse, stops: AsyncExitStack) -> None:
    """Start everything; *stops* has then what stops it, in the reverse order. Raises NodeagentError.

    What has to go last is entered first, whenever it begins to work: the ports that tell, the
    workers, the heartbeat.
    """
    config = beginning.config
    link = beginning.link
    workers = beginning.workers
    parts = beginning.parts
    ports = beginning.ports
    heartbeat = Heartbeat(link, pulse)
    made.certificates.observe(made.pod_sockets)
    made.certificates.observe(made.enrolment)
    for gate in made.footing.gates:
        gate.settled_by(made.enrolment.is_settled)
        made.certificates.observe(gate)
    made.certificates.adopt(link.inherited.certificates)
    link.inherited.certificates.clear()
    made.network.begin()
    await stops.enter_async_context(ports.run())
    stops.callback(beginning.counts.close)
    workers.fill(first_words(config, made.plane))
    await stops.enter_async_context(workers.run(parts))
    await stops.enter_async_context(heartbeat.run(parts))
    await stops.enter_async_context(made.certificates.run(parts))
    for beside in made.footing.concerns:
        await stops.enter_async_context(beside.run(parts))
    told: tuple[Concern, ...] = (
        *(made.network, made.key_sets, made.left_alone, made.enrolment, made.kernel),
        *(made.certificates, made.pod_sockets, made.leftovers),
        *made.footing.concerns,
        *beginning.beside,
    )
    made.reader.begin(told, enforcing=(workers.behind, made.kernel.behind))
    await stops.enter_async_context(made.enrolment.run(parts))
    stops.push_async_callback(workers.finish)
    others: tuple[Concern, ...] = (
        *(made.leftovers, made.pod_sockets, made.key_sets, made.kernel),
        *(made.left_alone, made.network, made.reader),
    )
    for concern in (*others, *beginning.beside):
        await stops.enter_async_context(concern.run(parts))
    stops.callback(parts.stop)
    await open_ports(beginning, made, ports, heartbeat)
    beginning.counts.listen()
    link.inherited.close_ports()
    link.resigns_by(functools.partial(resign, made, beginning.beside, ports, workers))
    heartbeat.begin(parts, config.redirect.heartbeat_timeout_seconds, made.plane.heartbeat_fd)


def resign(made: Concerns, beside: Iterable[Beside], ports: AdminPorts, workers: Workers) -> dict[str, int]:
    """Write nothing of the node any more; return the listeners of the own ports, by key of a hand-over.
    Workers serve on, by the newcomer's maps where those are others.
    """
    log.warning("another daemon takes the node over: this one writes nothing of it any more, and serves on")
    if (originals := made.plane.next_originals()) is not None:
        workers.next_originals(originals)
        os.close(originals)
    writing: tuple[Resigning, ...] = (made.enrolment, made.kernel, made.pod_sockets, made.leftovers)
    for each in (*writing, *made.footing.concerns, *beside):
        each.resign()
    return {f"{PORTS}{key}": listener for key, listener in ports.listeners().items()}


async def step_down(beginning: Beginning, made: Concerns) -> None:
    """The node is another daemon's: tell nobody else anything any more, and see the workers' connections to their
    end. Everything that workers hear of changes goes on until then.
    """
    sender = beginning.counts.pass_on()
    await beginning.ports.close()
    made.pod_sockets.close()
    made.enrolment.close_listeners()
    seconds = beginning.config.proxy.timeouts.hand_over
    workers = beginning.workers
    with noted(beginning.config.runtime_directory) as note:
        telling = functools.partial(tell_what_is_open, workers, workers.snapshot, seconds, note)
        beginning.parts.start("what tells of the drain", telling)
        beginning.parts.start("what tells what is counted", sender.keep_telling)
        await workers.step_down(seconds, functools.partial(hurried, beginning, made))
        await sender.tell_the_rest()
        beginning.parts.stop()


async def hurried(beginning: Beginning, made: Concerns) -> None:
    """Wait until what drains is not to keep the node any more: the daemon that took over ends too, or is gone, and no
    other can come meanwhile.
    """
    forsaken = [asyncio.ensure_future(each.forsaken()) for each in made.footing.cluster]
    hastened = asyncio.ensure_future(beginning.link.hastened())
    try:
        done, _ = await asyncio.wait((hastened, *forsaken), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in (hastened, *forsaken):
            each.cancel()
    if hastened not in done:
        log.warning("no agent has this node any more, and none can come while this one drains: it cuts what is open")


def first_words(config: AgentConfig, plane: DataPlane) -> StartWorker:
    """Return what each worker is told first."""
    return StartWorker(
        slot=0,
        config=config.model_dump(mode="json", by_alias=True),
        node_addresses=(),
        supervisor=os.getppid(),
        originals=FileDescriptor(plane.original_map_fd),
        announced=FileDescriptor(plane.announced_map_fd),
    )


def told_pods(made: Concerns, logs: NodeLogs | None) -> Iterator[Mapping[str, object]]:
    """Yield the rows of pods by which a cluster is told what is wrong with them."""
    captured = made.enrolment.rows()
    yield from captured
    yield from unreached(made.mesh.node_pods, {PodUid(str(row["uid"])) for row in captured}, made.footing.pod_faults)
    if logs is not None:
        yield from logs.faulty_pods()


async def report(beginning: Beginning) -> None:
    """Have everybody tell what was counted and not told yet."""
    logs = [beginning.logs.report()] if beginning.logs is not None else []
    await asyncio.gather(beginning.workers.ask(AskMetrics), *logs)


def all_warnings(beginning: Beginning, made: Concerns) -> list[Missing]:
    """Return who tells what keeps nobody from being ready."""
    found: list[Missing] = [
        made.enrolment.warnings,
        functools.partial(unusable, made.mesh.node_pods, made.footing.pod_faults),
        made.footing.warnings,
        functools.partial(drains_beside, beginning.config.runtime_directory),
        made.reader.warnings,
    ]
    if beginning.logs is not None:
        found.append(beginning.logs.warnings)
    if beginning.file is not None:
        found.append(beginning.file.warnings)
    return found


async def open_ports(beginning: Beginning, made: Concerns, ports: AdminPorts, heartbeat: Heartbeat) -> None:
    """Open the admin ports with the pages of all concerns, and of those over several. Raises ConfigError."""
    config = beginning.config
    workers = beginning.workers
    store = beginning.store
    vital: tuple[Concern, ...] = (workers, heartbeat)
    others: tuple[Concern, ...] = (
        made.left_alone,
        made.enrolment,
        made.certificates,
        made.key_sets,
        made.kernel,
        made.pod_sockets,
        made.leftovers,
        made.network,
        made.reader,
        *made.footing.concerns,
        *beginning.beside,
    )
    needed = [workers.untold, *(concern.missing for concern in others), beginning.parts.failing]
    carrying = [*(concern.missing for concern in vital), made.enrolment.uncaptured, beginning.parts.looping]
    readiness = Readiness(carrying, needed, all_warnings(beginning, made))
    for each in made.footing.cluster:
        pods_told = functools.partial(told_pods, made, beginning.logs)
        each.told_by(readiness.lacking, pods_told, beginning.link.succession)
    flows = Flows(workers, made.kernel_paths, store)
    mesh_pages = MeshPages(config, made.reader.entries, made.kernel_paths.explain, made.network.addresses)
    pods = PodsPage(
        made.enrolment,
        flows,
        workers.snapshot,
        made.kernel_paths.paths,
        config.redirect.delivery,
        made.mesh.node_pods,
        lambda uid: [*made.footing.pod_faults(uid), *made.pod_sockets.faults(uid)],
    )
    beaten = functools.partial(heartbeat_map.last, made.plane.heartbeat_fd)
    node_metrics = NodeMetrics(made.mesh.node_pods, beaten, workers.pids, faults=made.footing.pod_faults)
    collectors = (
        node_metrics.collect,
        made.kernel_paths.collect,
        made.enrolment.collect,
        mesh_pages.collect,
        made.certificates.collect,
        made.reader.collect,
        made.kernel.collect,
        *(gate.collect for gate in made.footing.gates),
        *([beginning.file.collect] if beginning.file is not None else []),
    )
    metrics = MetricsPages(store, functools.partial(report, beginning), collectors)
    pages = [page.routes() for page in (readiness, flows, mesh_pages, pods, metrics)]
    routes = merged([concern.routes() for concern in (*vital, *others)] + pages)
    await ports.open(routes, metrics.scraped(), readiness.page)
