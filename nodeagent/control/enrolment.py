"""Enrolment: the pods of this node whose traffic is captured, kept equal to what the source says
and the kernel has.

Enrolling and releasing touch neither the pod's processes nor its open connections; what fails for
one pod is told and tried again, and never keeps another pod from its enrolment.

A pod is captured whether it has a certificate or not: what needs none works, and what needs one
fails, with a reason. A pod that cannot be captured is held (``DataPlane.enroll``). So neither an
authority that is away nor a pod's own doing opens it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from nodeagent.control.concern import Snapshot
from nodeagent.control.enrolment_neighbours import Accepting, Capturing, Effects, HasCertificates
from nodeagent.errors import AwaitedError, IdentityError, KernelError, PodDoingError, ResourceError, translated
from nodeagent.identity.certificate import Certificate
from nodeagent.mesh.entries import Workload, policies_of
from nodeagent.mesh.local import BYPASS, LocalPod
from nodeagent.mesh.protection import CLOSED, MAX_PORTS, Protection, protection
from nodeagent.messages import PodCaptured
from nodeagent.parts import Parts
from nodeagent.policy.model import MtlsMode
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.steps import Steps, drained, in_turns
from nodeagent.telemetry.http_request import Routes
from nodeagent.telemetry.metrics import ENROLLED_PODS, FAULTY_PODS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Address, PodUid, SpiffeId, WhenDead

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
    excused: bool = False
    """It is not captured for its own doing."""
    awaited: bool = False
    """Its certificate is being asked for, and nothing has failed."""
    mtls: MtlsMode = "PERMISSIVE"
    port_mtls: tuple[tuple[int, MtlsMode], ...] = ()
    """By PeerAuthentication."""
    protection: Protection = CLOSED
    """What the kernel does where no proxy looks."""
    bypass: bool = False
    probed: frozenset[int] = frozenset()
    """Ports at which TCP probes ask."""
    unlooked: int = 0
    """How many more of these there are than the kernel is told."""

    def alike(self, other: Member) -> bool:
        """Say whether the kernel has to know the same of both."""
        return _described(self) == _described(other)


def _described(member: Member) -> tuple[object, ...]:
    probed = member.probed, member.unlooked
    pod = replace(member.pod, faults=())  # in words, for people
    return pod, member.mtls, member.port_mtls, member.protection, member.bypass, probed


class Enrolment:
    """A concern: reconciles local pods with the data plane."""

    def __init__(
        self,
        plane: Capturing,
        workers: Accepting,
        certificates: HasCertificates,
        effects: Effects,
        when_dead: WhenDead,
        *,
        inherited: dict[PodUid, dict[ListenerId, socket.socket]],
        check_seconds: float,
    ) -> None:
        """*inherited*: listeners that an earlier control made, by pod; those in use again are taken
        out. *check_seconds*: how often each pod is compared with the kernel.
        """
        self._plane = plane
        self._workers = workers
        self._certificates = certificates
        self._effects = effects
        self._when_dead = when_dead
        self._inherited = inherited
        self._check_seconds = check_seconds
        self._members: dict[PodUid, Member] = {}
        self._handed: dict[PodUid, Listeners] = {}
        self._others: list[str] = []
        self._unplaced: tuple[Address, ...] = ()
        self._resigned = False

    def resign(self) -> None:
        """Capture, repair, release and publish nothing any more: another daemon does. Pods that go
        are forgotten here, so that their networks end.
        """
        self._resigned = True

    def close_listeners(self) -> None:
        """Another daemon's workers take what comes. It may close some of these, and one that is open here too
        would go on getting connections.
        """
        for listeners in self._handed.values():
            listeners.close()

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Compare with the kernel, for ever; leaving tells the other nodes that these pods take no mTLS any more."""
        parts.start("the check of the pods", self._keep_checking, vital=True, idle_seconds=self._check_seconds)
        yield
        self.withdraw()

    def changed(self, snapshot: Snapshot) -> None:
        """Release the pods that are gone, and bring the others to what they are described as now."""
        if self._resigned:
            for uid in self._members.keys() - snapshot.captured.keys():
                self._forget(uid)
            return
        for uid, member in list(self._members.items()):
            if uid not in snapshot.captured:
                self.release(uid)
                continue
            wanted = self._described(snapshot, snapshot.captured[uid])
            if member.state in ("faulty", "failed") or not member.alike(wanted):
                self._enrol(uid, wanted)
            else:
                member.pod = wanted.pod  # the words of its faults may be others

    def grown(self, snapshot: Snapshot) -> None:
        """Capture the pods that are new."""
        self._unplaced = snapshot.unplaced
        for uid, pod in snapshot.captured.items():
            if uid not in self._members and not self._resigned:
                self._enrol(uid, self._described(snapshot, pod))

    def missing(self) -> list[str]:
        """Name the pods for which the daemon is not ready, and why: those that the node cannot capture,
        those whose certificate is still awaited, and all, where none is as it should be.

        A pod that is in its own way, the one of all that cannot be captured, and one whose identity the authority
        refuses stop no rollout: :meth:`warnings` names them.
        """
        judged = self._judged()
        none = not any(member.state == "enrolled" for member in judged)
        alone = sum(member.state == "failed" for member in judged) == 1
        return [
            self._named(member)
            for member in judged
            if (member.state == "failed" and not alone) or _lacks(member, none=none)
        ]

    def uncaptured(self) -> list[str]:
        """Name the pods where the node captures none of several, for no pod's own doing: nothing is protected then. Of
        a single one nobody can say whether it is the node's fault or the pod's.
        """
        judged = self._judged()
        none = len(judged) > 1 and all(each.state == "failed" for each in judged)
        return [self._named(each) for each in judged] if none else []

    def _judged(self) -> list[Member]:
        return [member for member in self._members.values() if not member.excused]

    def warnings(self) -> list[str]:
        """Name the other pods that are not captured as they should be, and why."""
        told = set(self.missing())
        wrong = [self._named(member) for member in self._members.values() if member.state != "enrolled"]
        return [words for words in wrong if words not in told]

    def _named(self, member: Member) -> str:
        return f"pod {member.pod.namespace}/{member.pod.pod}: {member.state}: {'; '.join(self._faults(member))}"

    def is_settled(self, uid: PodUid) -> bool:
        """Say whether nothing is awaited any more for the pod *uid* to be in the mesh: it is captured, and
        has its certificate or none to hope for; or it cannot be.
        """
        member = self._members.get(uid)
        return member is not None and not (member.state == "pending" and member.awaited)

    def routes(self) -> Routes:
        """``PodsPage`` tells its rows."""
        return {}

    def collect(self, store: Store) -> None:
        """Set the metrics of how many pods are captured."""
        enrolled = sum(1 for member in self._members.values() if member.state == "enrolled")
        store.set(ENROLLED_PODS, (), enrolled)
        store.set(FAULTY_PODS, (), len(self._members) - enrolled)

    def _described(self, snapshot: Snapshot, pod: LocalPod) -> Member:
        workload = snapshot.entries.get(f"workload/{pod.uid}")
        if not isinstance(workload, Workload):
            return Member(pod)
        protected = protection(workload, policies_of(workload, snapshot.entries.get), self._when_dead)
        probed = sorted({probe.port for probe in workload.probes if probe.kind == "tcp"} - pod.exclude_inbound)
        return Member(
            pod,
            mtls=workload.mtls,
            port_mtls=workload.port_mtls,
            protection=protected,
            bypass=workload.bypass,
            probed=frozenset(probed[:MAX_PORTS]),
            unlooked=len(probed[MAX_PORTS:]),
        )

    def certified(self, certificate: Certificate) -> None:
        """Let the pods that waited for *certificate* take mTLS."""
        for uid, member in self._members.items():
            if member.state == "pending" and member.pod.identity == certificate.identity:
                self._judge(uid, member, [])

    def ended(self, identity: SpiffeId) -> None:
        """What the certificate of *identity* proved holds no more."""
        self.check()

    def prune(self) -> None:
        """Remove what an earlier daemon left of pods that exist no more, or are not in the mesh any more."""
        captured = self._plane.numbers()
        spared: list[str] = [*self._unplaced]
        for uid, member in self._members.items():
            if uid not in captured:
                spared += member.pod.addresses
        for what in self._plane.prune(spared):
            log.info("removed of a pod that is gone: %s", what)

    def _enrol(self, uid: PodUid, member: Member) -> None:
        self._members[uid] = member
        pod = member.pod
        try:
            with translated(KernelError, "the pod cannot be captured"):
                netns = self._plane.pod_netns(Path(pod.place.netns), pod.place.network)
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
                listeners = self._plane.enroll(wanted, Listeners(self._inherited.pop(uid, {})))
        except KernelError as error:
            member.state = "failed"
            member.excused = isinstance(error, PodDoingError)
            member.faults = [str(error)]
            log.error("pod %s/%s is not captured: %s", pod.namespace, pod.pod, error)
            return
        member.cookie = netns.cookie
        member.excused = False
        for words in self._unmet(member):
            log.warning("pod %s/%s: %s", pod.namespace, pod.pod, words)
        self._judge(uid, member, self._hand_on(uid, member, listeners))

    def _judge(self, uid: PodUid, member: Member, wrong: list[str]) -> None:
        """Say how a captured pod is, with what is *wrong*; other nodes hear of it when it can take mTLS."""
        missing = self._certificate_faults(member)
        if wrong:
            member.state = "faulty"
        else:
            member.state = "pending" if missing else "enrolled"
        member.faults = [*wrong, *missing]
        if not missing and not member.published and not self._resigned:
            self._publish(uid, member)

    def _unmet(self, member: Member) -> list[str]:
        """Say what the pod asks for and does not get, and why."""
        found = []
        if member.bypass and (refusal := self._plane.joining.refusal):
            found.append(f"{BYPASS} is refused: {refusal}")
        if member.protection.crowded:
            found.append(
                f"mTLS modes and probes of {member.protection.crowded} ports are to be told apart, {MAX_PORTS} are at "
                "most: all of it is refused while no daemon looks; declare fewer"
            )
        if member.unlooked:
            found.append(
                f"TCP probes at {MAX_PORTS + member.unlooked} ports, {MAX_PORTS} are looked at: at the others one "
                "succeeds though nobody listens; declare fewer"
            )
        return found

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

    def _hand_on(self, uid: PodUid, member: Member, listeners: Listeners) -> list[str]:
        """Give the pod's listeners to the workers, and to the supervisor to keep, unless they have these already.
        Return why they could not, in words: it is tried again.
        """
        if self._handed.get(uid) is listeners:
            return []
        kept = {
            f"{uid}/{direction}/{family}/{slot}": listener.fileno()
            for (direction, family, slot), listener in listeners.fds.items()
        }
        try:
            self._effects.keep({**kept, f"{uid}/netns": self._plane.network(uid)})
        except OSError as error:  # no descriptors, no memory
            return [f"its listeners cannot be handed to the workers: {error.strerror}"]
        self._workers.enrol(PodCaptured(uid, member.cookie, member.pod.identity), listeners.fds)
        self._handed[uid] = listeners
        return []

    def release(self, uid: PodUid) -> None:
        """Stop capturing the pod's new connections; those it has go on."""
        member = self._members.pop(uid, None)
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

    def _forget(self, uid: PodUid) -> None:
        """A pod is gone that is another daemon's to release."""
        self._members.pop(uid, None)
        self._handed.pop(uid, None)
        self._plane.forget(uid)
        self._workers.release(uid)

    def check(self) -> None:
        """Compare each pod, and what all share, with the kernel's real state and repair what differs."""
        drained(self._check())

    def _check(self) -> Steps[None]:
        """Do that step by step, a pod each; between two of them pods may come and go."""
        if self._resigned:
            return
        self._mend("the node", self._plane.verify_node, self._plane.repair_node)
        self._tell_others()
        suspects = self._suspects()
        for uid, member in list(self._members.items()):
            yield
            if self._members.get(uid) is member and not self._resigned:
                self._check_pod(uid, member, uid in suspects)

    def _suspects(self) -> Collection[PodUid]:
        """Return the pods to be looked at closely."""
        try:
            with translated(KernelError, "the pods cannot be looked at together"):
                return self._plane.suspects()
        except KernelError as error:
            log.debug("%s", error)
            return self._members.keys()  # the look at each says what is wrong with it

    def _check_pod(self, uid: PodUid, member: Member, suspect: bool) -> None:
        if member.state == "failed":
            self._enrol(uid, member)
            return
        if not suspect:
            self._judge(uid, member, self._hand_on(uid, member, self._plane.listeners(uid)))
            return
        name = f"pod {member.pod.namespace}/{member.pod.pod}"
        found, left = self._mend(name, partial(self._plane.verify, uid), partial(self._plane.repair, uid))
        member.repaired += len(found)
        self._judge(uid, member, left + self._hand_on(uid, member, self._plane.listeners(uid)))

    def _tell_others(self) -> None:
        """Say which programs of somebody else are in the way, when that has changed."""
        try:
            with translated(KernelError, "programs of others cannot be looked for"):
                found = self._plane.others()
        except KernelError as error:
            found = [str(error)]
        for words in found:
            if words not in self._others:
                log.warning("%s", words)
        self._others = found

    def _certificate_faults(self, member: Member) -> list[str]:
        member.awaited = False
        try:
            self._certificates.current(member.pod.identity)
        except IdentityError as error:
            member.awaited = isinstance(error, AwaitedError)
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
            found = []
            left = [str(error)]
        for fault in found:
            log.warning("%s: repaired: %s", name, fault)
            self._effects.repaired(fault.split(":")[0])
        if left:
            log.error("%s: %s", name, "; ".join(left))
        return found, left

    def withdraw(self) -> None:
        """Tell the other nodes that these pods take no mTLS from now on: the daemon is leaving."""
        for uid in self._members if not self._resigned else ():
            self._unpublish(uid)

    async def _keep_checking(self) -> None:
        while not self._resigned:
            await asyncio.sleep(self._check_seconds)
            await in_turns(self._check())

    def _faults(self, member: Member) -> list[str]:
        return [*member.faults, *member.pod.faults, *self._unmet(member)]

    def rows(self) -> list[dict[str, object]]:
        """Return the pods as ``nodeagent get pods`` shows them."""
        return [
            {
                "pod": member.pod.pod,
                "namespace": member.pod.namespace,
                "uid": uid,
                "addresses": list(member.pod.addresses),
                "identity": member.pod.identity,
                "state": member.state,
                "faults": self._faults(member),
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
            for uid, member in self._members.items()
        ]


def _lacks(member: Member, *, none: bool) -> bool:
    """Say whether the daemon waits for what the captured pod *member* lacks; *none*: no pod has all."""
    return member.state in ("pending", "faulty") and (none or (member.state == "pending" and member.awaited))


def _refusal(dead: bool) -> str:
    return "refuse" if dead else "pass"
