"""The kernel path in a cluster: pod to pod past the proxy, and yet authorised, named, balanced,
counted and cut like everything else.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.lab.layout import ADDRESSES
from nodeagent.lab.processes import inside
from tests.netns.test_agent_policy import PRINCIPAL, Policies, policy, status
from tests.netns.world import (
    QUICK,
    account,
    address_of,
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

ONLY_CLIENT = (
    f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}"
)
TEXT = "".join(
    (
        account("client", "other", "server"),
        client("client", "node1", account="client"),
        client("other", "node1", account="other"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        *(
            server(name, node, account="server", labels="role: server, set: both")
            for name, node in (("local", "node1"), ("remote", "node2"))
        ),
        server("joined", "node1", account="server", annotations="nodeagent.io/bypass: enabled"),
        client("joining", "node1", account="client", annotations="nodeagent.io/bypass: enabled"),
        server("proxied", "node1", account="server", annotations="nodeagent.io/path: proxy"),
        service("both", "set: both"),
    )
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    more = {
        "telemetry": {"accessLog": {"path": ""}},
        "redirect": {"bypass": "asked"},
        "proxy": {"clientCertHeader": "ignored"},
    }
    settings = merge(QUICK, {"resources": [str(folder)], **more})
    with cluster("t-kernel", TEXT, agent=settings) as lab:
        counting = lab.agent("node1").pins / "links" / "http_egress"
        eventually(counting.exists, "what counts HTTP is loaded, after the pods are served")
        yield Policies(lab, folder)


@pytest.fixture
def policies(kernel: Policies) -> Iterator[Policies]:
    yield kernel
    for name in kernel.folder.glob("[!.]*.yaml"):
        name.unlink()
    eventually(
        lambda: not kernel.rows() and pod_row(kernel.lab, "local")["paths"]["8080"].startswith("kernel"),
        "the kernel path is back",
    )


def paths(flows: list[dict[str, Any]], destination: str) -> set[str]:
    return {
        flow["path"]
        for flow in flows
        if flow["destination"].startswith(f"default/{destination}:") and not flow["closed"]
    }


@pytest.mark.parametrize("version", [4, 6])
def test_requests_are_counted_though_no_proxy_sees_them(policies: Policies, version: int) -> None:
    lab = policies.lab
    counted = growth(lab)
    url = f"http://{bracketed(cluster_ip(lab, 'local', version))}"
    for path, code in (("/about", 200), ("/status/404", 404)):
        done = curl(lab, "client", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}", f"{url}{path}")
        assert (
            done.stdout in (f"{code} {cluster_ip(lab, 'local', version)}", f"{code} {url[7:]}") or path != "/about"
        ), done
    wanted = {
        "destination_workload": "local",
        "connection_security_policy": "kernel_attested",
        "source_principal": f"spiffe://{PRINCIPAL}",
    }
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
    policies.put(
        "echo",
        policy(
            "echo",
            "{selector: {matchLabels: {role: server}}, action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}",
        ),
    )
    url = f"http://{cluster_ip(lab, 'local')}"
    eventually(lambda: status(lab, "client", f"{url}/echo") == 403, "refused by path")
    assert status(lab, "client", f"{url}/about") == 200
    row = eventually(
        lambda: row if (row := pod_row(lab, "local"))["paths"]["8080"].startswith("proxy") else None, "the path is told"
    )
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
        got = ask(
            lab,
            "joining",
            "duplex",
            cluster_ip(lab, "joined", version),
            9001,
            "--send-bytes",
            300_000,
            "--receive-bytes",
            200_000,
        )
        assert got["ok"] == 1, got
    eventually(
        lambda: (
            counted.of("istio_tcp_received_bytes_total", reporter="destination", destination_workload="joined")
            >= 600_000
        ),
        "bytes past TCP are counted",
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
        (
            "a body that looks like requests",
            f"POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: {len(LOOKALIKE)}\r\n\r\n{LOOKALIKE}{LAST}",
            2,
        ),
        ("chunks that look like requests", f"{CHUNKED}{len(LOOKALIKE):x}\r\n{LOOKALIKE}\r\n0\r\n\r\n{LAST}", 2),
        ("HEAD and GET", f"HEAD /about HTTP/1.1\r\nHost: web\r\n\r\n{LAST}", 2),
        ("HTTP/1.0", "GET /about HTTP/1.0\r\nHost: web\r\nConnection: close\r\n\r\n", 1),
        ("an unknown protocol", "\x00\x01binary and GET / HTTP/1.1\r\n\r\n", 0),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_what_the_kernel_counts(policies: Policies, what: str, sent: str, requests: int, version: int) -> None:
    lab = policies.lab
    counted = growth(lab)
    done = lab.exec("client", client_argv("http", cluster_ip(lab, "local", version), 80), input=sent, timeout=60)
    answers = done.stdout.count('"pod": "local"') + done.stdout.count("HTTP/1.1 500 Evil")
    assert requests == 0 or answers >= 1, done
    counted.comes_to(
        requests, "istio_requests_total", reporter="destination", destination_workload="local", response_code="200"
    )
    assert counted.of("istio_requests_total", reporter="destination", response_code="500") == 0


def test_under_load_the_kernel_counts_what_the_client_counts(policies: Policies) -> None:
    lab = policies.lab
    counted = growth(lab)
    done = lab.exec("client", ["wrk", "-t1", "-c8", "-d1s", f"http://{cluster_ip(lab, 'local')}/about"], timeout=60)
    answered = int(re.findall(r"(\d+) requests in", done.stdout)[0])
    assert answered > 50, done.stdout
    seen = eventually(
        lambda: (
            n
            if (n := counted.of("istio_requests_total", reporter="destination", destination_workload="local"))
            >= answered
            else 0
        ),
        "all",
    )
    assert seen <= answered + 8, "those under way at the end, and no others"


# -- ways round --


def only_client(policies: Policies, target: str) -> None:
    """Let the pod `client` alone reach the servers; return once that is in force."""
    policies.put("only", policy("only", ONLY_CLIENT))
    eventually(
        lambda: '"pod"' not in curl(policies.lab, "other", f"http://{cluster_ip(policies.lab, target)}/about").stdout,
        "other is refused",
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("source", ["plain", "other"])
def test_a_forged_syn_is_not_the_pods_whose_address_it_bears(policies: Policies, source: str, version: int) -> None:
    lab = policies.lab
    only_client(policies, "local")
    counted = growth(lab)
    ask(lab, source, "forge", address_of(lab, "local", version), 8080, "--source", address_of(lab, "client", version))
    eventually(
        lambda: counted.of("nodeagent_kernel_events_total", event="inbound_captured"), "it came to the server's side"
    )
    assert counted.of("nodeagent_kernel_events_total", event="inbound_kernel") == 0
    assert counted.of("istio_tcp_connections_opened_total") == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("place", "target"), [("node1", "local"), ("node2", "remote"), ("other", "local"), ("other", "remote")]
)
def test_who_takes_a_pods_address_does_not_take_its_identity(
    policies: Policies, place: str, target: str, version: int
) -> None:
    """*place* has the address of an allowed pod for itself, so that a whole connection as from there is made."""
    lab = policies.lab
    only_client(policies, target)
    address, stolen = address_of(lab, target, version), address_of(lab, "client", version)
    dialled = ("dial", address, 8080, "--source", stolen, "--send", LAST)
    with borrowed(lab, place, stolen):
        got = ask(lab, place, *dialled)
        assert '"pod"' not in got["received"], got
        assert place == "other" or "403 Forbidden" in got["received"], got
        policies.put("strict", policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication"))
        eventually(
            lambda: curl(lab, "plain", f"http://{lab.address(target)}:8080/about").returncode != 0, "STRICT is in force"
        )
        got = ask(lab, place, *dialled)
        assert '"pod"' not in got["received"] if place == "other" else got["received"] == "", got
    assert status(lab, "client", f"http://{bracketed(address)}:8080/about") == 200


@contextmanager
def borrowed(lab: Lab, place: str, address: str) -> Iterator[None]:
    """Give *address* to the loopback of a node or pod meanwhile."""
    where = [f"{address}/{128 if ':' in address else 32}", "dev", "lo"]
    subprocess.run(
        inside(lab.netns(place), ["ip", "addr", "add", *where, *(["nodad"] if ":" in address else [])]), check=True
    )
    try:
        yield
    finally:
        subprocess.run(inside(lab.netns(place), ["ip", "addr", "del", *where]), check=True)


@pytest.mark.parametrize("version", [4, 6])
def test_io_uring_is_no_way_round(policies: Policies, version: int) -> None:
    lab = policies.lab
    only_client(policies, "local")
    for name in ("local", "remote"):
        dialled = ("dial", address_of(lab, name, version), 8080, "--ring", "--send", LAST)
        assert '"pod"' in ask(lab, "client", *dialled)["received"]
        assert '"pod"' not in ask(lab, "other", *dialled)["received"]
        assert '"pod"' not in ask(lab, "plain", *dialled)["received"], "nobody, to the server's side"


def test_an_address_carries_no_verdict_to_the_next_pod(policies: Policies) -> None:
    """The second pod has the first's addresses and another account, at once after it: neither as
    client nor as server does it inherit.
    """
    lab = policies.lab
    policies.put("only", policy("only", ONLY_CLIENT))
    policies.put(
        "second",
        policy(
            "second",
            "{selector: {matchLabels: {app: second}}, action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]}",
        ),
    )
    eventually(lambda: len(policies.rows()) == 2, "both are read")
    lab.apply(text=server("first", "node1", account="client"))
    addresses = [each["ip"] for each in lab.pod("first")["status"]["podIPs"]]
    urls = [f"http://{bracketed(address)}:8080/about" for address in addresses]
    served = [f"http://{bracketed(cluster_ip(lab, 'local', version))}/about" for version in (4, 6)]
    eventually(lambda: pod_row(lab, "first")["paths"]["8080"].startswith("kernel"), "the kernel path")
    assert [status(lab, "client", url) for url in urls] == [200, 200]
    assert [status(lab, "first", url) for url in served] == [200, 200]
    with client_in(lab, "client", "hold", addresses[0], 9000, "--connections", 2) as held:
        assert paths(admin(lab, "node1", "/flows")["flows"], "first") == {"kernel"}
        lab.delete_pod("first", grace_seconds=0)
        lab.apply(text=server("second", "node1", account="other", annotations=f'{ADDRESSES}: "{",".join(addresses)}"'))
        assert held.say()["ok"] == 0
    counted = growth(lab)
    try:
        assert [each["ip"] for each in lab.pod("second")["status"]["podIPs"]] == addresses
        assert pod_row(lab, "second")["paths"]["8080"].startswith("kernel")
        assert [curl(lab, "client", url).returncode for url in urls] == [7, 7], (
            "refused by the second's own policy, at connect()"
        )
        assert [curl(lab, "second", url).returncode for url in served] == [7, 7], "the first's principal was allowed"
        for address in addresses:
            assert ask(lab, "client", "dial", address, 9000, "--send", "a word", "--half-close")["received"] == "a word"
        wanted = {
            "destination_workload": "second",
            "destination_principal": "spiffe://cluster.local/ns/default/sa/other",
        }
        counted.comes_to(2 * len("a word"), "istio_tcp_received_bytes_total", reporter="destination", **wanted)
        assert counted.of("istio_tcp_connections_opened_total", destination_workload="first") == 0
    finally:
        lab.delete_pod("second", grace_seconds=0)
