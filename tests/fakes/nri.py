"""A container runtime that asks its plugins: NRI's runtime side (containerd/nri, pkg/adaptation) on a unix
socket, with framing of its own, so independent of the client that it is to test. As Go's does, it
sends a message's head and its data in two frames, drops a plugin that does not answer in time, and
starts then what it has to start.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from nodeagent.protocols import nri_pb2 as nri
from nodeagent.protocols.ttrpc_pb2 import Request, Response

PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME = "nri.pkg.api.v1alpha1.Runtime"


def frame(connection: int, data: bytes) -> bytes:
    return struct.pack(">II", connection, len(data)) + data


def head(length: int, stream: int, kind: int, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", length, stream, kind, flags)


def pod(name: str = "web", *, sandbox: str = "s1", uid: str = "u-1", netns: str = "/run/netns/a") -> nri.PodSandbox:
    """Return a pod's sandbox; no *netns*: it is on the node's network."""
    namespaces = [nri.LinuxNamespace(type="ipc")]
    if netns:
        namespaces.append(nri.LinuxNamespace(type="network", path=netns))
    linux = nri.LinuxPodSandbox(cgroups_path=f"/kubepods/pod{uid}/{sandbox}", namespaces=namespaces)
    return nri.PodSandbox(id=sandbox, name=name, uid=uid, namespace="default", linux=linux, ips=["10.0.0.5"])


@dataclass
class PluginSeen:
    """A plugin that has connected."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    name: str = ""
    events: int = 0
    synchronized: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _streams: itertools.count[int] = field(default_factory=lambda: itertools.count(1, 2))
    _waiting: dict[int, asyncio.Future[Response]] = field(default_factory=dict)

    async def call(self, method: str, request: Message, timeout: float = 60.0, *, told: bool = True) -> Response:
        """Call the plugin; one that does not answer in time is dropped. *told*: the call says how long it waits. Raises
        TimeoutError, ConnectionError.
        """
        stream = next(self._streams)
        asked = Request(
            service=PLUGIN, method=method, payload=request.SerializeToString(), timeout_nano=int(timeout * told * 1e9)
        ).SerializeToString()
        answer = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self.writer.write(frame(1, head(len(asked), stream, 1)) + frame(1, asked))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            self.writer.close()
            raise

    async def serve(self, refusal: str) -> None:
        """Read what the plugin sends, for as long as it is connected."""
        streams = {1: bytearray(), 2: bytearray()}
        try:
            while True:
                connection, length = struct.unpack(">II", await self.reader.readexactly(8))
                assert length <= 4096, "Go's side reads no more at once"
                part = streams[connection]
                part += await self.reader.readexactly(length)
                while len(part) >= 10 and len(part) >= 10 + struct.unpack_from(">I", part)[0]:
                    size, stream, kind, _ = struct.unpack_from(">IIBB", part)
                    data = bytes(part[10 : 10 + size])
                    del part[: 10 + size]
                    if connection == 2:
                        self._asked(stream, kind, data, refusal)
                    else:
                        assert kind == 2
                        self._waiting.pop(stream).set_result(Response.FromString(data))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError())

    def _asked(self, stream: int, kind: int, data: bytes, refusal: str) -> None:
        asked = Request.FromString(data)
        assert (kind, stream % 2, asked.service, asked.method) == (1, 1, RUNTIME, "RegisterPlugin")
        said = nri.RegisterPluginRequest.FromString(asked.payload)
        answer = Response()
        if refusal:
            answer.status.code = 2
            answer.status.message = refusal
        else:
            self.name = f"{said.plugin_idx}-{said.plugin_name}"
        answered = answer.SerializeToString()
        self.writer.write(frame(2, head(len(answered), stream, 2) + answered))


@dataclass
class FakeNri:
    """The runtime. *older*: before NRI 0.12, with events for methods; *refusal*: what plugins are told; *patience*: in
    seconds, as it says when a plugin is configured.
    """

    path: Path
    older: bool = False
    refusal: str = ""
    is_mute: bool = False
    """It answers nothing, as while it is busy with others."""
    patience: float = 2.0
    parts: int = 2
    """Messages in which it tells what runs already."""
    plugins: list[PluginSeen] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeNri]:
        """Listen meanwhile; leaving cuts the connections."""
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connected, str(self.path))
        try:
            yield self
        finally:
            server.close()
            for plugin in self.plugins:
                plugin.writer.close()
            self.plugins.clear()

    def ready(self) -> list[PluginSeen]:
        """Return the plugins that are told of what happens."""
        return [each for each in self.plugins if each.synchronized and not each.gone.is_set()]

    async def made(self, sandbox: nri.PodSandbox) -> None:
        """A sandbox was made."""
        for plugin in self.ready():
            await self._tell(plugin, "RunPodSandbox", nri.RUN_POD_SANDBOX, sandbox)

    async def create(self, sandbox: nri.PodSandbox, timeout: float = 60.0) -> str:
        """Make a container of *sandbox* when all plugins have answered; return why one of them refuses that, or
        ``late`` where one did not answer in time.
        """
        for plugin in self.ready():
            try:
                answer = await plugin.call("CreateContainer", nri.PodRequest(pod=sandbox), timeout)
            except (TimeoutError, ConnectionError):
                return "late"
            if answer.status.code:
                return answer.status.message
        return ""

    async def start(self, sandbox: nri.PodSandbox, timeout: float = 60.0) -> bool:
        """Start a container of *sandbox* when all plugins have answered; return whether all did in time."""
        in_time = True
        for plugin in self.ready():
            try:
                await self._tell(plugin, "StartContainer", nri.START_CONTAINER, sandbox, timeout)
            except TimeoutError:
                in_time = False
        return in_time

    async def _tell(
        self, plugin: PluginSeen, method: str, event: nri.Event, sandbox: nri.PodSandbox, timeout: float = 60.0
    ) -> None:
        if not plugin.events & (1 << (event - 1)):
            return
        if self.older:
            answer = await plugin.call("StateChange", nri.StateChangeEvent(event=event, pod=sandbox), timeout)
        else:
            answer = await plugin.call(method, nri.PodRequest(pod=sandbox), timeout)
        assert not answer.status.code, "an error would keep the container from starting"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plugin = PluginSeen(reader, writer)
        self.plugins.append(plugin)
        if self.is_mute:
            return
        serving = asyncio.create_task(plugin.serve(self.refusal))
        while not plugin.name and not serving.done():
            await asyncio.sleep(0.001)  # it registers by itself
        if plugin.name:
            patience = int(self.patience * 1000)
            request = nri.ConfigureRequest(runtime_name="fake", runtime_version="2.0", request_timeout=patience)
            plugin.events = nri.ConfigureResponse.FromString((await plugin.call("Configure", request)).payload).events
            for number in range(self.parts):
                more = number + 1 < self.parts
                answer = await plugin.call("Synchronize", nri.SynchronizeRequest(more=more))
                assert nri.SynchronizeResponse.FromString(answer.payload).more == more
            plugin.synchronized = True
        await serving
