"""What every container runtime keeps, as the agent asks it: a real containerd, and a fake in CRI-O's
shape. Pods are made by CRI calls alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Protocol

import pytest

from nodeagent.control.footing import addresses_in
from nodeagent.lab import cgroup
from nodeagent.places import cgroups
from nodeagent.places.bundles import Bundles
from nodeagent.places.cri import CriPlaces
from nodeagent.places.runtime import CriRuntime
from nodeagent.places.sandbox import SandboxReader
from nodeagent.redirect.netns import PodNetns, own_cookie
from nodeagent.vocabulary import PodUid
from tests.containerd import NETWORKS, Containerd
from tests.fakes.cri import FakeCri, FakeSandbox, crio_info
from tests.waiting import until


class Node(Protocol):
    """A node with a runtime: pods are run on it, the runtime is restarted."""

    root: Path
    socket: Path

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run_pod(self, uid: str, *, name: str = "web", attempt: int = 0, host_network: bool = False) -> str: ...

    def remove_pod(self, sandbox: str) -> None: ...

    def remove(self) -> None: ...


class FakeNode:
    """Its pods are a process each, with a network namespace and a cgroup of its own."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.root = tree / f"fake-{uuid.uuid4().hex[:12]}" / "kubepods"
        self.root.mkdir(parents=True)
        self._folder = folder
        self.socket = folder / "crio.sock"
        self._runtime = FakeCri(self.socket, events=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._runtime = replace(self._runtime)
        self._runtime.start()

    def stop(self) -> None:
        self._runtime.stop()

    def run_pod(self, uid: str, *, name: str = "web", attempt: int = 0, host_network: bool = False) -> str:
        sandbox = uuid.uuid4().hex
        group = self.root / "burstable" / f"pod{uid}"
        group.mkdir(parents=True, exist_ok=True)
        argv = ["sleep", "infinity"] if host_network else ["unshare", "--net", "sleep", "infinity"]
        process = self._processes[sandbox] = subprocess.Popen(argv)
        (group / "cgroup.procs").write_text(str(process.pid))
        own = os.stat("/proc/self/ns/net").st_ino
        while not host_network and os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
            os.sched_yield()
        netns = ""
        if not host_network:
            subprocess.run(["ip", "netns", "attach", sandbox, str(process.pid)], check=True)
            netns = f"/var/run/netns/{sandbox}"
        info = crio_info(netns, f"/{self.root.parent.name}/kubepods/burstable/pod{uid}/crio-{sandbox}", process.pid)
        number = len(self._processes)
        made = FakeSandbox(
            sandbox, uid, name, attempt=attempt, created=number, host_network=host_network, info=info,
            addresses=() if host_network else (f"10.99.1.{number + 1}", f"fd00:99:1::{number + 1:x}"),
        )  # fmt: skip
        self._runtime.sandboxes.append(made)
        self._runtime.happen()
        return sandbox

    def remove_pod(self, sandbox: str) -> None:
        self._runtime.sandboxes = [one for one in self._runtime.sandboxes if one.id != sandbox]
        process = self._processes.pop(sandbox)
        process.kill()
        process.wait()
        if Path(f"/run/netns/{sandbox}").exists():
            subprocess.run(["ip", "netns", "delete", sandbox], check=True)
        self._runtime.happen()

    def end(self, sandbox: str) -> None:
        """The process of *sandbox* was killed, as a runtime finds by itself."""
        self._processes[sandbox].wait()
        for one in self._runtime.sandboxes:
            one.ready = one.ready and one.id != sandbox

    def remove(self) -> None:
        for sandbox in list(self._processes):
            self.remove_pod(sandbox)
        self.stop()
        cgroup.remove(self.root.parent)
        shutil.rmtree(self._folder)


@pytest.fixture(params=["containerd", "crio"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="cri-", dir="/run"))
    if request.param == "crio":
        fake = FakeNode(folder, cgroup.hierarchy())
        try:
            fake.start()
            yield fake
        finally:
            fake.remove()
        return
    made = Containerd(folder, cgroup.hierarchy())
    try:
        made.start()
        made.import_pause()
        yield made
    finally:
        made.remove()


def follow(node: Node, script: Callable[[CriPlaces], Awaitable[None]]) -> None:
    async def whole() -> None:
        places = CriPlaces(CriRuntime(node.socket), SandboxReader(node.root).read)
        try:
            async with asyncio.timeout(100):
                await script(places)
        finally:
            places.close()

    asyncio.run(whole())


def test_the_pods_root_is_found_and_a_pod_is_where_it_runs(node: Node) -> None:
    """Both: its namespace can be entered and is no other's, its cgroup holds its process, its
    addresses are the network's, before any API could say so.
    """

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == frozenset()
        uid = PodUid(str(uuid.uuid4()))
        sandbox = await asyncio.to_thread(node.run_pod, uid)
        assert await places.changed() == {uid}
        found = places.sandbox(uid)
        assert found is not None
        assert (found.id, found.namespace, found.name) == (sandbox, "default", "web")
        entered = PodNetns.open(Path(found.place.netns), found.place.network)
        assert entered.cookie != own_cookie()
        entered.close()
        assert Path(found.place.cgroup) == node.root / "burstable" / f"pod{uid}"
        assert cgroup.processes(Path(found.place.cgroup))
        for address, network in zip(found.addresses, NETWORKS, strict=True):
            assert ip_address(address) in ip_network(network)
        assert cgroups.pods_root(cgroups.own_mountinfo()) == node.root
        await asyncio.to_thread(node.remove_pod, sandbox)
        assert await places.changed() == {uid}
        assert places.all() == {}

    follow(node, script)


def test_a_sandbox_made_anew_is_another_place(node: Node) -> None:
    async def script(places: CriPlaces) -> None:
        await places.changed()
        uid = PodUid(str(uuid.uuid4()))
        first = await asyncio.to_thread(node.run_pod, uid)
        assert await places.changed() == {uid}
        before = places.all()[uid]
        await asyncio.to_thread(node.run_pod, uid, name="web", attempt=1)
        assert await places.changed() == {uid}
        assert places.all()[uid].place != before.place
        await asyncio.to_thread(node.remove_pod, first)
        after = places.all()[uid]
        assert after.id != first

    follow(node, script)


def test_a_sandbox_whose_process_was_killed_is_where_it_was_also_for_who_starts_then(node: Node) -> None:
    """Verdict: as long as its network is there; then it is gone for both."""

    async def script(places: CriPlaces) -> None:
        await places.changed()
        killed, other = (PodUid(str(uuid.uuid4())) for _ in range(2))
        sandbox = await asyncio.to_thread(node.run_pod, killed)
        assert await places.changed() == {killed}
        before = places.all()[killed].place
        for pid in cgroup.processes(Path(before.cgroup)):
            os.kill(pid, signal.SIGKILL)
        if isinstance(node, FakeNode):
            await asyncio.to_thread(node.end, sandbox)
        asked = CriRuntime(node.socket)
        while killed in {each.uid for each in await asked.sandboxes()}:
            await asyncio.sleep(0.05)  # as long as the runtime takes to notice
        asked.close()
        await asyncio.to_thread(node.run_pod, other, name="other")
        assert await places.changed() == {other}
        starts = CriPlaces(CriRuntime(node.socket), SandboxReader(node.root).read)
        try:
            assert await starts.changed() == {killed, other}
            assert {places.all()[killed].place, starts.all()[killed].place} == {before}
            assert starts.missing() == []
            await asyncio.to_thread(node.remove_pod, sandbox)
            assert (await places.changed(), await starts.changed()) == ({killed}, {killed})
        finally:
            starts.close()

    follow(node, script)


def test_containerds_folder_says_of_a_sandbox_what_it_will_say_itself() -> None:
    """Input: pods of a real containerd, by its bundles alone. Verdict: each has there the very place and addresses
    that containerd tells, and is forgotten with its sandbox.
    """
    folder = Path(tempfile.mkdtemp(prefix="cri-", dir="/run"))
    made = Containerd(folder, cgroup.hierarchy())

    async def script() -> None:
        reader = SandboxReader(made.root)
        places = CriPlaces(CriRuntime(made.socket), reader.read)
        bundles = Bundles(reader.read, addresses_in, lambda: None, folders=[made.bundles])
        try:
            async with asyncio.timeout(100):
                await asyncio.to_thread(made.run_pod, str(uuid.uuid4()), name="first")
                await places.changed()
                bundles.follow()
                uid = PodUid(str(uuid.uuid4()))
                (made.root / "burstable" / f"pod{uid}").mkdir()  # as a kubelet does before it asks for the sandbox
                sandbox = await asyncio.to_thread(made.run_pod, uid)
                await asyncio.to_thread(made.run_pod, str(uuid.uuid4()), name="proxy", host_network=True)
                assert await places.changed() == {uid}
                assert bundles.early(()) == {uid: places.sandbox(uid)}
                await asyncio.to_thread(made.remove_pod, sandbox)
                await until(lambda: not bundles.early(()))
        finally:
            bundles.close()
            places.close()

    try:
        made.start()
        made.import_pause()
        asyncio.run(script())
    finally:
        made.remove()


def test_who_shares_the_nodes_network_has_no_place_of_its_own(node: Node) -> None:
    async def script(places: CriPlaces) -> None:
        await places.changed()
        await asyncio.to_thread(node.run_pod, str(uuid.uuid4()), name="proxy", host_network=True)
        uid = PodUid(str(uuid.uuid4()))
        await asyncio.to_thread(node.run_pod, uid)
        assert await places.changed() == {uid}
        assert set(places.all()) == {uid}
        assert places.faults() == {}

    follow(node, script)


def test_nothing_is_lost_while_the_runtime_restarts(node: Node) -> None:
    """Input: pods that came and went while it did. Verdict: meanwhile the last answer holds; then
    what is there is told.
    """

    async def script(places: CriPlaces) -> None:
        await places.changed()
        stays, goes, comes = (PodUid(str(uuid.uuid4())) for _ in range(3))
        kept = await asyncio.to_thread(node.run_pod, stays)
        gone = await asyncio.to_thread(node.run_pod, goes)
        told = set(await places.changed())
        while told != {stays, goes}:
            told |= await places.changed()
        before = dict(places.all())
        waiting = asyncio.ensure_future(places.changed())
        await asyncio.to_thread(node.stop)
        while not places.trouble():
            assert not waiting.done()
            await asyncio.sleep(0.05)  # no task of ours: the runtime's socket goes in its own time
        assert dict(places.all()) == before
        await asyncio.to_thread(node.start)
        await asyncio.to_thread(node.remove_pod, gone)
        await asyncio.to_thread(node.run_pod, comes)
        told = set(await waiting)
        while told != {goes, comes}:
            told |= await places.changed()
        assert set(places.all()) == {stays, comes}
        assert places.all()[stays] == before[stays]
        await asyncio.to_thread(node.remove_pod, kept)

    follow(node, script)
