"""Volumes of csi.nodeagent.io as a kubelet asks for them, in a mount namespace that is not the agent's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError

from nodeagent.control.csi_volumes import DRIVER_SOCKET, REGISTRATION, REGISTRY, CsiVolumes
from nodeagent.identity.csi import EPHEMERAL, POD_UID
from nodeagent.parts import Parts
from nodeagent.protocols import csi_pb2, kubelet_registration_pb2
from nodeagent.redirect.host_mount import HostMounts
from tests.waiting import eventually, until

UID = "0b3c9a5e-1111-2222-3333-444455556666"


@pytest.fixture
def first() -> Iterator[int]:
    """A process whose mount namespace stands for the node's."""
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "infinity"]) as child:
        own = Path("/proc/self/ns/mnt").stat().st_ino
        try:
            eventually(lambda: Path(f"/proc/{child.pid}/ns/mnt").stat().st_ino != own, "it has one of its own")
            yield child.pid
        finally:
            child.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="csi-", dir="/run") as name:
        yield Path(name)


class Kubelet:
    """What asks the driver."""

    def __init__(self, folder: Path, first: int) -> None:
        self.folder = folder / "kubelet"
        (self.folder / REGISTRY).mkdir(parents=True)
        self.runtime = folder / "run"
        self.volumes = CsiVolumes("node-a", self.folder, self.runtime, HostMounts(first))
        self.target = str(self.folder / "pods" / UID / "volumes" / "kubernetes.io~csi" / "sds" / "mount")
        self._root = Path(f"/proc/{first}/root")

    def seen(self) -> Path:
        """Return the volume as the node's processes see it."""
        return self._root / self.target.removeprefix("/")

    async def ask(self, socket: str, method: str, request: Message, reply: type[Any] = Message) -> Any:
        channel = Channel(path=str(self.folder / socket))
        try:
            return await UnaryUnaryMethod(channel, method, type(request), reply)(request)
        finally:
            channel.close()

    async def publish(self, **changed: Any) -> None:
        context = {POD_UID: UID, EPHEMERAL: "true"}
        fields = {
            "volume_id": "csi-1",
            "target_path": self.target,
            "readonly": True,
            "volume_context": context,
            **changed,
        }
        await self.ask(
            DRIVER_SOCKET,
            "/csi.v1.Node/NodePublishVolume",
            csi_pb2.NodePublishVolumeRequest(**fields),
            csi_pb2.NodePublishVolumeResponse,
        )

    async def unpublish(self) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="csi-1", target_path=self.target)
        await self.ask(DRIVER_SOCKET, "/csi.v1.Node/NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse)


def play(path: Path, first: int, scene: Callable[[Kubelet], Awaitable[None]]) -> None:
    async def run() -> None:
        kubelet = Kubelet(path, first)
        parts = Parts()
        async with asyncio.timeout(60), kubelet.volumes.run(parts):
            await until((kubelet.folder / REGISTRATION).exists)
            await scene(kubelet)
        parts.stop()
        await until(lambda: not (kubelet.folder / REGISTRATION).exists())
        assert not (kubelet.folder / DRIVER_SOCKET).exists()

    asyncio.run(run())


def test_a_pods_folder_is_mounted_read_only_before_the_pod_is_there(folder: Path, first: int) -> None:
    async def scene(kubelet: Kubelet) -> None:
        await kubelet.publish()
        await kubelet.publish()  # a kubelet that was restarted asks again
        (kubelet.runtime / "pods" / UID / "socket").touch()
        assert [path.name for path in kubelet.seen().iterdir()] == ["socket"]
        with pytest.raises(OSError, match="Read-only"):
            (kubelet.seen() / "mine").touch()
        assert not Path(kubelet.target).exists() or not list(Path(kubelet.target).iterdir()), "the agent's own has none"
        await kubelet.unpublish()
        await kubelet.unpublish()
        assert not kubelet.seen().exists()
        assert (kubelet.runtime / "pods" / UID / "socket").exists()

    play(folder, first, scene)


def test_a_volume_whose_pod_never_came_leaves_nothing(folder: Path, first: int) -> None:
    async def scene(kubelet: Kubelet) -> None:
        await kubelet.publish()
        await kubelet.unpublish()
        assert not (kubelet.runtime / "pods" / UID).exists()

    play(folder, first, scene)


@pytest.mark.parametrize("own", [os.getpid, os.getppid], ids=["control", "its supervisor"])
def test_nothing_is_mounted_where_only_the_agent_would_see_it(folder: Path, own: Callable[[], int]) -> None:
    """Input: an agent without hostPID, to which the first process is one of its own."""

    async def scene(kubelet: Kubelet) -> None:
        for ask in (kubelet.publish, kubelet.unpublish):
            with pytest.raises(GRPCError, match="hostPID is missing"):
                await ask()
        assert not Path(kubelet.target).exists()

    play(folder, own(), scene)


def test_the_kubelet_learns_what_the_driver_is(folder: Path, first: int) -> None:
    async def scene(kubelet: Kubelet) -> None:
        ask = kubelet.ask
        request = kubelet_registration_pb2.InfoRequest()
        where = "/pluginregistration.Registration"
        info = await ask(REGISTRATION, f"{where}/GetInfo", request, kubelet_registration_pb2.PluginInfo)
        assert (info.type, info.name, info.endpoint) == (
            "CSIPlugin",
            "csi.nodeagent.io",
            str(kubelet.folder / DRIVER_SOCKET),
        )
        named = await ask(
            DRIVER_SOCKET,
            "/csi.v1.Node/NodeGetInfo",
            csi_pb2.NodeGetInfoRequest(),
            csi_pb2.NodeGetInfoResponse,
        )
        assert named.node_id == "node-a"
        who = await ask(
            DRIVER_SOCKET,
            "/csi.v1.Identity/GetPluginInfo",
            csi_pb2.GetPluginInfoRequest(),
            csi_pb2.GetPluginInfoResponse,
        )
        assert who.name == "csi.nodeagent.io"

    play(folder, first, scene)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"readonly": False}, "readOnly"),
        ({"volume_context": {POD_UID: UID}}, "ephemeral volumes only"),
        ({"volume_context": {POD_UID: "../etc", EPHEMERAL: "true"}}, "is no pod's uid"),
        ({"volume_context": {POD_UID: "..", EPHEMERAL: "true"}}, "is no pod's uid"),
        ({"target_path": "/etc"}, "is no CSI volume"),
        ({"target_path": "/var/kubernetes.io~csi/../../etc"}, "is no CSI volume"),
    ],
)
def test_what_is_no_volume_of_a_pod_is_refused(folder: Path, first: int, changed: Any, words: str) -> None:
    async def scene(kubelet: Kubelet) -> None:
        with pytest.raises(GRPCError, match=words):
            await kubelet.publish(**changed)
        assert not (kubelet.runtime / "pods").exists()

    play(folder, first, scene)


def test_a_successors_sockets_are_not_taken_away(folder: Path, first: int) -> None:
    async def run() -> None:
        old = Kubelet(folder, first)
        new = CsiVolumes("node-a", old.folder, old.runtime, HostMounts(first))
        earlier, later = Parts(), Parts()
        async with asyncio.timeout(60), new.run(later):
            await until((old.folder / REGISTRATION).exists)
            ended = (old.folder / REGISTRATION).stat().st_ino
            async with old.volumes.run(earlier):
                await until(lambda: (old.folder / REGISTRATION).stat().st_ino != ended)
            # What began first ends first: its sockets are not there any more.
            later.stop()
            await old.publish()
            earlier.stop()
            await until(lambda: not (old.folder / REGISTRATION).exists())

    asyncio.run(run())
