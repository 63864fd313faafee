"""The container runtime of the node, asked over its socket: CRI v1 by grpclib, which costs control
2.9 MB with the messages; grpcio would cost 9.6 MB, and threads of its own.

Whatever goes wrong becomes a :class:`RuntimeUnavailable` that names the socket and the next step.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, Stream, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from nodeagent.errors import ConfigError, NodeagentError, shown
from nodeagent.grpc_answers import AnswerError, next_answer
from nodeagent.places.sandbox import Listed, SandboxReport
from nodeagent.protocols import cri_pb2 as cri
from nodeagent.vocabulary import PodUid

SOCKETS: Final = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/crio/crio.sock"),
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/run/cri-dockerd.sock"),
)
"""Where runtimes listen by default: what a kubelet is told by ``containerRuntimeEndpoint``."""
SERVICE: Final = "/runtime.v1.RuntimeService/"
MAX_LIST: Final = 16 << 20
"""Bytes of the list of sandboxes: containerd's own bound of a message."""
MAX_STATUS: Final = 4 << 20
MAX_EVENT: Final = 4 << 20
MAX_WORDS: Final = 200
TIMEOUT_SECONDS: Final = 10.0
"""For an answer, in seconds; a runtime that restarts does not answer, and nobody waits longer for it."""
STATUS_SECONDS: Final = 5.0
"""For that of one sandbox. Less: the connection, over which others are asked for, stays open."""
FANNED_OUT: Final = {"containerd": (2, 0), "cri-o": (1, 28)}
"""The first release that tells each event to all who listen, by the runtime's name."""
_release: Final = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])").match
_OF_ONE: Final = (Status.UNKNOWN, Status.INTERNAL, Status.DATA_LOSS, Status.FAILED_PRECONDITION)
"""What a runtime answers that is well itself (containerd: UNKNOWN for every fault without a code)."""
_Answer = TypeVar("_Answer", bound=Message)


class RuntimeUnavailable(NodeagentError):
    """The container runtime does not answer as CRI v1 says; names the socket, the cause and the next step."""


class QuestionRefused(RuntimeUnavailable):
    """The runtime answers, and has no good answer to this one question: a sandbox of it may be broken."""


class EventsUnserved(NodeagentError):
    """This runtime has no events: it has to be listed."""


class ContainerRuntime(Protocol):
    """What is asked of a runtime. Everything raises RuntimeUnavailable."""

    async def version(self) -> str:
        """Return the runtime's name and version, as it says them."""

    async def sandboxes(self, *, ready: bool = True) -> list[Listed]:
        """Return the sandboxes that are *ready*, or those that are so no more."""

    async def report(self, sandbox: str) -> SandboxReport | None:
        """Return the verbose status of *sandbox*, None where there is none any more. Raises QuestionRefused."""

    def events(self) -> AsyncIterator[None]:
        """Yield whenever something may have come or gone; for ever. Raises EventsUnserved."""

    def close(self) -> None:
        """Close the connection."""


def find_socket(configured: Path | None) -> Path:
    """Return the socket of the node's runtime: *configured*, or the first of SOCKETS that is there.
    Raises ConfigError where none is.
    """
    if configured is not None:
        return configured
    for path in SOCKETS:
        with suppress(OSError):
            if stat.S_ISSOCK(path.stat().st_mode):
                return path
    raise ConfigError(
        f"kubernetes.runtime: none of {', '.join(map(str, SOCKETS))} is a socket: mount the runtime's folder into the "
        "agent's pod, or say where its socket is"
    )


def takes_events_from_others(name: str, version: str) -> bool:
    """Say whether the runtime *name* *version* has one queue of events for all who listen: one that is
    told here would be missed by the kubelet. So it is before FANNED_OUT (GetContainerEvents ranges over
    one channel), or there are none, and may be where the release cannot be read.
    """
    first = FANNED_OUT.get(name)
    if first is None:
        return False
    release = _release(version)
    return release is None or (int(release[1]), int(release[2])) < first


class CriRuntime:
    """The runtime that listens on *socket*, a unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: Channel | None = None

    async def version(self) -> str:
        answer = await self._version()
        return f"{shown(answer.runtime_name)} {shown(answer.runtime_version)}"

    async def _version(self) -> cri.VersionResponse:
        return await self._ask("Version", cri.VersionRequest(), cri.VersionResponse, MAX_STATUS)

    async def sandboxes(self, *, ready: bool = True) -> list[Listed]:
        state = cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY
        wanted = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=state))
        request = cri.ListPodSandboxRequest(filter=wanted)
        answer = await self._ask("ListPodSandbox", request, cri.ListPodSandboxResponse, MAX_LIST)
        return [_listed(item) for item in answer.items if item.state == state]

    async def report(self, sandbox: str) -> SandboxReport | None:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                answer = await self._ask("PodSandboxStatus", request, cri.PodSandboxStatusResponse, MAX_STATUS)
        except _Gone:
            return None
        except TimeoutError:  # the shim that holds this sandbox hangs; whatever else is asked may be answered
            raise QuestionRefused(
                f"kubernetes.runtime: {self._socket}: no status within {STATUS_SECONDS:g} s: does its shim hang?"
            ) from None
        status = answer.status
        further = (each.ip for each in status.network.additional_ips)
        host_network = status.linux.namespaces.options.network == cri.NODE
        ready = status.state == cri.SANDBOX_READY
        return SandboxReport((status.network.ip, *further), host_network, answer.info.get("info", ""), ready)

    async def events(self) -> AsyncIterator[None]:
        answer = await self._version()
        if takes_events_from_others(answer.runtime_name, answer.runtime_version):
            raise EventsUnserved(f"{self._socket}: {answer.runtime_version[:40]} tells each event to one listener only")
        async with self._translated():
            method: UnaryStreamMethod[Message, cri.ContainerEventResponse]
            path = f"{SERVICE}GetContainerEvents"
            method = UnaryStreamMethod(self._connected(), path, cri.GetEventsRequest, cri.ContainerEventResponse)
            stream: Stream[Message, cri.ContainerEventResponse]
            told = False
            try:
                async with method.open() as stream:
                    await stream.send_message(cri.GetEventsRequest(), end=True)
                    while await next_answer(stream, cri.ContainerEventResponse, MAX_EVENT) is not None:
                        told = True
                        yield
            except GRPCError as error:
                if error.status is Status.UNIMPLEMENTED:
                    raise EventsUnserved(f"{self._socket}: no events are served") from None
                raise
            if not told:  # CRI-O without enable_pod_events
                raise EventsUnserved(f"{self._socket}: events are off")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def _ask(self, name: str, request: Message, answer: type[_Answer], most: int) -> _Answer:
        async with self._translated(), asyncio.timeout(TIMEOUT_SECONDS):
            method = UnaryUnaryMethod(self._connected(), SERVICE + name, type(request), answer)
            stream: Stream[Message, _Answer]
            async with method.open() as stream:
                await stream.send_message(request, end=True)
                await stream.recv_initial_metadata()
                found = await next_answer(stream, answer, most)
            if found is None:
                raise AnswerError("the answer is empty")
            return found

    def _connected(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(path=str(self._socket))
        return self._channel

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Raise RuntimeUnavailable for whatever the library and the kernel raise in the block; after
        that a new connection is made.
        """
        try:
            yield
        except (_Gone, EventsUnserved):
            raise
        except GRPCError as error:
            if error.status is Status.NOT_FOUND:
                raise _Gone(str(error.message)) from None
            kind = QuestionRefused if error.status in _OF_ONE else RuntimeUnavailable
            raise kind(self._refused(error)) from None
        except Exception as error:  # noqa: BLE001 - the library asserts, and raises others' errors, on what is not gRPC
            self.close()
            raise RuntimeUnavailable(f"kubernetes.runtime: {self._socket}: {_why(self._socket, error)}") from None

    def _refused(self, error: GRPCError) -> str:
        words = shown((error.message or "no reason given")[:MAX_WORDS])
        if error.status is Status.UNIMPLEMENTED:
            return (
                f"kubernetes.runtime: {self._socket}: speaks no CRI v1 ({words}): containerd 1.6 or CRI-O 1.23 is the "
                "least, and containerd's config.toml must not have cri among disabled_plugins"
            )
        return f"kubernetes.runtime: {self._socket}: {error.status.name}: {words}"


class _Gone(NodeagentError):
    """The runtime has no such sandbox (any more)."""


def _listed(item: cri.PodSandbox) -> Listed:
    about = item.metadata
    return Listed(item.id, PodUid(about.uid), about.namespace, about.name, about.attempt, item.created_at)


def _why(path: Path, error: Exception) -> str:
    """Return what *error*, met at the socket *path*, means, and the next step."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError):
        return _unconnected(path, error)
    if isinstance(error, AnswerError):
        return str(error)
    if isinstance(error, StreamTerminatedError):
        return "the connection was closed before the answer: is it a container runtime's socket?"
    if isinstance(error, ProtocolError | DecodeError):
        return f"what answers is no CRI: {shown(str(error))}"
    return f"what answers does not speak gRPC ({type(error).__name__}): is it a container runtime's socket?"


def _unconnected(path: Path, error: OSError) -> str:
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return "there is no such file: mount the folder of the runtime's socket into the agent's pod"
    except OSError as other:
        return f"{other.strerror}: the agent's user must be able to reach it"
    if not is_socket:
        return "is no socket"
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens: does the container runtime run, and was its folder mounted, not the socket alone?"
    return f"{error.strerror or type(error).__name__}"
