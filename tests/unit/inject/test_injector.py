"""What injection does to pods of every kind: valid for Kubernetes, undone exactly, and twice is once."""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.inject import STATUS, Injected, InjectionError, InjectionSettings, Skipped, inject, uninject
from nodeagent.inject.model import show
from nodeagent.sidecar.probes import AppHttpGet, from_environment
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
        kept = {key: value for key, value in named(spec["containers"], one["name"]).items() if not _rewritten(key)}
        assert kept == {key: value for key, value in one.items() if not _rewritten(key)}


def _rewritten(field: str) -> bool:
    return field.endswith("Probe") or field == "lifecycle"


def test_a_pod_without_a_sidecar_is_not_uninjected() -> None:
    assert uninject(pod()) == pod()


ISTIOS = '{"initContainers":["istio-init"],"containers":["istio-proxy"],"volumes":["istio-token"],"imagePullSecrets":null,"revision":"default"}'  # noqa: E501


@pytest.mark.parametrize("status", ["{}", "no JSON", "[]", ISTIOS, "1" * 5000, "[" * 5000])
def test_what_another_injector_did_is_not_undone(status: str) -> None:
    other = pod(container(), container("istio-proxy"), annotations={STATUS: status})
    assert isinstance(inject(other, ENABLED, ENVOY), Skipped)
    with pytest.raises(InjectionError, match="something else injected this pod"):
        uninject(other)


def test_the_annotation_alone_is_no_sidecar() -> None:
    """It stays in what was copied from a pod that runs."""
    found = injected(pod(annotations={STATUS: ISTIOS}))
    assert "istio-proxy" in names(found["spec"]["containers"])
    assert uninject(found) == pod(annotations={})


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
    lifecycle = set(proxy.get("lifecycle", ()))
    assert ("postStart" in lifecycle) == (hold and not native)
    assert ("preStop" in lifecycle) == (template == "envoy" and not native), "nodeagent's own drains by itself"


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


def test_no_port_of_the_sidecar_has_a_name_that_an_applications_may_have() -> None:
    """A Service's named port is that of the first container that has the name."""
    for chosen in (ENVOY, NODEAGENT):
        proxy = named(injected(pod(), chosen)["spec"]["containers"], "istio-proxy")
        assert {port["name"] for port in proxy["ports"]} <= {"http-envoy-prom", "nodeagent-prom"}


def test_how_long_the_proxy_goes_on_may_be_said() -> None:
    asked = InjectionSettings(values={"meshRanges": RANGES, "drainSeconds": 30})
    proxy = named(injected(pod(), asked)["spec"]["containers"], "istio-proxy")
    assert proxy["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "30"]}}}


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


def test_hooks_are_led_through_the_sidecar_as_probes_are() -> None:
    app = named(injected(PODS["hooks"], NODEAGENT)["spec"]["containers"], "app")
    assert app["lifecycle"] == {
        "preStop": {"httpGet": {"path": "/app-lifecycle/app/prestopz", "port": 15020}},
        "postStart": {"httpGet": {"path": "/app-lifecycle/app/poststartz", "port": 15020}},
    }
    proxy = named(injected(PODS["hooks"], NODEAGENT)["spec"]["containers"], "istio-proxy")
    asked = from_environment({each["name"]: each.get("value", "") for each in proxy["env"]})
    assert set(asked) == {"/app-lifecycle/app/prestopz", "/app-lifecycle/app/poststartz"}
    assert asked["/app-lifecycle/app/prestopz"].http_get == AppHttpGet(port=8080, path="/stop")


@pytest.mark.parametrize("place", ["startupProbe", "livenessProbe", "postStart"])
def test_what_a_container_before_the_proxy_waits_for_is_refused(place: str) -> None:
    """The kubelet starts nothing after a native sidecar before its startupProbe has passed, and restarts it by its
    livenessProbe: the proxy would come after all of them.
    """
    asks: dict[str, dict[str, Any]] = {"httpGet": {"port": 9090}}
    fields = {place: asks} if place.endswith("Probe") else {"lifecycle": {place: asks}}
    own = pod(initContainers=[container("own", restartPolicy="Always", **fields)])
    with pytest.raises(InjectionError, match=rf"^spec\.initContainers\[0\]\.(lifecycle\.)?{place}: .*--native"):
        inject(own, ENABLED, ENVOY)
    assert injected(own, InjectionSettings(native=True, values=ENVOY.values))
    asks["httpGet"]["host"] = "status.example"
    assert injected(own)


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
        (f"{CAPTURE}includeInboundPorts", ",".join(map(str, range(1, 1026)))),
        (f"{CAPTURE}excludeOutboundIPRanges", ",".join(["10.0.0.0/8"] * 1025)),
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
        ("sidecar.istio.io/interceptionMode", "NONE"),
        ("status.sidecar.istio.io/port", "0"),
        ("inject.istio.io/templates", "gateway"),
        ("proxy.istio.io/config", "- a"),
        ("proxy.istio.io/config", "a: ["),
    ],
)
def test_a_wrong_annotation_is_named(name: str, value: str) -> None:
    with pytest.raises(InjectionError) as error:
        inject(pod(annotations={name: value}), ENABLED, ENVOY)
    assert str(error.value).startswith(f"metadata.annotations[{name}]: {show(value)}: allowed: ")


@pytest.mark.parametrize("name", ["excludeInterfaces", "kubevirtInterfaces", "redirectAll"])
def test_an_annotation_of_capture_that_is_not_followed_is_refused(name: str) -> None:
    with pytest.raises(InjectionError, match="not known here: allowed of "):
        inject(pod(annotations={CAPTURE + name: "eth1"}), ENABLED, ENVOY)


def test_annotations_that_ask_for_what_there_is_are_taken() -> None:
    assert injected(
        pod(annotations={"sidecar.istio.io/interceptionMode": "REDIRECT", "inject.istio.io/templates": "sidecar"})
    )


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
            pod(container(securityContext={"runAsGroup": 1337})),
            "spec.containers[0].securityContext.runAsGroup: 1337: allowed",
        ),
        (pod(securityContext={"runAsGroup": 1337}), "spec.securityContext.runAsGroup: 1337: allowed"),
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


def test_the_sidecars_own_user_may_be_said_of_a_pod_whose_containers_all_say_another() -> None:
    own = {"runAsUser": 1000, "runAsGroup": 1000}
    assert injected(pod(container(securityContext=own), securityContext={"runAsUser": 1337, "runAsGroup": 1337}))


def test_what_linux_would_not_execute_is_refused() -> None:
    rules = [{"from": [{"source": {"principals": [f"cluster.local/ns/a/sa/{number:060}"]}}]} for number in range(500)]
    policies = [
        _deny({}) | {"metadata": {"name": name, "namespace": "default"}, "spec": {"action": "DENY", "rules": rules}}
        for name in ("one", "two")
    ]
    asked = InjectionSettings(values={"meshRanges": RANGES, "authorizationPolicies": policies})
    with pytest.raises(InjectionError, match=r"istio-proxy\.command\[2\]: \d+ bytes: allowed: less than 131072"):
        inject(pod(), ENABLED, asked)
    headers = [{"name": f"X-{number}", "value": "x" * 4000} for number in range(40)]
    long = pod(container(readinessProbe={"httpGet": {"port": 80, "httpHeaders": headers}}))
    with pytest.raises(InjectionError, match=r"env\[NODEAGENT_APP_PROBES\]: \d{6} bytes"):
        inject(long, ENABLED, NODEAGENT)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"httpGet": {"port": 80, "path": "/" + "x" * 5000}}, "httpGet.path"),
        ({"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "b"}] * 65}}, "httpGet.httpHeaders"),
        ({"grpc": {"port": 80, "service": "s" * 254}}, "grpc.service"),
        ({"tcpSocket": {"port": 80}, "timeoutSeconds": 3601}, "timeoutSeconds"),
    ],
)
def test_a_probe_that_the_sidecar_would_not_take_is_refused(probe: dict[str, Any], words: str) -> None:
    given_pod = pod(container(readinessProbe=probe))
    with pytest.raises(InjectionError, match=rf"^spec: /app-health/app/readyz\.{words}: "):
        inject(given_pod, ENABLED, NODEAGENT)
    assert injected(given_pod), "Envoy has no such bounds"


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


# -- policies and values --


def _deny(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"action": "DENY", "rules": [{}], "selector": {"matchLabels": labels}},
    }


@pytest.mark.parametrize(
    ("label", "value", "selected"),
    [
        ("service.istio.io/canonical-name", "web", True),
        ("service.istio.io/canonical-revision", "latest", True),
        ("security.istio.io/tlsMode", "istio", True),
        ("service.istio.io/canonical-name", "db", False),
    ],
)
def test_policies_are_chosen_by_the_labels_that_injection_adds(label: str, value: str, selected: bool) -> None:
    asked = InjectionSettings(values={"meshRanges": RANGES, "authorizationPolicies": [_deny({label: value})]})
    command = named(injected(pod(), asked)["spec"]["containers"], "istio-proxy")["command"]
    assert ('"action":"DENY"' in command[command.index("--config-yaml") + 1]) == selected


def test_a_label_of_the_controllers_is_refused_where_it_would_decide() -> None:
    policies = [_deny({"pod-template-hash": "5d4"})]
    asked = InjectionSettings(values={"meshRanges": RANGES, "authorizationPolicies": policies})
    with pytest.raises(InjectionError, match="pod-template-hash"):
        inject(pod(), ENABLED, asked, frozenset({"pod-template-hash"}))
    assert isinstance(inject(pod(), ENABLED, asked), Injected), "a pod that is made has all its labels"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mtls", "STRICT"),
        ("authorizationPolicies", [{"kind": "Nonsense"}]),
        ("tcpPorts", "3306"),
        ("concurrency", 8),
        ("bufferBytes", 65536),
        ("pooling", False),
    ],
)
def test_a_value_that_the_template_does_not_use_is_refused(name: str, value: object) -> None:
    with pytest.raises(InjectionError, match=f"^values.{name}: .*: allowed: nothing, since the template"):
        inject(pod(), ENABLED, InjectionSettings("nodeagent", values={name: value}))


def test_what_the_cluster_is_and_what_is_the_default_may_be_said_to_every_template() -> None:
    said = {"meshRanges": RANGES, "plaintextRanges": "10.96.0.1/32", "mtls": "PERMISSIVE", "concurrency": 2}
    assert injected(pod(), InjectionSettings("nodeagent", values=said)) == injected(pod(), NODEAGENT)
