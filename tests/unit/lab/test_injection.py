"""Documents of a lab with sidecars: who gets one, and what it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.lab import injection
from nodeagent.lab.layout import Layout
from nodeagent.resources.load import Document, parse

TEXT = """
apiVersion: v1
kind: Namespace
metadata: {name: "off", labels: {istio-injection: disabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: strict}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-get, namespace: strict}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec: {containers: [{name: c, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: without, labels: {sidecar.istio.io/inject: "false"}}
spec: {containers: [{name: c, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: left-out, namespace: "off"}
spec: {containers: [{name: c, command: [sleep, infinity]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: strict}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, command: [sleep, infinity]}]}
"""


def injected(
    mode: str = "envoy", text: str = TEXT, there: list[dict[str, Any]] | None = None, **overlay: Any
) -> dict[str, Document]:
    documents = injection.injected(
        parse(text, "app.yaml"), there or [], injection.settings(mode, Layout("mine"), overlay)
    )
    return {document.resource.metadata.name: document for document in documents}


def spec(document: Document) -> dict[str, Any]:
    value = document.resource.dump()["spec"]
    found: dict[str, Any] = value.get("template", {}).get("spec", value)
    return found


def names(document: Document, field: str = "containers") -> list[str]:
    return [each["name"] for each in spec(document).get(field, ())]


@pytest.mark.parametrize("mode", injection.TEMPLATES)
def test_every_pod_gets_one_that_does_not_say_otherwise(mode: str) -> None:
    found = injected(mode)
    assert {name: names(found[name]) for name in ("plain", "web", "without", "left-out")} == {
        "plain": ["c", "istio-proxy"], "web": ["c", "istio-proxy"], "without": ["c"], "left-out": ["c"],
    }  # fmt: skip
    assert names(found["web"], "initContainers") == ["istio-init"]


def test_a_label_of_a_namespace_that_is_there_already_counts() -> None:
    there = [{"kind": "Namespace", "metadata": {"name": "default", "labels": {"istio-injection": "disabled"}}}]
    assert names(injected(text=TEXT, there=there)["plain"]) == ["c"]


def test_native_and_hold_are_the_injectors() -> None:
    assert names(injected(native=True)["plain"], "initContainers") == ["istio-init", "istio-proxy"]
    assert names(injected(hold=True)["plain"]) == ["istio-proxy", "c"]


def test_a_static_envoy_is_told_the_meshs_policies_and_modes() -> None:
    def told(name: str) -> str:
        return json.dumps(spec(injected()[name]))

    assert "only-get" in told("web")
    assert "only-get" not in told("plain")
    assert "raw_buffer" not in told("web"), "STRICT takes no plaintext"
    assert "raw_buffer" in told("plain")


def test_our_own_sidecar_reads_the_labs_folder() -> None:
    (volume,) = (each for each in spec(injected("sidecar")["plain"])["volumes"] if "hostPath" in each)
    assert volume["hostPath"]["path"] == str(Layout("mine").state)


def test_a_pod_that_cannot_be_injected_is_named() -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, command: [x], ports: "
        "[{containerPort: 15001}]}]}"
    )
    with pytest.raises(ResourceError, match=r"app.yaml: document 1 \(Pod default/p\).*15001"):
        injected(text=text)
