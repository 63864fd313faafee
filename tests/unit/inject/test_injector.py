"""What injection does to pods of every kind: valid for Kubernetes, undone exactly, and twice is once."""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.inject import STATUS, InjectionError, InjectionSettings, Skipped, inject, uninject
from tests.unit.inject.pods import ENABLED, ENVOY, HTTP, NODEAGENT, PODS, RANGES, container, injected, named, names, pod

SETTINGS = {
    "envoy": ENVOY,
    "envoy, native": InjectionSettings(native=True, values={"meshRanges": RANGES, "mtls": "STRICT"}),
    "envoy, held": InjectionSettings(hold=True, values={"meshRanges": RANGES, "accessLog": ""}),
    "nodeagent": NODEAGENT,
    "nodeagent, native and held": InjectionSettings("nodeagent", native=True, hold=True),
}
EVERY = pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS)
EACH_POD = pytest.mark.parametrize("given_pod", PODS.values(), ids=PODS)


@EVERY
@EACH_POD
def test_kubernetes_takes_it(given_pod: dict[str, Any], chosen: InjectionSettings) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod"} | injected(given_pod, chosen)
    kubernetes_validate.validate(whole, "1.30", strict=True)


@EVERY
@EACH_POD
def test_uninject_is_the_way_back(given_pod: dict[str, Any], chosen: InjectionSettings) -> None:
    before = copy.deepcopy(given_pod)
    found = injected(given_pod, chosen)
    assert given_pod == before, "what was given is not changed"
    restored = uninject(found)
    assert restored == before
    order = [list(restored["spec"]), [list(each) for each in restored["spec"]["containers"]]]
    assert order == [list(before["spec"]), [list(each) for each in before["spec"]["containers"]]]


@EVERY
@EACH_POD
def test_twice_is_once(given_pod: dict[str, Any], chosen: InjectionSettings) -> None:
    found = inject(injected(given_pod, chosen), ENABLED, chosen)
    assert isinstance(found, Skipped)
    assert found.reason == "already-injected"


@EVERY
@EACH_POD
def test_what_was_there_stays(given_pod: dict[str, Any], chosen: InjectionSettings) -> None:
    spec = injected(given_pod, chosen)["spec"]
    for field in ("initContainers", "containers", "volumes"):
        own = names(given_pod["spec"].get(field))
        assert [name for name in names(spec.get(field)) if name in own] == own
    for one in given_pod["spec"]["containers"]:
        kept = {
            key: value for key, value in named(spec["containers"], one["name"]).items() if not key.endswith("Probe")
        }
        assert kept == {key: value for key, value in one.items() if not key.endswith("Probe")}


def test_a_pod_without_a_sidecar_is_not_uninjected() -> None:
    assert uninject(pod()) == pod()


ISTIOS = '{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["istio-token"],"imagePullSecrets":null,"revision":"default"}'  # noqa: E501


@pytest.mark.parametrize("status", ["{}", "no JSON", "[]", ISTIOS, "1" * 5000, "[" * 5000])
def test_what_another_injector_did_is_not_undone(status: str) -> None:
    other = pod(annotations={STATUS: status})
    assert isinstance(inject(other, ENABLED, ENVOY), Skipped)
    with pytest.raises(InjectionError, match="something else injected this pod"):
        uninject(other)


def test_a_changed_pod_keeps_its_changes_when_the_sidecar_goes() -> None:
    found = injected(
        pod(
            container(
                ports=[HTTP], readinessProbe={"httpGet": {"port": "http"}}, livenessProbe={"tcpSocket": {"port": 1}}
            )
        )
    )
    app = named(found["spec"]["containers"], "app")
    app["readinessProbe"]["periodSeconds"] = 7
    app["livenessProbe"] = {"exec": {"command": ["true"]}}
    found["spec"]["containers"].insert(0, container("late"))
    found["metadata"]["labels"]["more"] = "yes"
    restored = uninject(found)
    assert names(restored["spec"]["containers"]) == ["late", "app"]
    assert named(restored["spec"]["containers"], "app")["readinessProbe"] == {
        "httpGet": {"port": "http"},
        "periodSeconds": 7,
    }
    assert named(restored["spec"]["containers"], "app")["livenessProbe"] == {"exec": {"command": ["true"]}}
    assert restored["metadata"]["labels"] == {"more": "yes"}


# -- order --

TWO = pod(container("one"), container("two"), initContainers=[container("migrate")])


@pytest.mark.parametrize("template", ["envoy", "nodeagent"])
@pytest.mark.parametrize(
    ("native", "hold", "init", "containers"),
    [
        (False, False, ["migrate", "istio-init"], ["one", "two", "istio-proxy"]),
        (False, True, ["migrate", "istio-init"], ["istio-proxy", "one", "two"]),
        (True, False, ["istio-init", "istio-proxy", "migrate"], ["one", "two"]),
        (True, True, ["istio-init", "istio-proxy", "migrate"], ["one", "two"]),
    ],
)
def test_order(template: str, native: bool, hold: bool, init: list[str], containers: list[str]) -> None:
    spec = injected(TWO, InjectionSettings(template, native=native, hold=hold, values=ENVOY.values))["spec"]
    assert names(spec["initContainers"]) == init
    assert names(spec["containers"]) == containers
    proxy = named(spec["initContainers"] if native else spec["containers"], "istio-proxy")
    assert proxy.get("restartPolicy") == ("Always" if native else None)
    assert ("startupProbe" in proxy) == native
    assert ("lifecycle" in proxy) == (hold and not native)


def test_the_annotation_beats_the_setting_for_native() -> None:
    asked = pod(annotations={"sidecar.istio.io/nativeSidecar": "false"})
    assert names(injected(asked, InjectionSettings(native=True, values=ENVOY.values))["spec"]["containers"]) == [
        "app",
        "istio-proxy",
    ]


def test_the_proxy_config_annotation() -> None:
    asked = pod(
        annotations={"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true\nconcurrency: 7\ntracing: {}"}
    )
    containers = injected(asked)["spec"]["containers"]
    assert names(containers) == ["istio-proxy", "app"]
    command = containers[0]["command"]
    assert command[command.index("--concurrency") + 1] == "7"


def test_who_runs_as_whom() -> None:
    spec = injected(pod())["spec"]
    assert (
        named(spec["containers"], "istio-proxy")["securityContext"]
        | {"runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": True}
        == (named(spec["containers"], "istio-proxy")["securityContext"])
    )
    init = named(spec["initContainers"], "istio-init")["securityContext"]
    assert (init["runAsUser"], init["capabilities"]["add"]) == (0, ["NET_ADMIN", "NET_RAW"])


def test_what_the_init_container_is_told() -> None:
    command = named(injected(PODS["capture annotations"])["spec"]["initContainers"], "istio-init")["command"]
    assert command == [
        "nodeagent",
        "sidecar-init",
        "--inbound-ports",
        "80,8080",
        "--exclude-inbound-ports",
        "9090",
        "--outbound-ranges",
        "10.0.0.0/8,fd00::/8",
        "--exclude-outbound-ranges",
        "10.1.0.0/16",
        "--include-outbound-ports",
        "443",
        "--exclude-outbound-ports",
        "5432,3306",
        "--uid",
        "1337",
        "--gid",
        "1337",
    ]


def test_what_the_nodeagent_proxy_is_told() -> None:
    chosen = InjectionSettings("nodeagent", values={"source": "/srv/mesh", "trustDomain": "td"})
    proxy = named(injected(PODS["http probes"], chosen)["spec"]["containers"], "istio-proxy")
    words = dict(zip(proxy["command"][2::2], proxy["command"][3::2], strict=True))
    assert words == {
        "--source": "/srv/mesh",
        "--trust-domain": "td",
        "--sds-socket": "/run/nodeagent/sds/socket",
        "--access-log": "-",
    }
    asked = json.loads(named(proxy["env"], "NODEAGENT_APP_PROBES")["value"])
    assert asked["/app-health/app/readyz"] == {
        "httpGet": {"path": "/healthy?deep=1", "port": 8080},
        "timeoutSeconds": 5,
    }


# -- annotations --


def test_one_resource_annotation_replaces_all_defaults() -> None:
    proxy = named(injected(PODS["resources"])["spec"]["containers"], "istio-proxy")
    assert proxy["resources"] == {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}}
    assert named(injected(pod())["spec"]["containers"], "istio-proxy")["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }


def test_the_image_annotation_is_the_proxys() -> None:
    spec = injected(PODS["an image of its own"])["spec"]
    assert named(spec["containers"], "istio-proxy")["image"] == "registry.example/envoy:dev"
    assert named(spec["initContainers"], "istio-init")["image"].startswith("nodeagent:")


CAPTURE = "traffic.sidecar.istio.io/"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{CAPTURE}excludeInboundPorts", "http"),
        (f"{CAPTURE}excludeInboundPorts", "*"),
        (f"{CAPTURE}excludeInboundPorts", "80,"),
        (f"{CAPTURE}includeInboundPorts", "65536"),
        (f"{CAPTURE}includeInboundPorts", "0"),
        (f"{CAPTURE}excludeOutboundPorts", "-1"),
        (f"{CAPTURE}includeOutboundPorts", "²"),
        (f"{CAPTURE}includeOutboundIPRanges", "10.0.0.1"),
        (f"{CAPTURE}includeOutboundIPRanges", "10.0.0.0/33"),
        (f"{CAPTURE}excludeOutboundIPRanges", "*"),
        (f"{CAPTURE}excludeOutboundIPRanges", "10.0.0.0/8;rm"),
        ("sidecar.istio.io/proxyCPU", "much"),
        ("sidecar.istio.io/proxyMemory", "128MB"),
        ("sidecar.istio.io/proxyCPULimit", ""),
        ("sidecar.istio.io/proxyMemoryLimit", "1\n"),
        ("sidecar.istio.io/proxyCPULimit", "-1"),
        ("sidecar.istio.io/proxyCPU", "\u0661"),
        ("sidecar.istio.io/rewriteAppHTTPProbers", "maybe"),
        ("sidecar.istio.io/nativeSidecar", "yes"),
        ("proxy.istio.io/config", "- a"),
        ("proxy.istio.io/config", "a: ["),
    ],
)
def test_a_wrong_annotation_is_named(name: str, value: str) -> None:
    with pytest.raises(InjectionError) as error:
        inject(pod(annotations={name: value}), ENABLED, ENVOY)
    assert str(error.value).startswith(f"metadata.annotations[{name}]: {json.dumps(value)}: allowed: ")


# -- pods that cannot have one --


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pod(container("istio-proxy")), 'spec.containers[0].name: "istio-proxy": allowed'),
        (pod(container(), container("istio-init")), 'spec.containers[1].name: "istio-init": allowed'),
        (pod(initContainers=[container("istio-proxy")]), 'spec.initContainers[0].name: "istio-proxy": allowed'),
        (pod(volumes=[{"name": "nodeagent-sds", "emptyDir": {}}]), 'spec.volumes[0].name: "nodeagent-sds": allowed'),
        (
            pod(container(ports=[HTTP, {"containerPort": 15001}])),
            "spec.containers[0].ports[1].containerPort: 15001: allowed",
        ),
        (
            pod(container(securityContext={"runAsUser": 1337})),
            "spec.containers[0].securityContext.runAsUser: 1337: allowed",
        ),
        (pod(securityContext={"runAsUser": 1337}), "spec.securityContext.runAsUser: 1337: allowed"),
        (
            pod(container(readinessProbe={"tcpSocket": {"port": "web"}}, ports=[HTTP])),
            'spec.containers[0].readinessProbe.tcpSocket.port: "web": allowed',
        ),
        (
            pod(container(readinessProbe={"httpGet": {"port": 0}})),
            "spec.containers[0].readinessProbe.httpGet.port: 0: allowed",
        ),
        (
            pod(container(), container()),
            'spec.containers[1].name: "app": allowed: another name than that of spec.containers[0]',
        ),
        (
            pod(container(), initContainers=[container()]),
            'spec.containers[0].name: "app": allowed: another name than that of spec.initContainers[0]',
        ),
        (
            pod(volumes=[{"name": "a"}, {"name": "a"}]),
            'spec.volumes[1].name: "a": allowed: another name than that of spec.volumes[0]',
        ),
        (
            pod(annotations={"proxy.istio.io/config": "concurrency: 0"}),
            "metadata.annotations[proxy.istio.io/config].[concurrency]: 0: allowed",
        ),
        ({"metadata": {}}, "spec: missing"),
        ({"spec": {"containers": []}}, "spec.containers: []"),
        ({"spec": {"containers": "all"}}, 'spec.containers: "all"'),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0].name: missing"),
        (pod() | {"metadata": {"labels": {"a": 1}}}, "metadata.labels.a: 1"),
        (pod() | {"metadata": {"annotations": ["a"]}}, 'metadata.annotations: ["a"]'),
        ({"spec": {"containers": [{"name": b"x"}]}}, "spec: what JSON cannot hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_injected_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InjectionError) as error:
        inject(wrong, ENABLED, ENVOY)
    assert str(error.value).startswith(message)


def test_udp_at_a_port_of_the_sidecar_is_no_conflict() -> None:
    assert injected(pod(container(ports=[{"containerPort": 15001, "protocol": "UDP"}])))


# -- properties --

_NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
_PORT = st.integers(1, 14999)
_HANDLER = st.one_of(
    st.builds(
        lambda port, path: {"httpGet": {"path": path, "port": port}},
        _PORT,
        st.text("/$(){}a%?", min_size=1, max_size=8),
    ),
    st.builds(lambda port: {"tcpSocket": {"port": port}}, _PORT),
    st.builds(lambda port, service: {"grpc": {"port": port, "service": service}}, _PORT, st.text(max_size=4)),
    st.just({"exec": {"command": ["true"]}}),
)
_PROBES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("readinessProbe", "livenessProbe", "startupProbe"), _HANDLER)
)
_CONTAINERS = st.lists(st.tuples(_NAME, _PROBES), min_size=1, max_size=3, unique_by=lambda each: each[0])
_TEXTS = st.none() | st.dictionaries(_NAME, st.text(max_size=5), max_size=3)


@given(
    _CONTAINERS,
    _CONTAINERS | st.just([]),
    _TEXTS,
    _TEXTS,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["envoy", "nodeagent"]),
)
@settings(max_examples=100)
def test_any_pod_comes_back(
    containers: Any, init: Any, labels: Any, annotations: Any, native: bool, hold: bool, template: str
) -> None:
    seen = {name for name, _ in containers}
    own = [{"name": name} | probes for name, probes in init if name not in seen]
    spec: dict[str, Any] = {"containers": [{"name": name} | probes for name, probes in containers]} | (
        {"initContainers": own} if own else {}
    )
    one = {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}
    found = injected(one, InjectionSettings(template, native=native, hold=hold, values=ENVOY.values))
    assert uninject(found) == one
    assert isinstance(inject(found, ENABLED, ENVOY), Skipped)
