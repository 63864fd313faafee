"""Policies decide by the method of a call, and what they refuse is a status of gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.grpc_world import Documents, calling, calls_server, rpc, target
from tests.netns.world import QUICK, access_log, account, client, cluster, growth
from tests.waiting import eventually

NODES = {"near": "node1", "away": "node2"}
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        *(calls_server(name, node, account="server", labels="role: server") for name, node in NODES.items()),
    )
)


def document(kind: str, spec: str, version: str = "security.istio.io/v1") -> str:
    selected = spec.replace("{", "{selector: {matchLabels: {role: server}}, ", 1)
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: default}}\nspec: {selected}\n"


def only(*methods: str) -> str:
    paths = json.dumps([f"/load.Load/{method}" for method in methods])
    principals = "[cluster.local/ns/default/sa/client]"
    return document(
        "AuthorizationPolicy",
        f"{{rules: [{{from: [{{source: {{principals: {principals}}}}}], to: [{{operation: {{paths: {paths}}}}}]}}]}}",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Documents]]:
    folder = tmp_path_factory.mktemp("policies")
    with cluster("t-grpc-policy", TEXT, agent=merge(QUICK, {"resources": [str(folder)]})) as lab:
        yield lab, Documents(folder)


@pytest.fixture
def put(world: tuple[Lab, Documents]) -> Iterator[Callable[[str], None]]:
    """Put a document in force until the test ends."""
    lab, documents = world
    yield lambda text: documents.put("test", text)
    documents.drop("test")
    for name in NODES:
        eventually(lambda name=name: codes(lab, name, "Echo") == {"OK": 1}, "everything is open again")


def codes(lab: Lab, name: str, method: str, **flags: object) -> object:
    return rpc(lab, "client", target(lab, name), method, **flags)["codes"]


@pytest.mark.parametrize("name", NODES)
def test_by_method(world: tuple[Lab, Documents], put: Callable[[str], None], name: str) -> None:
    lab, _ = world
    log = access_log(lab, NODES[name])
    put(only("Who", "Count"))
    eventually(lambda: codes(lab, name, "Echo") == {"PermissionDenied": 1}, "the policy is in force")
    counted = growth(lab, NODES[name])
    assert codes(lab, name, "Who") == {"OK": 1}
    assert codes(lab, name, "Count", data="3 3") == {"OK": 1}
    told = rpc(lab, "client", target(lab, name), "Sum")
    assert (told["codes"], told["words"]) == ({"PermissionDenied": 1}, {"RBAC: access denied": 1})
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="destination",
        request_protocol="grpc",
        response_code="200",
        grpc_response_status="7",
    )
    line = log.find(path="/load.Load/Sum", grpc="7")
    assert line["details"] == "rbac_access_denied_matched_policy[none]"


@pytest.mark.parametrize("name", NODES)
def test_a_policy_that_comes_ends_the_streams_that_it_forbids_and_no_others(
    world: tuple[Lab, Documents], put: Callable[[str], None], name: str
) -> None:
    """Both streams are one client's, but of two connections; the calls that go on show the rest."""
    lab, _ = world
    counted = growth(lab)
    with calling(lab, "client", target(lab, name), "Tick", data="20") as forbidden:
        with calling(lab, "client", target(lab, name), "Chat", data="w", messages=1, pause="0s") as _:
            eventually(lambda: counted.of("istio_response_messages_total", reporter="source") >= 5)
        assert not forbidden.ended()
        put(only("Echo"))
        told = forbidden.result()
    assert "OK" not in told["codes"]
    assert codes(lab, name, "Echo") == {"OK": 1}


def test_a_rate_limit_is_resource_exhausted(world: tuple[Lab, Documents], put: Callable[[str], None]) -> None:
    lab, _ = world
    bucket = "{maxTokens: 1, tokensPerFill: 1, fillInterval: 1h}"
    put(document("RateLimit", f"{{local: [{{tokenBucket: {bucket}}}]}}", "nodeagent.io/v1alpha1"))
    eventually(lambda: codes(lab, "near", "Echo") == {"ResourceExhausted": 1}, "the limit is in force, and used up")


def test_a_wrong_token_is_unauthenticated(world: tuple[Lab, Documents], put: Callable[[str], None]) -> None:
    lab, _ = world
    put(document("RequestAuthentication", "{jwtRules: [{issuer: me, jwks: '{\"keys\": []}'}]}"))
    bad = {"fields": "authorization=Bearer e30.e30.e30"}
    eventually(lambda: codes(lab, "near", "Echo", **bad) == {"Unauthenticated": 1}, "the token is checked")
    assert codes(lab, "near", "Echo") == {"OK": 1}
