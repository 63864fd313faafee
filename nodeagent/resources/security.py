"""Istio's security resources as the agent takes them: validated field by field as Istio does,
unknown fields refused.

The rules are those of Istio's own validation (pkg/config/validation) and of the schemas of its
custom resources; each kind has a module of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, cast

from nodeagent.errors import ResourceError
from nodeagent.policy.model import AuthorizationPolicy, PeerAuthentication, RateLimit, RequestAuthentication, Rule
from nodeagent.resources import authorization_policy, peer_authentication, rate_limit, request_authentication
from nodeagent.resources.authorization_policy import is_dry_run
from nodeagent.resources.objects import NAME, NAMESPACE
from nodeagent.resources.part import Part
from nodeagent.resources.policy_scope import SELECTING, Labels, PolicyTarget, Scope, scope, selector
from nodeagent.resources.seen import is_known, is_whole
from nodeagent.vocabulary import JsonObject, ObjectKey

Kind = Literal["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "RateLimit"]
Spec = PeerAuthentication | AuthorizationPolicy | RequestAuthentication | RateLimit
ISTIO: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


@dataclass(frozen=True, slots=True)
class Policy:
    """A resource and whom it is for."""

    kind: Kind
    namespace: str
    name: str
    created: str
    """RFC 3339, which sorts by time; empty when it is not said, which counts as oldest."""
    selector: Labels
    targets: tuple[PolicyTarget, ...]
    spec: Spec
    refused: str = ""
    """What is wrong with the document; the policy then stands in for it and closes what it selects."""
    unseen: bool = False
    """It stands in for a text of which was not seen which pods it selects: it closes all of its
    namespace, and none where that is the root namespace, whose policies are for the whole mesh.
    """

    @property
    def key(self) -> ObjectKey:
        return self.kind, self.namespace, self.name

    @property
    def closing(self) -> str:
        """What it closes where it stands in for a wrong document, in words."""
        if self.unseen:
            return "which pods it selects is not seen: it closes all of its namespace, in the root namespace none"
        return "it closes what it selects"


def parse(document: object) -> Policy:
    """Return *document*, a resource of :data:`KINDS`. Raises ResourceError naming the field, its
    value and what is allowed.
    """
    root = Part("", document)
    kind = root.text("kind")
    if kind not in _READERS:
        raise root.wrong("kind", f"allowed: {', '.join(sorted(_READERS))}")
    versions, read = _READERS[kind]
    root.only("apiVersion", "kind", "metadata", "spec", "status")
    root.choice("apiVersion", versions)
    metadata = root.sub("metadata")
    name = metadata.matching("name", NAME, "a lower-case DNS name")
    namespace = metadata.matching("namespace", NAMESPACE, "a namespace's name", default="default")
    created = ""
    if metadata.has("creationTimestamp"):
        created = metadata.matching("creationTimestamp", _TIME, "a time as 2026-01-31T12:00:00Z")
    annotations = metadata.texts("annotations")
    metadata.texts("labels")
    spec = root.sub("spec")
    found = _scope(kind, spec, namespace)
    read_spec = read(spec, namespace, name, annotations)
    return Policy(cast(Kind, kind), namespace, name, created, found.selector, found.targets, read_spec)


def _scope(kind: str, spec: Part, namespace: str) -> Scope:
    return Scope(selector(spec)) if kind == "PeerAuthentication" else scope(spec, namespace)


def whose(document: object) -> ObjectKey | None:
    """Return kind, namespace and name of *document* although it is wrong, one without a name by its
    content; None where it does not say, or where that was not seen.
    """
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(metadata, dict):
        return None
    kind = document.get("kind")
    namespace = metadata.get("namespace", "default")
    name = metadata.get("name")
    if not isinstance(kind, str) or not isinstance(namespace, str):
        return None
    whole = is_whole(metadata) and is_whole(document)
    if not whole and ("namespace" not in metadata or not isinstance(name, str)):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= 253:
        name = f"unnamed-{sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]}"
    return kind[:253], namespace[:253], name


def stand_in(key: ObjectKey, document: object, error: str) -> Policy | None:
    """Return what takes the place of *document*, which is *key* and was refused with *error*: it
    closes what the document selects.

    That is read as far as it can be; a selector that is wrong, or was not seen, is the whole
    namespace (``Policy.unseen``). A
    PeerAuthentication becomes STRICT, all others deny everything. None: the document would refuse
    nobody, being another API's, an AUDIT policy or a dry run.
    """
    kind, namespace, name = key
    known = _mapping(document)
    spec = _mapping(known.get("spec"))
    metadata = _mapping(known.get("metadata"))
    if kind not in _READERS or _is_anothers(known.get("apiVersion"), kind):
        return None
    dry = is_dry_run(_mapping(metadata.get("annotations")))
    if kind == "AuthorizationPolicy" and (dry or spec.get("action") == "AUDIT"):
        return None
    try:
        selected = _scope(kind, Part("spec", spec), namespace)
    except ResourceError:
        selected = Scope()
    unseen = not _selection_is_seen(known, selected)
    if unseen:
        selected = Scope(selected.selector)  # fewer labels are more pods, but fewer targets are fewer
    created = metadata.get("creationTimestamp")
    if not isinstance(created, str) or not _TIME.fullmatch(created):
        created = ""
    closing: Spec = AuthorizationPolicy(namespace, name, "DENY", (Rule(),), refused=kind)
    if kind == "PeerAuthentication":
        closing = PeerAuthentication(namespace, name, "STRICT")
    return Policy(
        cast(Kind, kind), namespace, name, created, selected.selector, selected.targets, closing, error, unseen
    )


def _selection_is_seen(document: JsonObject, selected: Scope) -> bool:
    """Say whether all of *document* that makes it select *selected* was seen."""
    spec = document.get("spec")
    given = [spec.get(name) for name in SELECTING] if isinstance(spec, dict) else []
    if not all(is_known(each) for each in given):
        return False
    # All pods: a wrong indent may have ended the spec, and what narrows it may stand after the break.
    return selected != Scope() or (is_whole(spec) and is_whole(document))


def _mapping(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _is_anothers(version: object, kind: str) -> bool:
    """Say whether *version* names another API than *kind*'s: somebody else's resource of that name."""
    versions, _ = _READERS[kind]
    groups = {each.partition("/")[0] for each in versions}
    return isinstance(version, str) and version.partition("/")[0] not in groups


_READERS: Final[dict[str, tuple[tuple[str, ...], Callable[[Part, str, str, Mapping[str, str]], Spec]]]] = {
    "PeerAuthentication": (ISTIO, peer_authentication.read),
    "AuthorizationPolicy": (ISTIO, authorization_policy.read),
    "RequestAuthentication": (ISTIO, request_authentication.read),
    "RateLimit": (rate_limit.VERSIONS, rate_limit.read),
}
KINDS: Final = frozenset(_READERS)
GROUPS: Final = frozenset(versions[0].partition("/")[0] for versions, _ in _READERS.values())
"""API groups of policies."""
