"""Who gets a sidecar: every combination of the namespace's labels and the pod's, against the rules
as Istio's webhooks state them.
"""

from __future__ import annotations

import itertools

import pytest

from nodeagent.inject import Injected, InjectionSettings, PodNamespace, Skipped, inject
from tests.unit.inject.pods import RANGES, pod

INJECTION = (None, "enabled", "disabled", "other")
REVISION = (None, "default", "canary")
CHOICE = (None, "true", "false", "", "no", "Yes")


def reached(injection: str | None, rev: str | None, label: str | None, pod_rev: str | None, mine: str) -> bool:
    """Istio's five webhooks (istio-discovery/templates/mutatingwebhook.yaml), each as its two selectors."""
    default = mine == "default"
    of_namespace = rev == mine and injection is None and label != "false"
    of_object = rev is None and injection is None and label != "false" and pod_rev == mine
    legacy_namespace = default and injection == "enabled" and label != "false"
    legacy_object = default and injection is None and rev is None and label == "true" and pod_rev is None
    return of_namespace or of_object or legacy_namespace or legacy_object


def required(label: str | None, annotation: str | None) -> bool:
    """Istio's injectRequired under its policy `enabled`, which is the default."""
    word = (label if label is not None else annotation) or ""
    return word.lower() in ("", "y", "yes", "true", "on")


@pytest.mark.parametrize("mine", ["", "canary"])
@pytest.mark.parametrize("injection", INJECTION)
@pytest.mark.parametrize("rev", REVISION)
def test_every_combination(injection: str | None, rev: str | None, mine: str) -> None:
    labels = {key: value for key, value in (("istio-injection", injection), ("istio.io/rev", rev)) if value is not None}
    settings = InjectionSettings(revision=mine, values={"meshRanges": RANGES})
    for label, annotation, pod_rev in itertools.product(CHOICE, CHOICE, REVISION):
        own = {
            key: value
            for key, value in (("sidecar.istio.io/inject", label), ("istio.io/rev", pod_rev))
            if value is not None
        }
        asked = pod(labels=own, annotations={} if annotation is None else {"sidecar.istio.io/inject": annotation})
        found = inject(asked, PodNamespace("default", labels), settings)
        expected = reached(injection, rev, label, pod_rev, mine or "default") and required(label, annotation)
        assert isinstance(found, Injected) == expected, (label, annotation, pod_rev, found)


@pytest.mark.parametrize("name", ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"])
def test_the_systems_namespaces_are_left_alone(name: str) -> None:
    found = inject(
        pod(labels={"sidecar.istio.io/inject": "true"}),
        PodNamespace(name, {"istio-injection": "enabled"}),
        InjectionSettings(),
    )
    assert isinstance(found, Skipped)
    assert found.reason == "system-namespace"


def test_a_pod_of_the_nodes_network_is_left_alone() -> None:
    found = inject(
        pod(hostNetwork=True, labels={"sidecar.istio.io/inject": "true"}), PodNamespace("default"), InjectionSettings()
    )
    assert isinstance(found, Skipped)
    assert found.reason == "host-network"
    assert isinstance(
        inject(
            pod(hostNetwork=False),
            PodNamespace("default", {"istio-injection": "enabled"}),
            InjectionSettings("nodeagent"),
        ),
        Injected,
    )


def test_a_pod_for_windows_is_left_alone() -> None:
    namespace = PodNamespace("default", {"istio-injection": "enabled"})
    found = inject(pod(os={"name": "windows"}), namespace, InjectionSettings())
    assert isinstance(found, Skipped)
    assert found.reason == "windows"
    assert isinstance(inject(pod(os={"name": "linux"}), namespace, InjectionSettings("nodeagent")), Injected)


@pytest.mark.parametrize(
    ("labels", "own", "reason"),
    [
        ({"istio-injection": "disabled"}, {"sidecar.istio.io/inject": "true"}, "namespace-disabled"),
        ({"istio-injection": "enabled"}, {"sidecar.istio.io/inject": "false"}, "opted-out"),
        ({}, {}, "not-asked"),
        ({"istio.io/rev": "canary"}, {}, "other-revision"),
        ({}, {"istio.io/rev": "canary", "sidecar.istio.io/inject": "true"}, "other-revision"),
    ],
)
def test_the_reason_is_said(labels: dict[str, str], own: dict[str, str], reason: str) -> None:
    found = inject(pod(labels=own), PodNamespace("default", labels), InjectionSettings())
    assert isinstance(found, Skipped)
    assert found.reason == reason
    assert found.text
