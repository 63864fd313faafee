"""Control's end of the channel to the supervisor: what an earlier control left is heard first, then
how the processes fare that this one asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, assert_never

import orjson

from nodeagent.channel import DESCRIPTORS, Channel, read_memory_file
from nodeagent.errors import shown
from nodeagent.hand_over import PORTS
from nodeagent.identity.certificate import Certificate
from nodeagent.messages import (
    FROM_SUPERVISOR,
    Beats,
    Begin,
    BeginHeartbeat,
    Drop,
    Exited,
    Forked,
    FromSupervisor,
    Hasten,
    Keep,
    Kept,
    Orphan,
    Prepared,
    Resign,
    Resigned,
    Still,
    Stilled,
    Successor,
    Superseded,
    ToSupervisor,
)
from nodeagent.redirect.pod import ListenerId
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, MessageError

log = logging.getLogger("nodeagent.control")
STILL_SECONDS: Final = 1.0
"""The supervisor, which never waits for anybody, has stopped the heartbeat within this time."""


class Children(Protocol):
    """Who is told of the processes that the supervisor forked for a control."""

    def adopt(self, pid: int, end: socket.socket) -> None:
        """An earlier control's child *pid* lives; *end* is that one's end of its channel."""

    def forked(self, number: int, pid: int) -> None:
        """The child asked for by *number* is the process *pid*."""

    def exited(self, pid: int, status: int) -> None:
        """The child *pid* is gone."""


@dataclass(slots=True)
class Inheritance:
    """What an earlier control had the supervisor keep; who takes something over removes it here."""

    listeners: dict[PodUid, dict[ListenerId, socket.socket]] = field(default_factory=dict)
    networks: dict[PodUid, int] = field(default_factory=dict)
    """Pods' network namespaces."""
    certificates: list[Certificate] = field(default_factory=list)
    """A death of control while the authority is away shall cost no identity."""
    ports: dict[str, socket.socket] = field(default_factory=dict)
    """Listeners of another daemon's own ports, by ``ROLE/ADDRESS``."""

    def take(self, key: str, descriptor: int) -> None:
        """Take over *descriptor*, which was kept under *key* (``messages.Keep``, ``Resigned.ports``)."""
        owner, _, kind = key.rpartition("/")
        if key.startswith(PORTS):
            self.ports[key.removeprefix(PORTS)] = socket.socket(fileno=descriptor)
            return
        if kind == "certificate":
            self._take_certificate(owner, descriptor)
            return
        if kind == "netns":
            self.networks[PodUid(owner)] = descriptor
            return
        uid, direction, family, slot = key.split("/")
        listener: ListenerId = (
            "outbound" if direction == "outbound" else "inbound",
            4 if family == "4" else 6,
            int(slot),
        )
        self.listeners.setdefault(PodUid(uid), {})[listener] = socket.socket(fileno=descriptor)

    def _take_certificate(self, owner: str, descriptor: int) -> None:
        """One that this release cannot read is issued anew."""
        try:
            self.certificates.append(Certificate.from_json(orjson.loads(read_memory_file(descriptor))))
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.warning("the certificate of %s that was handed over cannot be read: %s", shown(owner), error)

    def close_ports(self) -> None:
        """Nobody needs what is left of :attr:`ports`."""
        while self.ports:
            self.ports.popitem()[1].close()


class SupervisorLink:
    """The channel, and what was heard over it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: socket.socket) -> None:
        self.inherited = Inheritance()
        self.beats = False
        """The heartbeat goes on: some worker's loop turns."""
        self._children: dict[str, Children] = {}
        self._begun = asyncio.Event()
        self._stilled = asyncio.Event()
        self._ended = asyncio.Event()
        self._superseded = False
        self._hastened = asyncio.Event()
        self._resign: Callable[[], Mapping[str, int]] | None = None
        self._misunderstood: MessageError | None = None
        self._channel: Channel[FromSupervisor, ToSupervisor] = Channel(
            loop, end, FROM_SUPERVISOR, heard=self._hear, misunderstood=self._misunderstand, closed=self.end
        )

    def observe(self, role: str, children: Children) -> None:
        """Tell *children* of those of *role* from now on; call it before the loop turns."""
        self._children[role] = children

    async def begun(self) -> None:
        """Wait until all that an earlier control left is known.

        Raises MessageError for what no supervisor says: what was kept is not known then, and only
        a successor is told it anew.
        """
        await self._begun.wait()
        self._understood()

    async def ended(self) -> bool:
        """Wait until :meth:`end`, or until the supervisor is gone, or the node is another daemon's.
        Return whether it is. Raises MessageError as :meth:`begun`.
        """
        await self._ended.wait()
        self._understood()
        return self._superseded

    async def hastened(self) -> None:
        """Wait until the daemon that took over ends too."""
        await self._hastened.wait()

    def prepared(self) -> None:
        """Say that this control can begin at once."""
        self.send(Prepared())

    def resigns_by(self, resign: Callable[[], Mapping[str, int]]) -> None:
        """Call *resign* when another daemon takes the node over: nothing of the node is written any
        more when it returns, with the listeners of the own ports, by key. A control that has not
        come so far does not answer, and is killed.
        """
        self._resign = resign

    def end(self) -> None:
        """Control is to stop."""
        self._ended.set()

    def send(self, message: ToSupervisor) -> None:
        """Queue *message*; its descriptors are duplicated. Raises OSError where there are no more."""
        self._channel.send(message)

    def keep(self, files: Mapping[str, int]) -> None:
        """Have descriptors kept across a death of control, in messages of as many as one can carry."""
        all_files = [(key, FileDescriptor(descriptor)) for key, descriptor in files.items()]
        for at in range(0, len(all_files), DESCRIPTORS):
            self.send(Keep(dict(all_files[at : at + DESCRIPTORS])))

    def drop(self, owner: str) -> None:
        """Have forgotten what is kept of *owner*, a pod's uid or an identity."""
        self.send(Drop(owner))

    def relinquish(self, slots: int) -> None:
        """Have closed the listeners of slots from *slots* on, wherever this daemon has them: the kernel would give
        them connections that nobody accepts.
        """
        for uid, listeners in self.inherited.listeners.items():
            for direction, family, slot in [one for one in listeners if one[2] >= slots]:
                listeners.pop((direction, family, slot)).close()
                self.drop(f"{uid}/{direction}/{family}/{slot}")

    def beat(self, timeout_seconds: float, heart: int) -> None:
        """Have the heartbeat begin in the map *heart*, where it may become so old."""
        self.send(BeginHeartbeat(timeout_seconds, FileDescriptor(heart)))

    def succession(self, coming: bool) -> None:
        """Say whether another daemon is *coming* that will take the node over."""
        self.send(Successor(coming))

    async def still(self) -> None:
        """Have the heartbeat end; return when it has."""
        self.send(Still())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stilled.wait(), STILL_SECONDS)

    def _hear(self, message: FromSupervisor) -> None:
        try:
            self._take(message)
        except MessageError as error:
            self._misunderstand(error)

    def _of(self, role: str) -> Children:
        """Return who looks after the children of *role*. Raises MessageError."""
        children = self._children.get(role)
        if children is None:
            raise MessageError(f"no role is called {shown(role)}")
        return children

    def _take(self, message: FromSupervisor) -> None:
        """Raises MessageError for a role that is not known."""
        match message:
            case Begin():
                self._begun.set()
            case Kept():
                for key, descriptor in message.files.items():
                    self.inherited.take(key, descriptor)
            case Orphan():
                self._of(message.role).adopt(message.pid, socket.socket(fileno=message.end))
            case Forked():
                self._of(message.role).forked(message.number, message.pid)
            case Exited():
                self._of(message.role).exited(message.pid, message.status)
            case Beats():
                self.beats = message.felt
            case Stilled():
                self._stilled.set()
            case Resign() | Superseded() | Hasten():
                self._take_of_succession(message)
            case _:
                assert_never(message)

    def _take_of_succession(self, message: Resign | Superseded | Hasten) -> None:
        match message:
            case Resign():
                if self._resign is not None:
                    self.send(Resigned({key: FileDescriptor(port) for key, port in self._resign().items()}))
            case Superseded():
                self._superseded = True
                self._ended.set()
            case Hasten():
                self._hastened.set()

    def _misunderstand(self, error: MessageError) -> None:
        """Control ends, and its successor is told everything anew: see :meth:`begun`, :meth:`ended`."""
        self._misunderstood = error
        self._begun.set()
        self._ended.set()

    def _understood(self) -> None:
        if self._misunderstood is not None:
            raise self._misunderstood
