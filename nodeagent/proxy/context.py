"""What everything in one worker's (or sidecar's) proxy shares: plain data.

It imports no stage, so that every stage can hold it. All of it is used on the proxy's event loop
alone, without locks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, perf_counter, time

from nodeagent.config import DeliverySetting, Limits, ProxySettings, Timeouts
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.proxy.busy_poll import BusyPoll
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.recent import Recent
from nodeagent.proxy.view import ClusterView
from nodeagent.telemetry.access_log import AccessLog
from nodeagent.telemetry.cells import WorkerMetrics


@dataclass(kw_only=True)
class Context:
    """One proxy's settings, its view of the cluster, its pods and connections, its counters and its clock."""

    loop: asyncio.AbstractEventLoop
    settings: ProxySettings
    """The ``proxy`` section of agent.yaml."""
    mesh: MeshSettings
    cluster_id: str
    metrics: WorkerMetrics
    access_log: AccessLog | None
    """Where each request and each connection leaves a record; None: nowhere."""
    delivery: DeliverySetting = "inside"
    """``redirect.delivery`` of agent.yaml: from where an application on this node is dialled."""
    share: float = 1.0
    """This worker's part of each local rate limit: workers do not count together."""
    announce: Callable[[socket.socket, str], None] | None = None
    """Tells the kernel for which client's address a socket is about to dial an application; None:
    no BPF programs are there (a sidecar).
    """
    view: ClusterView = field(default_factory=ClusterView)
    pods: dict[str, PodState] = field(default_factory=dict)
    """The enrolled pods of this node, by uid."""
    node_addresses: frozenset[str] = frozenset()
    """Of this node: whoever comes from there is the kubelet, as far as probes go."""
    connections: dict[int, Connection] = field(default_factory=dict)
    """The open ones from clients, by number."""
    outer: int = 0
    """How many of them only carry others, each of which is there by itself (``proxy/shared/``)."""
    recent: Recent = field(default_factory=Recent)
    draining: bool = False
    """Every client is asked to come back on a new connection."""
    stir: Callable[[], None] | None = None
    """Is called when a connection is there and none was; None: nobody rests meanwhile."""
    now: float = field(default_factory=monotonic)
    """Monotonic seconds at the last sweep, a few times a second while a connection is open: precise enough
    for timeouts.
    """
    wall_offset: float = field(default_factory=lambda: time() - perf_counter())
    """Unix seconds less ``perf_counter()``'s: what turns the start of a request into its wall time."""
    limits: Limits = field(init=False)
    timeouts: Timeouts = field(init=False)
    busy_poll: BusyPoll = field(init=False)

    def __post_init__(self) -> None:
        self.limits = self.settings.limits
        self.timeouts = self.settings.timeouts
        self.busy_poll = BusyPoll(self.loop, self.settings.busy_poll_microseconds / 1e6)

    def tick(self) -> None:
        """Read the clocks."""
        self.now = monotonic()
        self.wall_offset = time() - perf_counter()
