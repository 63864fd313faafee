"""The kinds of objects that are followed, and what following them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GROUP: Final = "nodeagent.io"
NODE_STATUS: Final = "NodeStatus"
_ISTIO: Final = "security.istio.io"


@dataclass(frozen=True, slots=True)
class WatchedKind:
    """One kind of the API server's objects."""

    kind: str
    group: str
    """Empty: Kubernetes' core."""
    versions: tuple[str, ...]
    """Those that are read here, the one that is asked for first."""
    plural: str
    builtin: bool = True
    """Every cluster has it; others come and go with their CustomResourceDefinition."""
    labels: str = ""
    """The label selector that its objects are asked for with; empty: all of them."""
    many: bool = False
    """There may be so many that they are asked for in protobuf (``pod_messages.py``)."""

    def path(self, version: str) -> str:
        """Return where all objects of the kind are, as *version* writes them."""
        where = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{where}/{self.plural}"

    @property
    def api_version(self) -> str:
        """What its objects have as ``apiVersion``."""
        return f"{self.group}/{self.versions[0]}" if self.group else self.versions[0]

    @property
    def rule(self) -> str:
        """The RBAC rule that following it takes, as a ClusterRole has it."""
        return f'{{apiGroups: ["{self.group}"], resources: [{self.plural}], verbs: [list, watch]}}'


NAMESPACES: Final = WatchedKind("Namespace", "", ("v1",), "namespaces")
NODES: Final = WatchedKind("Node", "", ("v1",), "nodes")
PODS: Final = WatchedKind("Pod", "", ("v1",), "pods", many=True)
SERVICES: Final = WatchedKind("Service", "", ("v1",), "services")
ENDPOINT_SLICES: Final = WatchedKind(
    "EndpointSlice",
    "discovery.k8s.io",
    ("v1",),
    "endpointslices",
    labels="endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io",
)
"""Those that Kubernetes does not make of a Service's selector: pods say the same, and a cluster's
endpoints would be in memory twice.
"""
NETWORK_POLICIES: Final = WatchedKind("NetworkPolicy", "networking.k8s.io", ("v1",), "networkpolicies")
NODE_STATUSES: Final = WatchedKind(NODE_STATUS, GROUP, ("v1alpha1",), "nodestatuses", builtin=False)
POLICIES: Final = (
    WatchedKind("PeerAuthentication", _ISTIO, ("v1", "v1beta1"), "peerauthentications", builtin=False),
    WatchedKind("AuthorizationPolicy", _ISTIO, ("v1", "v1beta1"), "authorizationpolicies", builtin=False),
    WatchedKind("RequestAuthentication", _ISTIO, ("v1", "v1beta1"), "requestauthentications", builtin=False),
    WatchedKind("RateLimit", GROUP, ("v1alpha1",), "ratelimits", builtin=False),
)
FOLLOWED: Final = (NAMESPACES, NODES, PODS, SERVICES, ENDPOINT_SLICES, NETWORK_POLICIES, NODE_STATUSES, *POLICIES)
"""What an agent follows."""
