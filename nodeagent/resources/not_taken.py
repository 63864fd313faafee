"""Kinds of Istio and of the Gateway API that nobody carries out here, and what a mesh loses by that.

They are told by name, once an object: in a folder by ``nodeagent get policies``, in a cluster by
``nodeagent check --cluster`` and ``nodeagent install``, which read them by the rights of whoever
runs them; an agent follows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.resources import security
from nodeagent.vocabulary import JsonObject

_GATEWAY: Final = "gateway.networking.k8s.io"
_KINDS_OF_ROUTES: Final = ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
_IN_MESH: Final = frozenset(("Service", "ServiceEntry"))
"""Parents of a route by which pods' own connections take it."""
_FILTER: Final = "its filter, such as authentication or a limit, does not run"
_ROUTES: Final = "its routes, retries, timeouts, redirects and faults have no effect"


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A kind that another mesh carries out."""

    group: str
    kind: str
    lost: str
    """In words."""


KINDS: Final = (
    NotTaken("networking.istio.io", "EnvoyFilter", "its filters, such as rate limits, do not run"),
    NotTaken("extensions.istio.io", "WasmPlugin", _FILTER),
    NotTaken("extensions.istio.io", "TrafficExtension", _FILTER),
    NotTaken("networking.istio.io", "Sidecar", "what it says of egress (REGISTRY_ONLY, hosts) keeps no pod back"),
    NotTaken("networking.istio.io", "DestinationRule", "its TLS, limits, outlier detection and subsets have no effect"),
    NotTaken(_GATEWAY, "BackendTLSPolicy", "the TLS that it asks for is not spoken, no certificate is looked at"),
    NotTaken("networking.istio.io", "WorkloadEntry", "its machine is no endpoint, and its address proves no identity"),
    NotTaken("networking.istio.io", "VirtualService", _ROUTES),
    NotTaken("networking.istio.io", "ServiceEntry", "its hosts are passed through as they are dialled"),
    NotTaken("networking.istio.io", "ProxyConfig", "there is no proxy in the pod that it configures"),
    NotTaken("telemetry.istio.io", "Telemetry", "its access logs, metrics and traces are not made"),
    *(NotTaken(_GATEWAY, kind, _ROUTES) for kind in _KINDS_OF_ROUTES),
    NotTaken("", "Service", "its sessionAffinity or trafficDistribution has no effect: any ready endpoint is chosen"),
)
"""What protects comes first."""
_BY_NAME: Final = {(each.group, each.kind): each for each in KINDS}


def group_of(document: JsonObject) -> str | None:
    """Return the API group of *document*, empty for Kubernetes' core; None: it names none."""
    version = document.get("apiVersion")
    return version.rpartition("/")[0] if isinstance(version, str) and version else None


def is_anothers(document: object) -> bool:
    """Say whether *document* is whole and somebody else's: of a kind and an API group that no policy has.

    One with a kind or a group of policies may be a policy whose other half is mistyped; a list that
    is still one here was cut off, or its items are: whose they were nobody knows.
    """
    if not isinstance(document, dict):
        return False
    kind = document.get("kind")
    version = document.get("apiVersion")
    if not isinstance(kind, str) or kind in security.KINDS or kind.endswith("List"):
        return False
    return isinstance(version, str) and version != "" and version.partition("/")[0] not in security.GROUPS


def lost(document: JsonObject) -> str:
    """Return what is lost as nobody carries *document* out here, in words; empty: nothing, as it is
    for gateways, or no object of a mesh.
    """
    kind = document.get("kind")
    found = _BY_NAME.get((group_of(document) or "", kind if isinstance(kind, str) else ""))
    return found.lost if found is not None and _is_for_mesh(document) else ""


def _is_for_mesh(document: JsonObject) -> bool:
    """Say whether pods' own connections would follow it: a VirtualService names the gateway ``mesh``
    or none (Istio's rule), a route has a Service as parent (the Gateway API's GAMMA), or a ServiceEntry (Istio).
    Of a Service: whether it asks for more than to be balanced.
    """
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return True
    if document.get("kind") == "Service":
        return spec.get("sessionAffinity") == "ClientIP" or bool(spec.get("trafficDistribution"))
    if document.get("kind") == "VirtualService":
        gateways = spec.get("gateways")
        return not isinstance(gateways, list) or not gateways or "mesh" in gateways
    if document.get("kind") in _KINDS_OF_ROUTES:
        return any(kind in _IN_MESH for kind in _kinds(spec.get("parentRefs")))
    return True


def _kinds(references: object) -> Iterable[str]:
    found = [each.get("kind") for each in references if isinstance(each, dict)] if isinstance(references, list) else []
    return [kind for kind in found if isinstance(kind, str)]
