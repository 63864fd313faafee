"""The bootstrap of an Envoy sidecar, judged by Envoy itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.compare.envoy import binary
from nodeagent.inject import InjectionError, InjectionSettings, inject
from nodeagent.inject.values import read
from nodeagent.lab.environment import expand
from tests.unit.inject.pods import ENABLED, PODS, RANGES, container, injected, named, pod

Json = dict[str, Any]
ADDRESSES = {"IPv4": "10.244.1.7", "IPv6": "fd00:10:244::7"}
POLICY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "web"},
    "spec": {
        "rules": [
            {
                "from": [
                    {
                        "source": {
                            "principals": ["cluster.local/ns/default/sa/shop", "*"],
                            "notNamespaces": ["kube-*"],
                            "ipBlocks": ["10.0.0.0/8", "fd00::1"],
                        }
                    }
                ],
                "to": [
                    {
                        "operation": {
                            "methods": ["GET"],
                            "paths": ["/api/*", "*.html", "/$(POD_IP)"],
                            "notPorts": ["9090"],
                        }
                    }
                ],
            }
        ]
    },
}


def command(given: Json = PODS["smallest"], family: str = "IPv4", **values: Any) -> list[str]:
    """Return what the proxy of the pod *given* runs, as the kubelet expands it."""
    settings = InjectionSettings(values={"meshRanges": RANGES} | values)
    words = named(injected(given, settings)["spec"]["containers"], "istio-proxy")["command"]
    return [
        expand(word, {"POD_IP": ADDRESSES[family], "POD_NAME": "web", "POD_NAMESPACE": "default"}) for word in words
    ]


def bootstrap(given: Json = PODS["smallest"], **values: Any) -> Json:
    words = command(given, **values)
    found: Json = json.loads(words[words.index("--config-yaml") + 1])
    return found


def validate(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary(), *words[1:], "--mode", "validate"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "given", [each for name, each in PODS.items() if "prob" in name], ids=[name for name in PODS if "prob" in name]
)
def test_envoy_takes_every_probe(given: Json) -> None:
    done = validate(command(given))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "values",
    [
        {"mtls": "STRICT"},
        {"mtls": "PERMISSIVE", "accessLog": ""},
        {"concurrency": 8},
        {"ipFamilies": ["IPv4"], "meshRanges": "10.0.0.0/8"},
        {"ipFamilies": ["IPv6"], "meshRanges": "fd00::/8", "family": "IPv6"},
        {"plaintextRanges": "10.96.0.1/32,fd00:10:244::1/128"},
        {"tcpPorts": "3306"},
        {"tcpPorts": [3306, 5432]},
        {"authorizationPolicies": [POLICY]},
        {
            "authorizationPolicies": [
                POLICY | {"metadata": {"name": "no"}, "spec": POLICY["spec"] | {"action": "DENY"}},
                POLICY,
            ]
        },
        {"authorizationPolicies": [POLICY | {"spec": {}}]},
    ],
    ids=str,
)
def test_envoy_takes_every_value(values: Json) -> None:
    done = validate(command(PODS["probes of every kind"], **values))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "values",
    [
        {"meshRanges": ["10.0.0.0/8", "10.1.0.0/8"], "plaintextRanges": "10.96.0.1/32,10.96.0.1/32"},
        {"meshRanges": ["10.0.0.0/8"], "tcpPorts": "3306,3306"},
        {"ipFamilies": "IPv4,IPv4"},
    ],
    ids=str,
)
def test_what_is_said_twice_is_once(values: Json) -> None:
    """Envoy refuses filter chains that match the same, and two addresses of one family."""
    validated = validate(command(**values))
    assert validated.returncode == 0, validated.stderr


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("includeInboundPorts", 8080, "8080"),
        ("excludeOutboundPorts", [3306, "5432"], "3306,5432"),
        ("trustDomain", 1, "1"),
    ],
)
def test_a_text_that_looks_like_a_number_may_be_one(name: str, value: object, text: str) -> None:
    found = read({}, {name: value}).model_dump(by_alias=True)[name]
    assert found == text


def test_envoy_takes_a_file_for_its_access_log(tmp_path: Path) -> None:
    """It makes the file even when it only validates."""
    done = validate(command(PODS["probes of every kind"], accessLog=str(tmp_path / "access.log")))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "access.log").exists()


def test_envoy_refuses_what_is_wrong() -> None:
    """So that the tests above show something."""
    words = command()
    words[2] = words[2].replace('"ORIGINAL_DST"', '"ORIGINAL"', 1)
    assert validate(words).returncode != 0


def chains(config: Json, listener: str) -> list[Json]:
    found: list[Json] = named(config["static_resources"]["listeners"], listener)["filter_chains"]
    return found


def where(chain: Json) -> str:
    """Return the cluster that a chain leads to."""
    (last,) = [each["typed_config"] for each in chain["filters"] if not each["name"].endswith("rbac")]
    return str(last.get("cluster") or last["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"])


def test_only_the_meshs_ranges_go_by_mtls() -> None:
    found = chains(bootstrap(plaintextRanges="10.96.0.1/32"), "outbound")
    ranges = {
        where(chain): [each["address_prefix"] for each in chain["filter_chain_match"].get("prefix_ranges", ())]
        for chain in found
    }
    meshed = ranges["mesh-tcp"]
    assert ranges["mesh-http"] == ranges["mesh-http2"] == meshed == ["10.244.0.0", "10.96.0.0", "fd00:10:244::"]
    assert [where(chain) for chain in found] == [
        "BlackHoleCluster",
        "mesh-http",
        "mesh-http2",
        "mesh-tcp",
        *["PassthroughCluster"] * 4,
    ]


def test_http2_goes_between_sidecars_as_http2() -> None:
    """As Istio's do: by ALPN istio-h2, so that a call is a stream of its own on both sides."""
    config = bootstrap()
    (http2,) = [chain for chain in chains(config, "outbound") if where(chain) == "mesh-http2"]
    assert http2["filter_chain_match"]["application_protocols"] == ["h2c"]
    cluster = named(config["static_resources"]["clusters"], "mesh-http2")
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert "http2_protocol_options" in options["explicit_http_config"]
    offered = cluster["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"]
    assert offered == ["istio-h2", "istio", "h2"]
    (server,) = [each for each in everything(config) if "http/1.1" in each.get("alpn_protocols", ())]
    assert "h2" in server["alpn_protocols"]
    assert "istio-h2" not in server["alpn_protocols"], "Envoy would take it for HTTP/1.1"


@pytest.mark.parametrize(("mode", "plain"), [("STRICT", 0), ("PERMISSIVE", 3)])
def test_plaintext_comes_in_only_when_it_may(mode: str, plain: int) -> None:
    found = [chain for chain in chains(bootstrap(mtls=mode), "inbound") if where(chain) != "BlackHoleCluster"]
    assert len([chain for chain in found if "transport_socket" not in chain]) == plain
    secured = [chain["transport_socket"]["typed_config"] for chain in found if "transport_socket" in chain]
    assert [each["require_client_certificate"] for each in secured] == [True, True]


@pytest.mark.parametrize(("mode", "patience", "goes_on"), [("STRICT", "10s", False), ("PERMISSIVE", "0.1s", True)])
def test_a_peer_may_take_time_to_begin_where_it_must_begin_with_tls(mode: str, patience: str, goes_on: bool) -> None:
    """A peer on a busy node that is late with its ClientHello is not taken for a plaintext client, and refused."""
    inbound = named(bootstrap(mtls=mode)["static_resources"]["listeners"], "inbound")
    assert inbound["listener_filters_timeout"] == patience
    assert inbound["continue_on_listener_filters_timeout"] is goes_on


def everything(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(child)


def test_every_tls_context_of_the_mesh_is_1_3_and_knows_the_trust_domain() -> None:
    contexts = [each for each in everything(bootstrap(trustDomain="td.example")) if "alpn_protocols" in each]
    assert len(contexts) == 5
    for each in contexts:
        assert each["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
        assert each["combined_validation_context"]["default_validation_context"] == {
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://td.example/"}}]
        }


def test_connections_to_the_pod_come_from_the_sidecars_own_address() -> None:
    clusters = bootstrap(PODS["probes of every kind"])["static_resources"]["clusters"]
    bound = {
        each["name"]: each["upstream_bind_config"]["source_address"]["address"]
        for each in clusters
        if "upstream_bind_config" in each
    }
    assert set(bound.values()) == {"127.0.0.6"}
    assert set(bound) == {"InboundPassthroughCluster", *(f"probe-{index}" for index in range(4))}


def test_what_a_user_writes_is_not_expanded_by_kubernetes() -> None:
    paths = [
        each["prefix_rewrite"]
        for each in everything(bootstrap(PODS["a probe that Kubernetes would expand"]))
        if "prefix_rewrite" in each
    ]
    assert "/$(POD_IP)/$$" in paths
    exact = [each["exact"] for each in everything(bootstrap(authorizationPolicies=[POLICY])) if "exact" in each]
    assert "/$(POD_IP)" in exact


def test_administration_is_for_the_pod_alone() -> None:
    config = bootstrap()
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    reached = [each for each in everything(config) if each.get("route", {}).get("cluster") == "admin"]
    assert sorted(each["match"]["path"] for each in reached) == [
        "/healthz/ready",
        "/stats/prometheus",
        "/stats/prometheus",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"meshRanges": []}, "values.meshRanges: missing"),
        ({"meshRanges": ["10.0.0.0"]}, 'values.meshRanges[0]: "10.0.0.0": allowed'),
        ({"meshRanges": "10.0.0.0/8,x/8"}, 'values.meshRanges[1]: "x/8": allowed'),
        ({"plaintextRanges": "10.96.0.0/16"}, "values.plaintextRanges: 10.96.0.0/16: allowed"),
        ({"mtls": "DISABLE"}, 'values.mtls: "DISABLE": allowed'),
        ({"concurrency": "two"}, 'values.concurrency: "two": allowed'),
        ({"accessLog": "relative"}, 'values.accessLog: "relative": allowed'),
        ({"trustDomain": "a/b"}, 'values.trustDomain: "a/b": allowed'),
        ({"tcpPorts": "0"}, "values.tcpPorts[0]: 0: allowed"),
        ({"tcpPorts": "http"}, 'values.tcpPorts[0]: "http": allowed'),
        ({"ipFamilies": []}, "values.ipFamilies: []: allowed"),
        ({"excludeInboundPorts": "x"}, 'values.excludeInboundPorts: "x": allowed'),
        ({"colour": "red"}, "values.colour: unknown: allowed"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(values: Json, message: str) -> None:
    with pytest.raises(InjectionError) as error:
        inject(pod(), ENABLED, InjectionSettings(values={"meshRanges": RANGES} | values))
    assert str(error.value).startswith(message)


def test_a_probes_path_is_quoted_as_the_kubelet_does() -> None:
    given = pod(container(readinessProbe={"httpGet": {"port": 80, "path": "a b?c=d#e"}}))
    (manager,) = [each["filters"][0]["typed_config"] for each in chains(bootstrap(given), "status")]
    routes = [each["route"] for each in manager["route_config"]["virtual_hosts"][0]["routes"]]
    assert [each["prefix_rewrite"] for each in routes if each["cluster"] == "probe-0"] == ["/a%20b?c=d%23e"]


def test_the_applications_probes_are_asked_for_and_nothing_else() -> None:
    """Port 15020 is open to whoever reaches it, past mTLS and policies: a probe is a GET of just
    that path, never what else a client would send there.
    """
    config = bootstrap(PODS["probes of every kind"])
    (manager,) = [each["filters"][0]["typed_config"] for each in chains(config, "status")]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    asked = [each["match"] for each in routes if each["route"]["cluster"].startswith("probe-")]
    assert asked
    for match in asked:
        exact = {each["name"]: each["string_match"] for each in match["headers"]}
        assert exact == {":method": {"exact": "GET"}, ":path": {"exact": match["path"]}}, "without a query"
