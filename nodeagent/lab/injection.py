"""Classic sidecars in a lab: the injector's own output for every pod of the documents, and what a
sidecar finds on a node. Pure.

Every namespace of the lab counts as labelled ``istio-injection: enabled`` unless it says otherwise,
so that the same manifests run in each mode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from nodeagent.errors import InjectionError
from nodeagent.inject import Injected, InjectionSettings, PodNamespace, inject
from nodeagent.istio import INJECTION_LABEL, ROOT_NAMESPACE
from nodeagent.lab.layout import PODS, SERVICES, Layout, Object
from nodeagent.resources.load import Document
from nodeagent.resources.model import DeploymentResource, PodResource

TEMPLATES: Final = {"envoy": "envoy", "sidecar": "nodeagent"}
"""Lab mode -> the injector's template."""


def settings(mode: str, layout: Layout, overlay: Mapping[str, object]) -> InjectionSettings:
    """Return the injector's settings of a lab: *overlay* may hold ``native``, ``hold`` and ``values``."""
    values: dict[str, object] = {"drainSeconds": 0} if mode == "envoy" else {}
    values |= {
        "meshRanges": [str(network) for network in (*PODS, *SERVICES)],
        "source": str(layout.state),
    }
    given = overlay.get("values")
    if isinstance(given, Mapping):
        values |= given
    native = bool(overlay.get("native"))
    return InjectionSettings(TEMPLATES[mode], native=native, hold=bool(overlay.get("hold")), values=values)


def injected(documents: Sequence[Document], there: Iterable[Object], given: InjectionSettings) -> list[Document]:
    """Return *documents* with a sidecar in every pod that takes one; *there* are the objects that
    the lab holds already.

    Raises ResourceError for a pod that the injector refuses.
    """
    objects = {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in there}
    objects |= {document.key: document.resource.dump() for document in documents}
    return [_injected(document, objects.values(), given) for document in documents]


def _injected(document: Document, objects: Iterable[Object], given: InjectionSettings) -> Document:
    resource = document.resource
    if not isinstance(resource, PodResource | DeploymentResource):
        return document
    value = resource.dump()
    namespace = resource.metadata.namespace
    own = given.template == TEMPLATES["sidecar"]  # it reads them in the source's folder
    here = InjectionSettings(
        given.template,
        native=given.native,
        hold=given.hold,
        values={**({} if own else _of_the_mesh(namespace, objects)), **given.values},
    )
    pod = value if isinstance(resource, PodResource) else value["spec"]["template"]
    try:
        done = inject(pod, PodNamespace(namespace, _labels(namespace, objects)), here)
    except InjectionError as error:
        raise document.error(
            "the sidecar's injection",
            str(error),
            'a pod that takes a sidecar, or the label sidecar.istio.io/inject: "false"',
        ) from None
    if not isinstance(done, Injected):
        return document
    value = (
        done.pod if isinstance(resource, PodResource) else {**value, "spec": {**value["spec"], "template": done.pod}}
    )
    return Document(document.file, document.number, type(resource).model_validate_json(json.dumps(value)))


def _labels(name: str, objects: Iterable[Object]) -> Mapping[str, str]:
    found = (
        each["metadata"].get("labels", {})
        for each in objects
        if each["kind"] == "Namespace" and each["metadata"]["name"] == name
    )
    return {INJECTION_LABEL: "enabled", **next(found, {})}


def _of_the_mesh(namespace: str, objects: Iterable[Object]) -> Object:
    """Return what a sidecar without a control plane has to be told of policies: they are part of its configuration."""
    policies = [each for each in objects if each["kind"] == "AuthorizationPolicy"]
    modes = {
        each["metadata"].get("namespace", ""): each.get("spec", {}).get("mtls", {}).get("mode", "UNSET")
        for each in objects
        if each["kind"] == "PeerAuthentication" and not each.get("spec", {}).get("selector")
    }
    mode = next(
        (modes[place] for place in (namespace, ROOT_NAMESPACE) if modes.get(place, "UNSET") != "UNSET"), "PERMISSIVE"
    )
    return {"authorizationPolicies": policies, "mtls": mode}
