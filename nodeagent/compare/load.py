"""What is asked of each mode, and what one asking gives: requests in a closed or an open loop, a stream."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final, Literal

from nodeagent.errors import NodeagentError
from nodeagent.lab import Lab

Workload = Literal[
    "http",
    "http-authz",
    "tcp",
    "tcp-churn",
    "chain5",
    "cross-node",
    "cross-node-churn",
    "bulk",
    "bulk-cross-node",
    "h2",
    "h2-many",
    "h2-cross-node",
    "h2-bulk",
    "grpc",
    "grpc-stream",
    "manifest",
]
"""``http``: requests to a server on the same node; ``http-authz``: under a policy of method, path
and principal; ``tcp``: the same requests to a port declared TCP; ``tcp-churn``: a new connection
for each request; ``chain5``: a request that goes through five services; ``cross-node``: to the
other node; ``cross-node-churn``: a new connection for each; ``bulk``: one stream; ``h2``: HTTP/2,
one connection; ``h2-many``: more of them; ``h2-cross-node``: to the other node; ``h2-bulk``: one
large answer; ``grpc``: unary calls; ``grpc-stream``: messages of server streams; ``manifest``: to
what the user's own YAML serves.
"""
CHURN: Final[frozenset[Workload]] = frozenset(("tcp-churn", "cross-node-churn"))
"""A new connection for each request."""
HTTP_PORT: Final = 8080
TCP_PORT: Final = 8081
HTTP2_PORT: Final = 8082
GRPC_PORT: Final = 50051
BULK_PORT: Final = 5201
PERCENTILES: Final = (1, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100)
"""What is told of a closed loop's latencies."""
_PATIENCE_SECONDS: Final = 20
Told = dict[str, Any]
"""The JSON object that a load program ends with; its shape is that program's own."""


class CompareError(NodeagentError):
    """A comparison cannot be made, or a mode does not do what it is to be measured for."""


class UnansweredError(CompareError):
    """Not one request was answered well in the time that there was."""


@dataclass(frozen=True, slots=True)
class Client:
    """Where the load comes from: *pod* of *namespace* in *lab*."""

    lab: Lab
    namespace: str
    pod: str = "client"

    def output(self, argv: list[str], seconds: float, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the pod and return what it says; raises CompareError if it fails or takes
        much longer than *seconds*.
        """
        try:
            done = self.lab.exec(self.pod, argv, self.namespace, input=input, timeout=seconds + _PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise CompareError(f"{self._where(argv)}: still running after {seconds + _PATIENCE_SECONDS:g} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-300:] or f"exit status {done.returncode}"
            raise CompareError(f"{self._where(argv)}: {said}")
        return done

    def run(self, argv: list[str], seconds: float, input: str | None = None) -> Told:
        """Run *argv* in the pod and return the JSON object that it ends with; raises as :meth:`output` does."""
        done = self.output(argv, seconds, input)
        try:
            told: Told = json.loads(done.stdout[done.stdout.index("{") :])
            return told
        except ValueError:
            said = (done.stderr or done.stdout).strip()[-300:] or "it says nothing"
            raise CompareError(f"{self._where(argv)}: {said}") from None

    def _where(self, argv: list[str]) -> str:
        return f"{argv[0]} in {self.namespace}/{self.pod} of lab {self.lab.name}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Latencies in µs; ``bits_per_second`` is None for requests, the rest 0 or empty for a stream."""

    requests: int
    seconds: float
    errors: int
    percentiles: tuple[tuple[float, float], ...] = ()
    """(percentile, µs), rising."""
    bits_per_second: float | None = None
    cpu_seconds: float = 0.0
    """CPU time, in seconds, of what the mode adds."""
    all_cpu_seconds: float = 0.0
    """CPU time, in seconds, of everything in the lab: client, application, mode."""

    def at(self, percentile: float) -> float:
        """Return the latency at one of the percentiles that were told, in µs; 0: there is none."""
        return next((value for key, value in self.percentiles if key == percentile), 0.0)

    @property
    def rate(self) -> float:
        """Requests a second that were answered."""
        return self.requests / self.seconds


def closed(client: Client, url: str, connections: int, seconds: int, *, fresh: bool = False) -> Sample:
    """Ask *url* over *connections* connections from one thread (wrk), each as soon as the last
    answer is there.

    *fresh*: each request on a connection of its own.
    """
    argv = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "5s",
        "-s",
        "/dev/stdin",
        *(("-H", "Connection: close") if fresh else ()),
        url,
    ]
    script = _LUA.replace("PERCENTILES", ", ".join(map(str, PERCENTILES)))
    told = client.run(argv, seconds, script)
    answered = told["requests"] - told["refused"]
    if not answered:
        raise UnansweredError(
            f"no request to {url} from {client.namespace}/{client.pod} of lab {client.lab.name} was answered well "
            f"in {seconds} s"
        )
    percentiles = tuple(zip(PERCENTILES, told["latencies"], strict=True))
    return Sample(answered, told["microseconds"] / 1e6, told["errors"], percentiles)


def open_loop(client: Client, url: str, rate: int, connections: int, seconds: int) -> Sample:
    """Ask *url* *rate* times a second, whatever becomes of the answers; latencies count from when a request was due."""
    argv = [
        sys.executable,
        "-m",
        "nodeagent.compare.openloop",
        "--url",
        url,
        "--rate",
        str(rate),
        "--connections",
        str(connections),
    ]
    told = client.run([*argv, "--seconds", str(seconds)], seconds)
    named = {float(name[1:]): value for name, value in told["latency_us"].items() if name[0] == "p"}
    percentiles = {percentile: value for percentile, value in told["percentiles"]} | named  # noqa: C416 (pairs are lists in JSON)
    return Sample(told["requests"], told["seconds"], told["errors"] + told["late"], tuple(sorted(percentiles.items())))


def stream(client: Client, address: str, seconds: int) -> Sample:
    """Send one TCP stream to iperf3 at *address*, as fast as it goes; what counts is what the server received."""
    host, _, port = address.rpartition(":")
    argv = [
        "iperf3",
        "--client",
        host.strip("[]"),
        "--port",
        port,
        "--time",
        str(seconds),
        "--json",
        "--connect-timeout",
        "3000",
    ]
    received = client.run(argv, seconds)["end"]["sum_received"]
    return Sample(0, received["seconds"], 0, (), received["bits_per_second"])


_LUA: Final = """
done = function(summary, latency, requests)
  local errors, told = summary.errors, {}
  for place, percentile in ipairs({PERCENTILES}) do
    told[place] = percentile == 100 and latency.max or latency:percentile(percentile)
  end
  io.write(string.format('\\n{"requests": %d, "refused": %d, "microseconds": %d, "errors": %d, "latencies": [%s]}\\n',
    summary.requests, errors.status, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, table.concat(told, ", ")))
end
"""
