"""What is asked of each mode, and what one asking gives: requests by wrk in a closed loop, a stream by iperf3."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Literal

from nodeagent.errors import NodeagentError
from nodeagent.lab import Lab

Workload = Literal["http", "http-authz", "http-kernel-metrics", "tcp-churn", "cross-node", "bulk", "bulk-cross-node"]
"""The schema's names: requests, requests under a policy of method, path and principal, requests that the kernel counts, a new
connection for each request, and a stream; to a server on the same node or on the other."""
HTTP_PORT, TCP_PORT, BULK_PORT = 8080, 8081, 5201
"""TCP_PORT: the same web server, declared as TCP, so that connections are counted and not requests."""


class BenchError(NodeagentError):
    """A mode does not do what it is to be measured for."""


@dataclass(frozen=True, slots=True)
class Client:
    """Where the load comes from: a pod of a lab."""

    lab: Lab
    namespace: str

    def run(self, argv: list[str], seconds: float) -> str:
        """Run *argv* in the pod and return what it writes; raises BenchError if it fails or takes much longer than *seconds*."""
        try:
            done = self.lab.exec("client", argv, self.namespace, timeout=seconds + 20)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{' '.join(argv)} in {self.namespace}/client: still running after {seconds + 20:g} s") from None
        if done.returncode:
            raise BenchError(f"{' '.join(argv)} in {self.namespace}/client: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Latencies in µs; ``bits_per_second`` is None for requests, the rest 0 or empty for a stream."""

    requests: int
    seconds: float
    errors: int
    latency: tuple[int, int, int] | None = None
    """p50, p90, p99."""
    bits_per_second: float | None = None
    cpu_seconds: float = 0.0
    """Of the processes that the mode adds."""


def requests(client: Client, address: str, connections: int, seconds: int, *, fresh: bool = False) -> Sample:
    """Ask ``http://address:port/`` over *connections* connections from one thread, each as soon as the last answer is there.

    *fresh*: each request on a connection of its own.
    """
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", "/workload/report.lua"]
    argv += [*(("-H", "Connection: close") if fresh else ()), f"http://{address}/"]
    told = json.loads(client.run(argv, seconds).strip().splitlines()[-1])
    if not told["requests"]:
        raise BenchError(f"no request to {address} from {client.namespace}/client was answered")
    return Sample(told["requests"], told["microseconds"] / 1e6, told["errors"], (told["p50"], told["p90"], told["p99"]))


def stream(client: Client, address: str, seconds: int) -> Sample:
    """Send one TCP stream to iperf3 at *address*, as fast as it goes; what counts is what the server received."""
    host, _, port = address.rpartition(":")
    argv = ["iperf3", "--client", host.strip("[]"), "--port", port, "--time", str(seconds), "--json", "--connect-timeout", "3000"]
    received = json.loads(client.run(argv, seconds))["end"]["sum_received"]
    return Sample(0, received["seconds"], 0, None, received["bits_per_second"])
