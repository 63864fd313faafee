"""Whom enrolment works with, as far as it knows them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nodeagent.identity.certificate import Certificate
from nodeagent.messages import PodCaptured
from nodeagent.redirect.bypass import Joining
from nodeagent.redirect.netns import PodNetns
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.vocabulary import PodUid, SpiffeId


@dataclass(frozen=True, slots=True)
class Effects:
    """What enrolment causes elsewhere."""

    publish: Callable[[PodUid, bool], None]
    """Tell the other nodes whether a pod takes mTLS."""
    keep: Callable[[Mapping[str, int]], None]
    """Have the supervisor keep descriptors across a death of control: ``uid/direction/family/slot``
    a listener, ``uid/netns``.
    """
    drop: Callable[[str], None]
    """Have it forget a pod's."""
    repaired: Callable[[str], None]
    """Count a repaired fault."""


class Capturing(Protocol):
    """What captures pods in the kernel: ``DataPlane``. All but what says otherwise may raise
    KernelError or OSError.
    """

    @property
    def joining(self) -> Joining:
        """Whether sockets may be joined past TCP."""

    def pod_netns(self, path: Path, network: tuple[int, int] | None = None) -> PodNetns:
        """Return the network namespace at *path*, if it is *network*, of that device and number."""

    def enroll(self, pod: EnrolledPod, listeners: Listeners | None = None) -> Listeners:
        """Capture *pod*, with those of *listeners* that are still good."""

    def release(self, uid: str) -> None:
        """Capture no new connection of the pod any more."""

    def forget(self, uid: str) -> None:
        """Close what is held of a captured pod, and leave it in the kernel. Raises nothing."""

    def listeners(self, uid: str) -> Listeners:
        """Return the listeners inside a captured pod."""

    def network(self, uid: str) -> int:
        """Return the network namespace of a captured pod."""

    def numbers(self) -> dict[PodUid, int]:
        """Return the captured pods. Raises nothing."""

    def suspects(self) -> frozenset[PodUid]:
        """Return the captured pods of which :meth:`verify` may say something; a glance at all of them."""

    def verify(self, uid: str) -> list[str]:
        """Return, in words, what of a captured pod is not as it should be."""

    def repair(self, uid: str) -> list[str]:
        """Repair that, and return what it was."""

    def verify_node(self) -> list[str]:
        """Return, in words, what all pods share and is not as it should be."""

    def repair_node(self) -> list[str]:
        """Repair that, and return what it was."""

    def others(self) -> list[str]:
        """Return, in words, which programs of somebody else take something from ours."""

    def prune(self, spared: Collection[str] = ()) -> list[str]:
        """Remove what is of no captured pod and of none of the *spared* addresses."""


class Accepting(Protocol):
    """Who accepts captured connections: ``Workers``."""

    def enrol(self, pod: PodCaptured, listeners: dict[ListenerId, socket.socket]) -> None:
        """Accept from the pod's *listeners*."""

    def release(self, uid: PodUid) -> None:
        """The pod is captured no more."""


class HasCertificates(Protocol):
    """Who knows the certificates: ``NodeCertificates``."""

    def current(self, identity: SpiffeId) -> Certificate:
        """Return the one that is good now. Raises IdentityError saying why there is none;
        AwaitedError: it is being asked for.
        """
