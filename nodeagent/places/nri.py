"""The container runtime asks before it starts a container: a plugin of the Node Resource Interface.

The plugin connects to the runtime's socket (containerd from 1.7 on, by default from 2.0; CRI-O from
1.26 on), registers, is told of each sandbox that was made (RunPodSandbox), and is asked before each
container is made (CreateContainer) and started (StartContainer). The runtime waits for each answer:
until a pod is captured, no container of it is made. It calls one plugin at a time, one call after
another, for all pods of the node, so RunPodSandbox is answered at once: several pods are captured
beside each other, and a container has to wait only for what is left of that.

A container may be refused before it is made, and only then: the kubelet tries again after some ten
seconds, whatever the pod's restartPolicy (ShouldContainerBeRestarted: it was never started). One
whose start is refused has ended, by StartError, and of a pod that is not to be restarted for good.

A runtime that gets no answer in time (2 s by default) drops the plugin, makes and starts what it has
to, and is connected to anew, at once. Without such a runtime nothing is lost but the wait: pods are
found as without this module.

Service and messages: containerd/nri, pkg/api/api.proto. What was an event of StateChange is a
method of its own since 0.12.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from google.protobuf.message import Message

from nodeagent.errors import shown
from nodeagent.places import ttrpc
from nodeagent.places.sandbox import Listed, SandboxReport
from nodeagent.places.ttrpc import TtrpcAnswer, TtrpcCall, TtrpcError, parsed
from nodeagent.protocols import nri_pb2 as nri
from nodeagent.resources.objects import NAME, NAMESPACE, POD_UID
from nodeagent.vocabulary import PodUid

PLUGIN: Final = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME: Final = "nri.pkg.api.v1alpha1.Runtime"
TO_PLUGIN: Final = 1
TO_RUNTIME: Final = 2
"""The connections over which each is called."""
OWN_NAME: Final = "nodeagent"
INDEX: Final = "90"
"""Plugins are called in the order of their indices; two of one name, as during an upgrade, are two."""
SUBSCRIBED: Final = (nri.RUN_POD_SANDBOX, nri.CREATE_CONTAINER, nri.START_CONTAINER)
REGISTER_SECONDS: Final = 60.0
"""Until the runtime has registered, configured and synchronised a plugin: it takes one after the other,
and waits for sandboxes that are being made.
"""
CALL_SECONDS: Final = 2.0
"""In which a runtime wants an answer that does not say it."""
MOST: Final = 64
"""Containers that wait at the same time; a runtime has one."""
MAX_NAMESPACES: Final = 16
MAX_ADDRESSES: Final = 16
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
"""Between two attempts to connect; before the first one there is none."""
STEADY_SECONDS: Final = 1.0
"""A connection that held for so long was well."""
_READ: Final = 1 << 16
_ID: Final = 128
"""Characters of a sandbox's id at most."""
log = logging.getLogger("nodeagent.places")


@dataclass(frozen=True, slots=True)
class Start:
    """A container of a pod is about to be made, or started."""

    sandbox: str
    """The runtime's id."""
    uid: PodUid
    pod: str
    """``namespace/name``, as the runtime says it."""
    seconds: float
    """In which the runtime wants to hear that it may."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Who is told by a runtime that waits."""

    made: Callable[[Listed, SandboxReport], None]
    """There is a new sandbox with a network of its own."""
    may_create: Callable[[Start], Awaitable[str]]
    """Return when the container may be made, or why it may not, in words; none: it may."""
    may_start: Callable[[Start], Awaitable[None]]
    """Return when the container may start."""


class Plugin:
    """The plugin at the runtime's *socket*, that tells *waits*. *sleep* and *uniform* are injected for tests."""

    def __init__(
        self,
        socket: Path,
        waits: Waits,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._socket = socket
        self._waits = waits
        self._sleep = sleep
        self._uniform = uniform
        self._failures = 0
        self._is_told = False
        """That none waits."""

    async def keep(self) -> None:
        """Be the runtime's plugin, for ever, and again after each failure. Who cancels this has the
        connection closed, and what waits is started.
        """
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._connected()
                why = "the runtime closed the connection"
            except (OSError, TtrpcError) as error:
                why = why_no_plugin(error)
            if clock() - began > STEADY_SECONDS:
                self._failures = 0
            self._failed(why)
            if self._failures > 1:
                pause = min(FIRST_PAUSE * 2.0 ** min(self._failures - 2, 16), LONGEST_PAUSE)
                await self._sleep(pause * self._uniform(0.8, 1.2))

    async def _connected(self) -> None:
        """Be connected once. Raises OSError (TimeoutError too), TtrpcError."""
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        session = _Session(self._waits, writer.write)
        try:
            async with asyncio.timeout(REGISTER_SECONDS) as registering:
                session.register()
                while data := await reader.read(_READ):
                    session.take(data)
                    await writer.drain()  # who does not read is not read either
                    if session.runtime and registering.when() is not None:
                        registering.reschedule(None)
                        self._well(session.runtime)
        finally:
            session.leave()
            writer.close()

    def _well(self, runtime: str) -> None:
        self._is_told = False
        log.info("%s: %s makes no container before its pod is captured", self._socket, runtime)

    def _failed(self, why: str) -> None:
        self._failures += 1
        if not self._is_told:
            self._is_told = True
            log.info("kubernetes.nri: %s: %s; pods are captured as they are found, none waits", self._socket, why)


@dataclass(frozen=True, slots=True)
class Introduced:
    """What a runtime says of itself to a plugin."""

    runtime: str
    """Name and version."""
    seconds: float
    """In which it wants an answer."""


async def introduced(socket: Path, name: str) -> Introduced:
    """Register at the runtime's *socket* as a plugin called *name*, and leave before it is one: it is asked nothing.
    Return what the runtime says of itself. Raises OSError, TtrpcError.
    """
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(_registration(name))
        incoming = ttrpc.Incoming((TO_PLUGIN, TO_RUNTIME))
        while data := await reader.read(_READ):
            for message in incoming.feed(data):
                if isinstance(message, TtrpcAnswer):
                    _taken(message)
                elif message.method == f"{PLUGIN}/Configure":
                    return _introduction(message)
    finally:
        writer.close()
    raise TtrpcError("the runtime closed the connection")


def _registration(name: str) -> bytes:
    request = nri.RegisterPluginRequest(plugin_name=name, plugin_idx=INDEX)
    return ttrpc.asks(TO_RUNTIME, 1, RUNTIME, "RegisterPlugin", request, REGISTER_SECONDS)


def _taken(answer: TtrpcAnswer) -> None:
    """Raise TtrpcError where the runtime's *answer* refuses the plugin."""
    if answer.refusal:
        raise TtrpcError(f"the runtime refuses the plugin: {answer.refusal}")


def _introduction(configure: TtrpcCall) -> Introduced:
    said = parsed(nri.ConfigureRequest, configure.payload)
    seconds = said.request_timeout / 1000 if said.request_timeout > 0 else CALL_SECONDS
    return Introduced(f"{shown(said.runtime_name)} {shown(said.runtime_version)}", seconds)


class _Session:
    """One connection's calls; *write* sends bytes."""

    def __init__(self, waits: Waits, write: Callable[[bytes], None]) -> None:
        self._waits = waits
        self._write = write
        self._incoming = ttrpc.Incoming((TO_PLUGIN, TO_RUNTIME))
        self._introduced = Introduced("the runtime", CALL_SECONDS)
        self.runtime = ""
        """Its name and version, once this is its plugin."""
        self._waiting: dict[asyncio.Task[str], TtrpcCall] = {}
        self._methods: Mapping[str, Callable[[TtrpcCall], Message | None]] = {
            f"{PLUGIN}/{name}": method
            for name, method in (
                ("Configure", self._configure),
                ("Synchronize", self._synchronize),
                ("Shutdown", _nothing),
                ("StateChange", self._state_change),
                ("RunPodSandbox", self._run_pod_sandbox),
                ("CreateContainer", self._create_container),
                ("StartContainer", self._start_container),
            )
        }

    def register(self) -> None:
        """Ask to be the runtime's plugin."""
        self._write(_registration(OWN_NAME))

    def take(self, data: bytes) -> None:
        """Act on *data* that came. Raises TtrpcError."""
        for message in self._incoming.feed(data):
            if isinstance(message, TtrpcAnswer):
                _taken(message)
                continue
            method = self._methods.get(message.method)
            if method is None:
                self._write(ttrpc.refuses(message, ttrpc.UNIMPLEMENTED, "no such method"))
            elif (answer := method(message)) is not None:
                self._write(ttrpc.answers(message, answer))

    def leave(self) -> None:
        """Answer what waits."""
        for task, call in self._waiting.items():
            task.cancel()
            self._write(ttrpc.answers(call, nri.Empty()))
        self._waiting.clear()

    def _configure(self, call: TtrpcCall) -> Message:
        self._introduced = _introduction(call)
        return nri.ConfigureResponse(events=sum(1 << (event - 1) for event in SUBSCRIBED))

    def _synchronize(self, call: TtrpcCall) -> Message:
        """What runs already is in the runtime's list."""
        more = parsed(nri.SynchronizeRequest, call.payload).more
        if not more:
            self.runtime = self._introduced.runtime
        return nri.SynchronizeResponse(more=more)

    def _state_change(self, call: TtrpcCall) -> Message | None:
        said = parsed(nri.StateChangeEvent, call.payload)
        if said.event == nri.START_CONTAINER:
            return self._ask(call, said.pod, self._may_start)
        if said.event == nri.RUN_POD_SANDBOX:
            self._made(said.pod)
        return nri.Empty()

    def _run_pod_sandbox(self, call: TtrpcCall) -> Message:
        self._made(parsed(nri.PodRequest, call.payload).pod)
        return nri.Empty()

    def _create_container(self, call: TtrpcCall) -> Message | None:
        return self._ask(call, parsed(nri.PodRequest, call.payload).pod, self._waits.may_create)

    def _start_container(self, call: TtrpcCall) -> Message | None:
        return self._ask(call, parsed(nri.PodRequest, call.payload).pod, self._may_start)

    def _made(self, pod: nri.PodSandbox) -> None:
        """Tell of *pod* when the runtime has its answer."""
        listed = _listed(pod)
        if listed is not None and has_network(pod):
            asyncio.get_running_loop().call_soon(self._waits.made, listed, _report(pod))

    def _ask(self, call: TtrpcCall, pod: nri.PodSandbox, asked: Callable[[Start], Awaitable[str]]) -> Message | None:
        """Return the answer, None where it is given when *asked* has returned."""
        listed = _listed(pod)
        if listed is None or not has_network(pod) or len(self._waiting) >= MOST:
            return nri.Empty()
        start = Start(listed.id, listed.uid, f"{pod.namespace}/{pod.name}", call.seconds or self._introduced.seconds)
        task = asyncio.get_running_loop().create_task(_answered(start, asked), name=f"a container of {start.pod}")
        self._waiting[task] = call
        task.add_done_callback(self._answer)
        return None

    async def _may_start(self, start: Start) -> str:
        await self._waits.may_start(start)
        return ""

    def _answer(self, task: asyncio.Task[str]) -> None:
        call = self._waiting.pop(task, None)
        if call is None:
            return
        refusal = task.result()
        self._write(
            ttrpc.refuses(call, ttrpc.FAILED_PRECONDITION, refusal) if refusal else ttrpc.answers(call, nri.Empty())
        )


async def _answered(start: Start, asked: Callable[[Start], Awaitable[str]]) -> str:
    try:
        return await asked(start)
    except Exception as error:  # whatever it is, the container starts
        log.error("pod %s starts without being waited for: %s", start.pod, error, exc_info=error)
        return ""


def _nothing(_: TtrpcCall) -> Message:
    return nri.Empty()


def _listed(pod: nri.PodSandbox) -> Listed | None:
    """Return whose sandbox *pod* is; None where that is not said as runtimes say it."""
    named = NAMESPACE.fullmatch(pod.namespace) and NAME.fullmatch(pod.name) and POD_UID.fullmatch(pod.uid)
    if not named or not 0 < len(pod.id) <= _ID:
        return None
    return Listed(pod.id, PodUid(pod.uid), pod.namespace, pod.name, 0, 0)


def has_network(pod: nri.PodSandbox) -> bool:
    """Say whether *pod* has a network of its own, which is taken for granted where no namespaces are told."""
    kinds = [each.type for each in pod.linux.namespaces[:MAX_NAMESPACES]]
    return not kinds or "network" in kinds


def _report(pod: nri.PodSandbox) -> SandboxReport:
    """Return what is said of *pod* in the words of CRI's verbose status."""
    namespaces = [{"type": each.type, "path": each.path} for each in pod.linux.namespaces[:MAX_NAMESPACES]]
    spec = {"linux": {"namespaces": namespaces, "cgroupsPath": pod.linux.cgroups_path}}
    info = orjson.dumps({"runtimeSpec": spec, "pid": pod.pid}).decode()
    return SandboxReport(tuple(pod.ips[:MAX_ADDRESSES]), False, info)


def why_no_plugin(error: Exception) -> str:
    """Return what *error*, with which a connection to a runtime ended, means."""
    if isinstance(error, TimeoutError):
        return "the runtime takes no plugin in time"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: the runtime has no NRI, or it is off, or its folder is not mounted here"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
