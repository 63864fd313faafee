"""HTTP between pods, through the kernel's capture and one or two proxies: what arrives, what is
counted, what is logged.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from nodeagent.lab import Lab
from tests.apps.streams import digest
from tests.netns.world import (
    about,
    access_log,
    address_of,
    ask,
    bracketed,
    client_argv,
    cluster_ip,
    curl,
    growth,
    server,
)

CLIENT, SERVER = "spiffe://cluster.local/ns/default/sa/client", "spiffe://cluster.local/ns/default/sa/server"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}")
PATHS = ("local", "remote", "unmeshed")
"""Same node, other node with mTLS, other node in plaintext."""


def url(lab: Lab, name: str, version: int = 4, port: int = 80) -> str:
    return f"http://{bracketed(cluster_ip(lab, name, version))}:{port}"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_request_is_delivered_counted_and_logged(mesh: Lab, name: str, version: int) -> None:
    node = mesh.pod(name)["spec"]["nodeName"]
    source, destination = growth(mesh, "node1"), growth(mesh, node)
    client_log, server_log = access_log(mesh, "node1"), access_log(mesh, node)
    seen = about(
        mesh,
        "client",
        url(mesh, name, version),
        "-A",
        "the agent",
        "-H",
        "x-forwarded-client-cert: URI=spiffe://forged",
    )
    assert seen["pod"] == name
    assert UUID.fullmatch(seen["headers"]["x-request-id"])
    assert seen["headers"]["x-forwarded-client-cert"] == f"By={SERVER};URI={CLIENT}"
    pair = {
        "source_workload": "client",
        "source_principal": CLIENT,
        "destination_workload": name,
        "destination_principal": SERVER,
    }
    service = {
        "destination_service": f"{name}.default.svc.cluster.local",
        "destination_service_name": name,
        "destination_service_namespace": "default",
    }
    common = {**pair, "request_protocol": "http", "response_code": "200", "response_flags": "-", "source_version": "v1"}
    policy = "kernel_attested" if name == "local" else "mutual_tls"
    source.comes_to(
        1, "istio_requests_total", reporter="source", connection_security_policy="unknown", **service, **common
    )
    destination.comes_to(1, "istio_requests_total", reporter="destination", connection_security_policy=policy, **common)
    destination.comes_to(1, "istio_request_duration_milliseconds_count", reporter="destination", **common)
    dialled = url(mesh, name, version).removeprefix("http://")
    line = client_log.find(id=seen["headers"]["x-request-id"], cluster=f"outbound|80||{name}.default.svc.cluster.local")
    assert (
        line
        | {
            "method": "GET",
            "path": "/about",
            "protocol": "HTTP/1.1",
            "code": "200",
            "flags": "-",
            "agent": "the agent",
            "local": dialled,
        }
        == line
    )
    assert line["upstream"] == f"{bracketed(address_of(mesh, name, version))}:8080"
    assert line["details"] == "via_upstream"
    if name == "remote":
        line = server_log.find(id=seen["headers"]["x-request-id"], cluster="inbound|8080||")
        assert line["code"] == "200"
        assert line["remote"].rpartition(":")[0] == bracketed(address_of(mesh, "client", version))


def test_both_endpoints_of_a_service_get_requests(mesh: Lab) -> None:
    assert {about(mesh, "client", url(mesh, "both"))["pod"] for _ in range(20)} == {"local", "remote"}


def test_requests_to_a_port_without_a_protocol_are_recognised(mesh: Lab) -> None:
    counted = growth(mesh)
    about(mesh, "client", url(mesh, "local", port=81))
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="source",
        destination_service_name="local",
        request_protocol="http",
        source_workload="client",
    )


def test_a_pod_of_another_node_is_a_client_too(mesh: Lab) -> None:
    for name in ("local", "remote"):
        assert about(mesh, "far", url(mesh, name))["headers"]["x-forwarded-client-cert"] == f"By={SERVER};URI={CLIENT}"


@pytest.mark.parametrize("name", PATHS)
def test_large_answers_are_byte_exact(mesh: Lab, name: str) -> None:
    size = 3_000_000
    for form in ("length", "chunked", "until-close"):
        script = f"curl -sS --max-time 60 {url(mesh, name)}/{form}/{size}/7 | sha256sum"
        done = mesh.exec("client", ["sh", "-c", script])
        assert done.stdout.split()[0] == digest(7, size), (form, done)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("header", ["Content-Type: text/plain", "Transfer-Encoding: chunked"])
def test_large_requests_are_byte_exact(mesh: Lab, name: str, header: str) -> None:
    body = (
        f"head -c 2000000 /dev/zero | tr '\\0' 'x' | curl -sS --max-time 60 --data-binary @- -H '{header}' -H "
        "'Expect: 100-continue'"
    )
    script = f"{body} {url(mesh, name)}/about"
    seen = json.loads(mesh.exec("client", ["sh", "-c", script]).stdout)
    assert (seen["length"], seen["method"]) == (2_000_000, "POST")


def test_trailers_arrive_in_both_directions(mesh: Lab) -> None:
    for name in PATHS:
        head = (
            "POST /about HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: "
            "x-sum\r\n\r\n"
        )
        answer = raw(mesh, name, f"{head}3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n")
        assert json.loads(answer.partition("\r\n\r\n")[2])["trailers"] == {"x-sum": "42"}
        answer = raw(mesh, name, "GET /chunked/100/5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert f"x-digest: {digest(5, 100)}" in answer.rpartition("0\r\n")[2]


def raw(mesh: Lab, name: str, request: str) -> str:
    """Send *request* as it is; return all that comes back until the connection ends."""
    argv = mesh.command("client", client_argv("http", cluster_ip(mesh, name), 80))
    return subprocess.run(argv, input=request.encode(), capture_output=True, check=True, timeout=90).stdout.decode(
        "latin-1"
    )


@pytest.mark.parametrize("name", PATHS)
def test_an_answer_is_streamed(mesh: Lab, name: str) -> None:
    """The server never ends this answer, yet what it has written arrives."""
    got = ask(
        mesh,
        "client",
        "dial",
        cluster_ip(mesh, name),
        80,
        "--send",
        "GET /half HTTP/1.1\r\nhost: x\r\n\r\n",
        "--until",
        "x" * 1000,
    )
    assert got["received"].count("x" * 1000) == 1
    assert curl(mesh, "client", f"{url(mesh, name)}/drip/20").stdout.split() == [str(number) for number in range(20)]


@pytest.mark.parametrize("name", PATHS)
def test_an_upgraded_connection_becomes_a_tunnel(mesh: Lab, name: str) -> None:
    counted = growth(mesh)
    request = "GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: test\r\n\r\n"
    got = ask(
        mesh,
        "client",
        "dial",
        cluster_ip(mesh, name),
        80,
        "--send",
        f"{request}sent early",
        "--until",
        "welcomesent early",
    )
    assert got["received"].startswith("HTTP/1.1 101 ")
    assert got["received"].endswith("welcomesent early")
    counted.comes_to(1, "istio_requests_total", reporter="source", response_code="101", destination_service_name=name)


def test_pipelined_requests_are_answered_in_order(mesh: Lab) -> None:
    for name in PATHS:
        last = "GET /status/204 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = raw(
            mesh,
            name,
            "".join(f"GET /status/{code} HTTP/1.1\r\nhost: x\r\n\r\n" for code in (200, 404, 503, 201)) + last,
        )
        assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["200", "404", "503", "201", "204"]


def test_head_and_interim_answers(mesh: Lab) -> None:
    for name in PATHS:
        done = curl(mesh, "client", "-I", f"{url(mesh, name)}/about")
        assert "HTTP/1.1 200" in done.stdout
        hints = curl(mesh, "client", "-i", f"{url(mesh, name)}/hints").stdout
        assert re.findall(r"HTTP/1.1 (\d+)", hints) == ["103", "200"]


AMBIGUOUS = {
    "two lengths": "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "length and chunked": "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",  # noqa: E501
    "unknown coding": "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "no host": "GET /echo HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("request_text", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_requests_are_refused(mesh: Lab, request_text: str) -> None:
    counted, log = growth(mesh), access_log(mesh)
    assert raw(mesh, "local", request_text).startswith("HTTP/1.1 400 ")
    counted.comes_to(1, "istio_requests_total", response_code="400", response_flags="DPE", reporter="source")
    assert log.find(code="400")["flags"] == "DPE"


FAILURES = {
    "nobody": ("nobody", "/", 503, "UH"),
    "reset": ("local", "/slam", 503, "UC"),
    "reset on the other node": ("remote", "/slam", 503, "UC"),
    "not HTTP": ("local", "/garbage", 502, "UPE"),
    "not HTTP on the other node": ("remote", "/garbage", 502, "UPE"),
}


@pytest.mark.parametrize(("name", "path", "code", "flag"), FAILURES.values(), ids=FAILURES)
def test_failures_have_istios_flag_and_a_likely_cause(mesh: Lab, name: str, path: str, code: int, flag: str) -> None:
    node = "node1" if name == "nobody" else mesh.pod(name)["spec"]["nodeName"]
    counted, log = growth(mesh, node), access_log(mesh, node)
    done = curl(mesh, "client", "-w", " %{http_code}", f"{url(mesh, name)}{path}")
    assert done.stdout.endswith(f" {code}"), done
    assert f"({flag}): " in done.stdout, done
    counted.comes_to(
        1,
        "istio_requests_total",
        response_code=str(code),
        response_flags=flag,
        reporter="source" if node == "node1" else "destination",
    )
    line = log.find(code=str(code), flags=flag)
    assert line["path"] == path
    assert line["details"] != "via_upstream"


def test_nothing_listens_at_the_endpoint(mesh: Lab) -> None:
    for name in ("local", "remote"):
        done = curl(mesh, "client", "-w", " %{http_code}", f"http://{mesh.address(name)}:7777/")
        assert done.stdout.endswith(" 503") or done.returncode in (7, 52, 56), done


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_pod_that_is_killed_in_the_middle_of_its_answer(mesh: Lab, node: str) -> None:
    """It is killed when a part of its answer has come: before that, a whole one says what happened."""
    mesh.apply(text=server("doomed", node))
    client_log = access_log(mesh)
    argv = mesh.command("client", ["curl", "-sSN", "--max-time", "60", f"{url(mesh, 'doomed')}/half"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as request:
        assert request.stdout is not None
        assert request.stdout.read(1000) == b"x" * 1000
        mesh.delete_pod("doomed", grace_seconds=0)
        said = request.communicate()
    assert request.returncode in (18, 56), said  # partial file, or reset: never taken for a whole answer
    line = client_log.find(path="/half")
    assert line["flags"] != "-", line
    assert about(mesh, "client", url(mesh, "local"))["pod"] == "local"
