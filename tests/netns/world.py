"""What the end-to-end tests of the agent share: a cluster of test applications, clients in pods,
metrics and access log.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import LabError
from nodeagent.lab import Lab, cgroup, http
from nodeagent.lab.layout import NETNS_DIRECTORY, Layout
from tests.waiting import DEADLINE, eventually

APPS = Path(__file__).resolve().parent.parent / "apps"
SERVER, CLIENT = APPS / "server.py", APPS / "client.py"
REMAPPED = (("http", 80, 8080), ("any", 81, 8080), ("any-duplex", 91, 9001))
PORTS = {"tcp-echo": 9000, "tcp-duplex": 9001, "tcp-greet": 9002, "tcp-slam": 9003, "tcp-hush": 9004, "tcp-watch": 9006}
QUICK: dict[str, Any] = {
    "redirect": {"checkIntervalSeconds": 0.3, "heartbeatTimeoutSeconds": 1.5},
    "proxy": {"timeouts": {"drain": 3, "connect": 3, "request": 20}},
}
"""agent.yaml for tests: what waits, waits briefly."""
PATIENCE = (1, 4, 16, 64)
"""Seconds in which a pod shows what is wrong with it, one after the other until it has."""


# -- YAML --


def pod(
    name: str,
    node: str,
    *,
    account: str = "default",
    labels: str = "",
    annotations: str = "",
    command: str = "",
    container: str = "",
) -> str:
    """Return a pod's YAML: the test server unless *command* says otherwise."""
    argv = command or json.dumps([sys.executable, str(SERVER)])
    return f"""
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}{", " + labels if labels else ""}}}, annotations: {{{annotations}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, command: {argv}{", " + container if container else ""}}}
"""


def server(name: str, node: str, **options: str) -> str:
    """Return the YAML of a pod with the test server that is ready when it listens, and of its Service."""
    probe = "readinessProbe: {exec: {command: [sh, -c, 'grep -q :1F90 /proc/net/tcp6']}, periodSeconds: 1}"
    return pod(name, node, container=probe, **options) + service(name, f"app: {name}")


def client(name: str, node: str, **options: str) -> str:
    return pod(name, node, command="[sleep, infinity]", **options)


def service(name: str, selector: str, *, headless: bool = False) -> str:
    """Return the YAML of a Service: HTTP on port 80, an unnamed protocol on 81 and 91, TCP on the
    servers' own ports.
    """
    ports: list[dict[str, object]] = [
        {"name": name, "port": port, "targetPort": target} for name, port, target in REMAPPED
    ]
    ports += [{"name": name, "port": port} for name, port in PORTS.items()]
    ports.append({"name": "udp", "port": 9005, "protocol": "UDP"})
    spec = (
        f"{'clusterIP: None, ' if headless else ''}ipFamilyPolicy: PreferDualStack, selector: {{{selector}}}, "
        f"ports: {json.dumps(ports)}"
    )
    return f"\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def account(*names: str) -> str:
    return "".join(f"\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n" for name in names)


def complained(message: str, **lab: Any) -> None:
    """A lab is refused for what *message* matches, once its pods had the time to come that far: the more
    the machine does, the longer that takes.
    """
    for seconds in PATIENCE:
        with pytest.raises(LabError) as refused:
            Lab.up(**lab, nodes=1, wait_seconds=seconds)
        if re.search(message, str(refused.value)):
            return
    raise AssertionError(f"{refused.value} should match {message!r}")


# -- clients --


def ask(lab: Lab, source: str, *arguments: object, input: str = "") -> Any:
    """Run client.py in the pod *source*; return the last JSON line that it prints."""
    done = lab.exec(source, client_argv(*arguments), input=input, timeout=90)
    assert done.returncode == 0, done
    assert done.stdout.strip(), done
    return json.loads(done.stdout.strip().splitlines()[-1])


def client_argv(*arguments: object) -> list[str]:
    return [sys.executable, str(CLIENT), *map(str, arguments)]


def curl(lab: Lab, source: str, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return lab.exec(source, ["curl", "-sS", "--max-time", "60", *arguments], input=input)


def about(lab: Lab, source: str, url: str, *arguments: str) -> Any:
    """Return the request to /about at *url* as the server saw it."""
    done = curl(lab, source, *arguments, f"{url}/about")
    assert done.returncode == 0, done
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise AssertionError(done) from None


@dataclass
class Client:
    """A client.py that stays: it answers each line with a JSON line."""

    process: subprocess.Popen[str]
    first: Any = None

    def say(self) -> Any:
        """Send a line; return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the client ended"
        return json.loads(line)

    def finish(self) -> Any:
        """End its standard input; return the last thing that it says."""
        out, _ = self.process.communicate(timeout=90)
        return json.loads(out.strip().splitlines()[-1]) if out.strip() else None


@contextmanager
def client_in(lab: Lab, source: str, *arguments: object) -> Iterator[Client]:
    """Run client.py in the pod *source* meanwhile; enter when it says its first line."""
    pipe = subprocess.PIPE
    with lab.popen(source, client_argv(*arguments), stdin=pipe, stdout=pipe, text=True) as process:
        running = Client(process)
        try:
            running.first = running.hear()
            yield running
        finally:
            if process.poll() is None:
                process.kill()


# -- what an agent says --


_LABEL = re.compile(r'([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Samples:
    """One scrape. Only what is asked for is parsed: the whole of it takes longer than most tests."""

    text: str

    def series(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yield labels and value of each series of *name* (empty: of all)."""
        for line in self.text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) or (not name and not line.startswith("#")):
                key, _, value = line.rpartition(" ")
                yield {"__name__": key.partition("{")[0], **dict(_LABEL.findall(key))}, float(value)

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the series of *name* that have these *labels*."""
        wanted = labels.items()
        return sum(value for found, value in self.series(name) if wanted <= found.items())

    def labels(self, name: str, **labels: str) -> list[Mapping[str, str]]:
        wanted = labels.items()
        return [found for found, _ in self.series(name) if wanted <= found.items()]


def get(lab: Lab, node: str, port: int, path: str) -> tuple[int, str]:
    """GET from the agent of *node*, from within its network namespace."""
    return http.get(lab.netns(node), port, path, seconds=DEADLINE)


def scrape(lab: Lab, node: str = "node1") -> Samples:
    status, text = get(lab, node, 15000, "/metrics")
    assert status == 200
    return Samples(text)


@dataclass
class Growth:
    """How much counters have grown since a scrape."""

    lab: Lab
    node: str
    before: Samples

    def of(self, name: str, **labels: str) -> float:
        return scrape(self.lab, self.node).sum(name, **labels) - self.before.sum(name, **labels)

    def comes_to(self, count: float, name: str, **labels: str) -> None:
        """Wait until the counter has grown by *count*, and by no more."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.of(name, **labels) >= count)
        assert self.of(name, **labels) == count, f"{name} {labels} should have grown by {count}; {self}"

    def __str__(self) -> str:
        """What has grown at all, for messages."""
        before = {tuple(labels.items()): value for labels, value in self.before.series("")}
        now = scrape(self.lab, self.node).series("")
        grown = [
            f"{dict(labels)} by {value - before.get(tuple(labels.items()), 0)}"
            for labels, value in now
            if before.get(tuple(labels.items()), 0) != value
        ]
        return "\n".join(["what has grown:", *(line for line in grown if "_total" in line)])


def growth(lab: Lab, node: str = "node1") -> Growth:
    return Growth(lab, node, scrape(lab, node))


def admin(lab: Lab, node: str, path: str) -> Any:
    status, text = get(lab, node, 15000, path)
    assert status == 200, text
    return json.loads(text)


def pod_row(lab: Lab, name: str) -> Any:
    """Return the row of ``get pods`` for the pod *name*; None: it is not enrolled."""
    node = lab.pod(name)["spec"]["nodeName"]
    return next((row for row in admin(lab, node, "/pods") if row["pod"] == name), None)


_LINE = re.compile(
    r'\[(?P<time>[^\]]+)\] "(?P<method>\S+) (?P<path>\S+) (?P<protocol>\S+)" (?P<code>\d+) (?P<flags>\S+) '
    r'(?P<details>\S+) \S+ "[^"]*" '
    r'(?P<received>\d+) (?P<sent>\d+) (?P<duration>\d+) (?P<upstream_time>\S+) "(?P<forwarded>[^"]*)" '
    r'"(?P<agent>[^"]*)" "(?P<id>[^"]*)" '
    r'"(?P<authority>[^"]*)" "(?P<upstream>[^"]*)" (?P<cluster>\S+) \S+ (?P<local>\S+) (?P<remote>\S+) '
    r"(?P<sni>\S+) (?P<route>\S+)(?: (?P<grpc>\d+))?"
)


@dataclass
class AccessLog:
    """The lines that a node's access log gets from now on."""

    path: Path
    start: int

    def lines(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes()[self.start :].decode()
        whole = text[: text.rfind("\n") + 1].splitlines()
        found = [_LINE.fullmatch(line) for line in whole]
        assert all(found), whole
        return [match.groupdict() for match in found if match]

    def find(self, **wanted: str) -> dict[str, str]:
        """Wait for a line with these fields."""
        return eventually(
            lambda: next((line for line in self.lines() if wanted.items() <= line.items()), None),
            f"a line with {wanted} in {self.lines()[-5:]}",
        )


def access_log(lab: Lab, node: str = "node1") -> AccessLog:
    path = lab.agent(node).access_log
    return AccessLog(path, path.stat().st_size if path.exists() else 0)


# -- machine --


@contextmanager
def prometheus(
    lab: Lab, source: str, folder: Path, targets: list[str], *, path: str = "/metrics", port: int = 19090
) -> Iterator[Callable[[str], list[Any]]]:
    """Run a real Prometheus in the pod or node *source* meanwhile, which scrapes *path* of *targets*
    every second, with its files in *folder*; enter with what asks it an instant query: the samples,
    none while it does not answer.
    """
    jobs = [{"job_name": "scraped", "metrics_path": path, "static_configs": [{"targets": targets}]}]
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.json").write_text(json.dumps(settings))
    argv = [
        "prometheus",
        f"--config.file={folder}/prometheus.json",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def asked(query: str) -> list[Any]:
        url = f"http://127.0.0.1:{port}/api/v1/query"
        done = curl(lab, source, "-G", "--data-urlencode", f"query={query}", url)
        if done.returncode != 0 or not done.stdout.startswith("{"):
            return []
        answer = json.loads(done.stdout)
        assert answer["status"] == "success", (query, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    with lab.popen(source, argv, stderr=subprocess.DEVNULL) as process:
        try:
            yield asked
        finally:
            process.terminate()
            process.wait(timeout=60)


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def address_of(lab: Lab, target: str, version: int) -> str:
    """Return the IPv4 or IPv6 address of a pod or node."""
    return lab.address(target, version=6 if version == 6 else 4)


def cluster_ip(lab: Lab, name: str, version: int = 4) -> str:
    (found,) = (each for each in lab.objects("Service") if each["metadata"]["name"] == name)
    return str(found["spec"]["clusterIPs"][version == 6])


def workers(lab: Lab, node: str) -> list[int]:
    """Return the pids of the proxy workers that carry traffic now, as the live flows and the
    process tree tell: children but control.
    """
    agent = lab.agent(node)
    parent = agent.pid
    children = sorted(pid for pid in agent.processes() if parent_of(pid) == parent)
    return [pid for pid in children if pid != control(lab, node)]


def control(lab: Lab, node: str) -> int:
    """Return the pid of the agent's control process: the one that listens on the admin port."""
    found = subprocess.run(
        ["nsenter", f"--net={lab.netns(node)}", "ss", "-Hltnp", "sport = :15000"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(re.findall(r"pid=(\d+)", found)[0])


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def memory(pids: list[int]) -> int:
    """Return the proportional set size of processes, in bytes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def left_behind(name: str) -> list[str]:
    """Return what is left of the lab *name*: state, namespaces, cgroups, pins, processes."""
    layout = Layout(name)
    group = layout.cgroup(cgroup.hierarchy())
    found = [str(path) for path in (layout.state, group) if path.exists()]
    found += [
        str(path) for path in (*NETNS_DIRECTORY.glob(f"{name}.*"), *Path("/sys/fs/bpf").glob(f"nodeagent-lab-{name}-*"))
    ]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue  # dead, and its parent's to reap
            if f"nodeagent-lab-{name}/" in (process / "cgroup").read_text():
                found.append(f"{process}: {(process / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


@contextmanager
def cluster(name: str, text: str, **options: Any) -> Iterator[Lab]:
    """A lab with agents, of which nothing stays."""
    Lab.remove(name)
    try:
        with Lab.up(text=text, name=name, mode="nodeagent", **{"agent": QUICK, **options}) as lab:
            yield lab
    finally:
        Lab.remove(name)
    eventually(lambda: not left_behind(name), f"nothing is left of the lab; now: {left_behind(name)}")
