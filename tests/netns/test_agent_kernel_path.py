"""The kernel path in a cluster: pod to pod past the proxy, and yet authorised, named, balanced, counted and cut like everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.lab.agent import merge
from tests.netns.test_agent_policy import PRINCIPAL, Policies, policy, status
from tests.netns.world import (
    QUICK,
    account,
    admin,
    ask,
    bracketed,
    client,
    client_argv,
    client_in,
    cluster,
    cluster_ip,
    curl,
    eventually,
    growth,
    pod_row,
    scrape,
    server,
    service,
)  # fmt: skip

ONLY_CLIENT = f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}"
TEXT = "".join(
    (
        account("client", "other", "server"),
        client("client", "node1", account="client"),
        client("other", "node1", account="other"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        *(server(name, node, account="server", labels="role: server, set: both") for name, node in (("local", "node1"), ("remote", "node2"))),
        server("joined", "node1", account="server", annotations="nodeagent.io/bypass: enabled"),
        client("joining", "node1", account="client", annotations="nodeagent.io/bypass: enabled"),
        server("proxied", "node1", account="server", annotations="nodeagent.io/path: proxy"),
        service("both", "set: both"),
    )
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    settings = merge(QUICK, {"resources": [str(folder)], "telemetry": {"accessLog": {"path": ""}}})
    with cluster("t-kernel", TEXT, agent=settings) as lab:
        counting = lab.agent("node1").pins / "links" / "http_egress"
        eventually(counting.exists, "what counts HTTP is loaded, after the pods are served")
        yield Policies(lab, folder)


@pytest.fixture
def policies(kernel: Policies) -> Iterator[Policies]:
    yield kernel
    for name in kernel.folder.glob("[!.]*.yaml"):
        name.unlink()
    eventually(lambda: not kernel.rows() and pod_row(kernel.lab, "local")["paths"]["8080"].startswith("kernel"), "the kernel path is back")


def paths(flows: list[dict[str, Any]], destination: str) -> set[str]:
    return {flow["path"] for flow in flows if flow["destination"].startswith(f"default/{destination}:") and not flow["closed"]}


@pytest.mark.parametrize("version", [4, 6])
def test_requests_are_counted_though_no_proxy_sees_them(policies: Policies, version: int) -> None:
    lab = policies.lab
    counted = growth(lab)
    url = f"http://{bracketed(cluster_ip(lab, 'local', version))}"
    for path, code in (("/about", 200), ("/status/404", 404)):
        done = curl(lab, "client", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}", f"{url}{path}")
        assert done.stdout in (f"{code} {cluster_ip(lab, 'local', version)}", f"{code} {url[7:]}") or path != "/about", done
    wanted = {"destination_workload": "local", "connection_security_policy": "kernel_attested", "source_principal": f"spiffe://{PRINCIPAL}"}
    counted.comes_to(2, "istio_requests_total", reporter="destination", **wanted)
    counted.comes_to(2, "istio_tcp_connections_opened_total", reporter="destination", **wanted)
    assert counted.of("nodeagent_connections_total", path="proxy-local") == 0


def test_bytes_and_flows_of_a_long_connection(policies: Policies) -> None:
    lab = policies.lab
    counted = growth(lab)
    with client_in(lab, "client", "hold", cluster_ip(lab, "local"), 9000, "--connections", 2) as held:
        flows = admin(lab, "node1", "/flows")["flows"]
        assert paths(flows, "local") == {"kernel"}
        (flow, _) = [flow for flow in flows if flow["path"] == "kernel" and not flow["closed"]]
        assert flow["source"] == "default/client"
        assert flow["service"] == "local.default.svc.cluster.local"
        assert flow["why"]
        counted.comes_to(2 * 13, "istio_tcp_sent_bytes_total", reporter="destination", destination_workload="local")
        assert held.say() == {"ok": 2, "bad": []}
    counted.comes_to(2, "istio_tcp_connections_closed_total", reporter="destination", destination_workload="local")
    counted.comes_to(4 * 13, "istio_tcp_received_bytes_total", reporter="destination", destination_workload="local")


def test_a_service_on_both_nodes_is_balanced_over_both_paths(policies: Policies) -> None:
    lab = policies.lab
    seen = {json.loads(curl(lab, "client", f"http://{cluster_ip(lab, 'both')}/about").stdout)["pod"] for _ in range(24)}
    assert seen == {"local", "remote"}


def test_policy_is_decided_in_the_kernel_and_counted(policies: Policies) -> None:
    lab = policies.lab
    policies.put("only", policy("only", ONLY_CLIENT))
    url = f"http://{cluster_ip(lab, 'local')}/about"
    eventually(lambda: curl(lab, "other", url).returncode != 0, "other is refused")
    assert pod_row(lab, "local")["paths"]["8080"].startswith("kernel")
    counted = growth(lab)
    assert status(lab, "client", url) == 200
    for _ in range(3):
        assert curl(lab, "other", url).returncode == 7, "refused at connect()"
    counted.comes_to(3, "nodeagent_policy_events_total", event="deny")
    counted.comes_to(3, "nodeagent_kernel_events_total", event="outbound_kernel_refused")


def test_a_change_cuts_what_is_open_in_the_kernel(policies: Policies) -> None:
    lab = policies.lab
    with client_in(lab, "client", "hold", cluster_ip(lab, "local"), 9000, "--connections", 2) as kept:
        with client_in(lab, "other", "hold", cluster_ip(lab, "local"), 9000, "--connections", 2) as cut:
            assert paths(admin(lab, "node1", "/flows")["flows"], "local") == {"kernel"}
            policies.put("only", policy("only", ONLY_CLIENT))
            eventually(lambda: cut.say()["ok"] == 0, "what is refused now is closed")
        assert kept.say() == {"ok": 2, "bad": []}


def test_what_is_decided_per_request_goes_through_the_proxy(policies: Policies) -> None:
    lab = policies.lab
    policies.put("echo", policy("echo", "{selector: {matchLabels: {role: server}}, action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}"))
    url = f"http://{cluster_ip(lab, 'local')}"
    eventually(lambda: status(lab, "client", f"{url}/echo") == 403, "refused by path")
    assert status(lab, "client", f"{url}/about") == 200
    row = eventually(lambda: row if (row := pod_row(lab, "local"))["paths"]["8080"].startswith("proxy") else None, "the path is told")
    assert row["paths"]["9000"].startswith("kernel") or row["paths"]["9000"].startswith("proxy")
    said = admin(lab, "node1", "/explain?source=default/client&destination=default/local:80&method=GET&path=/echo")
    assert said["verdict"] == "refused"
    assert "proxy" in json.dumps([step for step in said["steps"] if step["stage"] == "path"])


def test_a_strict_pod_takes_the_kernel_path_and_no_plaintext_stranger(policies: Policies) -> None:
    lab = policies.lab
    policies.put("strict", policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication"))
    url = f"http://{lab.address('local')}:8080/about"
    eventually(lambda: curl(lab, "plain", url).returncode != 0, "a stranger is refused")
    counted = growth(lab)
    assert status(lab, "client", url) == 200
    assert counted.of("nodeagent_kernel_events_total", event="inbound_kernel") == 1


def test_the_setting_of_a_pod_keeps_it_on_the_proxy(policies: Policies) -> None:
    lab = policies.lab
    assert pod_row(lab, "proxied")["paths"]["8080"] == "proxy: nodeagent.io/path of the pod is proxy"
    counted = growth(lab)
    assert status(lab, "client", f"http://{cluster_ip(lab, 'proxied')}/about") == 200
    assert counted.of("nodeagent_connections_total", path="proxy-local") == 1


def test_joined_sockets_carry_every_byte_and_count_it(policies: Policies) -> None:
    lab = policies.lab
    counted = growth(lab)
    for version in (4, 6):
        got = ask(lab, "joining", "duplex", cluster_ip(lab, "joined", version), 9001, "--send-bytes", 300_000, "--receive-bytes", 200_000)
        assert got["ok"] == 1, got
    eventually(
        lambda: counted.of("istio_tcp_received_bytes_total", reporter="destination", destination_workload="joined") >= 600_000, "bytes past TCP are counted"
    )


def test_without_the_daemon_kernel_connections_go_on_and_new_ones_come(policies: Policies) -> None:
    lab = policies.lab
    agent = lab.agent("node1")
    with client_in(lab, "client", "hold", cluster_ip(lab, "local"), 9000, "--connections", 2) as held:
        agent.kill()
        assert held.say() == {"ok": 2, "bad": []}
        assert status(lab, "client", f"http://{cluster_ip(lab, 'local')}/about") == 200
        agent.start()
        assert held.say() == {"ok": 2, "bad": []}
        eventually(lambda: paths(admin(lab, "node1", "/flows")["flows"], "local") == {"kernel"}, "they are known again")
    counted = growth(lab)
    assert status(lab, "client", f"http://{cluster_ip(lab, 'local')}/about") == 200
    counted.comes_to(1, "istio_requests_total", reporter="destination", destination_workload="local")
    assert scrape(lab).sum("nodeagent_faulty_pods") == 0


GET = "GET /about HTTP/1.1\r\nHost: web\r\n\r\n"
LAST = "GET /about HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"
CHUNKED = "POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"
LOOKALIKE = "GET /evil HTTP/1.1\r\nHost: web\r\n\r\nHTTP/1.1 500 Evil\r\n\r\n"


@pytest.mark.parametrize(
    ("what", "sent", "requests"),
    [
        ("one", LAST, 1),
        ("pipelined in one packet", GET * 4 + LAST, 5),
        ("a body that looks like requests", f"POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: {len(LOOKALIKE)}\r\n\r\n{LOOKALIKE}{LAST}", 2),
        ("chunks that look like requests", f"{CHUNKED}{len(LOOKALIKE):x}\r\n{LOOKALIKE}\r\n0\r\n\r\n{LAST}", 2),
        ("HEAD and GET", f"HEAD /about HTTP/1.1\r\nHost: web\r\n\r\n{LAST}", 2),
        ("HTTP/1.0", "GET /about HTTP/1.0\r\nHost: web\r\nConnection: close\r\n\r\n", 1),
        ("an unknown protocol", "\x00\x01binary and GET / HTTP/1.1\r\n\r\n", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [4, 6])
def test_what_the_kernel_counts(policies: Policies, what: str, sent: str, requests: int, version: int) -> None:
    lab = policies.lab
    counted = growth(lab)
    done = lab.exec("client", client_argv("http", cluster_ip(lab, "local", version), 80), input=sent, timeout=60)
    answers = done.stdout.count('"pod": "local"') + done.stdout.count("HTTP/1.1 500 Evil")
    assert requests == 0 or answers >= 1, done
    counted.comes_to(requests, "istio_requests_total", reporter="destination", destination_workload="local", response_code="200")
    assert counted.of("istio_requests_total", reporter="destination", response_code="500") == 0


def test_under_load_the_kernel_counts_what_the_client_counts(policies: Policies) -> None:
    lab = policies.lab
    counted = growth(lab)
    done = lab.exec("client", ["wrk", "-t1", "-c8", "-d1s", f"http://{cluster_ip(lab, 'local')}/about"], timeout=60)
    answered = int(re.findall(r"(\d+) requests in", done.stdout)[0])
    assert answered > 50, done.stdout
    seen = eventually(lambda: n if (n := counted.of("istio_requests_total", reporter="destination", destination_workload="local")) >= answered else 0, "all")
    assert seen <= answered + 8, "those under way at the end, and no others"
