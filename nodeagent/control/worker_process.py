"""A worker process as control knows it, and what every one of them has to know."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nodeagent.channel import Channel
from nodeagent.control.snapshot_parts import parts
from nodeagent.heart import Progress
from nodeagent.mesh.entries import Entry
from nodeagent.messages import CertificateIssued, FromWorker, Listen, PodCaptured, ToSupervisor, ToWorker
from nodeagent.redirect.pod import ListenerId
from nodeagent.vocabulary import Family
from nodeagent.wire import FileDescriptor, Unchecked


class WorkerProcess:
    """One worker process and control's end of its channel."""

    def __init__(self, slot: int, number: int, pid: int = 0) -> None:
        self.slot = slot
        self.number = number
        self.pid = pid
        self.channel: Channel[FromWorker, ToWorker]
        self.ready = False
        self.finished = False
        self.killed = False
        self.last_pong = 0.0
        self.ends_by = math.inf
        """When one that was told to drain must have ended, by the loop's clock."""
        self.progress = Progress()
        self.generation = 0
        """Of the snapshot: the last one that is in force in it, as it says."""
        self.connections = 0
        self.replies: dict[int, tuple[asyncio.Future[list[Unchecked]], list[Unchecked]]] = {}


class KnownToWorkers:
    """What a new worker is told first: the snapshot, certificates, pods and listeners as they stand."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.certificates: dict[str, CertificateIssued] = {}
        self.pods: dict[str, PodCaptured] = {}
        self.listeners: dict[str, dict[ListenerId, socket.socket]] = {}

    def messages(self, slot: int, generation: int) -> Iterator[ToWorker]:
        """Yield everything, for the worker that fills *slot*; the snapshot is of *generation*."""
        yield from parts(self.entries.values(), (), generation)
        yield from self.certificates.values()
        for pod in self.pods.values():
            yield from self.about(pod, slot)

    def about(self, pod: PodCaptured, slot: int) -> Iterator[ToWorker]:
        """Yield that *pod* is captured, and the listeners that belong to *slot*."""
        yield pod
        for (direction, family, of_slot), listener in self.listeners.get(pod.uid, {}).items():
            if of_slot == slot:
                yield Listen(pod.uid, direction, family, FileDescriptor(listener.fileno()))


@dataclass(frozen=True, slots=True)
class Needs:
    """Where control takes what workers ask for, and puts what they report."""

    sockets: Callable[[str, Family, int], list[socket.socket]]
    metrics: Callable[[Unchecked], None]
    restarted: Callable[[int], None]


class TellsSupervisor(Protocol):
    """The channel to the supervisor, as far as workers need it."""

    def send(self, message: ToSupervisor) -> None:
        """Queue *message*; its descriptors are duplicated."""
