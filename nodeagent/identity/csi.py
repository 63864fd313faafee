"""The CSI driver ``csi.nodeagent.io``: an ephemeral volume that holds the socket of the pod it is in
(container-storage-interface/spec; kubelet's plugin registration v1).

The kubelet makes a pod's volumes before it makes its sandbox: what is mounted is the pod's folder,
in which the socket appears when the pod is there. A volume proves nothing: who calls is looked at
when he does (:mod:`nodeagent.identity.peer`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from nodeagent import __version__
from nodeagent.errors import KernelError
from nodeagent.protocols import csi_pb2, kubelet_registration_pb2
from nodeagent.vocabulary import PodUid

DRIVER: Final = "csi.nodeagent.io"
POD_UID: Final = "csi.storage.k8s.io/pod.uid"
EPHEMERAL: Final = "csi.storage.k8s.io/ephemeral"
"""What the kubelet says of a volume's pod where the CSIDriver has ``podInfoOnMount``."""
_UID: Final = re.compile(r"[0-9A-Za-z.-]{1,128}")
_Stream = Stream[Any, Any]
"""grpclib knows a call's messages by its handler, not by types."""
Answer = Callable[[Any], Awaitable[Message]]


class CsiPublisher(Protocol):
    """Who makes and removes volumes."""

    async def publish(self, uid: PodUid, target: str) -> None:
        """Have the folder of the pod *uid* be at *target*. Raises KernelError."""

    async def unpublish(self, target: str) -> None:
        """Have nothing be at *target*. Raises KernelError."""


class CsiIdentity:
    """The service csi.v1.Identity."""

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods by path, as grpclib wants them."""
        return {
            "/csi.v1.Identity/GetPluginInfo": _unary(self._info, csi_pb2.GetPluginInfoRequest),
            "/csi.v1.Identity/GetPluginCapabilities": _unary(self._capabilities, csi_pb2.GetPluginCapabilitiesRequest),
            "/csi.v1.Identity/Probe": _unary(self._probe, csi_pb2.ProbeRequest),
        }

    async def _info(self, _: csi_pb2.GetPluginInfoRequest) -> Message:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version=__version__)

    async def _capabilities(self, _: csi_pb2.GetPluginCapabilitiesRequest) -> Message:
        return csi_pb2.GetPluginCapabilitiesResponse()

    async def _probe(self, _: csi_pb2.ProbeRequest) -> Message:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=True))


class CsiNode:
    """The service csi.v1.Node of *node*."""

    def __init__(self, node: str, volumes: CsiPublisher) -> None:
        self._node = node
        self._volumes = volumes

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods by path, as grpclib wants them."""
        return {
            "/csi.v1.Node/NodeGetInfo": _unary(self._info, csi_pb2.NodeGetInfoRequest),
            "/csi.v1.Node/NodeGetCapabilities": _unary(self._capabilities, csi_pb2.NodeGetCapabilitiesRequest),
            "/csi.v1.Node/NodePublishVolume": _unary(self._publish, csi_pb2.NodePublishVolumeRequest),
            "/csi.v1.Node/NodeUnpublishVolume": _unary(self._unpublish, csi_pb2.NodeUnpublishVolumeRequest),
        }

    async def _info(self, _: csi_pb2.NodeGetInfoRequest) -> Message:
        return csi_pb2.NodeGetInfoResponse(node_id=self._node)

    async def _capabilities(self, _: csi_pb2.NodeGetCapabilitiesRequest) -> Message:
        return csi_pb2.NodeGetCapabilitiesResponse()

    async def _publish(self, request: csi_pb2.NodePublishVolumeRequest) -> Message:
        context = request.volume_context
        if not request.readonly:
            raise GRPCError(Status.INVALID_ARGUMENT, f"csi.readOnly: a volume of {DRIVER} must say true")
        if context.get(EPHEMERAL) != "true":
            raise GRPCError(
                Status.INVALID_ARGUMENT,
                f"{DRIVER} has ephemeral volumes only, and its CSIDriver must say podInfoOnMount",
            )
        uid = context.get(POD_UID, "")
        if not _UID.fullmatch(uid) or uid in (".", ".."):
            raise GRPCError(Status.INVALID_ARGUMENT, f"{POD_UID}: {uid!r:.80} is no pod's uid")
        await self._volumes.publish(PodUid(uid), target_of(request.target_path))
        return csi_pb2.NodePublishVolumeResponse()

    async def _unpublish(self, request: csi_pb2.NodeUnpublishVolumeRequest) -> Message:
        await self._volumes.unpublish(target_of(request.target_path))
        return csi_pb2.NodeUnpublishVolumeResponse()


class DriverRegistration:
    """The service by which the kubelet asks what is at a socket of its registry."""

    def __init__(self, endpoint: str, told: Callable[[str], None]) -> None:
        """*endpoint*: the driver's socket, as the kubelet sees it; *told* hears what the kubelet made
        of it, empty when it took it.
        """
        self._endpoint = endpoint
        self._told = told

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods by path, as grpclib wants them."""
        service = "/pluginregistration.Registration"
        return {
            f"{service}/GetInfo": _unary(self._info, kubelet_registration_pb2.InfoRequest),
            f"{service}/NotifyRegistrationStatus": _unary(self._status, kubelet_registration_pb2.RegistrationStatus),
        }

    async def _info(self, _: kubelet_registration_pb2.InfoRequest) -> Message:
        return kubelet_registration_pb2.PluginInfo(
            type="CSIPlugin", name=DRIVER, endpoint=self._endpoint, supported_versions=["1.0.0"]
        )

    async def _status(self, request: kubelet_registration_pb2.RegistrationStatus) -> Message:
        self._told("" if request.plugin_registered else request.error or "no reason given")
        return kubelet_registration_pb2.RegistrationStatusResponse()


def target_of(path: str) -> str:
    """Return *path*, where a kubelet wants a volume: absolute, without ``..``. Raises GRPCError."""
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts or "kubernetes.io~csi" not in parts:
        raise GRPCError(Status.INVALID_ARGUMENT, f"target_path: {path!r:.200} is no CSI volume of a pod")
    return path


def _unary(answer: Answer, request: type[Message]) -> Handler:
    async def serve(stream: _Stream) -> None:
        asked = await stream.recv_message()
        if asked is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "a request is expected")
        try:
            await stream.send_message(await answer(asked))
        except KernelError as error:
            raise GRPCError(Status.INTERNAL, str(error)) from None

    return Handler(serve, Cardinality.UNARY_UNARY, request, Message)
