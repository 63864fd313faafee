"""The data plane as control sees it: enroll and release pods, check them against the kernel, beat,
count.

Theory of operation
-------------------

The loader has pinned maps, programs and the cgroup's links; this module fills maps, opens listeners
inside pods, and attaches one sk_lookup link a pod. For each enrolled pod there is a state of what
it must have in the kernel, and one list of everything in which the kernel differs from it, in the
order in which it has to be repaired:

    1 listeners ──▶ 2 entries of maps ──▶ 3 the link in the pod's network namespace
      (inside the      (addresses, port       (inbound connections are
      pod)             modes, the pod)        captured from here on)

To enrol is to repair a pod that has nothing; the periodic check is to repair one that should have
all of it; a restart is to repair what an earlier daemon left. So there is one way to bring a pod to
its description, it may be interrupted anywhere, and doing it twice is doing it once. The order
makes that no connection is captured before there is a listener to take it; a release goes the other
way round:

                    repaired                          release: kernel path, link, entries, listeners
    unknown ──enroll──▶ captured ◀──repair()── differs ────────────────────────────▶ unknown
                  │         │                     ▲
                  │         └── somebody closed a listener, removed a pin or an entry
                  │ no listener can be had (the pod took the port), or a map is full
                  └──▶ held: entries and link are there without a listener, and the programs do for
                       the pod what they do while no daemon lives

Held is not open: a pod cannot escape capture by taking the agent's port. Where the maps have no
room for a pod's own entries, the link is attached only if the pod is to be refused without a daemon
anyway, because the program refuses whom the maps do not know.

A link is replaced, never doubled: a program that ran twice would take its own redirection for a
connection to loopback. Programs, maps and the cgroup's links are checked in the same way, for the
node as a whole.

Another daemon may take the node over while this one still ends its connections. Its loader's run
makes this one a predecessor (``settings.owner``): from then on nothing here writes to the kernel
any more, and nothing is repaired, or the two would undo each other's work for ever.

What an earlier daemon left of pods that are gone is removed by prune(), once all pods are enrolled;
of pods that exist and could not be enrolled it stays, since it may protect them.

One thread only. Nothing here reads a pod's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from nodeagent.config import Redirect
from nodeagent.errors import KernelError
from nodeagent.istio import INBOUND_PORT, OUTBOUND_PORT
from nodeagent.redirect import (
    bypass,
    glance,
    heartbeat,
    hooks,
    loader,
    maps,
    netns,
    others,
    ownership,
    pins,
    remnants,
    sock_diag,
    syscall,
)
from nodeagent.redirect import pod as pods
from nodeagent.redirect.http_metrics import HttpMetrics
from nodeagent.redirect.kernel_maps import KernelMaps
from nodeagent.redirect.kernel_record import FlowId, RecordedFlow
from nodeagent.redirect.left_alone import Denial, LeftAlone, cgroup_names
from nodeagent.redirect.netns import PodNetns
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.redirect.probed import Probed
from nodeagent.redirect.repair import POD_MAPS, CapturedPod, Fault, Repairs, put_right
from nodeagent.vocabulary import Direction, Family, PodUid

log = logging.getLogger("nodeagent.redirect")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters by name since the maps were made; entries used and possible by map."""

    counters: dict[str, int]
    maps: dict[str, tuple[int, int]]


class DataPlane:
    """The pinned maps, programs and links, open. One thread only."""

    def __init__(
        self,
        redirect: Redirect,
        slots: int,
        ports: dict[Direction, int],
        joining: bypass.Joining,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        """Open what the loader, which is *process* as long as it goes on, pinned. Raises KernelError
        when something is missing.
        """
        self._pins = pins.Pins(redirect.pin_directory)
        self._enrolled: dict[str, CapturedPod] = {}
        self._cgroup = loader.open_cgroup(redirect.cgroup)
        self._maps = maps.open_all(self._pins.maps, redirect.maps)
        self._loader = process
        self.joining = joining
        there = [
            hook for hook in hooks.HOOKS if hook is not hooks.HTTP_EGRESS or (self._pins.programs / hook.name).exists()
        ]
        self._programs = {hook.name: pins.open_pinned(self._pins.programs / hook.name) for hook in there}
        self._ids = {name: hooks.program_id(fd) for name, fd in self._programs.items()}
        self._repairs = Repairs(self._maps, self._pins, self._programs, self._ids, slots, ports)
        self._root = loader.open_cgroup(loader.root_of(redirect.cgroup))
        on_cgroup = hooks.CGROUP_HOOKS if joining.refusal else (*hooks.CGROUP_HOOKS, hooks.SETSOCKOPT)
        self._attached = {**dict.fromkeys(on_cgroup, self._cgroup), hooks.NODE_SOCKOPS: self._root}
        self._links = {hook.name: pins.open_pinned(self._pins.links / hook.name) for hook in self._attached}
        self._owner = ownership.PinOwner(self._pins.maps)
        self.kernel = KernelMaps(self._maps, self.superseded)
        self.left_alone = LeftAlone(self._maps["left_alone"], self._maps["denied"], self.superseded)
        self._captured_cgroup = redirect.cgroup
        self.probed = Probed(self._maps["probed"])
        self.http = HttpMetrics(
            self._maps, self._programs.get(hooks.HTTP_EGRESS.name, -1), self._cgroup, self._pins.links
        )

    @classmethod
    async def load(
        cls,
        redirect: Redirect,
        *,
        slots: int = 1,
        agent_cgroup: Path | None = None,
        outbound_port: int = OUTBOUND_PORT,
        inbound_port: int = INBOUND_PORT,
        wait: bool = True,
    ) -> DataPlane:
        """Run the loader and open what it pinned; maps of an earlier daemon are adopted, its
        programs replaced in one step each.

        *slots*: listeners per pod, direction and family, one for each worker. *agent_cgroup*: the
        daemon's own, searched by its pid below the captured one when None. *wait*: until HTTP can
        be counted too; otherwise call :meth:`loaded`. Raises KernelError with the loader's words.
        """
        loading = await Loading.begin(
            redirect,
            slots=slots,
            agent_cgroup=agent_cgroup,
            outbound_port=outbound_port,
            inbound_port=inbound_port,
        )
        plane = await loading.attached()
        if wait:
            await plane.loaded()
        return plane

    async def loaded(self) -> None:
        """Wait for the loader's end: from then on HTTP can be counted. Raises KernelError with its words."""
        process = self._loader
        self._loader = None
        if process is None or process.stdout is None:
            return
        await _ended(process, [await process.stdout.read()])
        name = hooks.HTTP_EGRESS.name
        if name in self._programs:
            os.close(self._programs[name])
        self._programs[name] = self.http.program = pins.open_pinned(self._pins.programs / name)
        self._ids[name] = hooks.program_id(self._programs[name])

    @property
    def original_map_fd(self) -> int:
        """For OriginalDestinations in the workers: pass it on, do not close it."""
        return self._maps["by_source"].fd

    def next_originals(self) -> int | None:
        """Open the map that takes that one's place when the loader under way attaches its programs;
        None: they go on with it. Whoever asks closes it.
        """
        try:
            found = syscall.get(self._pins.directory / "next" / "maps" / "by_source")
        except OSError:
            return None
        mine = maps.shape(self.original_map_fd)
        if maps.identity(found) == maps.identity(self.original_map_fd) or maps.shape(found)[:2] != mine[:2]:
            os.close(found)
            return None
        return found

    @property
    def announced_map_fd(self) -> int:
        """For Announcements in the workers: pass it on, do not close it."""
        return self._maps["announced"].fd

    @property
    def heartbeat_fd(self) -> int:
        """For :mod:`nodeagent.redirect.heartbeat` in the supervisor: pass it on, do not close it."""
        return self._maps["heartbeat"].fd

    def superseded(self) -> bool:
        """Say whether another daemon has taken the node over: nothing is written to the kernel any more."""
        return not self._owner.holds()

    def beat(self) -> None:
        """Say that the daemon lives; to be called several times within redirect.heartbeatTimeoutSeconds."""
        heartbeat.beat(self.heartbeat_fd)

    def stop_beating(self) -> None:
        """Say that the daemon stops: from now on each pod's protection says what is refused."""
        heartbeat.end(self.heartbeat_fd)

    @staticmethod
    def pod_netns(path: Path, network: tuple[int, int] | None = None) -> PodNetns:
        """Open a pod's network namespace, which is *network*. Raises KernelError."""
        return PodNetns.open(path, network)

    def enroll(self, pod: EnrolledPod, listeners: Listeners | None = None) -> Listeners:
        """Capture *pod*, or bring an enrolled one to its new description; return its listeners.

        Takes over pod.netns, and the sockets of *listeners* (handed over by an earlier daemon).
        Raises KernelError: the pod then has what the kernel took, and repair() goes on trying.
        Without a listener, the agent's port being taken by a process of the pod, its connections
        are treated as while no daemon is there.
        """
        if self.superseded():
            pod.netns.close()
            raise KernelError(f"pod {pod.uid}: {ownership.SUPERSEDED}")
        state = self._enrolled.get(pod.uid)
        if state and state.pod.netns.cookie != pod.netns.cookie:
            self.release(pod.uid)
            state = None
        try:
            wanted = pods.entries(pod, self.kernel.number(pod.netns.cookie))
        except OSError:
            pod.netns.close()
            raise KernelError(f"pod {pod.uid}: {', '.join(pod.addresses)}: not IPv4 and IPv6 addresses") from None
        self._yield_addresses(pod, wanted["addresses"])
        if state:
            self._change(state, pod, wanted)
        else:
            state = self._enrolled[pod.uid] = CapturedPod(pod, wanted, listeners or Listeners())
        if state.pod.netns.fd != pod.netns.fd:
            pod.netns.close()
        self.probed.keep(state.pod.netns, pod.probed)
        try:
            put_right(self._repairs.faults(state))
        except (KernelError, OSError) as error:
            self._hold(state)
            self.left_alone.captured(state.pod.netns.cookie)
            if isinstance(error, KernelError):
                raise
            raise KernelError(f"pod {pod.uid}: the kernel refused its entries: {error.strerror}") from None
        state.captured = True
        self.left_alone.captured(state.pod.netns.cookie)
        return state.listeners

    def _hold(self, state: CapturedPod) -> None:
        """Have the kernel do for a pod without listeners what it does without a daemon. The link
        refuses whom the maps do not know: where they are full, that is right for a pod that refuses
        without a daemon, and for no other.
        """
        with suppress(KernelError, OSError):
            put_right(self._repairs.entry_faults(state))
        protection = state.pod.protection
        protected = protection.dead or any(dead for _, dead in protection.ports)
        if protected or not any(self._repairs.entry_faults(state)):
            with suppress(KernelError, OSError):
                put_right(self._repairs.link_faults(state))

    def release(self, uid: str) -> None:
        """Stop capturing new connections of a pod, then close its listeners here; live connections are untouched."""
        state = self._enrolled.pop(uid, None)
        if state is None:
            return
        if not self.superseded():
            # its addresses off the kernel path first
            self.probed.forget(state.pod.netns.cookie)
            self.kernel.withdraw(self.kernel.number(state.pod.netns.cookie))
            self._repairs.withdraw(state)
        state.close()

    def forget(self, uid: str) -> None:
        """Close what is held of a pod: it is another daemon's to capture, or to release."""
        state = self._enrolled.pop(uid, None)
        if state:
            state.close()

    def listeners(self, uid: str) -> Listeners:
        """Return the pod's listeners: another object than before when a repair had to open some anew."""
        return self._enrolled[uid].listeners

    def sockets(self, uid: str, family: Family, count: int) -> list[socket.socket]:
        """Make *count* unconnected, non-blocking TCP sockets inside the pod. Raises KernelError;
        KeyError when it is not enrolled.
        """
        return pods.open_sockets(uid, self.network(uid), family, count)

    def network(self, uid: str) -> int:
        """Return the descriptor of an enrolled pod's network namespace: pass it on, do not close
        it. Raises KeyError.
        """
        return self._enrolled[uid].pod.netns.fd

    def numbers(self) -> dict[PodUid, int]:
        """Return the number of each enrolled pod on the kernel path."""
        return {PodUid(uid): self.kernel.number(state.pod.netns.cookie) for uid, state in self._enrolled.items()}

    def carried(self, source: int) -> dict[FlowId, sock_diag.CarriedBytes]:
        """Return what the open connections of the pod with number *source* have carried as clients;
        nothing when it is gone. Raises OSError.
        """
        state = self._numbered(source)
        if state is None:
            return {}
        return {FlowId(*ends): carried for ends, carried in sock_diag.clients(state.pod.netns.fd).items()}

    def bypassed(self) -> dict[bypass.SocketEnds, bypass.BypassedStream]:
        """Return what open connections have carried past TCP, by the socket that sent it. Raises OSError."""
        return bypass.streams(self._maps)

    def close_flow(self, flow: RecordedFlow) -> bool:
        """Close a connection on the kernel path by both ends, as far as they are in enrolled pods;
        return whether one was there. Raises OSError.

        The client's alone would not do: it may be a socket that is bound to a device, which
        SOCK_DESTROY does not find by its ends, or another that has the same ones.
        """
        client = self._numbered(flow.source)
        server = self._numbered(flow.destination)
        closed = client is not None and sock_diag.destroy(client.pod.netns.fd, flow.id, flow.client)
        if server is None or not flow.server:
            return closed
        ends = flow.id.destination, flow.id.source
        return sock_diag.destroy(server.pod.netns.fd, ends, flow.server) or closed

    def _numbered(self, number: int) -> CapturedPod | None:
        return next(
            (state for state in self._enrolled.values() if self.kernel.number(state.pod.netns.cookie) == number), None
        )

    def verify(self, uid: str) -> list[str]:
        """Compare an enrolled pod with the kernel's real state; return what is wrong, in words."""
        return [] if self.superseded() else [words for words, _ in self._repairs.faults(self._enrolled[uid])]

    def repair(self, uid: str) -> list[str]:
        """Put right whatever verify() would find; return what was. Raises KernelError when that is not possible."""
        return [] if self.superseded() else put_right(self._repairs.faults(self._enrolled[uid]))

    def suspects(self) -> frozenset[PodUid]:
        """Return the enrolled pods with which something may be wrong: verify() says whether it is.
        Raises OSError.
        """
        if self.superseded():
            return frozenset()
        found = glance.suspects(self._enrolled.values(), self._maps, self._pins, self._ids[hooks.LOOKUP.name])
        return frozenset(PodUid(capture.pod.uid) for capture in found)

    def verify_node(self) -> list[str]:
        """Compare the cgroup's links and all pins, which every pod depends on, with what they should be."""
        return [] if self.superseded() else [words for words, _ in self._node_faults()]

    def repair_node(self) -> list[str]:
        """Put right whatever verify_node() would find; return what was. Raises KernelError when
        that is not possible.
        """
        return [] if self.superseded() else put_right(self._node_faults())

    def others(self) -> list[str]:
        """Name programs of somebody else that take something from ours. Raises OSError."""
        return others.told(others.others(self._captured_cgroup, self._ids.values()))

    def prune(self, spared: Collection[str] = ()) -> list[str]:
        """Remove what an earlier daemon left of pods that are not enrolled now; return it in words.
        Call it once all pods are.

        What protects the pods with the addresses *spared*, which exist and could not be enrolled,
        stays.
        """
        if self.superseded():
            return []
        found = ["an entry of left_alone"] * self.left_alone.prune()
        return found + remnants.prune(self._maps, self._pins, self.probed, self._enrolled.values(), spared)

    def denials(self) -> list[Denial]:
        """Return who was refused for being unknown (``redirect.unknownPods: deny``). Raises OSError."""
        if self.superseded():
            return []
        captured = {state.pod.netns.cookie: PodUid(uid) for uid, state in self._enrolled.items()}
        return self.left_alone.denials(captured)

    def cgroup_names(self, numbers: Collection[int]) -> dict[int, str]:
        """Return where below the captured cgroup those with these *numbers* are, as far as they are there."""
        return cgroup_names(self._captured_cgroup, numbers)

    def statistics(self) -> Statistics:
        """Read all counters, and count the entries of the maps that can be full (a system call per 4096 entries)."""
        filling = {name: (one.used(), one.spec.entries) for name, one in self._maps.items() if one.spec.setting}
        return Statistics(maps.read_counters(self._maps["counters"]), filling)

    def close(self) -> None:
        """Close every descriptor; what is pinned stays, and captures go on as the heartbeat says."""
        for state in self._enrolled.values():
            state.close()
        self._enrolled.clear()
        maps_open = [one.fd for one in self._maps.values()]
        for fd in (*self._links.values(), *self._programs.values(), *maps_open, self._cgroup.fd, self._root.fd):
            os.close(fd)
        self._owner.close()

    def unload(self) -> None:
        """Release every pod, detach and remove everything that is pinned, and close."""
        for uid in list(self._enrolled):
            self.release(uid)
        self.close()
        pins.cleanup(self._pins.directory)

    def _yield_addresses(self, pod: EnrolledPod, addresses: dict[bytes, bytes]) -> None:
        """An address that is given to a new pod is no longer the old one's, which is on its way out."""
        self.kernel.yield_addresses(self.kernel.number(pod.netns.cookie), pod.addresses)
        for state in self._enrolled.values():
            if state.pod.uid != pod.uid:
                for address in addresses:
                    state.entries["addresses"].pop(address, None)

    def _change(self, state: CapturedPod, pod: EnrolledPod, wanted: pods.Entries) -> None:
        self.kernel.withdraw(self.kernel.number(state.pod.netns.cookie), set(state.pod.addresses) - set(pod.addresses))
        for name in POD_MAPS:
            for key in state.entries[name].keys() - wanted[name].keys():
                self._maps[name].drop(key)
        state.pod = replace(pod, netns=state.pod.netns)
        state.entries = wanted

    def _node_faults(self) -> Iterator[Fault]:
        if not all(folder.is_dir() for folder in (self._pins.maps, self._pins.programs, self._pins.links)):
            yield f"{self._pins.directory}: folders are missing", self._pins.make
        for folder, held in (
            (self._pins.programs, self._programs),
            (self._pins.maps, {name: one.fd for name, one in self._maps.items()}),
        ):
            there = pins.names(folder)
            for name, fd in held.items():
                if name not in there:
                    yield f"{name} is not pinned", partial(pins.pin, fd, folder / name)
        there = pins.names(self._pins.links)
        for hook, target in self._attached.items():
            path = self._pins.links / hook.name
            wrong = hooks.fault(self._links[hook.name], hook, target, self._ids[hook.name])
            if wrong or hook.name not in there:
                yield (
                    wrong or f"the link {hook.name} is not pinned",
                    partial(self._relink_node, hook, path),
                )
        yield from self.left_alone.faults()
        yield from self.kernel.faults()

    def _relink_node(self, hook: hooks.Hook, path: Path) -> None:
        self._links[hook.name] = self._repairs.attach(self._links[hook.name], path, hook, self._attached[hook])


class Loading:
    """A loader under way, whose programs are in the kernel and not attached: nothing is changed yet."""

    def __init__(
        self, process: asyncio.subprocess.Process, redirect: Redirect, slots: int, request: loader.LoadRequest
    ) -> None:
        self._process = process
        self._redirect = redirect
        self._slots = slots
        self._request = request

    @classmethod
    async def begin(
        cls,
        redirect: Redirect,
        *,
        slots: int = 1,
        agent_cgroup: Path | None = None,
        outbound_port: int = OUTBOUND_PORT,
        inbound_port: int = INBOUND_PORT,
    ) -> Loading:
        """Run the loader until all that takes long is done; as :meth:`DataPlane.load` otherwise.
        Raises KernelError with the loader's words.
        """
        request = loader.LoadRequest(
            redirect=redirect,
            agent_cgroup=agent_cgroup,
            outbound_port=outbound_port,
            inbound_port=inbound_port,
            joining=bypass.joining(redirect.bypass),
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", loader.__name__, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        loading = cls(process, redirect, slots, request)
        await loading._say_until(request.model_dump_json(by_alias=True).encode() + b"\n", loader.LOADED)
        return loading

    async def attached(self, handed: Iterable[Mapping[ListenerId, socket.socket]] = ()) -> DataPlane:
        """Let the loader put its programs in the place of those before, and return what it pinned.
        Raises KernelError.

        *handed*: listeners of captured pods. The programs know them from the beginning, also where
        their map is made anew: sockets cannot be carried from map to map.
        """
        self._introduce(handed)
        await self._say_until(loader.GO, loader.ATTACHED)
        ports: dict[Direction, int] = {
            "outbound": self._request.outbound_port,
            "inbound": self._request.inbound_port,
        }
        return DataPlane(self._redirect, self._slots, ports, self._request.joining, self._process)

    def _introduce(self, handed: Iterable[Mapping[ListenerId, socket.socket]]) -> None:
        try:
            listeners = syscall.get(self._redirect.pin_directory / "next" / "maps" / "listeners")
        except OSError:
            return
        for (direction, family, slot), listener in chain.from_iterable(pod.items() for pod in handed):
            with suppress(OSError):  # one that was closed meanwhile: enrolling its pod opens another
                if slot == 0:
                    key = pods.listener_key(netns.cookie_of(listener), direction, family)
                    syscall.map_update(listeners, key, struct.pack("=Q", listener.fileno()))
        os.close(listeners)

    async def _say_until(self, words: bytes, answer: bytes) -> None:
        """Tell the loader *words*, and wait for its *answer*. Raises KernelError when it ends instead."""
        stdin = self._process.stdin
        stdout = self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(words)
        said: list[bytes] = []
        while (line := await stdout.readline()) != answer:
            if not line:
                await _ended(self._process, said)
                raise KernelError(b"".join(said).decode(errors="replace").strip() or "the loader ended too soon")
            said.append(line)
            log.warning("%s", line.decode(errors="replace").strip())


async def _ended(process: asyncio.subprocess.Process, said: list[bytes]) -> None:
    """Wait for the loader. Raises KernelError when it failed."""
    if await process.wait():
        raise KernelError(
            b"".join(said).decode(errors="replace").strip() or f"the loader died: exit status {process.returncode}"
        )
