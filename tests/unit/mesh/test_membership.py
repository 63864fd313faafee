"""Which pods are in the mesh, and why: rule by rule, and with the node's pods as they change."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.logs import pods as log_keys
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.membership import EVERY_POD, Enroll, Membership, MembershipRules, membership
from nodeagent.mesh.node_pods import NodePod
from nodeagent.places.place import Place
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import NamespaceObject, PodObject, parse
from nodeagent.vocabulary import LOGS, PodUid
from tests.unit.mesh.test_compile import service
from tests.unit.resources.test_proxies import ARTICLE
from tests.unit.resources.test_proxies import pod as pod_of

DATAPLANE = "nodeagent.io/dataplane"
AMBIENT = "istio.io/dataplane-mode"
LABELLED = MembershipRules("labelled")
FOLLOWING = MembershipRules("labelled", ambient_labels=True)
ENABLED = {DATAPLANE: "enabled"}
DISABLED = {DATAPLANE: "disabled"}


def document(
    name: str = "p",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    namespace: str = "shop",
    **more: Any,
) -> Change:
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "labels": labels or {},
        "annotations": annotations or {},
        "deletionTimestamp": more.pop("deleted", None),
    }
    status = {"phase": more.pop("phase", "Pending"), "podIPs": more.pop("addresses", [])}
    spec = {"nodeName": more.pop("node", "node1"), "serviceAccountName": more.pop("account", name), **more}
    return Change("Pod", namespace, name, parse({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}))


def pod(labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **more: Any) -> PodObject:
    found = document("p", labels, annotations, **more).object
    assert isinstance(found, PodObject)
    return found


def namespace(labels: dict[str, str] | None = None, name: str = "shop") -> NamespaceObject:
    return NamespaceObject(name, labels or {}, {})


def decided(
    which: PodObject,
    labels: dict[str, str] | None = None,
    rules: MembershipRules = LABELLED,
    istio_here: str = "",
) -> tuple[Membership, list[str]]:
    faults: list[str] = []
    return membership(which, namespace(labels, which.namespace), rules, istio_here, faults), faults


def verdict(*args: Any, **more: Any) -> str:
    found, faults = decided(*args, **more)
    assert faults == []
    assert found.why
    return found.verdict


# -- who asks --


@pytest.mark.parametrize(
    ("labels", "annotations", "of_namespace", "expected"),
    [
        ({}, {}, {}, "left alone"),
        ({}, {}, ENABLED, "captured"),
        ({}, {}, DISABLED, "left alone"),
        (ENABLED, {}, {}, "captured"),
        ({}, ENABLED, DISABLED, "captured"),
        (DISABLED, {}, ENABLED, "left alone"),
        ({}, DISABLED, ENABLED, "left alone"),
        (ENABLED, DISABLED, {}, "captured"),
        (DISABLED, ENABLED, ENABLED, "left alone"),
        ({"nodeagent.io/enroll": "true"}, {}, {}, "captured"),
        ({}, {"nodeagent.io/enroll": "FALSE"}, ENABLED, "left alone"),
        ({"nodeagent.io/enroll": "false", **ENABLED}, {}, {}, "captured"),
        ({}, {}, {"nodeagent.io/enroll": "true"}, "left alone"),
    ],
)
def test_the_pods_word_goes_before_its_namespaces(
    labels: dict[str, str], annotations: dict[str, str], of_namespace: dict[str, str], expected: str
) -> None:
    assert verdict(pod(labels, annotations), of_namespace) == expected


@pytest.mark.parametrize(
    ("enroll", "asks", "in_system", "unasked"),
    [
        ("all", "captured", "left alone", "captured"),
        ("labelled", "captured", "left alone", "left alone"),
        ("none", "left alone", "left alone", "left alone"),
    ],
)
def test_the_setting_is_for_those_that_do_not_say(enroll: Enroll, asks: str, in_system: str, unasked: str) -> None:
    rules = MembershipRules(enroll)
    assert verdict(pod(ENABLED), rules=rules) == asks
    assert verdict(pod(ENABLED, namespace="kube-system"), rules=rules) == asks
    assert verdict(pod(namespace="kube-system"), rules=rules) == in_system
    assert verdict(pod(), rules=rules) == unasked


@pytest.mark.parametrize("name", [DATAPLANE, "nodeagent.io/enroll"])
def test_a_wrong_value_is_named_and_decides_nothing(name: str) -> None:
    found, faults = decided(pod({name: "Yes"}), ENABLED)
    assert found.verdict == "captured"
    allowed = "enabled, disabled" if name == DATAPLANE else "true, false"
    assert faults == [f"metadata.labels[{name}]: 'Yes': {allowed} are allowed; it has no effect"]


def test_a_wrong_value_of_the_namespace_is_named() -> None:
    found, faults = decided(pod(), {DATAPLANE: "x" * 5000})
    assert found.verdict == "left alone"
    assert faults[0].startswith("Namespace shop: metadata.labels[nodeagent.io/dataplane]: 'xxx")
    assert len(faults[0]) < 300


def test_nothing_is_decided_by_a_namespace_that_is_not_known() -> None:
    assert membership(pod(), None, LABELLED, "", []).verdict == "undecided"
    assert membership(pod(ENABLED), None, LABELLED, "", []).verdict == "captured"
    assert membership(pod(), None, EVERY_POD, "", []).verdict == "captured", "a folder needs no Namespace"
    assert membership(pod(namespace="kube-system"), None, EVERY_POD, "", []).verdict == "left alone"


# -- who must not be captured, whoever asks --


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (pod(ENABLED, hostNetwork=True), "it is on the node's own network"),
        (pod({**ENABLED, "app.kubernetes.io/part-of": "nodeagent"}), "it is the agent's own"),
        (pod(ENABLED, namespace="nodeagent-system"), "it is the agent's own"),
        (pod(ENABLED, {"sidecar.istio.io/status": "{}"}), "it brings a proxy: annotation sidecar.istio.io/status"),
        (pod(ENABLED, {"ambient.istio.io/redirection": "enabled"}), "Istio's ztunnel takes its traffic"),
        (pod(ENABLED, containers=[{"name": "a"}, {"name": "istio-proxy", "image": "x"}]), "its container istio-proxy"),
        (pod_of(ARTICLE, ENABLED), "its container envoy-sidecar (envoyproxy/envoy:v1.28.0)"),
    ],
)
def test_pods_that_are_never_captured(which: PodObject, words: str) -> None:
    for rules in (LABELLED, EVERY_POD):
        found, faults = decided(which, ENABLED, rules)
        assert (found.verdict, faults) == ("left alone", [])
        assert words in found.why


def test_what_looks_like_a_sidecar_is_captured_on_its_pods_own_word_alone() -> None:
    """Input: Envoy beside another container, and nothing that redirects to it: an edge proxy's pod, perhaps."""
    containers = [{"name": "a"}, {"name": "b", "image": "envoyproxy/envoy:v1"}]
    assert verdict(pod(containers=containers), ENABLED) == "left alone"
    assert verdict(pod(containers=containers), rules=EVERY_POD) == "left alone"
    assert verdict(pod(ENABLED, containers=containers)) == "captured"


# -- what Istio's labels mean --


@pytest.mark.parametrize(
    ("own", "of_namespace", "expected"),
    [
        ({}, {AMBIENT: "ambient"}, "captured"),
        ({AMBIENT: "ambient"}, {}, "captured"),
        ({AMBIENT: "none"}, {AMBIENT: "ambient"}, "left alone"),
        ({AMBIENT: "none"}, ENABLED, "left alone"),
        (DISABLED, {AMBIENT: "ambient"}, "left alone"),
        ({}, {AMBIENT: "ambient", **DISABLED}, "left alone"),
        ({}, {AMBIENT: "none"}, "left alone"),
    ],
)
def test_ambient_mode_is_followed_by_a_setting(
    own: dict[str, str], of_namespace: dict[str, str], expected: str
) -> None:
    assert verdict(pod(own), of_namespace, FOLLOWING) == expected


def test_ambient_mode_is_not_followed_without_the_setting_and_says_so() -> None:
    found, _ = decided(pod(), {AMBIENT: "ambient"})
    assert found.verdict == "left alone"
    assert "redirect.ambientLabels" in found.why
    assert verdict(pod({AMBIENT: "none"}), ENABLED) == "captured"


def test_ambient_mode_is_istios_where_istio_runs() -> None:
    here = "ztunnel runs on this node (Pod istio-system/ztunnel-x)"
    found, faults = decided(pod(), {AMBIENT: "ambient"}, FOLLOWING, here)
    assert (found.verdict, faults) == ("left alone", [])
    assert here in found.why
    assert verdict(pod(ENABLED), {AMBIENT: "ambient"}, FOLLOWING, here) == "captured"
    assert verdict(pod({AMBIENT: "none"}), ENABLED, FOLLOWING, here) == "left alone"


def test_a_wrong_ambient_mode_is_named() -> None:
    found, faults = decided(pod({AMBIENT: "Ambient"}), {}, FOLLOWING)
    assert found.verdict == "left alone"
    assert "ambient, none are allowed" in faults[0]


@pytest.mark.parametrize(
    ("own", "of_namespace", "words"),
    [
        ({}, {"istio-injection": "enabled"}, "its namespace's label istio-injection: enabled asks for a sidecar"),
        ({}, {"istio.io/rev": "canary"}, "its namespace's label istio.io/rev: canary asks for a sidecar"),
        ({"istio.io/rev": "x"}, {}, "its label istio.io/rev: x asks for a sidecar"),
        ({"sidecar.istio.io/inject": "true"}, {}, "sidecar.istio.io/inject: true asks for a sidecar"),
        ({"sidecar.istio.io/inject": "false"}, {"istio-injection": "enabled"}, ""),
        ({}, {"istio-injection": "disabled"}, ""),
    ],
)
def test_a_label_for_injection_without_a_webhook_asks_for_nothing_and_is_told(
    own: dict[str, str], of_namespace: dict[str, str], words: str
) -> None:
    found, _ = decided(pod(own), of_namespace)
    assert found.verdict == "left alone"
    assert words in found.why
    assert ("no webhook gave it one" in found.why) == bool(words)
    assert verdict(pod(own), {**of_namespace, **ENABLED}) == "captured"


# -- the node's pods --


class Runtime:
    """Places, as a container runtime knows them: by uid, later than the API knows the pod."""

    def __init__(self) -> None:
        self.known: dict[str, Place] = {}

    def of(self, pod: PodObject) -> Place | None:
        return self.known.get(pod.name)


class Node:
    def __init__(self, rules: MembershipRules = LABELLED) -> None:
        self.runtime = Runtime()
        self.mesh = Mesh("node1", "cluster.local", self.runtime, membership=rules)

    def runs(self, change: Change, address: str = "10.0.0.1") -> None:
        """The sandbox of a pod is there, and the source says its address."""
        assert isinstance(change.object, PodObject)
        self.runtime.known[change.name] = Place(f"/run/netns/{change.name}", "")
        self.mesh.apply([change])

    def named(self, labels: dict[str, str], name: str = "shop") -> None:
        self.mesh.apply([Change("Namespace", "", name, NamespaceObject(name, labels, {}))])

    def pod(self, name: str = "p") -> NodePod:
        return next(each for each in self.mesh.node_pods if each.pod == name)


ADDRESSES = [{"ip": "10.0.0.1"}]


def test_the_labels_of_a_namespace_decide_anew_about_its_pods_and_no_others() -> None:
    node = Node()
    node.named({})
    node.named({}, "other")
    node.runs(document(addresses=ADDRESSES))
    node.runs(document("q", namespace="other", addresses=[{"ip": "10.0.0.2"}]))
    assert node.mesh.node_pods.left_alone().keys() == {"uid-p", "uid-q"}
    before = node.pod("q")
    node.named(ENABLED)
    assert node.mesh.node_pods.captured().keys() == {"uid-p"}
    assert node.mesh.node_pods.left_alone().keys() == {"uid-q"}
    assert node.pod("q") is before
    node.named({})
    assert node.mesh.node_pods.captured() == {}
    assert node.mesh.node_pods.left_alone()[PodUid("uid-p")] == Place("/run/netns/p", "")


def test_what_protects_a_pod_stays_while_it_is_not_known_where_it_runs() -> None:
    """As at a start, when its sandbox cannot be read: an earlier daemon may have captured it."""
    node = Node()
    node.named(ENABLED)
    node.named({}, "other")
    pod = document(addresses=ADDRESSES)
    node.mesh.apply([pod, document("q", namespace="other", addresses=[{"ip": "10.0.0.2"}])])
    assert node.mesh.node_pods.captured() == {}
    assert node.mesh.node_pods.unplaced() == ("10.0.0.1",)
    node.runs(pod)
    assert node.mesh.node_pods.unplaced() == ()


def test_a_pod_is_awaited_from_its_scheduling_until_it_runs() -> None:
    """Verdict: its identity is known, so that the certificate can be there first."""
    node = Node()
    node.named(ENABLED)
    node.mesh.apply([document()])
    pods = node.mesh.node_pods
    assert pods.awaited() == {"uid-p": "spiffe://cluster.local/ns/shop/sa/p"}
    assert (pods.captured(), pods.left_alone()) == ({}, {})
    node.runs(document(addresses=ADDRESSES))
    assert (pods.awaited(), pods.captured().keys()) == ({}, {"uid-p"})
    node.mesh.apply([document(addresses=ADDRESSES, deleted="2026-01-01T00:00:00Z")])
    assert pods.captured().keys() == {"uid-p"}, "until it ends"
    node.mesh.apply([document(phase="Succeeded", addresses=ADDRESSES)])
    assert list(pods) == []


@pytest.mark.parametrize(
    "change",
    [
        document(labels=DISABLED),
        document(deleted="2026-01-01T00:00:00Z"),
        document(node="node2"),
        document(phase="Failed"),
        document(hostNetwork=True),
    ],
)
def test_nobody_waits_for_a_pod_that_will_not_be_captured(change: Change) -> None:
    node = Node()
    node.named(ENABLED)
    node.mesh.apply([change])
    assert node.mesh.node_pods.awaited() == {}


def test_a_pod_on_the_nodes_network_has_no_place_to_be_left_alone_in() -> None:
    node = Node()
    node.mesh.apply([document(hostNetwork=True)])
    assert node.pod().membership.verdict == "left alone"
    assert node.mesh.node_pods.left_alone() == {}


def test_a_pod_whose_account_makes_no_identity_stays_undecided() -> None:
    node = Node()
    node.named(ENABLED)
    node.runs(document(account="a/../b", addresses=ADDRESSES))
    found = node.pod()
    assert found.membership.verdict == "undecided"
    assert "spec.serviceAccountName" in found.faults[0]
    assert node.mesh.node_pods.left_alone() == {}


def test_istio_coming_to_the_node_and_leaving_it_decides_anew(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(FOLLOWING)
    node.named({AMBIENT: "ambient"})
    node.runs(document(addresses=ADDRESSES))
    assert node.pod().membership.verdict == "captured"
    ztunnel = document("ztunnel-x", {"app": "ztunnel"}, namespace="istio-system")
    node.mesh.apply([ztunnel])
    assert "ztunnel runs on this node (Pod istio-system/ztunnel-x)" in node.pod().membership.why
    assert node.mesh.node_pods.captured() == {}
    assert "redirect.ambientLabels is not followed on this node" in caplog.text
    node.mesh.apply([Change("Pod", "istio-system", "ztunnel-x", None)])
    assert node.pod().membership.verdict == "captured"


@pytest.mark.parametrize(
    "other",
    [
        document("ztunnel-x", {"app": "ztunnel"}, namespace="tenant"),
        document("ztunnel-x", {"app": "ztunnel"}, namespace="istio-system", node="node2"),
        document("ztunnel-x", {"app": "ztunnel"}, namespace="istio-system", phase="Failed"),
    ],
)
def test_nobody_else_can_seem_to_be_istio(other: Change) -> None:
    node = Node(FOLLOWING)
    node.named({AMBIENT: "ambient"})
    node.runs(document(addresses=ADDRESSES))
    node.mesh.apply([other])
    assert node.pod().membership.verdict == "captured"


def test_faults_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    for labels in ({DATAPLANE: "on"}, {DATAPLANE: "on", "other": "x"}, ENABLED):
        node.runs(document(labels=labels, addresses=ADDRESSES))
    assert [record.getMessage() for record in caplog.records] == [
        "Pod shop/p: metadata.labels[nodeagent.io/dataplane]: 'on': enabled, disabled are allowed; it has no effect",
        "Pod shop/p: its labels and annotations are good again",
    ]


@pytest.mark.parametrize(
    ("labels", "annotations", "said"),
    [
        ({"nodeagent.io/dataplan": "enabled"}, {}, "labels[nodeagent.io/dataplan]: it has no effect: no such key is "),
        ({"nodeagent.io/dataplan": "enabled"}, {}, "is nodeagent.io/dataplane meant? There are nodeagent.io/dataplane"),
        ({}, {"nodeagent.io/by-pass": "enabled"}, "annotations[nodeagent.io/by-pass]: it has no effect"),
        ({}, {"nodeagent.io/by-pass": "enabled"}, "is nodeagent.io/bypass meant?"),
        ({"nodeagent.io/path": "proxy"}, {}, "an annotation, not a label, of this name is read"),
        ({}, {"nodeagent.io/team": "a"}, "no such key is known; there are nodeagent.io/dataplane"),
    ],
)
def test_a_key_of_the_projects_own_that_nobody_reads_is_named(
    labels: dict[str, str], annotations: dict[str, str], said: str
) -> None:
    node = Node()
    node.runs(document(labels=labels, annotations=annotations, addresses=ADDRESSES))
    (fault,) = node.pod().faults
    assert said in fault


def test_keys_that_are_read_and_keys_of_others_are_no_faults() -> None:
    """Verdict: also those that the logs' reader judges, and what the project writes itself."""
    node = Node()
    labels = {DATAPLANE: "enabled", "nodeagent.io/enroll": "true", LOGS: "enabled", "nodeagent.io/job": "x"}
    annotations = {**dict.fromkeys(log_keys.KNOWN, "x"), "nodeagent.io/path": "auto", "team/nodeagent.io": "x"}
    node.runs(document(labels=labels | {"lab.nodeagent.io/x": "y"}, annotations=annotations, addresses=ADDRESSES))
    assert node.pod().faults == ()


def test_keys_of_a_namespace_that_nobody_reads_are_named_at_its_pods() -> None:
    node = Node()
    node.named({"nodeagent.io/data-plane": "enabled", "nodeagent.io/enroll": "true"})
    node.runs(document(addresses=ADDRESSES))
    first, second = node.pod().faults
    assert first.startswith("Namespace shop: metadata.labels[nodeagent.io/data-plane]: it has no effect: ")
    assert "is nodeagent.io/dataplane meant?" in first
    assert "labels[nodeagent.io/enroll]" in second, "it is read of pods alone"


def test_keys_that_nobody_reads_are_named_up_to_a_bound() -> None:
    node = Node()
    node.runs(document(annotations={f"nodeagent.io/x{at}": "" for at in range(1000)}, addresses=ADDRESSES))
    *named, more = node.pod().faults
    assert len(named) == 8
    assert more == "and 992 more labels and annotations of it, its Namespace and its Services"


def bad_service(at: int, key: str) -> Change:
    annotations = {f"nodeagent.io/{key}{each}": "x" for each in range(8)} | {"nodeagent.io/path": "x"}
    return service(f"s{at:02}", namespace="shop", annotations=annotations, addresses=[])


def test_what_a_tenants_services_say_wrong_is_bounded_at_a_pod_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Input: 40 Services with 9 wrong annotations each select 20 pods; then one Service is changed. Verdict: a pod
    has 8 faults and a number; the log has each once, whatever the number of pods.
    """
    node = Node()
    for at in range(20):
        address = f"10.0.0.{at + 1}"
        node.runs(document(f"p{at}", labels={"app": "web"}, addresses=[{"ip": address}]), address)
    node.mesh.apply(bad_service(at, "dataplam") for at in range(40))
    for each in node.mesh.node_pods:
        assert len(each.faults) == 9
        assert each.faults[-1].startswith("and 352 more labels and annotations")
    assert len(caplog.records) == 9
    caplog.clear()
    node.mesh.apply([bad_service(0, "pass")])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 7
    assert all(" and 19 more: Service s00: metadata.annotations[nodeagent.io/pass" in each for each in said)


def test_faults_of_many_pods_at_once_are_logged_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.mesh.apply(document(f"p{at}", labels={f"nodeagent.io/x{at}": ""}) for at in range(80))
    assert len(caplog.records) == 51
    assert caplog.records[-1].getMessage() == "30 more faults of pods: see nodeagent get pods"


def test_ports_that_are_the_agents_in_a_captured_pod_are_named() -> None:
    containers = [{"name": "web", "ports": [{"containerPort": 15006}, {"containerPort": 8080}]}]
    node = Node()
    node.runs(document(labels=ENABLED, containers=containers, addresses=ADDRESSES))
    assert node.pod().faults == (
        "spec.containers[].ports: 15006: the agent listens there in a captured pod: take another",
    )
    node.runs(document(labels=DISABLED, containers=containers, addresses=ADDRESSES))
    assert node.pod().faults == ()


def test_a_document_that_is_wrong_never_reaches_a_verdict() -> None:
    with pytest.raises(ResourceError):
        pod(containers=[{"name": ["x"]}])
