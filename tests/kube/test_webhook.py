"""Injection in a real API server: what is stored is what is checked."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.inject import STATUS
from tests.kube.cluster import ROOT, Cluster
from tests.kube.webhook import NAMESPACE as SYSTEM
from tests.kube.webhook import OWN_IMAGE, REGISTRATION, Webhook, wait

INJECT, INJECTION, REVISION = "sidecar.istio.io/inject", "istio-injection", "istio.io/rev"
NAMESPACES: dict[str, dict[str, str]] = {
    "absent": {},
    "enabled": {INJECTION: "enabled"},
    "disabled": {INJECTION: "disabled"},
    "rev": {REVISION: "default"},
    "canary": {REVISION: "canary"},
    "enabled-canary": {INJECTION: "enabled", REVISION: "canary"},
    "disabled-rev": {INJECTION: "disabled", REVISION: "default"},
}


@pytest.fixture(scope="module")
def registered(cluster: Cluster) -> Iterator[Webhook]:
    webhook = Webhook(cluster)
    for name, labels in NAMESPACES.items():
        cluster.namespace(name, **labels)
    yield webhook
    assert webhook.stop() == 0


@pytest.fixture
def webhook(registered: Webhook) -> Webhook:
    """The webhook, running and called."""
    if not registered.running:
        registered.start()
        wait(
            lambda: create(registered.cluster, "enabled", pod(), "?dryRun=All")[0] == 201,
            "the API server calls the webhook",
        )
    return registered


def pod(
    name: str = "", *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a pod; without a name, one as controllers make them."""
    metadata = {"name": name} if name else {"generateName": "web-5d9c7b-"}
    container = {
        "name": "web",
        "image": "web:1",
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
    }
    return {
        "metadata": metadata | {"labels": labels or {}, "annotations": annotations or {}},
        "spec": {"containers": [container], **spec},
    }


def create(cluster: Cluster, namespace: str, body: Any, query: str = "") -> tuple[int, Any]:
    return cluster.call("POST", f"/api/v1/namespaces/{namespace}/pods{query}", body)


def stored(cluster: Cluster, namespace: str, body: Any) -> Any:
    """Make a pod and return what the API server then has."""
    status, document = create(cluster, namespace, body)
    assert status == 201, document
    return cluster.ok("GET", f"/api/v1/namespaces/{namespace}/pods/{document['metadata']['name']}")


def sidecars(found: Any) -> list[str]:
    """Return where the pod has the sidecar's proxy, once for each."""
    return [
        kind
        for kind in ("initContainers", "containers")
        for container in found["spec"].get(kind, ())
        if container["name"] == "istio-proxy"
    ]


def wanted(namespace: dict[str, str], label: str | None, annotation: str | None, revision: str | None) -> bool:
    """Istio's rule, written down for itself: the selectors of its four webhooks, then what its injector looks at."""
    if INJECTION in namespace:
        called = namespace[INJECTION] == "enabled" and label != "false"
    elif REVISION in namespace:
        called = namespace[REVISION] == "default" and label != "false"
    elif revision is not None:
        called = revision == "default" and label != "false"
    else:
        called = label == "true"
    word = label if label is not None else annotation
    return called and word in (None, "true")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_way_of_opting_in_and_out(webhook: Webhook, namespace: str) -> None:
    wrong = []
    choices = itertools.product(
        (None, "true", "false", "maybe"), (None, "true", "false", "maybe"), (None, "default", "canary")
    )
    for number, (label, annotation, revision) in enumerate(choices):
        labels = {key: value for key, value in ((INJECT, label), (REVISION, revision)) if value is not None}
        annotations = {INJECT: annotation} if annotation is not None else {}
        found = stored(webhook.cluster, namespace, pod(f"combination-{number}", labels=labels, annotations=annotations))
        if bool(sidecars(found)) != wanted(NAMESPACES[namespace], label, annotation, revision):
            wrong.append(f"label {label}, annotation {annotation}, revision {revision}: {sidecars(found)}")
    assert not wrong


def test_a_controllers_pod_is_injected(webhook: Webhook) -> None:
    found = stored(webhook.cluster, "enabled", pod())
    assert found["metadata"]["name"].startswith("web-5d9c7b-")
    assert sidecars(found) == ["initContainers"], "native, as webhook.yaml says"
    assert found["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == 15020
    assert STATUS in found["metadata"]["annotations"]


def test_an_injected_pod_begins_with_the_webhooks_own_image(webhook: Webhook) -> None:
    """Input: the manifest's settings, which name none. Verdict: a kustomization's ``images:`` reaches injected pods."""
    spec = stored(webhook.cluster, "enabled", pod())["spec"]
    images = {each["name"]: each["image"] for each in spec["initContainers"]}
    assert images["istio-init"] == OWN_IMAGE
    assert images["istio-proxy"] != OWN_IMAGE, "Envoy is another program"


def test_an_injected_pod_that_comes_again_stays_as_it_is(webhook: Webhook) -> None:
    first = stored(webhook.cluster, "enabled", pod("again"))
    body = {
        "metadata": {key: first["metadata"][key] for key in ("labels", "annotations") if key in first["metadata"]},
        "spec": first["spec"],
    }
    body["metadata"]["name"] = "again-2"
    second = stored(webhook.cluster, "enabled", body)
    assert second["spec"] == first["spec"]
    assert second["metadata"]["annotations"] == first["metadata"]["annotations"]


def test_host_network_and_the_systems_own_namespaces_are_left_alone(webhook: Webhook) -> None:
    assert not sidecars(stored(webhook.cluster, "enabled", pod("host", hostNetwork=True)))
    webhook.cluster.ok(
        "PATCH",
        "/api/v1/namespaces/kube-system",
        {"metadata": {"labels": {INJECTION: "enabled"}}},
        "application/merge-patch+json",
    )
    webhook.cluster.call("POST", "/api/v1/namespaces/kube-system/serviceaccounts", {"metadata": {"name": "default"}})
    assert not sidecars(stored(webhook.cluster, "kube-system", pod("system")))


def test_dry_run_shows_the_sidecar_and_stores_nothing(webhook: Webhook) -> None:
    status, document = create(webhook.cluster, "enabled", pod("dry"), "?dryRun=All")
    assert status == 201
    assert sidecars(document)
    assert webhook.cluster.call("GET", "/api/v1/namespaces/enabled/pods/dry")[0] == 404


def test_a_pod_that_cannot_be_injected_is_denied_with_the_reason(webhook: Webhook) -> None:
    status, document = create(
        webhook.cluster,
        "enabled",
        pod("denied", annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "eighty"}),
    )
    assert status == 400
    assert "denied the request: sidecar injection:" in document["message"]
    assert "traffic.sidecar.istio.io/excludeInboundPorts" in document["message"]
    assert webhook.cluster.call("GET", "/api/v1/namespaces/enabled/pods/denied")[0] == 404
    assert 'nodeagent_webhook_reviews_total{reason="injection_error",result="denied"}' in webhook.get("/metrics")


def test_a_large_pod_is_injected(webhook: Webhook) -> None:
    body = pod("large")
    body["spec"]["containers"][0]["env"] = [{"name": f"SETTING_{number}", "value": "x" * 1000} for number in range(700)]
    assert sidecars(stored(webhook.cluster, "enabled", body))


def test_a_webhook_that_is_gone_keeps_pods_from_starting_without_a_sidecar(webhook: Webhook) -> None:
    """failurePolicy Fail, as in the manifest; nobody else's pods are concerned."""
    assert webhook.stop() == 0
    status, document = create(webhook.cluster, "enabled", pod("fail"))
    assert status == 500
    assert "failed calling webhook" in document["message"]
    assert not sidecars(stored(webhook.cluster, "absent", pod("nobodys-business")))
    assert not sidecars(stored(webhook.cluster, "enabled", pod("opted-out", labels={INJECT: "false"})))


def test_a_webhook_that_is_gone_may_be_ignored(webhook: Webhook) -> None:
    webhook.change(failurePolicy="Ignore")
    try:
        assert webhook.stop() == 0
        # The API server's own view of the registration follows a moment later; until then it
        # refuses.
        wait(lambda: create(webhook.cluster, "enabled", pod("ignore"))[0] == 201, "a pod without a sidecar")
        assert not sidecars(webhook.cluster.ok("GET", "/api/v1/namespaces/enabled/pods/ignore"))
    finally:
        webhook.change(failurePolicy="Fail")


def test_a_ca_bundle_that_was_overwritten_is_repaired(webhook: Webhook, tmp_path: Path) -> None:
    other = CertificateAuthority.open_or_create(tmp_path, "cluster.local").roots_pem
    client = {"caBundle": base64.b64encode(other).decode()}
    webhook.change(clientConfig=client)
    assert webhook.bundles() == {other}
    wait(webhook.trusted, "the roots are back")
    wait(lambda: create(webhook.cluster, "enabled", pod("repaired"))[0] == 201, "and in force")
    assert sidecars(webhook.cluster.ok("GET", "/api/v1/namespaces/enabled/pods/repaired"))
    assert 'nodeagent_webhook_registrations_total{result="repaired"}' in webhook.get("/metrics")


def test_a_registration_that_is_gone_is_told_and_taken_up_when_it_is_back(webhook: Webhook) -> None:
    kept = webhook.registration()
    webhook.cluster.ok("DELETE", REGISTRATION)
    wait(lambda: "status 404" in webhook.log.read_text(), "a word in the log")
    for entry in kept["webhooks"]:
        del entry["clientConfig"]["caBundle"]
    metadata = {"name": kept["metadata"]["name"]}
    webhook.cluster.ok("POST", REGISTRATION.rpartition("/")[0], {"metadata": metadata, "webhooks": kept["webhooks"]})
    wait(webhook.trusted, "the caBundle of the new one")
    wait(lambda: create(webhook.cluster, "enabled", pod())[0] == 201, "pods are made again")


def test_the_root_is_exchanged_without_a_refused_pod(webhook: Webhook) -> None:
    """Every pod that is made meanwhile must get through: with failurePolicy Fail each handshake counts."""
    made = 0

    def settled(condition: bool) -> bool:
        nonlocal made
        assert sidecars(stored(webhook.cluster, "enabled", pod()))
        made += 1
        return condition

    def step(name: str) -> None:
        command = [
            sys.executable,
            "-m",
            "nodeagent",
            "ca",
            "rotate-root",
            name,
            "--secret",
            "nodeagent-system/nodeagent-webhook",
            "--kubeconfig",
            str(webhook.cluster.kubeconfig),
            "--after",
            "0",
        ]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    def signed_by(roots: bytes) -> bool:
        context = ssl.create_default_context(cadata=roots.decode())
        try:
            with (
                socket.create_connection(("127.0.0.1", webhook.port), 5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1"),
            ):
                return True
        except ssl.SSLCertVerificationError:
            return False

    old = webhook.roots()
    step("prepare")
    wait(lambda: settled(webhook.roots() != old), "the webhook has both roots")
    both = webhook.roots()
    wait(lambda: settled(webhook.bundles() == {both}), "both roots are trusted")
    step("switch")
    wait(lambda: settled(not signed_by(old)), "the new root's certificate is shown")
    step("finish")
    wait(lambda: settled(webhook.roots() != both), "the webhook has the new root alone")
    new = webhook.roots()
    assert new != old
    wait(lambda: settled(webhook.bundles() == {new}), "the new root alone is trusted")
    wait(lambda: settled(signed_by(new)), "and signs")
    assert made > 3


def test_its_account_may_do_no_more_than_it_needs(webhook: Webhook) -> None:
    def may(verb: str, resource: str, name: str = "", namespace: str = "enabled") -> bool:
        group, _, plural = resource.rpartition("/")
        attributes = {
            "verb": verb,
            "group": group,
            "resource": plural,
            "name": name,
            "namespace": "" if group else namespace,
        }
        spec = {"user": "system:serviceaccount:nodeagent-system:nodeagent-webhook", "resourceAttributes": attributes}
        return bool(
            webhook.cluster.ok("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})["status"][
                "allowed"
            ]
        )

    registrations, own = "admissionregistration.k8s.io/mutatingwebhookconfigurations", "nodeagent-sidecar-injector"
    assert may("patch", registrations, own)
    assert not may("patch", registrations, "another")
    assert not may("delete", registrations, own)
    assert not may("get", "secrets", "any")
    assert not may("create", "pods")
    assert may("get", "pods", "any", SYSTEM)
    assert not may("get", "pods", "any") and not may("list", "pods", "", SYSTEM)


def test_the_manifests_hold_together(webhook: Webhook) -> None:
    """The Service leads to the Deployment's port, the certificate is for the Service, and the pods
    of the webhook wait for no webhook.
    """
    named = ("get", "service/nodeagent-webhook", "deployment/nodeagent-webhook", "-n", "nodeagent-system", "-o", "json")
    service, deployment = json.loads(webhook.cluster.kubectl(*named))["items"]
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in [each["name"] for each in container["ports"]]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["metadata"]["labels"][INJECT] == "false"
    config = (ROOT / "daemonset" / "webhook" / "webhook.yaml").read_text()
    text = (ROOT / "daemonset" / "webhook" / "registration.yaml").read_text()
    assert "names: [nodeagent-webhook.nodeagent-system.svc]" in config
    assert text.count("service: {name: nodeagent-webhook, namespace: nodeagent-system, ") == 4
