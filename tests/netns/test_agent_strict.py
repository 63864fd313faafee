"""STRICT, and a daemon that is gone: only who proved an identity comes in, and nothing passes by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.lab.layout import Node
from nodeagent.lab.processes import inside
from tests.netns.world import (
    QUICK,
    about,
    access_log,
    account,
    address_of,
    ask,
    bracketed,
    client,
    cluster,
    cluster_ip,
    curl,
    growth,
    pod,
    pod_row,
    prometheus,
    server,
)
from tests.waiting import eventually

PROBES = (
    "readinessProbe: {httpGet: {port: 8080, path: /about}, periodSeconds: 1}, livenessProbe: {tcpSocket: "
    "{port: 9000}, periodSeconds: 1}, "
    "startupProbe: {tcpSocket: {port: 9002}, periodSeconds: 1}"
)
SCRAPED = 'prometheus.io/scrape: "true", prometheus.io/port: "9100", prometheus.io/path: /stats'
EXPORTER = Path(__file__).resolve().parent.parent / "apps" / "exporter.py"
HEALTH = Path(__file__).resolve().parent.parent / "fakes" / "health.py"
GRPC = (
    "ports: [{containerPort: 9200}], readinessProbe: {grpc: {port: 9200, service: web}, periodSeconds: "
    "1, timeoutSeconds: 5}"
)
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
        server("probed", "node1").replace(
            "readinessProbe: {exec: {command: [sh, -c, 'grep -q :1F90 /proc/net/tcp6']}, periodSeconds: 1}", PROBES
        ),
        pod("shop", "node1", annotations=SCRAPED, command=json.dumps([sys.executable, str(EXPORTER), "9100"])),
        pod("healthy", "node1", command=json.dumps([sys.executable, str(HEALTH)]), container=GRPC),
        server("open", "node1", annotations='traffic.sidecar.istio.io/excludeInboundPorts: "8080,9000"'),
    )
)


@pytest.fixture(scope="module")
def strict() -> Iterator[Lab]:
    settings = merge(
        QUICK,
        {
            "mtls": {"mode": "STRICT"},
            "proxy": {"timeouts": {"request": 1}},
            "telemetry": {"accessLog": {"format": "json"}},
        },
    )
    with cluster("t-strict", TEXT, agent=settings) as lab:
        yield lab


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ["local", "remote"])
def test_enrolled_pods_talk(strict: Lab, name: str, version: int) -> None:
    assert about(strict, "client", f"http://{bracketed(cluster_ip(strict, name, version))}")["pod"] == name
    assert (
        ask(
            strict,
            "client",
            "duplex",
            cluster_ip(strict, name, version),
            9001,
            "--send-bytes",
            100000,
            "--receive-bytes",
            100000,
        )["ok"]
        == 1
    )


@pytest.mark.parametrize("source", ["plain", "node1", "node2"])
@pytest.mark.parametrize("name", ["local", "remote"])
def test_plaintext_is_refused(strict: Lab, name: str, source: str) -> None:
    counted = growth(strict, strict.pod(name)["spec"]["nodeName"])
    done = curl(strict, source, f"http://{strict.address(name)}:8080/about")
    assert done.returncode in (52, 56), done  # the connection was cut, without an answer
    assert ask_from(strict, source, strict.address(name), 9001) in ("ECONNRESET", "ECONNREFUSED", "end")
    assert counted.of("nodeagent_refused_connections_total", reason="plaintext_refused") >= 2


def ask_from(lab: Lab, source: str, address: str, port: int) -> str:
    got = ask(lab, source, "dial", address, port, "--send", "1 10 10\n0123456789")
    assert got["received"] == ""
    return str(got.get("error", got.get("ended")))


def test_only_declared_probes_pass(strict: Lab) -> None:
    """It is ready at all because its probes pass; what it does not declare does not."""
    address = strict.address("probed")
    assert curl(strict, "node1", "-w", " %{http_code}", f"http://{address}:8080/about").stdout.endswith(" 200")
    assert curl(strict, "node1", "-w", " %{http_code}", f"http://{address}:8080/echo").stdout.endswith(" 403")
    assert curl(strict, "node1", "-w", " %{http_code}", "-d", "x", f"http://{address}:8080/about").stdout.endswith(
        " 403"
    )
    assert curl(strict, "node1", f"http://{address}:9001/").returncode != 0
    assert curl(strict, "plain", f"http://{address}:8080/about").returncode in (52, 56)
    got = ask(
        strict, "node1", "dial", address, 9000, "--send", "data through a port that is only probed", "--until", "probed"
    )
    assert got["received"] == ""


def test_only_declared_metrics_are_told_to_everybody(strict: Lab) -> None:
    """Asked by a pod outside the mesh, and from another node. Verdict: GET of exactly the declared
    path; nothing else, be it on the same connection, and nothing at another port.
    """
    url = f"http://{strict.address('shop')}:9100"
    for source in ("plain", "node2"):
        eventually(lambda source=source: curl(strict, source, f"{url}/stats").returncode == 0, "the exporter listens")
        assert curl(strict, source, f"{url}/stats").stdout == "shop_orders_total 7\n"
        for wrong in (f"{url}/", f"{url}/stats?all", f"{url}/stats/../secret"):
            done = curl(strict, source, "--path-as-is", "-w", " %{http_code}", wrong)
            assert done.stdout.endswith(" 403"), done
            assert "secret" not in done.stdout
        assert curl(strict, source, "-w", " %{http_code}", "-d", "x", f"{url}/stats").stdout.endswith(" 403")
        assert "secret" not in curl(strict, source, f"{url}/stats", f"{url}/other").stdout
    assert curl(strict, "plain", f"http://{strict.address('local')}:8080/stats").returncode in (52, 56)


def test_a_real_prometheus_outside_the_mesh_scrapes_an_application(strict: Lab, tmp_path: Path) -> None:
    with prometheus(strict, "plain", tmp_path, [f"{strict.address('shop')}:9100"], path="/stats") as asked:
        eventually(lambda: asked("shop_orders_total"), "the application's own metric is there", 60)


def ip(lab: Lab, name: str, *words: str) -> None:
    """Run ip(8) in the network namespace of *name*, a node or a pod."""
    subprocess.run(inside(lab.netns(name), ["ip", *words]), check=True, capture_output=True)


def test_every_address_of_the_node_may_probe_as_soon_as_it_is_there(strict: Lab) -> None:
    """Input: the node gets an address that no Node object names, as when a CNI plugin makes its
    bridge, and loses it again.
    """
    probe = ("--interface", "198.51.100.7", f"http://{strict.address('probed')}:8080/about")
    ip(strict, "node1", "address", "add", "198.51.100.7/32", "dev", "lo")
    try:
        eventually(lambda: "probed" in curl(strict, "node1", *probe).stdout, "it counts as the node's")
    finally:
        ip(strict, "node1", "address", "del", "198.51.100.7/32", "dev", "lo")
    assert "probed" in curl(strict, "node1", probe[-1]).stdout, "the gateway's, which no Node object names either"


def test_a_pod_that_takes_an_address_of_the_node_is_not_the_node(strict: Lab) -> None:
    """Input: a pod outside the mesh gives itself the gateway's address. Verdict: the node takes no
    such packet from a pod's link: it is its own.
    """
    gateway = str(Node(1).gateways[0])
    ip(strict, "plain", "address", "add", f"{gateway}/32", "dev", "lo")
    try:
        url = f"http://{strict.address('probed')}:8080/about"
        assert curl(strict, "plain", "--max-time", "2", "--interface", gateway, url).stdout == ""
    finally:
        ip(strict, "plain", "address", "del", f"{gateway}/32", "dev", "lo")


def test_a_tcp_probe_is_told_whether_the_application_listens(strict: Lab) -> None:
    asks = "readinessProbe: {tcpSocket: {port: 7999}, periodSeconds: 1}"
    strict.apply(text=pod("deaf", "node1", command="[sleep, infinity]", container=asks), wait_seconds=0)
    url = f"http://{strict.address('deaf')}:7999/"
    eventually(lambda: pod_row(strict, "deaf")["state"] == "enrolled", "it is captured")

    def ready() -> bool:
        (row,) = (each for each in strict.objects("Pod") if each["metadata"]["name"] == "deaf")
        return any(each["type"] == "Ready" and each["status"] == "True" for each in row["status"]["conditions"])

    for _ in range(3):
        assert curl(strict, "node1", url).returncode == 7, "refused, as the pod's own kernel does"
    assert not ready()
    with strict.popen("deaf", [sys.executable, "-m", "http.server", "7999"]) as application:
        try:
            eventually(ready, "the kubelet finds the port open")
            assert "probe_refused" in curl(strict, "node1", url).stdout, "whether it opens is all that may be asked"
        finally:
            application.kill()
    eventually(lambda: not ready(), "the kubelet finds it closed")


def test_a_tcp_probe_carries_nothing(strict: Lab) -> None:
    """Behind 9002 a server speaks first; what it says is not heard, however the connection goes."""
    address = strict.address("probed")
    for more in ((), ("--half-close",)):
        got = ask(strict, "node1", "dial", address, 9002, *more)
        assert (got["received"], got.get("ended")) == ("", "end"), got
    assert ask(strict, "node1", "dial", address, 9002, "--send", "hello")["received"] == ""


@pytest.mark.parametrize("version", [4, 6])
def test_a_grpc_probe_passes_and_nothing_else_of_the_node(strict: Lab, version: int) -> None:
    """The pod is ready at all because the kubelet's gRPC probe passes."""
    target = f"{bracketed(address_of(strict, 'healthy', version))}:9200"

    def says(source: str, *arguments: str) -> str:
        return strict.exec(
            source, [sys.executable, str(HEALTH), "--ask", target, *arguments], timeout=60
        ).stdout.strip()

    assert says("node1", "--service", "web") == "SERVING"
    assert says("node1", "--service", "ill") == "PERMISSION_DENIED"
    assert says("node1", "--service", "web", "--method", "/test.Secret/Tell") == "UNIMPLEMENTED"
    assert says("plain", "--service", "web") == "UNAVAILABLE"
    assert says("node2", "--service", "web") == "UNAVAILABLE"
    assert "Secret" not in strict.log("healthy")


def test_excluded_ports_are_open(strict: Lab) -> None:
    assert about(strict, "plain", f"http://{strict.address('open')}:8080")["pod"] == "open"
    assert curl(strict, "plain", f"http://{strict.address('open')}:9001/").returncode != 0
    assert about(strict, "client", f"http://{cluster_ip(strict, 'open')}")["pod"] == "open"


def test_json_access_log_and_a_request_that_takes_too_long(strict: Lab) -> None:
    log = access_log(strict)
    counted = growth(strict)
    done = curl(strict, "client", "-w", " %{http_code}", f"http://{cluster_ip(strict, 'local')}/never")
    assert done.stdout.endswith(" 504"), done
    counted.comes_to(1, "istio_requests_total", reporter="source", response_code="504", response_flags="UT")
    eventually(lambda: b'"path":"/never"' in log.path.read_bytes()[log.start :], "the log line")
    (line,) = [line for line in log.path.read_text().splitlines() if '"path":"/never"' in line]
    for part in (
        '"response_code":504',
        '"response_flags":"UT"',
        '"response_code_details":"response_timeout"',
        '"method":"GET"',
    ):
        assert part in line


def test_without_the_daemon_nothing_passes_until_it_is_back(strict: Lab) -> None:
    agent = strict.agent("node1")
    assert pod_row(strict, "local")["mode"] == "STRICT"
    pins = {path.name for path in (agent.pins / "links").iterdir()}
    agent.kill()
    outbound = {
        "to this node": strict.address("local"),
        "to the other node": strict.address("remote"),
        "to a service": cluster_ip(strict, "local"),
    }
    for what, address in outbound.items():
        eventually(lambda address=address: refused(strict, "client", address), f"outbound {what} is refused")
    for source in ("plain", "node1", "node2"):
        eventually(
            lambda source=source: refused(strict, source, strict.address("local")), f"inbound from {source} is refused"
        )
    assert {path.name for path in (agent.pins / "links").iterdir()} == pins
    agent.start()
    assert {path.name for path in (agent.pins / "links").iterdir()} == pins
    for name in ("local", "remote"):
        assert about(strict, "client", f"http://{cluster_ip(strict, name)}")["pod"] == name
    assert refused(strict, "plain", strict.address("local"))


def refused(lab: Lab, source: str, address: str) -> bool:
    done = curl(lab, source, f"http://{bracketed(address)}:8080/about")
    assert done.returncode != 28, done  # refused, not hung
    return done.returncode != 0 and not done.stdout


def test_a_graceful_stop_refuses_too(strict: Lab) -> None:
    agent = strict.agent("node1")
    agent.stop()
    assert refused(strict, "client", cluster_ip(strict, "local"))
    assert refused(strict, "node2", strict.address("local"))
    agent.start()
    assert about(strict, "client", f"http://{cluster_ip(strict, 'local')}")["pod"] == "local"
