"""A socket for each pod of this node that asks for its own certificate: SPIFFE Workload API and
Envoy's SDS.

A pod finds ``socket`` in a folder that is its own: ``<runtimeDirectory>/pods/<uid>``, mounted by a
volume of its spec or, for an annotation, by :mod:`nodeagent.redirect.pod_mount`. Having found a socket
proves nothing: a connection is served only when the process that made it is the pod's
(:mod:`nodeagent.identity.peer`), and anyone else hears PERMISSION_DENIED.

gRPC is imported when the first pod asks: it costs memory, and most nodes have no such pod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodeagent.control.concern import Snapshot
from nodeagent.errors import IdentityError, KernelError, translated
from nodeagent.identity.allowance import Allowance
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.peer import stranger
from nodeagent.mesh.local import AskingPod
from nodeagent.parts import Parts
from nodeagent.redirect.pod_mount import PodMount
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid, SpiffeId

if TYPE_CHECKING:
    from nodeagent.identity.grpc_socket import GrpcSocket
    from nodeagent.identity.subject import JwtAuthority, Subject

NAME: Final = "socket"
"""Istio's sidecars look for it by this name."""
MAX_CONNECTIONS: Final = 32
"""Of one pod: an Envoy has one or two, an application one."""
MAX_STRANGERS: Final = 4
"""Connections of others that wait for their refusal."""
BURST_CALLERS: Final = 256
CALLERS_PER_SECOND: Final = 32
"""Connections that one socket accepts; more wait in its backlog."""
PAUSE_SECONDS: Final = 0.25
QUIET_SECONDS: Final = 60.0
"""Between two words in the log about strangers at one socket."""
log = logging.getLogger("nodeagent.sockets")


class PodSockets:
    """A concern: the sockets of this node's pods, below *directory*. *current* gives an identity's
    certificate or raises IdentityError.

    *authority* is the built-in authority's directory, None where certificates come from elsewhere:
    no tokens are issued then.
    """

    def __init__(
        self,
        directory: Path,
        current: Callable[[SpiffeId], Certificate],
        authority: Path | None,
        trust_domain: str,
        *,
        check_seconds: float,
    ) -> None:
        """*check_seconds*: how often sockets, mounts and keys for tokens are looked at."""
        self._directory = directory / "pods"
        self._current = current
        self._authority = authority
        self._trust_domain = trust_domain
        self._check_seconds = check_seconds
        self._sockets: dict[PodUid, _PodSocket] = {}
        self._tokens: JwtAuthority | None = None
        self._wake = asyncio.Event()
        self._resigned = False
        self._waiting: set[PodUid] = set()
        """Pods without a sandbox, and with a volume that shows their folder."""

    def resign(self) -> None:
        """Make no socket, mount or folder any more: another daemon puts its own there. Who is connected stays so."""
        self._resigned = True

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Keep everything as it should be; leaving stops serving."""
        parts.start("what serves the pods' sockets", self._keep_checking)
        yield
        self.close()

    def changed(self, snapshot: Snapshot) -> None:
        """End the sockets of pods that are gone, and of those that are others now."""
        for uid in [uid for uid, known in self._sockets.items() if snapshot.asking.get(uid) != known.pod]:
            known = self._sockets.pop(uid)
            gone = uid not in snapshot.asking and not self._resigned
            # A pod's volume shows this very folder as long as the pod is there, whichever sandbox it has.
            if gone and not known.pod.mount_at and uid in snapshot.here:
                self._waiting.add(uid)
            known.close(remove=gone and uid not in self._waiting)
        for uid in self._waiting - snapshot.here:
            self._waiting.discard(uid)
            if not self._resigned:
                shutil.rmtree(self._directory / uid, ignore_errors=True)

    def grown(self, snapshot: Snapshot) -> None:
        """Make the sockets of the pods that have none. What fails for one is told, and tried again
        by the check.
        """
        for uid, pod in snapshot.asking.items():
            if uid not in self._sockets and not self._resigned:
                self._sockets[uid] = _PodSocket(pod, self._directory / uid, self._subject(pod.identity))
                self._sockets[uid].check()
                self._wake.set()

    def missing(self) -> list[str]:
        """A socket that cannot be made keeps nobody from being captured."""
        return []

    def routes(self) -> Routes:
        """It tells nothing."""
        return {}

    def faults(self, uid: PodUid) -> list[str]:
        """Return what keeps the pod *uid* from its socket; none if it asks for none."""
        known = self._sockets.get(uid)
        return [f"its socket: {fault}" for fault in known.faults()] if known is not None else []

    def certified(self, certificate: Certificate) -> None:
        """Hand a new certificate, or new roots, to the pods with its identity."""
        for each in self._sockets.values():
            if each.pod.identity == certificate.identity:
                each.subject.certificate.set(certificate)

    def ended(self, identity: SpiffeId) -> None:
        """Give nobody a certificate that has ended."""
        for each in self._sockets.values():
            if each.pod.identity == identity:
                each.subject.certificate.set(None)

    async def _keep_checking(self) -> None:
        """Keep sockets, mounts and keys for tokens as they should be; for ever."""
        while not self._resigned:
            self._wake.clear()
            self._refresh_tokens()
            for each in list(self._sockets.values()):
                if self._resigned:
                    return
                each.check()
                await each.mount()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await self._wake.wait()

    def close(self) -> None:
        """Stop serving; the folders stay for the next daemon, as pods have them mounted."""
        for each in self._sockets.values():
            each.close(remove=False)
        self._sockets.clear()

    def _subject(self, identity: SpiffeId) -> Subject:
        from nodeagent.identity.subject import Subject

        self._refresh_tokens()
        subject = Subject(identity, self._tokens)
        with suppress(IdentityError):  # not there yet: certified() comes
            subject.certificate.set(self._current(identity))
        return subject

    def _refresh_tokens(self) -> None:
        if self._authority is None:
            return
        try:
            if self._tokens is None:
                from nodeagent.identity.jwt_svid import JwtKeys
                from nodeagent.identity.subject import JwtAuthority

                self._tokens = JwtAuthority(JwtKeys(self._authority, self._trust_domain))
            self._tokens.refresh()
        except IdentityError as error:
            log.error(
                "keys of JWT-SVIDs: %s; %s",
                error,
                "what is known stays in force" if self._tokens else "none are issued",
            )


class _PodSocket:
    """One pod's folder and socket."""

    def __init__(self, pod: AskingPod, folder: Path, subject: Subject) -> None:
        from nodeagent.identity.grpc_socket import GrpcSocket, RefusedServices
        from nodeagent.identity.sds import SecretDiscovery
        from nodeagent.identity.workload_api import WorkloadApi

        self.pod = pod
        self.subject = subject
        self._folder = folder
        self._place = pod.place
        services = (WorkloadApi(subject), SecretDiscovery(subject))
        self._allowed = _Door(GrpcSocket(services), MAX_CONNECTIONS)
        why = f"this socket serves the pod {pod.namespace}/{pod.pod}, which the caller is not of"
        refused = RefusedServices(services, why)
        self._refused = _Door(GrpcSocket([refused]), MAX_STRANGERS)
        self._callers = Allowance(BURST_CALLERS, CALLERS_PER_SECOND)
        self._listener: socket.socket | None = None
        self._inode = 0
        mounted = bool(pod.mount_at and pod.place.cgroup)
        self._mount = PodMount(folder, pod.mount_at, pod.place) if mounted else None
        self._faults: dict[str, str] = {}
        self._said = -QUIET_SECONDS
        self._loop = asyncio.get_running_loop()

    def faults(self) -> list[str]:
        """Return what is wrong with it, in words."""
        return [fault for fault in self._faults.values() if fault]

    def check(self) -> None:
        """Listen, if that is not so, or if what stands in the folder is not the socket any more."""
        try:
            with translated(KernelError, "the socket cannot be made"):
                if self._listener is None or not self._stands():
                    self._stop_listening()
                    self._listen()
            self._tell("socket", "")
        except KernelError as error:
            self._tell("socket", f"{self._folder}: {error}")

    def _stands(self) -> bool:
        """Say whether the socket is where pods look for it. Raises OSError."""
        try:
            return os.lstat(self._folder / NAME).st_ino == self._inode
        except FileNotFoundError:
            return False

    async def mount(self) -> None:
        """Mount the folder where the annotation wants it, in whichever of the pod's mount namespaces has it not."""
        if self._mount is None:
            return
        try:
            with translated(KernelError, "the folder cannot be mounted"):
                await self._mount.everywhere()
            self._tell("mount", "")
        except KernelError as error:
            self._tell("mount", f"{self.pod.mount_at}: {error}")

    def close(self, *, remove: bool) -> None:
        """End all connections; *remove* the folder too, when the pod is gone."""
        self._stop_listening()
        for door in (self._allowed, self._refused):
            door.close()
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            with suppress(OSError):
                if self._stands():  # another daemon may have put its own there
                    (self._folder / NAME).unlink()

    def _listen(self) -> None:
        """Raises OSError."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o111)  # every user of the pod may call; who it is decides, not the file's mode
        try:
            with suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=folder)
            listener.bind(f"/proc/self/fd/{folder}/{NAME}")  # a path may have 107 bytes, and this one is short
            listener.listen(MAX_CONNECTIONS)
            self._inode = os.stat(NAME, dir_fd=folder, follow_symlinks=False).st_ino
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
            os.close(folder)
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        if not self._callers.take():
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(PAUSE_SECONDS, self._resume, listener)
            return
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptors, no memory: a pause, or the event loop would spin
            log.error("%s: %s", self._folder, error.strerror)
            self._stop_listening()
            return
        connection.setblocking(False)
        why = stranger(connection, self._place)
        if why and time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            log.warning("a caller at the socket of pod %s/%s is refused: %s", self.pod.namespace, self.pod.pod, why)
        (self._refused if why else self._allowed).admit(connection)

    def _resume(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._loop.add_reader(listener.fileno(), self._accept)

    def _tell(self, what: str, fault: str) -> None:
        """Log a fault when it is new."""
        if fault != self._faults.get(what, ""):
            self._faults[what] = fault
            if fault:
                log.error("the socket of pod %s/%s: %s", self.pod.namespace, self.pod.pod, fault)


class _Door:
    """The connections that are served in one way."""

    def __init__(self, server: GrpcSocket, limit: int) -> None:
        self._server = server
        self._limit = limit
        self._open: dict[socket.socket, asyncio.Task[None]] = {}

    def admit(self, connection: socket.socket) -> None:
        if len(self._open) >= self._limit:
            connection.close()
            return
        self._open[connection] = asyncio.get_running_loop().create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: self._server.protocol(ended.set), connection)
            try:
                await ended.wait()
            finally:
                transport.abort()
        except OSError:
            connection.close()  # the caller is gone already
        finally:
            self._open.pop(connection, None)

    def close(self) -> None:
        for task in list(self._open.values()):
            task.cancel()
