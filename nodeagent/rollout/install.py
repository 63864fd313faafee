"""Puts the objects of a kustomization into a cluster (server-side apply), and waits until they work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from nodeagent.errors import ConfigError, ControlError
from nodeagent.kube.access import KubeObject
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.progress import Say, waited
from nodeagent.rollout.resources import ClusterObjects, ResourceType
from nodeagent.rollout.workloads import behind, workloads

REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
DEFINITION: Final = "CustomResourceDefinition"
CONTAINERS: Final = ("Namespace", DEFINITION)
"""Kinds that take other objects along when they are removed."""
REGISTRATIONS: Final = ("MutatingWebhookConfiguration",)
ESTABLISHED_SECONDS: Final = 60.0
REMOVED_SECONDS: Final = 120.0


async def install(
    objects: ClusterObjects, documents: Sequence[KubeObject], say: Say, *, force: bool, seconds: float
) -> None:
    """Apply *documents*, in their order, and wait at most *seconds* for each rollout; 0: not at all. A webhook is
    registered when all is rolled out: pods would wait for it.

    Nothing is applied where a kind is not known or a right is missing. Raises ConfigError, ApiError,
    ControlError.
    """
    names = [name_of(document) for document in documents]
    await refuse_unknown(objects, documents)
    await refuse_forbidden(objects, names)
    for name in names:  # what a removal that goes on yet would take along
        if name.kind in CONTAINERS:
            await waited(partial(leaving, objects, name), say, REMOVED_SECONDS, str(name))
    registrations = [document for document in documents if name_of(document).kind in REGISTRATIONS]
    for document in (each for each in documents if each not in registrations):
        name = name_of(document)
        await objects.apply(document, force=force)
        say(f"{name}: applied")
        if name.kind == DEFINITION:
            await waited(partial(unestablished, objects, name), say, ESTABLISHED_SECONDS, str(name))
    for name in workloads(names) if seconds else ():
        await waited(partial(behind, objects, name), say, seconds, str(name))
        say(f"{name}: ready")
    for document in registrations:
        await objects.apply(document, force=force)
        say(f"{name_of(document)}: applied")


async def refuse_unknown(objects: ClusterObjects, documents: Iterable[KubeObject]) -> None:
    """Raise ConfigError for an object of a kind that neither the cluster nor *documents* define."""
    defined: set[tuple[str, str]] = set()
    for document in documents:
        name = name_of(document)
        if name.kind == DEFINITION:
            spec = document["spec"]
            defined |= {(f"{spec['group']}/{each['name']}", spec["names"]["kind"]) for each in spec["versions"]}
        elif (name.api_version, name.kind) not in defined:
            await objects.type_of(name)


async def refuse_forbidden(objects: ClusterObjects, names: Iterable[ObjectName]) -> None:
    """Raise ControlError naming all that whoever asks may not create or change of *names*."""
    wanted: dict[tuple[str, str, str], ResourceType] = {}
    for name in names:
        found = await objects.find(name.api_version, name.kind)
        if found is not None:
            wanted[found.group, found.plural, name.namespace if found.namespaced else ""] = found
    answers = await asyncio.gather(*(_refused(objects, *key) for key in wanted))
    missing = [words for words in answers if words]
    if missing:
        raise ControlError(
            f"you may not {'; nor '.join(missing)}: ask the cluster's administrator, or use a kubeconfig of "
            "cluster-admin"
        )


async def _refused(objects: ClusterObjects, group: str, plural: str, namespace: str) -> str:
    """Return which right is missing, in words; empty: none."""
    for verb in ("create", "patch"):
        attributes = {"group": group, "resource": plural, "verb": verb, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await objects.client.post(REVIEWS, review)
        if not (answer.get("status") or {}).get("allowed"):
            return f"{verb} {plural}{f'.{group}' if group else ''}{f' in {namespace}' if namespace else ''}"
    return ""


async def leaving(objects: ClusterObjects, name: ObjectName) -> str:
    """Return what keeps *name*, which is being removed, from being gone; empty: nobody removes it. Raises ApiError."""
    found = await objects.get(name)
    return await objects.remains(name) if found is not None and "deletionTimestamp" in found["metadata"] else ""


async def unestablished(objects: ClusterObjects, name: ObjectName) -> str:
    """Return why the definition *name* does not serve yet; empty: it does. Raises ConfigError, ApiError."""
    found = await objects.get(name)
    for condition in ((found or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "NamesAccepted" and condition.get("status") == "False":
            raise ConfigError(f"{name}: {condition.get('message')}: another definition has that name")
        if condition.get("type") == "Established" and condition.get("status") == "True":
            return ""
    return "not established yet"
