"""What a source of resources tells: what was put, what is gone, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from nodeagent.resources.objects import KubernetesObject
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import PodUid


@dataclass(frozen=True, slots=True)
class Change:
    """An object that was put (``object``) or is gone (None)."""

    kind: str
    namespace: str
    name: str
    object: KubernetesObject | Policy | None
    file: str = field(default="", compare=False)
    """Where a policy stands."""

    @property
    def title(self) -> str:
        """What it is, in words, for who tells that it failed."""
        return f"the change of {self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class EnrolledChange:
    """A pod that takes mTLS from now on, or no more."""

    uid: PodUid
    enrolled: bool
    node: str = ""
    """Who says so: it counts for that node's pods alone. Empty: for any, as in a folder, which has one writer."""

    @property
    def title(self) -> str:
        """What it is, in words, for who tells that it failed."""
        return f"the mark of pod {self.uid}"


AnyChange = Change | EnrolledChange


@dataclass(frozen=True, slots=True)
class Refused:
    """A document that has no effect as it stands."""

    kind: str
    """Empty, as ``namespace`` and ``name``, when the document does not even say that."""
    namespace: str
    name: str
    file: str
    error: str
    stays: bool
    """Its last good version is still in force."""
    ignored: bool = False
    """It is somebody else's, or nobody carries its kind out here: nothing is wrong with it."""
    displaced: bool = False
    """Another document with the same policy goes before it."""
