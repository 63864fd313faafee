"""A worker process as control knows it, and what every one of them has to know."""

from __future__ import annotations

import asyncio
import socket

from nodeagent.channel import Channel
from nodeagent.mesh.entries import Entry
from nodeagent.messages import CertificateIssued, FromWorker, PodCaptured, ToWorker
from nodeagent.redirect.pod import ListenerId
from nodeagent.wire import Unchecked


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
