"""Volumes of ``csi.nodeagent.io``: what puts a pod's socket into it where its spec has such a volume.

The driver's socket and the one by which the kubelet finds it are the node's: a successor puts its
own in their place, and whoever ends removes only what is still its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodeagent.control.concern import Snapshot
from nodeagent.errors import KernelError
from nodeagent.parts import Parts
from nodeagent.redirect.host_mount import HostMounts
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid

if TYPE_CHECKING:
    from nodeagent.identity.grpc_socket import GrpcService

REGISTRY: Final = "plugins_registry"
"""The folder that a kubelet watches."""
REGISTRATION: Final = f"{REGISTRY}/csi.nodeagent.io-reg.sock"
DRIVER_SOCKET: Final = "plugins/csi.nodeagent.io/csi.sock"
FILES: Final = (REGISTRATION, DRIVER_SOCKET)
"""What there is of the driver in the kubelet's folder; the registration goes first."""
log = logging.getLogger("nodeagent.csi")


class CsiVolumes:
    """A concern: the driver at the kubelet whose folder is *kubelet* (``/var/lib/kubelet``). Where that
    has no registry there is no driver, and no volume.
    """

    def __init__(self, node: str, kubelet: Path, runtime_directory: Path, mounts: HostMounts) -> None:
        self._node = node
        self._kubelet = kubelet
        self._pods = runtime_directory / "pods"
        self._mounts = mounts
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Serve the kubelet."""
        if (self._kubelet / REGISTRY).is_dir():
            parts.start("the CSI driver", self._serve)
        else:
            log.info("%s is not there: pods' volumes of csi.nodeagent.io stay waiting", self._kubelet / REGISTRY)
        yield

    async def publish(self, uid: PodUid, target: str) -> None:
        """Have the folder of the pod *uid* be at *target*. Raises KernelError."""
        folder = self._pods / uid
        async with self._turn:
            try:
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            except OSError as error:
                raise KernelError(f"{folder}: {error.strerror}") from None
            await self._mounts.mount(folder, target)
        log.info("pod %s has its sockets' folder at %s", uid, target)

    async def unpublish(self, target: str) -> None:
        """Have nothing be at *target*. Raises KernelError."""
        async with self._turn:
            await self._mounts.unmount(target)
            uid = pod_of(target)
            with suppress(OSError):  # it holds a socket, or is gone
                (self._pods / uid).rmdir()

    def resign(self) -> None:
        """The kubelet asks the successor, whose sockets stand in the place of these by now."""

    def changed(self, snapshot: Snapshot) -> None:
        """A volume is made before its pod is, and goes after it."""

    def grown(self, snapshot: Snapshot) -> None:
        """A volume is made before its pod is, and goes after it."""

    def missing(self) -> list[str]:
        """A driver that the kubelet does not take keeps nobody from being captured."""
        return []

    def routes(self) -> Routes:
        """It tells nothing."""
        return {}

    async def _serve(self) -> None:
        from nodeagent.identity.csi import CsiIdentity, CsiNode, DriverRegistration

        endpoint = self._kubelet / DRIVER_SOCKET
        registration = self._kubelet / REGISTRATION
        driver: list[GrpcService] = [CsiIdentity(), CsiNode(self._node, self)]
        async with _served(endpoint, driver), _served(registration, [DriverRegistration(str(endpoint), self._told)]):
            await asyncio.Event().wait()

    def _told(self, fault: str) -> None:
        if fault:
            log.error("the kubelet does not take the driver csi.nodeagent.io: %s", fault)
        else:
            log.info("the kubelet has the driver csi.nodeagent.io")


def pod_of(target: str) -> str:
    """Return the uid in *target*, which is ``<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount``;
    empty: there is none.
    """
    parts = Path(target).parts
    at = parts.index("kubernetes.io~csi") if "kubernetes.io~csi" in parts else 0
    return parts[at - 2] if at >= 2 else ""


@asynccontextmanager
async def _served(path: Path, services: Sequence[GrpcService]) -> AsyncIterator[None]:
    """Serve *services* at the unix socket *path*, root's alone, in place of what is there."""
    from nodeagent.identity.grpc_socket import GrpcSocket

    grpc = GrpcSocket(services)
    listener = _listener(path)
    inode = path.stat().st_ino
    server = await asyncio.get_running_loop().create_unix_server(lambda: grpc.protocol(lambda: None), sock=listener)
    try:
        yield
    finally:
        server.close()
        with suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


def _listener(path: Path) -> socket.socket:
    """Return a socket that listens at *path*. Raises KernelError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(fresh))
        finally:
            os.umask(before)
        listener.listen()
        fresh.replace(path)
    except OSError as error:
        listener.close()
        raise KernelError(f"{path}: cannot be listened on: {error.strerror or error}") from None
    return listener
