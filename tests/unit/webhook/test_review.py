"""Reviews without a network: what is no review, and that the patch is the injector's output."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import jsonpatch
import pytest

from nodeagent.inject import Injected, InjectionSettings, PodNamespace, inject, shape
from nodeagent.resources import load
from nodeagent.webhook.review import (
    ENTRIES,
    MAX_ITEMS,
    MAX_PARTS,
    MAX_VALUES,
    BadReviewError,
    answer,
    decide,
    labels,
    parse,
)
from tests.unit.webhook.reviews import POD, SETTINGS, body, review_of


def changed(path: str, value: Any) -> bytes:
    """Return a good review with one value replaced; None: taken out."""
    document = json.loads(body(POD))
    *parents, last = path.split(".")
    holder = document
    for name in parents:
        holder = holder[name]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "kind: AdmissionReview"),
        (b"null", "kind: AdmissionReview"),
        (b'{"kind": ["AdmissionReview"]}', "kind: AdmissionReview"),
        (
            changed("apiVersion", "admission.k8s.io/v1beta1"),
            "apiVersion: \"admission.k8s.io/v1\" is expected, not 'admission.k8s.io/v1beta1'",
        ),
        (changed("request", None), "request: a mapping"),
        (changed("request", []), "request: a mapping"),
        (changed("request.operation", "UPDATE"), "operation: \"CREATE\" is expected, not 'UPDATE'"),
        (changed("request.resource", {"group": "apps", "version": "v1", "resource": "deployments"}), "resource: "),
        (changed("request.kind", {"group": "", "version": "v1", "kind": "Binding"}), "kind: "),
        (changed("request.subResource", "eviction"), "subResource"),
        (changed("request.uid", 7), "uid: a text"),
        (changed("request.uid", "x" * 1000), "uid: a text"),
        (changed("request.namespace", None), "namespace: a text"),
        (changed("request.namespace", ""), "namespace: a text"),
        (changed("request.object", None), "object: a mapping"),
        (changed("request.object", "pod"), "object: a mapping"),
        (changed("request.object.metadata", None), "metadata: a mapping"),
        (changed("request.object.spec", None), "spec: a mapping"),
        (changed("request.operation", "x" * 10_000), "operation: "),
    ],
)
def test_what_is_no_review_is_refused_by_name(bad: bytes, message: str) -> None:
    with pytest.raises(BadReviewError) as caught:
        parse(bad)
    assert message in str(caught.value)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 400


def test_a_review_of_a_million_values_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BadReviewError, match="200001 values; at most 200000") as caught:
        parse(b"[" + b"," * (MAX_VALUES + 1))
    assert caught.value.status == 413


def test_the_patch_makes_the_injectors_pod() -> None:
    review = review_of(POD)
    before = copy.deepcopy(review.pod)
    verdict = decide(review, labels("namespace", SETTINGS.revision), SETTINGS)
    expected = inject(POD, PodNamespace("shop", {"istio-injection": "enabled"}), SETTINGS)
    assert isinstance(expected, Injected)
    assert expected.pod != POD
    document = json.loads(answer(review, verdict))
    response = document["response"]
    assert (document["apiVersion"], document["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert (response["uid"], response["allowed"], response["patchType"]) == ("uid-1", True, "JSONPatch")
    patch = json.loads(base64.b64decode(response["patch"]))
    assert jsonpatch.apply_patch(before, patch) == expected.pod
    assert review.pod == before


def test_applying_twice_changes_nothing() -> None:
    verdict = decide(review_of(POD), labels("namespace", SETTINGS.revision), SETTINGS)
    injected = jsonpatch.apply_patch(POD, verdict.patch)
    again = decide(review_of(injected), labels("namespace", SETTINGS.revision), SETTINGS)
    assert not again.patch
    assert json.loads(answer(review_of(injected), again))["response"] == {"uid": "uid-1", "allowed": True}


def test_the_namespace_is_the_requests() -> None:
    """A controller's pod has no name and no namespace of its own."""
    pod = copy.deepcopy(POD)
    pod["metadata"] = {"generateName": "web-7d4b9-"}
    review = review_of(pod)
    assert review.namespace == "shop"
    assert review.name == "shop/web-7d4b9-"
    assert decide(review, labels("namespace", SETTINGS.revision), SETTINGS).result == "injected"
    assert (
        decide(review_of(pod, namespace="kube-system"), labels("namespace", SETTINGS.revision), SETTINGS).result
        == "skipped"
    )


def test_a_pod_that_cannot_be_injected_is_denied_with_the_reason() -> None:
    pod = copy.deepcopy(POD)
    pod["metadata"]["annotations"] = {"traffic.sidecar.istio.io/excludeInboundPorts": "eighty"}
    review = review_of(pod)
    response = json.loads(answer(review, decide(review, labels("namespace", SETTINGS.revision), SETTINGS)))["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 400
    assert "traffic.sidecar.istio.io/excludeInboundPorts" in response["status"]["message"]
    assert "patch" not in response


def test_no_container_mounts_what_the_template_brings() -> None:
    """A volume of the sidecar may be a folder of the host."""
    settings = InjectionSettings(template="nodeagent", values={"meshRanges": ["10.0.0.0/8"]})
    for name in ("containers", "initContainers"):
        pod = copy.deepcopy(POD)
        pod["spec"].setdefault(name, [{"name": "c", "image": "app"}])[0]["volumeMounts"] = [
            {"name": "nodeagent-source", "mountPath": "/x"}
        ]
        verdict = decide(review_of(pod), labels("namespace", "default"), settings)
        assert verdict.result == "denied"
        assert verdict.text.startswith(f"spec.{name}[0].volumeMounts[0].name: ")


@pytest.mark.parametrize("name", ["containers", "initContainers", "volumes"])
def test_a_pod_of_a_hundred_thousand_parts_is_denied_at_once(name: str) -> None:
    pod = copy.deepcopy(POD)
    pod["spec"][name] = [{"name": f"c{number}", "image": "app"} for number in range(MAX_ITEMS + 1)]
    verdict = decide(review_of(pod), labels("namespace", SETTINGS.revision), SETTINGS)
    assert (verdict.result, verdict.reason) == ("denied", "too_large")
    assert f"spec.{name}" in verdict.text


@pytest.mark.parametrize(
    "add",
    [
        lambda pod: pod["metadata"].update(labels={str(number): 1 for number in range(MAX_PARTS)}),
        lambda pod: pod["metadata"].update(annotations={str(number): "" for number in range(MAX_PARTS)}),
        lambda pod: pod["spec"]["containers"][0].update(ports=[{}] * (MAX_PARTS + 1)),
        lambda pod: pod["spec"].update(initContainers=[{"volumeMounts": [{}] * 100}] * 101),
    ],
    ids=["labels", "annotations", "ports", "mounts"],
)
def test_a_pod_of_many_wrong_parts_is_denied_before_it_is_read(add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = copy.deepcopy(POD)
    add(pod)
    monkeypatch.setattr(shape, "read", pytest.fail)
    verdict = decide(review_of(pod), labels("namespace", SETTINGS.revision), SETTINGS)
    assert (verdict.result, verdict.reason) == ("denied", "too_large")
    assert str(MAX_PARTS) in verdict.text


def test_of_what_is_wrong_a_bounded_number_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return path(*arguments)

    path = load._path
    monkeypatch.setattr(load, "_path", counted)
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0]["ports"] = [{}] * (MAX_PARTS // 2)
    verdict = decide(review_of(pod), labels("namespace", SETTINGS.revision), SETTINGS)
    assert "containerPort: missing" in verdict.text
    assert len(looks) < 1000


def test_a_deep_pod_is_no_crash() -> None:
    pod = copy.deepcopy(POD)
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    pod["spec"]["deep"] = deep
    assert decide(review_of(pod), labels("namespace", SETTINGS.revision), SETTINGS).reason in ("", "injection_error")


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": "x"},
        {"containers": [7]},
        {"containers": None},
        {"containers": [{}], "volumes": {"a": 1}},
        {"initContainers": 7},
    ],
)
def test_a_pod_of_wrong_types_is_no_crash(spec: Any) -> None:
    pod = {**POD, "spec": spec}
    assert decide(review_of(pod), labels("namespace", SETTINGS.revision), SETTINGS).result in ("denied", "skipped")


def test_each_entry_stands_for_what_the_api_server_has_compared() -> None:
    assert {entry: dict(labels(entry, "canary")) for entry in ENTRIES} == {
        "namespace": {"istio-injection": "enabled"},
        "object": {},
        "revision-namespace": {"istio.io/rev": "canary"},
        "revision-object": {},
    }
