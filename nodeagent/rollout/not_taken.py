"""Which objects of a cluster nobody carries out where agents have the pods, read once, when asked for,
by the rights of whoever asks: a team that moves has to know them by name.

Agents follow none of them: that would be ten watches and rights in every agent, for what changes
nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.kube.access import ApiError
from nodeagent.resources import not_taken
from nodeagent.rollout.resources import ClusterObjects

TOLD: Final = 50
"""Objects of a kind that are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What is not carried out: an object, or a kind where its objects are not known or too many."""

    subject: str
    words: str


async def losses(objects: ClusterObjects) -> list[Loss]:
    """Return what of the cluster is not carried out, what protects first. Raises ApiError where its API groups
    are not known.
    """
    groups = (await objects.client.get("/apis")).get("groups") or ()
    versions = {group["name"]: [each["groupVersion"] for each in group.get("versions") or ()] for group in groups}
    versions[""] = ["v1"]
    found: list[Loss] = []
    for kind in not_taken.KINDS:
        try:
            found += await _of(objects, kind, versions.get(kind.group, ()))
        except ApiError as error:
            found.append(Loss(kind.kind, f"whether there are any is not known: {error}; else {kind.lost}"))
    return found


async def _of(objects: ClusterObjects, kind: not_taken.NotTaken, versions: list[str] | tuple[()]) -> list[Loss]:
    """Return the objects of *kind*, in the first of *versions* that has it. Raises ApiError."""
    for version in versions:
        if await objects.find(version, kind.kind) is None:
            continue
        items = await objects.list(version, kind.kind)
        meant = [each for each in items if not_taken.lost({**each, "apiVersion": version, "kind": kind.kind})]
        names = sorted(f"{each['metadata'].get('namespace', '')}/{each['metadata']['name']}" for each in meant)
        told = [Loss(f"{kind.kind} {name}", kind.lost) for name in names[:TOLD]]
        more = [Loss(kind.kind, f"{len(names) - TOLD} more: {kind.lost}")] if len(names) > TOLD else []
        return told + more
    return []
