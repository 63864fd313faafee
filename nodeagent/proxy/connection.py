"""What is known of one accepted connection: who, whereto, why it was let through, and how much it carried."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.errors import Reason
from nodeagent.mesh.entries import Workload
from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.sniff import FirstLine
from nodeagent.proxy.transport import Transport
from nodeagent.proxy.view import Resolved
from nodeagent.vocabulary import Direction, host_port

Path = Literal["proxy-local", "proxy-mtls", "proxy-plaintext", "passthrough", "none"]
Security = Literal["mutual_tls", "kernel_attested", "none"]

_numbers: Final = itertools.count(1)
_ALLOWED: Final = 1
_DENIED: Final = 2
_FAILED: Final = 4
_VERDICTS: Final = {0: "allow", _ALLOWED: "allow", _DENIED: "deny", _FAILED: "error"}
_CODE_BITS: Final = 10
_CODES: Final = (1 << 4 * _CODE_BITS) - 1
"""Status codes of the last four requests, in one number: noting one costs no object."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The downstream side as the proxy knows it, not as it calls itself.

    ``identity`` is empty for a plaintext peer; ``security`` says what proved it: a TLS certificate,
    or the kernel (the connection came through a listener inside the pod's own network namespace).
    """

    address: str
    port: int
    identity: str
    security: Security
    workload: Workload | None


class Connection:
    """One downstream connection; its record in ``flows``."""

    __slots__ = (
        "_codes",
        "_grpc",
        "_outcomes",
        "carriage",
        "chosen",
        "closed",
        "direction",
        "early",
        "expires",
        "half_closed",
        "line",
        "local_text",
        "number",
        "path",
        "peer",
        "peer_text",
        "pod",
        "policy",
        "probe",
        "protocol",
        "reason",
        "received",
        "requests",
        "routes",
        "sent",
        "sni",
        "target",
        "transport",
        "upstream_workload",
        "view",
        "wall",
    )

    def __init__(self, pod: PodState, direction: Direction, peer: Peer, target: Resolved, wall: float) -> None:
        self.number = next(_numbers)
        self.pod = pod
        self.direction = direction
        self.peer = peer
        self.target = target
        self.wall = wall
        self.closed: float | None = None
        self.half_closed = False
        self.chosen: tuple[str, int] | None = None
        """The endpoint that the kernel picked, so that balance does not depend on the path; None:
        it left that to the proxy.
        """
        self.early = b""
        self.line: FirstLine | None = None
        """What was read of the client's first line, while that may still become one of HTTP."""
        self.sni = ""
        self.policy = ""
        """What decided the verdict, where a policy did."""
        self.expires = 0.0
        """When the peer's certificate ends, Unix seconds; 0: it showed none."""
        self.protocol = "?"
        self.path: Path = "none"
        self.probe = False
        """So far it carried nothing but the node's declared probes."""
        self.reason: Reason | None = None
        """Why it, or the last request of it that was, was not carried."""
        self._codes = 0
        self._grpc: tuple[str, ...] = ()
        """Statuses of its last gRPC calls."""
        self._outcomes = 0
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.upstream_workload: Workload | None = None
        self.view = -1
        """The generation of the snapshot that ``routes`` are of; -1: none."""
        self.routes: Sequence[Hop] = ()
        """Where a request of it may go next; of whom a worker's routing made them, it knows more."""
        self.carriage: Carriage | None = None
        """What carries it; None: nothing yet, or any more."""
        self.transport: Transport | None = None
        """What it comes by, for who ends it before anything carries it; None: it is gone."""
        self.peer_text = host_port(peer.address, peer.port)
        self.local_text = host_port(target.address, target.port)

    def let_go(self) -> None:
        """It is closed: it stays among the recent flows for a while, what served it shall not."""
        self.carriage = None
        self.transport = None
        self.routes = ()
        self.view = -1

    def struck(self) -> bool:
        """Say whether it was struck from the open connections. A method: who asks before an await and after it
        must not be told that the answer is known.
        """
        return self.closed is not None

    def unproved(self, now: float) -> bool:
        """Say whether the certificate that its peer showed has ended by *now*, in Unix seconds."""
        return 0.0 < self.expires < now

    def allowed(self) -> None:
        """Note that it is carried, as what is not HTTP is: whole."""
        self._outcomes |= _ALLOWED

    def refused(self, reason: Reason) -> None:
        """Note that it, or a request of it, was not carried."""
        self.reason = reason
        if reason.denies:
            self._outcomes |= _DENIED
            self.probe = False
        else:
            self._outcomes |= _FAILED

    def answered(self, status: int, reason: Reason | None, received: int, sent: int) -> None:
        """Note a request's end: its *status* and bytes; *reason*: why the answer is not the application's."""
        self.requests += 1
        self.received += received
        self.sent += sent
        self._codes = (self._codes << _CODE_BITS | status) & _CODES
        if reason is None:
            self._outcomes |= _ALLOWED
        else:
            self.refused(reason)

    def called(self, grpc_status: str) -> None:
        """Note the end of a gRPC call, which is a request too, with *grpc_status*, empty: it was told none."""
        if self.protocol == "http2":
            self.protocol = "grpc"
        if self._grpc != (grpc_status,) * 4:
            self._grpc = (*self._grpc[-3:], grpc_status)

    @property
    def verdict(self) -> str:
        """``allow``, ``deny`` or ``error``; ``mixed`` where its requests fared differently;
        ``pending`` while it is not known what it is.
        """
        if self.protocol == "?" and not self._outcomes:
            return "pending"
        return _VERDICTS.get(self._outcomes, "mixed")

    def codes(self) -> list[int]:
        """Return the status codes of its last requests, the newest last; 0: no answer was sent."""
        return [self._codes >> _CODE_BITS * at & (1 << _CODE_BITS) - 1 for at in reversed(range(min(self.requests, 4)))]

    def flow(self, worker: int) -> dict[str, object]:
        """Return the connection as ``nodeagent flows`` shows it."""
        target = self.target
        peer = self.peer
        upstream = self.upstream_workload
        service = target.service
        outside = "PassthroughCluster" if target.passthrough else ""
        return {
            "id": f"{worker}-{self.number}",
            "opened": self.wall,
            "closed": self.closed,
            "pod": self.pod.uid,
            "direction": self.direction,
            "source": f"{peer.workload.namespace}/{peer.workload.pod}" if peer.workload else self.peer_text,
            "source_identity": peer.identity,
            "destination": f"{upstream.namespace}/{upstream.pod}:{target.port}" if upstream else self.local_text,
            "destination_identity": upstream.identity if upstream and self.path != "proxy-plaintext" else "",
            "service": service.host if service else outside,
            "path": self.path,
            "protocol": self.protocol,
            "verdict": self.verdict,
            "reason": self.reason.code if self.reason is not None else "",
            "policy": self.reason.policy if self.reason is not None else self.policy,
            "probe": self.probe,
            "requests": self.requests,
            "codes": self.codes(),
            "grpc_statuses": list(self._grpc),
            "sent": self.sent,
            "received": self.received,
            "worker": worker,
        }
