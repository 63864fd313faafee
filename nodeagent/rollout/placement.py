"""Where the agents of a cluster are, which may be another namespace than the manifests'; and whether what
names them by text, where no kustomization changes it, names those.

Two such names stand in the manifests: the account that ``base/own-node.yaml`` bounds to its own node, and
the one to which the authority gives certificates of its node's pods (``ca/ca.yaml``). A wrong one is seen
nowhere else: the first one's policy is then for nobody, and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import ResourceError
from nodeagent.kube.access import KubeObject
from nodeagent.resources import yaml_text
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.resources import ClusterObjects

NAMESPACE: Final = "nodeagent-system"
"""Of the manifests."""
PART_OF: Final = "app.kubernetes.io/part-of=nodeagent"
"""What every object of daemonset/ is labelled with."""
DAEMON_SET: Final = ObjectName("apps/v1", "DaemonSet", NAMESPACE, "nodeagent")
OWN_NODE: Final = ObjectName("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", "", "nodeagent-own-node")
AUTHORITY: Final = "nodeagent-ca"
"""The Deployment of the authority."""
CA_YAML: Final = "ca.yaml"


async def agents(objects: ClusterObjects, documents: Sequence[KubeObject] = ()) -> ObjectName:
    """Return which DaemonSet the agents are: in *documents*, else in the cluster, else the manifests' where
    there is none. Raises ApiError.
    """
    for name in map(name_of, documents):
        if (name.kind, name.name) == (DAEMON_SET.kind, DAEMON_SET.name):
            return name
    if await objects.get(DAEMON_SET) is not None:
        return DAEMON_SET
    found = await objects.list(DAEMON_SET.api_version, DAEMON_SET.kind, labels=PART_OF)
    there = [each["metadata"]["namespace"] for each in found if each["metadata"]["name"] == DAEMON_SET.name]
    return replace(DAEMON_SET, namespace=min(there, default=NAMESPACE))


@dataclass(frozen=True, slots=True)
class Account:
    """A service account, as which agents ask."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        """Who it is to the API server."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


def account(daemon_set: ObjectName, template: KubeObject | None) -> Account:
    """Return as whom the pods of *template*, *daemon_set*'s, ask; None: those of the manifests'."""
    spec = (template or {}).get("spec") or {}
    return Account(daemon_set.namespace, str(spec.get("serviceAccountName") or "nodeagent"))


def bounds(policy: KubeObject, account: Account) -> bool:
    """Say whether *policy*, an OWN_NODE, is for *account*: its conditions name the user, in quotes."""
    conditions = (policy.get("spec") or {}).get("matchConditions") or ()
    said = [str(each.get("expression")).replace("'", '"') for each in conditions]
    return not said or any(f'"{account.user}"' in each for each in said)


def certified(content: str) -> list[str]:
    """Return the accounts that *content*, a ca.yaml, has as agents: ``namespace/name``. Raises ResourceError."""
    found = yaml_text.one(content)
    listed = found.get("nodeAgents") if isinstance(found, dict) else None
    return [str(each) for each in listed] if isinstance(listed, list) else []


async def authority_configurations(
    objects: ClusterObjects, documents: Sequence[KubeObject], namespace: str
) -> list[tuple[ObjectName, str]]:
    """Return each ca.yaml of the authority that stands in *documents*, or else of the one that runs in
    *namespace*, with the ConfigMap that holds it; none: the mesh has another authority. Raises ApiError.
    """
    maps = [document for document in documents if document.get("kind") == "ConfigMap"]
    if not documents:
        running = await objects.get(ObjectName("apps/v1", "Deployment", namespace, AUTHORITY))
        names = [ObjectName("v1", "ConfigMap", namespace, name) for name in _mounted(running or {})]
        maps = [found | {"kind": "ConfigMap"} for name in names if (found := await objects.get(name)) is not None]
    held = [(name_of(each), (each.get("data") or {}).get(CA_YAML)) for each in maps]
    return [(name, content) for name, content in held if isinstance(content, str)]


def _mounted(deployment: KubeObject) -> Iterable[str]:
    """Yield the names of the ConfigMaps that *deployment*'s pods mount."""
    spec = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    for volume in spec.get("volumes") or ():
        if name := (volume.get("configMap") or {}).get("name"):
            yield str(name)


def wrong_authority(content: str, account: Account) -> str:
    """Return why the authority with *content* as its ca.yaml gives *account* nothing, in words; empty: it does."""
    wanted = f"{account.namespace}/{account.name}"
    try:
        listed = certified(content)
    except ResourceError as error:
        return str(error)
    if wanted in listed:
        return ""
    return f"nodeAgents: {', '.join(listed) or 'nobody'}: agents are {wanted}: name it there (daemonset/ca/ca.yaml)"
