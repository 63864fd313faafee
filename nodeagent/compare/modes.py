"""What a way from client to server is, for the comparison. All ways run the same manifests in labs:
the same pods, links, client and server programs.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from nodeagent.compare import measure
from nodeagent.compare.calls import LARGE
from nodeagent.compare.load import BULK_PORT, GRPC_PORT, HTTP2_PORT, HTTP_PORT, TCP_PORT, Client, Workload
from nodeagent.compare.manifests import CHAIN, GUARDED, PLAIN
from nodeagent.lab import Lab, cgroup, linux
from nodeagent.places.annotation import CGROUP


@dataclass(frozen=True, slots=True)
class CallPath:
    """Who asks whom in a lab: *client*, a pod of *namespace*, asks *port* of *service*, which is
    also the name of the pod behind it.
    """

    namespace: str
    service: str
    port: int
    client: str = "client"
    path: str = "/"
    through: tuple[str, ...] = ()
    """Pods that the request goes through on its way, beyond the first."""
    url: str = ""
    """What is asked, where ``service`` and ``port`` do not say it."""

    @property
    def pods(self) -> tuple[str, ...]:
        """The names of the pods that a request passes, the client's first, as far as they are known."""
        return (self.client, *((self.service, *self.through) if self.service else ()))


TARGETS: Final[Mapping[Workload, CallPath]] = {
    "http": CallPath(PLAIN, "server", HTTP_PORT),
    "http-authz": CallPath(GUARDED, "server", HTTP_PORT),
    "tcp": CallPath(PLAIN, "server", TCP_PORT),
    "tcp-churn": CallPath(PLAIN, "server", HTTP_PORT),
    "chain5": CallPath(PLAIN, CHAIN[0], HTTP_PORT, through=CHAIN[1:]),
    "cross-node": CallPath(PLAIN, "remote", HTTP_PORT),
    "cross-node-churn": CallPath(PLAIN, "remote", HTTP_PORT),
    "bulk": CallPath(PLAIN, "server", BULK_PORT),
    "bulk-cross-node": CallPath(PLAIN, "remote", BULK_PORT),
    "h2": CallPath(PLAIN, "server", HTTP2_PORT),
    "h2-many": CallPath(PLAIN, "server", HTTP2_PORT),
    "h2-cross-node": CallPath(PLAIN, "remote", HTTP2_PORT),
    "h2-bulk": CallPath(PLAIN, "server", HTTP2_PORT, path=LARGE),
    "grpc": CallPath(PLAIN, "server", GRPC_PORT),
    "grpc-stream": CallPath(PLAIN, "server", GRPC_PORT),
}
LOGGED: Final[frozenset[Workload]] = frozenset(
    {
        *("http", "http-authz", "tcp-churn", "chain5", "cross-node", "cross-node-churn", "manifest"),
        *("h2", "h2-many", "h2-cross-node", "grpc"),
    }
)
"""Workloads with a line in the access log for each request; of what is carried as TCP there is one
for each connection, of messages one for each call.
"""
_LOG_SECONDS: Final = 12.0
"""Envoy writes its log out every 10 s."""
Answered = Mapping[Workload, int]
"""Requests by workload, those of the warm-up with them."""


@dataclass(slots=True)
class Log:
    """An access log that is counted now and then; what was counted takes no disk, because it grows by
    100 MB a minute. It is not truncated: what is written between the last read and that would be lost.
    """

    path: Path
    lines: int = 0
    offset: int = 0

    def drain(self) -> int:
        """Count on; return the number of lines written since the beginning."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.seek(self.offset)
                while block := file.read(1 << 20):
                    self.lines += block.count(b"\n")
                    self.offset += len(block)
                if self.offset:
                    with suppress(OSError):  # on a file system that cannot, it takes the disk that it takes
                        linux.release(file.fileno(), self.offset)
        return self.lines


@dataclass(slots=True, eq=False)
class Mode(ABC):
    """One way from client to server, up in *lab*: what it adds there, and whether it did its work.
    ``variant`` tells two of the same name apart.
    """

    lab: Lab
    variant: str = ""
    workloads: Sequence[Workload] = ("http",)
    connections: Sequence[int] = (1, 32)
    targets: Mapping[Workload, CallPath] = field(default_factory=lambda: TARGETS)
    logs: list[Log] = field(default_factory=list)
    name: ClassVar[str]
    whole: ClassVar[bool] = True
    """It is a way for any pod: not one of a single hop, or for applications that ask for it. The
    open loop, which takes long, is for these.
    """
    does: ClassVar[Sequence[str]]
    does_not: ClassVar[Sequence[str]] = ()

    def describe(self) -> str:
        """Return the mode's name, with its variant in brackets."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def client(self, workload: Workload) -> Client:
        """Return the pod that puts load on for *workload*."""
        target = self.targets[workload]
        return Client(self.lab, target.namespace, target.client)

    def address(self, workload: Workload) -> str:
        """Return the ``address:port`` that the client asks: the pod's own, so that nothing is paid
        for Services that the mode does not do itself.
        """
        target = self.targets[workload]
        return f"{self.lab.address(target.service, target.namespace)}:{target.port}"

    def url(self, workload: Workload) -> str:
        """Return the URL that the client asks for *workload*."""
        target = self.targets[workload]
        return target.url or f"http://{self.address(workload)}{target.path}"

    def start(self) -> None:  # noqa: B027 (most modes are up with their lab)
        """Start what is not up with the lab, and count its logs. Raises CompareError."""

    @abstractmethod
    def groups(self, workload: Workload | None = None) -> list[Path]:
        """Return the cgroups of the processes that the mode adds for *workload*; None: for all of them."""

    def cpu_seconds(self) -> float:
        """Return the CPU time, in seconds, that the processes which the mode adds have used since they started."""
        return sum(map(measure.group_cpu_seconds, self.groups()))

    def memory(self, workload: Workload | None = None) -> int:
        """Return the memory (PSS, in bytes) of the processes that the mode adds for *workload*."""
        return measure.memory(itertools.chain.from_iterable(map(cgroup.processes, self.groups(workload))))

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        """Return what was checked, and what of it was not done, in words, for the requests *answered*."""
        checked = []
        failed = []
        if self.logs:
            requests = sum(count for workload, count in answered.items() if workload in LOGGED)
            checked.append(f"a line in the access log for each of {requests:,} HTTP requests")
            deadline = time.monotonic() + _LOG_SECONDS
            while (lines := sum(log.drain() for log in self.logs)) < requests and time.monotonic() < deadline:
                time.sleep(0.2)
            if lines < requests:
                failed.append(f"the access log has {lines:,} lines for {requests:,} requests")
        if "http-authz" in answered:
            checked.append("a request that the policy forbids is refused")
            failed += self._policy_fault()
        return checked, failed

    def _policy_fault(self) -> list[str]:
        """Return what is wrong if the guarded server takes a request that its policy does not allow."""
        client = self.client("http-authz")
        argv = [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "60",
            "-X",
            "DELETE",
            self.url("http-authz"),
        ]
        told = self.lab.exec(client.pod, argv, client.namespace).stdout
        return [] if told == "403" else [f"the policy is not enforced: DELETE was answered {told or 'not at all'}"]

    def _service_address(self, workload: Workload) -> str:
        target = self.targets[workload]
        services = {
            (each["metadata"]["namespace"], each["metadata"]["name"]): each["spec"]
            for each in self.lab.objects("Service")
        }
        return f"{services[target.namespace, target.service]['clusterIPs'][0]}:{target.port}"


@dataclass(slots=True, eq=False)
class Direct(Mode):
    """No mesh: packets go from pod to pod."""

    name = "direct"
    does = ("nothing: pod to pod",)
    does_not = ("mTLS, policy, metrics, access log",)

    def groups(self, workload: Workload | None = None) -> list[Path]:
        return []


def pod_group(lab: Lab, namespace: str, pod: str) -> Path:
    """Return the cgroup of *pod* of *namespace* in *lab*."""
    return Path(lab.pod(pod, namespace)["metadata"]["annotations"][CGROUP])
