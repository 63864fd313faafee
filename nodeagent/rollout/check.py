"""Whether the agent works in a cluster, or would: what the API server says, and what every node says
when it is tried there.

Each finding stands for itself: one that cannot be looked at is told as such, and the others are
looked at all the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509

from nodeagent.errors import NodeagentError, translated
from nodeagent.identity import authority_directory
from nodeagent.identity.profiles import ends
from nodeagent.kube.access import KubeObject
from nodeagent.kube.events import GROUP as EVENTS
from nodeagent.kube.kinds import FOLLOWED, GROUP, NODE_STATUSES, NODES, WatchedKind
from nodeagent.redirect.preflight import FOR_THE_LAB
from nodeagent.rollout.lending import lent
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.node_choice import chosen
from nodeagent.rollout.not_taken import losses
from nodeagent.rollout.on_nodes import NodeRuns, Told
from nodeagent.rollout.placement import (
    DAEMON_SET,
    OWN_NODE,
    PART_OF,
    account,
    agents,
    authority_configurations,
    bounds,
    wrong_authority,
)
from nodeagent.rollout.resources import ClusterObjects
from nodeagent.rollout.workloads import behind

OLDEST: Final = (1, 30)
"""Of Kubernetes: the manifests use its fields (a preStop that sleeps, AppArmor profiles)."""
REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
ROOTS: Final = "nodeagent-ca-root-cert"
"""The ConfigMap of what the authority says is to be trusted."""
CHECK: Final = ("nodeagent", "check", "-o", "json", "-c", "/etc/nodeagent/agent.yaml")
CALLS: Final = (
    *((kind.group, kind.plural, ("list", "watch")) for kind in FOLLOWED),
    (GROUP, NODE_STATUSES.plural, ("create", "patch", "delete")),
    (NODES.group, NODES.plural, ("patch",)),
    (EVENTS, "events", ("create",)),
)
"""What an agent calls: group, resource and verbs, a rule each; of daemonset/base/rbac.yaml."""
State = Literal["ok", "absent", "missing"]


@dataclass(frozen=True, slots=True)
class ClusterFinding:
    """What was found of one thing."""

    where: str
    """A node's name, or ``cluster``."""
    feature: str
    state: State
    """``absent``: something is lost without it; ``missing``: the agent cannot do without."""
    detail: str
    lost: str = ""


class ClusterCheck:
    """Looks at the cluster of *objects*; *documents*: the manifests that are to be applied; empty: what
    is applied is looked at.
    """

    def __init__(self, objects: ClusterObjects, documents: Sequence[KubeObject], *, seconds: float) -> None:
        """*seconds*: what a node may take for its answer."""
        self._objects = objects
        self._documents = documents
        self._seconds = seconds
        self._agents = DAEMON_SET
        self._account = account(DAEMON_SET, None)

    async def run(self) -> list[ClusterFinding]:
        """Return what was found, the cluster's first. Raises ApiError where the API server does not answer at all."""
        found = [await self._version()]
        installed = () if self._documents else (self._rights, self._rollouts, self._trust)
        for look in (
            self._place,
            self._kinds,
            self._not_taken,
            self._own_node,
            self._authority,
            *installed,
            self._nodes,
        ):
            try:
                found += await look()
            except NodeagentError as error:
                found.append(ClusterFinding("cluster", look.__name__.strip("_"), "missing", str(error)))
        return found

    async def _place(self) -> list[ClusterFinding]:
        """Find where the agents are, and as whom they ask."""
        self._agents = await agents(self._objects, self._documents)
        self._account = account(self._agents, await self._template())
        return []

    async def _version(self) -> ClusterFinding:
        answer = await self._objects.client.get("/version")
        words = str(answer.get("gitVersion"))
        found = re.match(r"v(\d+)\.(\d+)", words)
        if found is not None and (int(found[1]), int(found[2])) >= OLDEST:
            return ClusterFinding("cluster", "Kubernetes", "ok", words)
        return ClusterFinding(
            "cluster", "Kubernetes", "missing", f"{words}: at least {OLDEST[0]}.{OLDEST[1]} is needed"
        )

    async def _kinds(self) -> list[ClusterFinding]:
        coming = set(_defined(self._documents))
        return [await self._kind(kind, coming) for kind in FOLLOWED if not kind.builtin]

    async def _kind(self, kind: WatchedKind, coming: set[tuple[str, str, str]]) -> ClusterFinding:
        """Return whether the cluster, or what is to be applied, has *kind* in a version that is read here."""
        served = [version for version in kind.versions if await self._serves(kind, version)]
        applied = [version for version in kind.versions if (kind.group, version, kind.kind) in coming]
        if served or applied:
            return ClusterFinding("cluster", kind.kind, "ok", f"{kind.group}/{(served or applied)[0]}")
        other = await self._versions(kind)
        own = kind.group == GROUP
        there = f"the cluster has {', '.join(other)} only" if other else "the cluster has no definition of it"
        step = "apply daemonset/base/crds" if own else "install Istio's definitions, or daemonset/overlays/crds"
        lost = "marks of enrolment" if kind.kind == "NodeStatus" else f"policies of kind {kind.kind}"
        state: State = "missing" if own or other else "absent"
        return ClusterFinding("cluster", kind.kind, state, f"{there}; {'/'.join(kind.versions)} is read: {step}", lost)

    async def _not_taken(self) -> list[ClusterFinding]:
        """Return the objects of other meshes that nobody carries out here."""
        found = await losses(self._objects)
        return [ClusterFinding("cluster", each.subject, "absent", f"not carried out: {each.words}") for each in found]

    async def _serves(self, kind: WatchedKind, version: str) -> bool:
        return await self._objects.find(f"{kind.group}/{version}", kind.kind) is not None

    async def _versions(self, kind: WatchedKind) -> list[str]:
        name = ObjectName("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", f"{kind.plural}.{kind.group}")
        found = await self._objects.get(name)
        return [each["name"] for each in ((found or {}).get("spec") or {}).get("versions") or ()]

    async def _rights(self) -> list[ClusterFinding]:
        """Return what the agents' account may not do that they do."""
        missing = [
            f'{{apiGroups: ["{group}"], resources: [{plural}], verbs: [{", ".join(verbs)}]}}'
            for group, plural, verbs in CALLS
            if not await self._may(group, plural, verbs)
        ]
        if not missing:
            return [ClusterFinding("cluster", "agents' rights", "ok", f"{self._account.user} may do what it has to")]
        add = "add it to the ClusterRole nodeagent"
        return [ClusterFinding("cluster", "agents' rights", "missing", f"{rule}: {add}") for rule in missing]

    async def _may(self, group: str, plural: str, verbs: Iterable[str]) -> bool:
        """Say whether the agents' account may do all *verbs* with *plural* of *group*. Raises ApiError."""
        for verb in verbs:
            attributes = {"group": group, "resource": plural, "verb": verb}
            spec = {"user": self._account.user, "resourceAttributes": attributes}
            body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
            answer = await self._objects.client.post(REVIEWS, body)
            if not (answer.get("status") or {}).get("allowed"):
                return False
        return True

    async def _own_node(self) -> list[ClusterFinding]:
        """Return whether an agent is bound to what is of its own node."""
        policies = [each for each in self._documents if name_of(each) == OWN_NODE]
        if not self._documents and (there := await self._objects.get(OWN_NODE)) is not None:
            policies = [there]
        lost = "who takes one node over writes the objects of all"
        if not policies:
            words = f"{OWN_NODE} is not there: apply daemonset/base/own-node.yaml"
            return [ClusterFinding("cluster", "own node", "absent", words, lost)]
        if all(bounds(each, self._account) for each in policies):
            return [ClusterFinding("cluster", "own node", "ok", f"{self._account.user} is bound to it")]
        words = f"{OWN_NODE} is not for {self._account.user}: name it there (daemonset/base/own-node.yaml)"
        return [ClusterFinding("cluster", "own node", "missing", words, lost)]

    async def _authority(self) -> list[ClusterFinding]:
        """Return whether nodeagent's own authority, where it is the mesh's, knows the agents as such."""
        found = []
        where = self._agents.namespace
        for name, content in await authority_configurations(self._objects, self._documents, where):
            why = wrong_authority(content, self._account)
            state: State = "missing" if why else "ok"
            words = f"{name}: {why}" if why else f"{name} names {self._account.namespace}/{self._account.name}"
            found.append(ClusterFinding("cluster", "authority's agents", state, words, "certificates"))
        return found

    async def _rollouts(self) -> list[ClusterFinding]:
        others = await self._objects.list("apps/v1", "Deployment", namespace=self._agents.namespace, labels=PART_OF)
        where = self._agents.namespace
        named = [ObjectName("apps/v1", "Deployment", where, item["metadata"]["name"]) for item in others]
        found = []
        for name in (self._agents, *named):
            why = await behind(self._objects, name)
            found.append(ClusterFinding("cluster", str(name), "missing" if why else "ok", why or "rolled out"))
        return found

    async def _trust(self) -> list[ClusterFinding]:
        """Return whether the authority has said what is to be trusted, and for how long it is."""
        name = ObjectName("v1", "ConfigMap", self._agents.namespace, ROOTS)
        found = await self._objects.get(name)
        if found is None:
            words = f"{name} is not there: it is written by nodeagent-ca: see its log"
            return [ClusterFinding("cluster", "authority", "missing", words, "certificates")]
        with translated(NodeagentError, f"{name}: no certificates in it"):
            roots = authority_directory.certificates(str(found["data"][authority_directory.ROOTS]).encode())
        return [_root(root) for root in roots]

    async def _nodes(self) -> list[ClusterFinding]:
        template = await self._template()
        if template is None:
            words = f"{self._agents} is not there: apply daemonset/, or give --overlay to look before that"
            return [ClusterFinding("cluster", "preflight", "missing", words)]
        found = chosen(template["spec"], await self._objects.list("v1", "Node"))
        nodes = [each["metadata"]["name"] for each in found]
        async with lent(self._objects, self._documents, self._agents.namespace, template, self._seconds) as own:
            return await self._tried(own, nodes)

    async def _tried(self, template: KubeObject, nodes: Sequence[str]) -> list[ClusterFinding]:
        runs = NodeRuns(self._objects, self._agents.namespace, template)
        found: list[ClusterFinding] = []
        for told in await runs.run("check", CHECK, nodes, self._seconds):
            found += said(told)
        return found

    async def _template(self) -> KubeObject | None:
        """Return the pod template of the agents, as it is to be or as it is."""
        for document in self._documents:
            if name_of(document) == self._agents:
                found: KubeObject = document["spec"]["template"]
                return found
        there = await self._objects.get(self._agents)
        return there["spec"]["template"] if there is not None else None


def _root(root: x509.Certificate) -> ClusterFinding:
    left = ends(root) - time.time()
    state: State = "ok" if left > 0 else "missing"
    return ClusterFinding(
        "cluster", "authority", state, f"{root.subject.rfc4514_string()}, {left / 86400:.0f} days left"
    )


def _defined(documents: Iterable[KubeObject]) -> Iterable[tuple[str, str, str]]:
    """Yield group, version and kind of what *documents* define."""
    for document in documents:
        if document.get("kind") == "CustomResourceDefinition":
            spec = document["spec"]
            for version in spec["versions"]:
                yield spec["group"], version["name"], spec["names"]["kind"]


def said(told: Told) -> list[ClusterFinding]:
    """Return what ``nodeagent check -o json`` said on a node: what is not well, or that all is; without
    what only a lab uses.
    """
    try:
        rows = [row for row in json.loads(told.words) if row["feature"] not in FOR_THE_LAB]
        found = [ClusterFinding(told.node, row["feature"], row["state"], row["detail"], row["lost"]) for row in rows]
    except (ValueError, TypeError, KeyError):
        # a command's last words say why it failed; what keeps it from running says so in its first ones
        words = told.words.strip()[-300:] if told.status is not None else told.words[:600]
        words = words or f"no answer, exit status {told.status}"
        return [ClusterFinding(told.node, "preflight", "missing", words, "the agent on this node")]
    bad = [finding for finding in found if finding.state != "ok"]
    return [*bad, ClusterFinding(told.node, "preflight", "ok", f"{len(found) - len(bad)} of {len(found)} are well")]
