"""A container runtime that says what it is told to: CRI v1 (runtime.v1.RuntimeService) on a unix
socket, on grpcio, so independent of the client that it is to test. Each runtime's own shape of the
verbose status is here, as its documentation and source have it.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from nodeagent.protocols import cri_pb2 as cri

SERVICE = "runtime.v1.RuntimeService"


@dataclass
class FakeSandbox:
    """A pod's sandbox: ``info`` is what its verbose status has under that name."""

    id: str
    uid: str
    name: str = "web"
    namespace: str = "default"
    attempt: int = 0
    created: int = 1
    addresses: tuple[str, ...] = ("10.0.0.5",)
    host_network: bool = False
    ready: bool = True
    info: str = "{}"
    held: threading.Event | None = None
    """Its status is told when this is set."""
    broken: bool = False
    """Its status is none, as where its shim is gone (containerd)."""


def containerd_info(netns: str, cgroups_path: str, pid: int = 0) -> str:
    """As containerd has it (pkg/cri/server/sandbox_status.go: SandboxInfo)."""
    namespaces = [{"type": "pid"}, {"type": "network", "path": netns} if netns else {"type": "ipc"}]
    spec = {"linux": {"namespaces": namespaces, "cgroupsPath": cgroups_path}}
    return json.dumps({"pid": pid, "processStatus": "running", "netNamespaceClosed": False, "runtimeSpec": spec})


def crio_info(netns: str, cgroups_path: str, pid: int = 0) -> str:
    """As CRI-O has it (server/sandbox_status.go: createSandboxInfo): the image, the process, the spec."""
    namespaces = [{"type": "network", "path": netns}, {"type": "uts", "path": "/var/run/utsns/8c0a"}] if netns else []
    spec = {"ociVersion": "1.1.0", "linux": {"cgroupsPath": cgroups_path, "namespaces": namespaces}}
    return json.dumps({"image": "registry.k8s.io/pause:3.9", "pid": pid, "runtimeSpec": spec})


@dataclass
class FakeCri:
    """The runtime. Change ``sandboxes`` at any time; ``happen`` sends an event where events are served."""

    path: Path
    events: bool = False
    events_off: bool = False
    """The stream of events ends at once, in order, as CRI-O's without ``enable_pod_events``."""
    sandboxes: list[FakeSandbox] = field(default_factory=list)
    refuse: grpc.StatusCode | None = None
    lists: int = 0
    statuses: int = 0
    _queue: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)
    _server: grpc.Server | None = None

    def start(self) -> None:
        """Listen at ``path``."""
        self._server = grpc.server(ThreadPoolExecutor(32))
        methods = {
            "Version": _unary(self._version, cri.VersionRequest),
            "ListPodSandbox": _unary(self._list, cri.ListPodSandboxRequest),
            "PodSandboxStatus": _unary(self._status, cri.PodSandboxStatusRequest),
        }
        if self.events or self.events_off:
            methods["GetContainerEvents"] = grpc.unary_stream_rpc_method_handler(
                self._events, cri.GetEventsRequest.FromString, cri.ContainerEventResponse.SerializeToString
            )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        """End, as a runtime that is restarted does: connections are cut."""
        self._queue.put(False)
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None
        self.path.unlink(missing_ok=True)

    def happen(self) -> None:
        """Something happened to a container."""
        self._queue.put(True)

    def _version(self, _: cri.VersionRequest, context: grpc.ServicerContext) -> cri.VersionResponse:
        return cri.VersionResponse(version="0.1.0", runtime_name="fake", runtime_version="1", runtime_api_version="v1")

    def _list(self, request: cri.ListPodSandboxRequest, context: grpc.ServicerContext) -> cri.ListPodSandboxResponse:
        self.lists += 1
        if self.refuse is not None:
            context.abort(self.refuse, "it was told to")
        items = [_item(one) for one in self.sandboxes]
        wanted = request.filter.state.state
        chosen = [item for item in items if not request.filter.HasField("state") or item.state == wanted]
        return cri.ListPodSandboxResponse(items=chosen)

    def _status(
        self, request: cri.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> cri.PodSandboxStatusResponse:
        self.statuses += 1
        found = next((one for one in self.sandboxes if one.id == request.pod_sandbox_id), None)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such sandbox")
            raise AssertionError("abort raises")
        if found.held is not None:
            found.held.wait(60)
        if found.broken:
            context.abort(grpc.StatusCode.UNKNOWN, "failed to get its task")
        network = cri.PodSandboxNetworkStatus(ip=found.addresses[0] if found.addresses else "")
        network.additional_ips.extend(cri.PodIP(ip=text) for text in found.addresses[1:])
        mode = cri.NODE if found.host_network else cri.POD
        options = cri.NamespaceOption(network=mode)
        item = _item(found)
        status = cri.PodSandboxStatus(
            id=item.id,
            metadata=item.metadata,
            state=item.state,
            network=network,
            linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
        )
        return cri.PodSandboxStatusResponse(status=status, info={"info": found.info} if request.verbose else {})

    def _events(self, _: cri.GetEventsRequest, context: grpc.ServicerContext) -> Iterator[cri.ContainerEventResponse]:
        while not self.events_off and context.is_active() and self._queue.get():
            yield cri.ContainerEventResponse(container_id="any")


def _unary(answer: object, request: type) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(  # type: ignore[arg-type]
        answer, request.FromString, lambda message: message.SerializeToString()
    )


def _item(one: FakeSandbox) -> cri.PodSandbox:
    about = cri.PodSandboxMetadata(name=one.name, uid=one.uid, namespace=one.namespace, attempt=one.attempt)
    state = cri.SANDBOX_READY if one.ready else cri.SANDBOX_NOTREADY
    return cri.PodSandbox(id=one.id, metadata=about, state=state, created_at=one.created)
