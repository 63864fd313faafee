"""An AdmissionReview (admission.k8s.io/v1) and its answer. No I/O.

What is no review of a pod that is being made is refused with an HTTP status, and the registration's
failurePolicy says what then becomes of the pod. A pod that cannot be injected is denied in the
answer, as Istio does: its user sees why, and no pod starts without its sidecar.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import jsonpatch
import orjson

from nodeagent.errors import NodeagentError, shown, translated
from nodeagent.inject import Injected, InjectionError, InjectionSettings, PodNamespace, inject
from nodeagent.istio import INJECTION_LABEL, REVISION_LABEL
from nodeagent.kube.access import KubeObject

API_VERSION: Final = "admission.k8s.io/v1"
POD: Final = {"group": "", "version": "v1", "kind": "Pod"}
PODS: Final = {"group": "", "version": "v1", "resource": "pods"}
MAX_NAME: Final = 253
MAX_VALUES: Final = 200_000
"""In a review, by its commas, those in texts included: eight megabytes of nothing but values would
take half a minute.
"""
MAX_ITEMS: Final = 1000
"""Of a pod's containers, init containers and volumes each; a second's work."""
MAX_PARTS: Final = 10_000
"""Of a pod's labels, annotations, ports and mounts together: each may be wrong, and what is wrong costs tens of
microseconds more than what is not.
"""
Entry = Literal["namespace", "object", "revision-namespace", "revision-object"]
ENTRIES: Final[tuple[Entry, ...]] = ("namespace", "object", "revision-namespace", "revision-object")
"""What of Istio's four webhooks the API server matched; the last part of the path that it calls."""


class BadReviewError(NodeagentError):
    """What came is no review that can be answered; goes to the client with *status*."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Review:
    """A pod that is about to be made, as the API server asks about it."""

    uid: str
    namespace: str
    """The pod's, from the request: pods that controllers make hold none themselves."""
    pod: KubeObject = field(repr=False)
    """With a mapping for ``metadata`` and for ``spec``; nothing else of it has been looked at."""

    @property
    def name(self) -> str:
        """For logs: what the pod is called, or the beginning of it where the API server makes up the rest."""
        metadata = self.pod["metadata"]
        return f"{self.namespace}/{metadata.get('name') or metadata.get('generateName', '')}"[: 2 * MAX_NAME]


@dataclass(frozen=True, slots=True)
class Admission:
    """What becomes of a pod that is about to be made: *result* and *reason* are counted, *text* is
    for people.
    """

    result: Literal["injected", "skipped", "denied"]
    reason: str
    text: str
    patch: tuple[Mapping[str, object], ...] = ()
    """What gives the pod its sidecar: operations of a JSON Patch (RFC 6902)."""


def parse(body: bytes) -> Review:
    """Return the review that *body*, an AdmissionReview as JSON, holds. Raises BadReviewError with
    the HTTP status for its sender where it is none, or not of a pod that is being made.
    """
    if (values := body.count(b",")) > MAX_VALUES:
        raise BadReviewError(413, "too_large", f"a review of about {values} values; at most {MAX_VALUES} are allowed")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadReviewError(400, "malformed", f"not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict) or document.get("kind") != "AdmissionReview":
        raise BadReviewError(400, "malformed", "kind: AdmissionReview is expected")
    _expect(document, "apiVersion", API_VERSION)
    request = _mapping(document, "request")
    for name, value in (("operation", "CREATE"), ("resource", PODS), ("kind", POD)):
        _expect(request, name, value)
    if request.get("subResource"):
        raise BadReviewError(400, "malformed", "request.subResource: none is expected")
    uid = _text(request, "uid")
    namespace = _text(request, "namespace")
    pod = _mapping(request, "object")
    _mapping(pod, "metadata")
    _mapping(pod, "spec")
    return Review(uid, namespace, pod)


def labels(entry: Entry, revision: str) -> Mapping[str, str]:
    """Return the labels of a namespace for whose pods the API server calls *entry*, as far as
    injection looks at them.

    The API server has compared the real ones with the selectors of the registration
    (daemonset/webhook/registration.yaml), which are Istio's: no other namespace's pods come here.
    """
    match entry:
        case "namespace":
            return {INJECTION_LABEL: "enabled"}
        case "revision-namespace":
            return {REVISION_LABEL: revision}
        case "object" | "revision-object":
            return {}


def decide(review: Review, namespace_labels: Mapping[str, str], settings: InjectionSettings) -> Admission:
    """Return what becomes of the pod of *review*, whose namespace has *namespace_labels*, by an
    injector with *settings*: its decision, as a patch of what was sent.
    """
    if reason := _too_large(review.pod):
        return Admission("denied", "too_large", reason)
    try:
        with translated(InjectionError, "the pod cannot be read"):
            outcome = inject(review.pod, PodNamespace(review.namespace, namespace_labels), settings)
            if isinstance(outcome, Injected):
                return Admission("injected", "", "injected", tuple(jsonpatch.make_patch(review.pod, outcome.pod)))
    except InjectionError as error:
        return Admission("denied", "injection_error", str(error))
    return Admission("skipped", outcome.reason, outcome.text)


def _too_large(pod: KubeObject) -> str:
    """Return what of *pod* there is too much of, before any of it is read; empty: nothing."""
    spec = pod["spec"]
    for name in ("containers", "initContainers", "volumes"):
        if (count := _length(spec, name)) > MAX_ITEMS:
            return f"spec.{name}: {count} items, at most {MAX_ITEMS} are allowed"
    parts = sum(_length(pod["metadata"], name) for name in ("labels", "annotations"))
    for name in ("containers", "initContainers"):
        for container in spec[name] if _length(spec, name) else ():
            parts += _length(container, "ports") + _length(container, "volumeMounts")
    if parts > MAX_PARTS:
        return f"spec: {parts} labels, annotations, ports and mounts, at most {MAX_PARTS} are allowed"
    return ""


def _length(holder: object, name: str) -> int:
    """Return how many items or keys *name* of *holder* has; 0 for what is neither list nor mapping."""
    value = holder.get(name) if isinstance(holder, dict) else None
    return len(value) if isinstance(value, list | dict) else 0


def answer(review: Review, admission: Admission) -> bytes:
    """Return the AdmissionReview, as JSON, that answers *review* with *admission*."""
    response: dict[str, object] = {"uid": review.uid, "allowed": admission.result != "denied"}
    if admission.result == "denied":
        response["status"] = {"code": 400, "reason": "BadRequest", "message": f"sidecar injection: {admission.text}"}
    elif admission.patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(admission.patch)).decode()}
    return orjson.dumps({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response})


def _mapping(holder: KubeObject, name: str) -> KubeObject:
    value = holder.get(name)
    if not isinstance(value, dict):
        raise BadReviewError(400, "malformed", f"{name}: a mapping is expected")
    return value


def _text(holder: KubeObject, name: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise BadReviewError(400, "malformed", f"{name}: a text of 1 to {MAX_NAME} characters is expected")
    return value


def _expect(holder: KubeObject, name: str, expected: object) -> None:
    if holder.get(name) != expected:
        raise BadReviewError(
            400, "malformed", f"{name}: {orjson.dumps(expected).decode()} is expected, not {shown(holder.get(name))}"
        )
