"""A sidecar's composition: source → mesh → proxy, the pod's two listeners, its certificate,
metrics and readiness. One process, one event loop.

It has no privilege: whoever starts it makes it user 1337, whose traffic the pod's rules leave
alone. It serves one pod, so whatever arrives at its listeners is that pod's; there is no other
identity that it could mix up with it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import platform
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from nodeagent import __version__, istio, log_lines
from nodeagent.control.jwks import KeySets, wanted_by
from nodeagent.errors import ConfigError, IdentityError, NodeagentError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.tls import contexts
from nodeagent.memory import settle
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Delta
from nodeagent.policy.model import RequestAuthentication
from nodeagent.proxy import privilege
from nodeagent.proxy.context import Context
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.proxy import Proxy
from nodeagent.resources.changes import AnyChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.source import Source
from nodeagent.sidecar.admin import Ports
from nodeagent.sidecar.config import SidecarConfig
from nodeagent.sidecar.pod import Pod, Redirected, listeners, pod_state
from nodeagent.sidecar.probes import AppProbe
from nodeagent.sidecar.secrets import SecretsClient
from nodeagent.telemetry import metrics as declared
from nodeagent.telemetry.access_log import AccessLog
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Direction

SWEEP_SECONDS: Final = 0.25
NAME: Final = "sidecar"
"""What the metrics of workers call the one that there is."""
log = logging.getLogger("nodeagent.sidecar")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says; *source* and the rest of the cluster's view are as in agent.yaml."""

    source: Path
    trust_domain: str
    sds_socket: Path
    access_log: str
    drain_seconds: float
    config: SidecarConfig


def main(settings: Settings, pod: Pod, probes: dict[str, AppProbe]) -> int:
    """Run the sidecar of *pod* until SIGTERM; return its exit status. Raises NodeagentError when it cannot start."""
    log_lines.to_stderr()
    privilege.hide()
    settle()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_run(settings, pod, probes))
    return 0


async def _run(settings: Settings, pod: Pod, probes: dict[str, AppProbe]) -> None:
    sidecar = Sidecar(settings, pod, probes)
    try:
        await sidecar.start()
        await sidecar.ended
    finally:
        await sidecar.close()


class Sidecar:
    """Everything of one pod's sidecar."""

    def __init__(self, settings: Settings, pod: Pod, probes: dict[str, AppProbe]) -> None:
        config = settings.config
        self.settings = settings
        self.pod = pod
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.store = Store()
        self.metrics = WorkerMetrics()
        mesh = config.mesh_settings(settings.trust_domain)
        self.mesh = Mesh(
            pod.node,
            settings.trust_domain,
            aliases=mesh.trust_domain_aliases,
            default_mtls=config.mtls.mode,
            root_namespace=config.mtls.root_namespace,
            providers=mesh.providers,
        )
        self.source: Source = DirectorySource(settings.source, config.resources)
        self.certificate: Certificate | None = None
        self.secrets = SecretsClient(settings.sds_socket, settings.trust_domain, pod.namespace, self._certified)
        self.access_log = AccessLog(settings.access_log, config.access_log_format) if settings.access_log else None
        # Two ways to dial: to the pod's own application the rules must let it through, elsewhere it
        # is the pod.
        self._outbound = pod_state(pod.uid, {})
        self._inbound = pod_state(pod.uid, istio.OWN_SOURCE)
        context = Context(
            loop=self.loop,
            settings=config.proxy.model_copy(update={"shared_connections": False}),  # agents have them
            mesh=mesh,
            cluster_id=config.cluster,
            metrics=self.metrics,
            access_log=self.access_log,
        )
        self.proxy = Proxy(context, config.extension_providers, dialler=self._outbound)
        self.proxy.enrol(self._inbound)
        self._key_sets = KeySets(lambda found: self._take(Delta((found,))), local=True)  # what is local is the pod's
        self._admin = Ports(self, probes)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._lag = 0.0
        self._next_sweep = self.loop.time()
        self._drain_until = 0.0

    # -- life --

    async def start(self) -> None:
        """Bring everything up. Raises NodeagentError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.drain)
        self._apply(await self._first())
        if self.access_log is not None:
            self.access_log.start()
        self._sweep()
        for direction, port, state in (
            ("outbound", istio.OUTBOUND_PORT, self._outbound),
            ("inbound", istio.INBOUND_PORT, self._inbound),
        ):
            await self._listen(direction, port, state)  # type: ignore[arg-type]
        await self._admin.start()
        self._start(self._watch())
        self._start(self.secrets.run())

    async def close(self) -> None:
        """End what runs, flush what is left."""
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        await self._key_sets.close()
        await self._admin.close()
        if self.access_log is not None:
            self.access_log.close()

    async def _listen(self, direction: Direction, port: int, state: PodState) -> None:
        originals = Redirected(self.pod.addresses)

        for each in listeners(port):
            self._servers.append(await self.proxy.listen(each, state, direction, originals))

    def ready(self) -> list[str]:
        """Return what keeps the sidecar from being ready; nothing: it is."""
        missing = []
        if self._drain_until:
            missing.append("it is draining")
        if self.certificate is None:
            missing.append(f"there is no certificate: {self.secrets.fault}")
        if self.proxy.context.view.workload(self.pod.uid) is None:
            missing.append(f"--source {self.settings.source}: does not know this pod (uid {self.pod.uid})")
        return missing

    def drain(self) -> None:
        """Stop being ready and ask clients to come back elsewhere; who comes all the same is served
        until the time is over (Istio's rule).
        """
        if self._drain_until:
            return
        self._drain_until = self.loop.time() + self.settings.drain_seconds
        log.info("draining for %g s", self.settings.drain_seconds)
        self.proxy.revocation.drain()
        self.loop.call_at(self._drain_until, self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _sweep(self) -> None:
        now = self.loop.time()
        self._lag = max(self._lag, now - self._next_sweep)
        self._next_sweep = now + SWEEP_SECONDS
        self.loop.call_at(self._next_sweep, self._sweep)
        self.proxy.revocation.sweep()
        if self.certificate is not None and self.certificate.not_after < time.time():
            log.error(
                "the certificate of %s has ended and no other came: mTLS is refused: %s",
                self.certificate.identity,
                self.secrets.fault,
            )
            self.certificate = None
            self._inbound.tls = None
            self._outbound.tls = None

    def _start(self, coroutine: Coroutine[object, object, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(error)

    # -- what changes --

    async def _first(self) -> list[AnyChange]:
        try:
            return await self.source.changes()
        except NodeagentError as error:
            raise ConfigError(f"--source: {error}") from None
        except OSError as error:
            raise ConfigError(
                f"--source {self.settings.source}: {error.strerror}: may user {istio.USER} read it?"
            ) from None

    async def _watch(self) -> None:
        while True:
            self._apply(await self.source.changes())

    def _apply(self, changes: list[AnyChange]) -> None:
        delta = self.mesh.apply(changes)
        self.proxy.node_is(self.mesh.node_addresses())
        if delta:
            self._take(delta)
            self._want_keys()

    def _take(self, delta: Delta) -> None:
        if self.proxy.put([delta]) and self.proxy.context.connections:
            self._start(self.proxy.revocation.reconsider())

    def _want_keys(self) -> None:
        """Have the key sets that this pod's RequestAuthentications name, and no others."""
        workload = self.proxy.context.view.workload(self.pod.uid)
        entries = self.proxy.context.view.policies_of(workload) if workload is not None else ()
        dropped = self._key_sets.wanted(
            wanted_by(entry for entry in entries if isinstance(entry, RequestAuthentication))
        )
        if dropped:
            self._take(Delta(removals=dropped))

    def _certified(self, certificate: Certificate) -> None:
        """Use *certificate* from now on. Raises IdentityError when it is not this pod's, or does not work."""
        workload = self.proxy.context.view.workload(self.pod.uid)
        if workload is not None and workload.identity != certificate.identity:
            raise IdentityError(f"the certificate is for {certificate.identity}, and this pod is {workload.identity}")
        fresh = contexts(certificate)
        self.certificate = certificate
        for state in (self._inbound, self._outbound):
            state.identity = certificate.identity
            state.certify(fresh)
            self.proxy.revocation.renewed(state)

    # -- what it tells --

    def report(self) -> None:
        """Bring the store up to now."""
        store = self.store
        store.set(declared.ISTIO_BUILD, (NAME, __version__), 1)
        store.set(declared.BUILD_INFO, (__version__, platform.python_version(), self.pod.node), 1)
        if self.access_log is not None:
            store.set(declared.LOG_DROPPED, (), self.access_log.dropped)
        self.metrics.gauge(declared.LOOP_LAG, (NAME,), self._lag)
        self.metrics.gauge(declared.BUSY_POLL, (NAME,), self.proxy.context.busy_poll.share())
        context = self.proxy.context
        self.metrics.gauge(declared.OPEN_CONNECTIONS, (NAME,), len(context.connections) - context.outer)
        self._lag = 0.0
        held = self.certificate
        store.replace(declared.CERTIFICATE_EXPIRY, {(held.identity,): held.not_after} if held is not None else {})
        for part in self.metrics.delta():
            store.merge(part)
