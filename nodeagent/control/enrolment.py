"""Enrolment: the pods of this node whose traffic is captured, kept equal to what the source says
and the kernel has.

Enrolling and releasing touch neither the pod's processes nor its open connections; what fails for
one pod is told and tried again, and never keeps another pod from its enrolment.

A pod is captured whether it has a certificate or not: what needs none works, and what needs one
fails, with a reason. A pod that cannot be captured is held (``DataPlane.enroll``). So neither an
authority that is away nor a pod's own doing opens it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nodeagent.control.workers import Workers
from nodeagent.errors import IdentityError, KernelError, ResourceError, translated
from nodeagent.identity.store import Certificates
from nodeagent.mesh.entries import Workload, policies_of
from nodeagent.mesh.local import BYPASS, LocalPod
from nodeagent.mesh.protection import CLOSED, Protection, protection
from nodeagent.messages import PodCaptured
from nodeagent.policy.model import MtlsMode
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.vocabulary import PodUid, SpiffeId, WhenDead

log = logging.getLogger("nodeagent.enrolment")


State = Literal["enrolled", "pending", "faulty", "failed"]
"""pending: captured, without a certificate that is good; faulty: captured, and something is wrong
that cannot be repaired; failed: not captured.
"""


@dataclass(slots=True)
class Member:
    """A pod that shall be captured."""

    pod: LocalPod
    cookie: int = 0
    state: State = "failed"
    faults: list[str] = field(default_factory=list)
    repaired: int = 0
    published: bool = False
    mtls: MtlsMode = "PERMISSIVE"
    port_mtls: tuple[tuple[int, MtlsMode], ...] = ()
    """By PeerAuthentication."""
    protection: Protection = CLOSED
    """What the kernel does where no proxy looks."""
    bypass: bool = False
    probed: frozenset[int] = frozenset()
    """Ports at which TCP probes ask."""

    def alike(self, other: Member) -> bool:
        """Say whether the kernel has to know the same of both."""
        return _described(self) == _described(other)


def _described(member: Member) -> tuple[object, ...]:
    return member.pod, member.mtls, member.port_mtls, member.protection, member.bypass, member.probed


@dataclass(frozen=True, slots=True)
class Effects:
    """What enrolment causes elsewhere."""

    publish: Callable[[PodUid, bool], None]
    """Tell the other nodes whether a pod takes mTLS."""
    keep: Callable[[dict[str, int]], None]
    """Have the supervisor keep descriptors across a death of control: ``uid/direction/family/slot``
    a listener, ``uid/netns``.
    """
    drop: Callable[[PodUid], None]
    """Have it forget a pod's."""
    repaired: Callable[[str], None]
    """Count a repaired fault."""


class Enrolment:
    """Reconciles local pods with the data plane."""

    def __init__(
        self, plane: DataPlane, workers: Workers, certificates: Certificates, effects: Effects, when_dead: WhenDead
    ) -> None:
        self._plane, self._workers, self._certificates, self._effects, self._when_dead = (
            plane,
            workers,
            certificates,
            effects,
            when_dead,
        )
        self.members: dict[PodUid, Member] = {}
        self._handed: dict[PodUid, Listeners] = {}
        self.kept: dict[str, dict[ListenerId, socket.socket]] = {}
        """Listeners that an earlier control process made, by pod."""

    def keep(self, pods: Mapping[PodUid, LocalPod]) -> None:
        """Release the pods that are not among *pods*, and bring the others to what they are described as now."""
        for uid, member in list(self.members.items()):
            if uid not in pods:
                self.release(uid)
                continue
            wanted = self._described(uid, pods[uid])
            if member.state in ("faulty", "failed") or not member.alike(wanted):
                self._enrol(uid, wanted)

    def add(self, pods: Mapping[PodUid, LocalPod]) -> None:
        """Capture those of *pods* that are new."""
        for uid, pod in pods.items():
            if uid not in self.members:
                self._enrol(uid, self._described(uid, pod))

    def _described(self, uid: PodUid, pod: LocalPod) -> Member:
        workload = self._workers.entry(f"workload/{uid}")
        if not isinstance(workload, Workload):
            return Member(pod)
        protected = protection(workload, policies_of(workload, self._workers.entry), self._when_dead)
        probed = frozenset(probe.port for probe in workload.probes if probe.kind == "tcp") - pod.exclude_inbound
        return Member(
            pod,
            mtls=workload.mtls,
            port_mtls=workload.port_mtls,
            protection=protected,
            bypass=workload.bypass,
            probed=probed,
        )

    def certified(self, identity: SpiffeId) -> None:
        """Let the pods that waited for the certificate of *identity* take mTLS."""
        for uid, member in self.members.items():
            if member.state == "pending" and member.pod.identity == identity:
                self._judge(uid, member, [])

    def prune(self) -> None:
        """Remove what an earlier daemon left of pods that exist no more."""
        captured = self._plane.numbers()
        spared = [
            address for uid, member in self.members.items() if uid not in captured for address in member.pod.addresses
        ]
        for what in self._plane.prune(spared):
            log.info("removed of a pod that is gone: %s", what)

    def forget_kept(self) -> None:
        """Close the listeners of pods that ended while control was away: they would keep the pods' network alive."""
        for uid, listeners in self.kept.items():
            Listeners(listeners).close()
            self._effects.drop(PodUid(uid))
        self.kept.clear()

    def _enrol(self, uid: PodUid, member: Member) -> None:
        self.members[uid] = member
        pod = member.pod
        try:
            with translated(KernelError, "the pod cannot be captured"):
                netns = self._plane.pod_netns(Path(pod.place.netns))
                bypass = member.bypass and not self._plane.joining.refusal
                wanted = EnrolledPod(
                    uid,
                    netns,
                    pod.addresses,
                    member.protection,
                    pod.exclude_inbound,
                    pod.exclude_outbound,
                    member.probed,
                    bypass,
                )
                listeners = self._plane.enroll(wanted, Listeners(self.kept.pop(uid, {})))
        except KernelError as error:
            member.state, member.faults = "failed", [str(error)]
            log.error("pod %s/%s is not captured: %s", pod.namespace, pod.pod, error)
            return
        member.cookie = netns.cookie
        for words in self._unjoined(member):
            log.warning("pod %s/%s: %s", pod.namespace, pod.pod, words)
        self._hand_on(uid, member, listeners)
        self._judge(uid, member, [])

    def _judge(self, uid: PodUid, member: Member, wrong: list[str]) -> None:
        """Say how a captured pod is, with what is *wrong*; other nodes hear of it when it can take mTLS."""
        missing = self._certificate_faults(member.pod.identity)
        member.state = "faulty" if wrong else "pending" if missing else "enrolled"
        member.faults = [*wrong, *missing]
        if not missing and not member.published:
            self._publish(uid, member)

    def _unjoined(self, member: Member) -> list[str]:
        """Say that the pod asks for the bypass and does not get it, and why."""
        refusal = self._plane.joining.refusal
        return [f"{BYPASS} is refused: {refusal}"] if member.bypass and refusal else []

    def _publish(self, uid: PodUid, member: Member) -> None:
        """Tell the other nodes; where that fails they keep sending plaintext, and it is tried again."""
        try:
            self._effects.publish(uid, True)
            member.published = True
        except ResourceError as error:
            log.error(
                "pod %s/%s: other nodes do not hear that it takes mTLS: %s", member.pod.namespace, member.pod.pod, error
            )

    def _unpublish(self, uid: PodUid) -> None:
        try:
            self._effects.publish(uid, False)
        except ResourceError as error:
            log.error("other nodes do not hear that a pod takes no mTLS any more: %s", error)

    def _hand_on(self, uid: PodUid, member: Member, listeners: Listeners) -> None:
        """Give the pod's listeners to the workers, and to the supervisor to keep, unless they have these already."""
        if self._handed.get(uid) is listeners:
            return
        self._handed[uid] = listeners
        kept = {
            f"{uid}/{direction}/{family}/{slot}": listener.fileno()
            for (direction, family, slot), listener in listeners.fds.items()
        }
        self._effects.keep({**kept, f"{uid}/netns": self._plane.network(uid)})
        self._workers.enrol(PodCaptured(uid, member.cookie, member.pod.identity), listeners.fds)

    def release(self, uid: PodUid) -> None:
        """Stop capturing the pod's new connections; those it has go on."""
        member = self.members.pop(uid, None)
        self._handed.pop(uid, None)
        if member is None:
            return
        self._unpublish(uid)
        try:
            with translated(KernelError, "the pod cannot be released"):
                self._plane.release(uid)
        except KernelError as error:
            log.warning("pod %s/%s was not released cleanly: %s", member.pod.namespace, member.pod.pod, error)
        self._workers.release(uid)
        self._effects.drop(uid)

    def check(self) -> None:
        """Compare each pod, and what all share, with the kernel's real state and repair what differs."""
        self._mend("the node", self._plane.verify_node, self._plane.repair_node)
        for uid, member in list(self.members.items()):
            if member.state == "failed":
                self._enrol(uid, member)
                continue
            name = f"pod {member.pod.namespace}/{member.pod.pod}"
            found, left = self._mend(name, partial(self._plane.verify, uid), partial(self._plane.repair, uid))
            member.repaired += len(found)
            self._hand_on(uid, member, self._plane.listeners(uid))
            self._judge(uid, member, left)

    def _certificate_faults(self, identity: SpiffeId) -> list[str]:
        try:
            self._certificates.current(identity)
        except IdentityError as error:
            return [str(error)]
        return []

    def _mend(
        self, name: str, verify: Callable[[], list[str]], repair: Callable[[], list[str]]
    ) -> tuple[list[str], list[str]]:
        """Return what was repaired and what is still wrong, in words."""
        try:
            with translated(KernelError, "it cannot be compared with the kernel"):
                found = repair() if verify() else []
                left = verify() if found else []
        except KernelError as error:
            found, left = [], [str(error)]
        for fault in found:
            log.warning("%s: repaired: %s", name, fault)
            self._effects.repaired(fault.split(":")[0])
        if left:
            log.error("%s: %s", name, "; ".join(left))
        return found, left

    def withdraw(self) -> None:
        """Tell the other nodes that these pods take no mTLS from now on: the daemon is leaving."""
        for uid in self.members:
            self._unpublish(uid)

    def healthy(self) -> bool:
        """Say whether every pod that should be captured is."""
        return all(member.state == "enrolled" for member in self.members.values())

    def rows(self) -> list[dict[str, Any]]:
        """Return the pods as ``nodeagent get pods`` shows them."""
        return [
            {
                "pod": member.pod.pod,
                "namespace": member.pod.namespace,
                "uid": uid,
                "addresses": list(member.pod.addresses),
                "identity": member.pod.identity,
                "state": member.state,
                "faults": [*member.faults, *member.pod.faults, *self._unjoined(member)],
                "repaired": member.repaired,
                "mode": member.mtls,
                "bypass": member.bypass and not self._plane.joining.refusal,
                "port_modes": {str(port): mode for port, mode in member.port_mtls},
                "when_dead": _refusal(member.protection.dead),
                "when_dead_ports": {
                    **{str(port): _refusal(dead) for port, dead in member.protection.ports},
                    **{str(port): "probes" for port in member.protection.probed},
                },
                "listeners": len(self._plane.listeners(uid).fds) if member.state != "failed" else 0,
            }
            for uid, member in self.members.items()
        ]


def _refusal(dead: bool) -> str:
    return "refuse" if dead else "pass"
