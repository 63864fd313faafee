"""gRPC between pods with real libraries, through one proxy or two: what arrives, what is counted and
logged, with which status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from tests.netns.grpc_world import calls_server, calls_service, grpcio, rpc, target
from tests.netns.world import access_log, account, admin, client, cluster, curl, growth
from tests.waiting import eventually

NODES = {"near": "node1", "away": "node2"}
"""Same node; other node, with mTLS."""
KINDS = ("go", "sync", "aio")
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        *(
            calls_server(f"{kind}-{where}", node, kind=kind, account="server")
            for kind in KINDS
            for where, node in NODES.items()
        ),
        calls_service("sniffed", "app: go-near", port_name="calls"),
        calls_service("nobody", "app: nobody"),
    )
)
EXPECTED = {
    "Echo": "word",
    "Large": 3_000_000,
    "Fail": ["FAILED_PRECONDITION", "as asked: 100% é"],
    "Fields": ["mine", "h", "t"],
    "Deadline": "DEADLINE_EXCEEDED",
    "Health": True,
    "Count": 500,
    "Sum": "100000",
    "Chat": ["one", "two", "three"],
    "Cancel": "CANCELLED",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-grpc", TEXT) as lab:
        yield lab


@pytest.mark.parametrize("kind", ["sync", "aio"])
@pytest.mark.parametrize("where", NODES)
@pytest.mark.parametrize("server", KINDS)
def test_every_form_of_a_call_passes(lab: Lab, server: str, where: str, kind: str) -> None:
    assert grpcio(lab, "client", target(lab, f"{server}-{where}"), kind, *EXPECTED) == EXPECTED


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", NODES)
@pytest.mark.parametrize("server", KINDS)
def test_grpc_go_calls_every_server(lab: Lab, server: str, where: str, version: int) -> None:
    at = target(lab, f"{server}-{where}", version)
    assert rpc(lab, "client", at, data="word", calls=200, parallel=20)["answers"] == {"word": 200}
    assert rpc(lab, "client", at, "Chat", data="a", messages=100)["messages"] == 100
    assert rpc(lab, "client", at, "Sum", size=100_000, messages=50)["answers"] == {"5000000": 1}
    streamed = rpc(lab, "client", at, "Count", data="300 10000", calls=4, parallel=4)
    assert (streamed["codes"], streamed["messages"]) == ({"OK": 4}, 1200)


@pytest.mark.parametrize("where", NODES)
def test_a_call_is_counted_by_its_status_and_messages(lab: Lab, where: str) -> None:
    name = f"go-{where}"
    node = lab.pod(name)["spec"]["nodeName"]
    source, destination = growth(lab, "node1"), growth(lab, node)
    at = target(lab, name)
    rpc(lab, "client", at, "Count", data="70 10")
    told = rpc(lab, "client", at, "Fail", data="9")
    assert told["codes"] == {"FailedPrecondition": 1}
    assert list(told["words"]) == ["as asked: 100% é"]
    common = {"request_protocol": "grpc", "destination_workload": name, "source_workload": "client"}
    for counted, reporter in ((source, "source"), (destination, "destination")):
        ended = {**common, "reporter": reporter, "response_code": "200", "response_flags": "-"}
        counted.comes_to(1, "istio_requests_total", grpc_response_status="0", **ended)
        counted.comes_to(1, "istio_requests_total", grpc_response_status="9", **ended)
        counted.comes_to(2, "istio_request_messages_total", reporter=reporter, **common)
        counted.comes_to(70, "istio_response_messages_total", reporter=reporter, **common)


def test_a_call_is_logged_with_its_status_and_shown_in_flows(lab: Lab) -> None:
    log = access_log(lab)
    rpc(lab, "client", target(lab, "go-near"), "Fail", data="5")
    line = log.find(path="/load.Load/Fail", grpc="5")
    assert (line["protocol"], line["code"], line["method"]) == ("HTTP/2", "200", "POST")
    assert line["agent"].startswith("grpc-go/")

    def flow() -> bool:
        flows = admin(lab, "node1", "/flows?since=0")["flows"]
        return any(each["protocol"] == "grpc" and each["grpc_statuses"] == ["5"] for each in flows)

    eventually(flow, "the connection is shown as gRPC, with its call's status")


def test_messages_are_counted_while_a_stream_goes_on(lab: Lab) -> None:
    from tests.netns.grpc_world import calling

    counted = growth(lab)
    with calling(lab, "client", target(lab, "go-near"), "Tick", data="20"):
        eventually(lambda: counted.of("istio_response_messages_total", reporter="source") >= 5)


def test_without_an_endpoint_a_call_is_unavailable(lab: Lab) -> None:
    counted = growth(lab)
    told = rpc(lab, "client", target(lab, "nobody"))
    assert told["codes"] == {"Unavailable": 1}
    assert next(iter(told["words"])).startswith("no_endpoints (UH)")
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="source",
        request_protocol="grpc",
        response_code="200",
        grpc_response_status="14",
        response_flags="UH",
    )


@pytest.mark.parametrize("where", NODES)
def test_the_clients_time_goes_on_shortened(lab: Lab, where: str) -> None:
    (left,) = rpc(lab, "client", target(lab, f"go-{where}"), "Left", deadline="30s")["answers"]
    assert 0 < int(left) < 30_000
    assert rpc(lab, "client", target(lab, f"go-{where}"), "Left")["answers"] == {"forever": 1}


def test_a_client_that_does_not_end_its_call_itself_is_told_when_its_time_is_over(lab: Lab) -> None:
    """curl knows nothing of grpc-timeout: the status is the proxy's, or the server's, whose time ends with it."""
    counted = growth(lab)
    message = r"\000\000\000\000\00520000"
    url = f"http://{target(lab, 'go-near')}/load.Load/Wait"
    fields = "-H 'content-type: application/grpc' -H 'te: trailers' -H 'grpc-timeout: 200m'"
    script = f"printf '{message}' | curl -sS --max-time 60 --http2-prior-knowledge -D - {fields} --data-binary @- {url}"
    done = lab.exec("client", ["sh", "-c", script])
    assert "grpc-status: 4" in done.stdout.lower(), done
    counted.comes_to(1, "istio_requests_total", reporter="source", grpc_response_status="4", response_code="200")


def test_a_port_that_nobody_declared_is_known_by_its_preface(lab: Lab) -> None:
    counted = growth(lab)
    assert rpc(lab, "client", target(lab, "sniffed"), calls=3)["codes"] == {"OK": 3}
    counted.comes_to(
        3, "istio_requests_total", reporter="source", request_protocol="grpc", destination_service_name="sniffed"
    )


def test_grpc_web_is_passed_and_counted_by_the_trailers_in_its_body(lab: Lab) -> None:
    """grpc-go's server knows no gRPC-Web, and says so by a status of HTTP; without a body, for curl
    takes an answer that comes before it has sent one for a fault.
    """
    counted = growth(lab)
    url = f"http://{target(lab, 'go-near')}/load.Load/Echo"
    done = curl(
        lab,
        "client",
        "--http2-prior-knowledge",
        "-H",
        "content-type: application/grpc-web+proto",
        "-X",
        "POST",
        "-w",
        "%{http_code}",
        url,
    )
    assert done.stdout.endswith("415"), done
    counted.comes_to(1, "istio_requests_total", reporter="source", request_protocol="grpc", response_code="415")


def test_explain_and_endpoints_say_what_the_port_is(lab: Lab) -> None:
    rows = [row for row in admin(lab, "node1", "/endpoints") if row["service"].startswith("go-near.")]
    assert [row["protocol"] for row in rows] == ["grpc"]
    told = admin(lab, "node1", "/explain?source=client&destination=go-near:50051&method=POST&path=/load.Load/Echo")
    assert "(grpc)" in json.dumps(told)
