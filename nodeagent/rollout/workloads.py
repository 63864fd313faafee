"""How far a rollout is, and what keeps a pod from being ready, in words.

A DaemonSet whose agents take over from one another is rolled out when every node has a ready pod of
the newest revision. Its status says so only when the last pod before has ended, for its controller
counts the oldest pod of a node (pkg/controller/daemon/util: GetPodRevision, of ``maxSurge``): the one
that drains, for as long as its connections want.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, urlencode

from nodeagent.kube.access import KubeObject
from nodeagent.rollout.manifests import ObjectName
from nodeagent.rollout.resources import ClusterObjects

SHOWN: Final = 3
"""Pods that are named."""
REVISION: Final = "controller-revision-hash"
"""Label of a DaemonSet's pods and of its revisions."""


async def behind(objects: ClusterObjects, name: ObjectName) -> str:
    """Return what the DaemonSet or Deployment *name* still lacks, with the reasons of its pods; empty:
    nothing. Raises ApiError.
    """
    found = await objects.get(name)
    if found is None:
        return "it is not there"
    selector = found["spec"]["selector"].get("matchLabels") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    pods = await objects.list("v1", "Pod", namespace=name.namespace, labels=labels)
    if name.kind == "DaemonSet":
        revisions = await objects.list("apps/v1", "ControllerRevision", namespace=name.namespace, labels=labels)
        wanted, updated, ready = _daemon_set(found, _newest(found, revisions), pods)
    else:
        wanted, updated, ready = _deployment(found)
    observed = found.get("status", {}).get("observedGeneration") == found["metadata"].get("generation")
    if observed and updated >= wanted and ready >= wanted:
        return ""
    reasons = [f"{pod['metadata']['name']}: {why}" for pod in pods if (why := unready(pod))]
    if len(pods) < wanted:
        reasons = [*await _not_made(objects, found, name), *reasons]
    words = f"{ready} of {wanted} ready, {updated} of this version"
    return "; ".join([words, *reasons[:SHOWN], *(["…"] if len(reasons) > SHOWN else [])])


async def _not_made(objects: ClusterObjects, found: KubeObject, name: ObjectName) -> list[str]:
    """Return why no pod could be made for *found*, which is *name*: a quota, say, or an account that is not there.
    Raises ApiError.
    """
    conditions = found.get("status", {}).get("conditions") or ()
    said = [str(each.get("message")) for each in conditions if each.get("type") == "ReplicaFailure"]
    if name.kind == "DaemonSet":
        chosen = f"involvedObject.kind={name.kind},involvedObject.name={name.name},reason=FailedCreate"
        path = (
            f"/api/v1/namespaces/{quote(name.namespace)}/events?{urlencode({'fieldSelector': chosen, 'limit': '50'})}"
        )
        events = (await objects.client.get(path)).get("items") or []
        latest = max(events, key=lambda each: str(each.get("lastTimestamp") or ""), default=None)
        said += [str(latest.get("message"))] if latest is not None else []
    return [f"no pod can be made: {words}" for words in said]


def unready(pod: KubeObject) -> str:
    """Return why *pod* is not ready, in words; empty: it is."""
    status = pod.get("status") or {}
    where = f" on {pod['spec']['nodeName']}" if pod.get("spec", {}).get("nodeName") else ""
    conditions = {each.get("type"): each for each in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if why := _waiting(container):
            return f"{container.get('name')} {why}{where}"
    if status.get("phase") == "Failed" and status.get("reason"):  # by the kubelet, which refused or removed it
        return f"{status['reason']}: {status.get('message') or 'no message'}{where}"
    unscheduled = conditions.get("PodScheduled", {})
    if unscheduled.get("status") == "False":
        return f"not scheduled: {unscheduled.get('message') or unscheduled.get('reason')}"
    return f"{status.get('phase', 'Pending')}, not ready{where}"


def _waiting(container: KubeObject) -> str:
    """Return why a container does not run; empty: it does, or has done what it had to."""
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    last = f"; it ended with {ended['exitCode']}" if ended.get("exitCode") else ""
    if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
        return f"{waiting['reason']}: {waiting.get('message') or 'no message'}{last}"
    return f"ended with {ended['exitCode']}" if "terminated" in state and ended.get("exitCode") else ""


def workloads(names: Iterable[ObjectName]) -> list[ObjectName]:
    """Return those of *names* that are rolled out."""
    return [name for name in names if name.kind in ("Deployment", "DaemonSet")]


def _daemon_set(found: KubeObject, revision: str, pods: Iterable[KubeObject]) -> tuple[int, int, int]:
    """Return on how many nodes the DaemonSet *found* shall be, is in *revision*, and is ready in it."""
    wanted = (found.get("status") or {}).get("desiredNumberScheduled", 0)
    fresh = [
        pod
        for pod in pods
        if revision
        and (pod["metadata"].get("labels") or {}).get(REVISION) == revision
        and not pod["metadata"].get("deletionTimestamp")
    ]
    updated = {pod["spec"].get("nodeName") for pod in fresh}
    return wanted, len(updated), len({pod["spec"].get("nodeName") for pod in fresh if not unready(pod)})


def _newest(found: KubeObject, revisions: Iterable[KubeObject]) -> str:
    """Return the hash of the DaemonSet *found*'s newest revision, a rollback's too; empty: it has none yet."""
    own = [
        each
        for each in revisions
        if any(owner.get("uid") == found["metadata"]["uid"] for owner in each["metadata"].get("ownerReferences") or ())
    ]
    newest = max(own, key=lambda each: int(each["revision"]), default=None)
    return str((newest["metadata"].get("labels") or {}).get(REVISION, "")) if newest is not None else ""


def _deployment(found: KubeObject) -> tuple[int, int, int]:
    status = found.get("status") or {}
    return found["spec"].get("replicas", 1), status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
