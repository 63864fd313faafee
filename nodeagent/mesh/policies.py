"""Which policies are for which pods, both ways, and what PeerAuthentication makes of it. Pure and
incremental.

A policy is for the pods of its namespace, one of the root namespace for those of the whole mesh;
its selector or ``targetRefs`` narrow that (Istio's rules). Finding what belongs together costs what
matches, not what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Final

from nodeagent.mesh.selection import Likeness, NamespacedName, PodLabels, Postings
from nodeagent.policy.model import AuthorizationPolicy, MtlsMode, PeerAuthentication, RateLimit, RequestAuthentication
from nodeagent.resources.changes import Refused
from nodeagent.resources.policy_scope import PolicyTarget
from nodeagent.resources.security import Policy, Spec
from nodeagent.vocabulary import ObjectKey

_Term = tuple[str, str, str]
"""Namespace (empty: of the whole mesh), label and value; label and value empty: everything of the namespace."""
_EVERYTHING: Final = ("", "")
PEER_AUTHENTICATION: Final = "PeerAuthentication"
Deciding = Callable[[NamespacedName], Mapping[int, Policy]]
"""Which PeerAuthentications decide about a pod, by what they speak for."""


@dataclass(frozen=True, slots=True)
class MtlsModes:
    """What PeerAuthentication says about a pod."""

    mode: MtlsMode
    source: str
    """``namespace/name`` of what says so; empty: the default of agent.yaml."""
    ports: tuple[tuple[int, MtlsMode], ...]
    """Ports whose mode differs from ``mode``."""


class Policies:
    """Every policy of the cluster, and which of *pods* it may be for."""

    def __init__(self, default: MtlsMode, root: str, pods: PodLabels) -> None:
        self._pods = pods
        self._default = default
        self.root = root
        self.known: dict[ObjectKey, Policy] = {}
        self.files: dict[ObjectKey, str] = {}
        self.entries: dict[str, AuthorizationPolicy | RequestAuthentication | RateLimit] = {}
        """By the entry's key; those of policies that are entries."""
        self._by_term: Postings[_Term, ObjectKey] = Postings()
        self._peers_by_term: Postings[_Term, ObjectKey] = Postings()
        """Of PeerAuthentications alone: of a pod on another node nobody asks for more."""
        self._by_service: Postings[NamespacedName, ObjectKey] = Postings()
        self._oldest: dict[tuple[str, tuple[tuple[str, str], ...]], Policy] = {}
        """The oldest PeerAuthentication by its scope and selector; empty: not looked for since the last change."""

    def put(self, key: ObjectKey, policy: Policy | None, file: str) -> None:
        """Know the policy *key*, know it anew, or (None) no more."""
        before = self.known.pop(key, None)
        self.files.pop(key, None)
        self._oldest.clear()
        if before is not None:
            if not isinstance(before.spec, PeerAuthentication):
                self.entries.pop(before.spec.key, None)
            for service in _services(before):
                self._by_service.discard(service, key)
            if not self._selects_nobody(before):
                self._terms_of(key).discard(self._term(before), key)
                self._pods.release(self._scope(before), dict(before.selector))
        if policy is not None:
            self.known[key] = policy
            self.files[key] = file
            if not isinstance(policy.spec, PeerAuthentication):
                self.entries[policy.spec.key] = policy.spec
            for service in _services(policy):
                self._by_service.add(service, key)
            if not self._selects_nobody(policy):
                self._terms_of(key).add(self._term(policy), key)
                self._pods.ask(self._scope(policy), dict(policy.selector))

    def attached(self, service: NamespacedName) -> bool:
        """Say whether any policy is attached to *service*."""
        return bool(self._by_service.get(service))

    def services(self, key: ObjectKey) -> list[NamespacedName]:
        """Return the Services to whose pods the policy *key* is attached."""
        policy = self.known.get(key)
        return _services(policy) if policy else []

    def pods(self, key: ObjectKey) -> Set[NamespacedName]:
        """Return the pods that the policy *key* is for by namespace and selector."""
        policy = self.known.get(key)
        if policy is None or self._selects_nobody(policy):
            return frozenset()
        scope = self._scope(policy)
        if not policy.selector:
            return self._pods.within(scope)
        return set(self._pods.selected(scope, dict(policy.selector)))

    def of(self, pod: NamespacedName, services: Iterable[NamespacedName]) -> list[Policy]:
        """Return the policies that are for *pod*, an endpoint of *services*, oldest first."""
        if not self.known:
            return []
        found = self._selecting(pod, self._by_term) | self._selecting(pod, self._peers_by_term)
        for service in services:
            found |= self._by_service.get(service)
        return sorted((self.known[key] for key in found), key=_age)

    def peers(self, pod: NamespacedName) -> list[Policy]:
        """Return the PeerAuthentications that are for *pod*, oldest first."""
        return sorted((self.known[key] for key in self._selecting(pod, self._peers_by_term)), key=_age)

    def _selecting(self, pod: NamespacedName, by_term: Postings[_Term, ObjectKey]) -> set[ObjectKey]:
        """Return those of *by_term* whose namespace and selector are *pod*'s."""
        found: set[ObjectKey] = set()
        for term in ((pod[0], *_EVERYTHING), ("", *_EVERYTHING), *self._pods.terms(pod)):
            found |= {key for key in by_term.get(term) if self._pods.matches(pod, dict(self.known[key].selector))}
        return found

    def _terms_of(self, key: ObjectKey) -> Postings[_Term, ObjectKey]:
        return self._peers_by_term if key[0] == PEER_AUTHENTICATION else self._by_term

    def mtls(self, policies: Iterable[Policy]) -> MtlsModes:
        """Return the modes that *policies*, those of one pod and oldest first, make: port >
        workload > namespace > mesh > default; UNSET inherits.
        """
        mesh: PeerAuthentication | None = None
        namespace: PeerAuthentication | None = None
        workload: PeerAuthentication | None = None
        for policy in policies:
            spec = policy.spec
            if not isinstance(spec, PeerAuthentication):
                continue
            if policy.namespace == self.root:
                mesh = mesh or (spec if not policy.selector else None)
            elif policy.selector:
                workload = workload or spec
            else:
                namespace = namespace or spec
        mode = self._default
        source = ""
        for said in (mesh, namespace, workload):
            if said is not None and said.mode is not None:
                mode = said.mode
                source = f"{said.namespace}/{said.name}"
        ports = ((port, own or mode) for port, own in workload.ports) if workload else ()
        return MtlsModes(mode, source, tuple((port, own) for port, own in ports if own != mode))

    def decisions(self) -> Deciding:
        """Return what tells which PeerAuthentications decide about a pod, for many questions until the next change:
        each pod is looked at once, and each kind of pods that are alike.
        """
        known: dict[Likeness, Mapping[int, Policy]] = {}

        def deciding(pod: NamespacedName) -> Mapping[int, Policy]:
            likeness = self._pods.likeness(pod)
            if likeness not in known:
                known[likeness] = self._deciding(pod)
            return known[likeness]

        return cache(deciding)

    def _deciding(self, pod: NamespacedName) -> Mapping[int, Policy]:
        """Return of each that a PeerAuthentication can speak for the oldest that is for *pod*."""
        found: dict[int, Policy] = {}
        for policy in self.peers(pod):
            found.setdefault(self._rank(policy), policy)
        return found

    def displaced(self, key: ObjectKey, pods: Iterable[NamespacedName], deciding: Deciding) -> list[Policy]:
        """Return, for each of *pods* that a PeerAuthentication *key* is for and does not decide about, the older one
        that does, as *deciding* says.
        """
        policy = self.known[key]
        if not isinstance(policy.spec, PeerAuthentication):
            return []
        rank = self._rank(policy)
        firsts = [deciding(pod).get(rank, policy) for pod in pods]
        return [first for first in firsts if first is not policy]

    def _rank(self, policy: Policy) -> int:
        """Return what a PeerAuthentication speaks for: 0 the mesh, 1 a namespace, 2 a workload, 3 nobody."""
        if policy.namespace == self.root:
            return 3 if policy.selector else 0
        return 2 if policy.selector else 1

    def idle(self, key: ObjectKey) -> str:
        """Return why the policy *key* can have no effect on any pod; empty: it can."""
        policy = self.known[key]
        if why := self.leaves_open(policy):
            return why
        if policy.targets and not _services(policy):
            return _unserved(policy)
        if isinstance(policy.spec, PeerAuthentication):
            if policy.selector and policy.namespace == self.root:
                return "a PeerAuthentication of the root namespace with a selector is ignored, as in Istio"
            if (older := self._older(policy)) is not None:
                return f"the older {older.namespace}/{older.name} has the same scope"
        return ""

    def leaves_open(self, policy: Policy) -> str:
        """Return why *policy*, which stands in for a wrong document, closes nothing; empty: it closes."""
        if not policy.unseen or policy.namespace != self.root:
            return ""
        return "closes nothing: which pods it selects is not seen, and it may be for the whole mesh"

    def left_open(self) -> list[str]:
        """Return, in words, the wrong documents that nothing stands in for, as they may be for the whole mesh."""
        return [
            f"{'/'.join(key)} {why}: {policy.refused}"
            for key, policy in sorted(self.known.items())
            if (why := self.leaves_open(policy))
        ]

    def row(self, key: ObjectKey, local: Set[NamespacedName], deciding: Deciding) -> dict[str, object]:
        """Return the policy *key*, which is for the pods *local* of this node, as a row for people; of a
        PeerAuthentication those count about which it decides. *deciding* is of :meth:`decisions`.
        """
        policy = self.known[key]
        why = self.idle(key) or ("" if local else "no pod of this node is meant")
        others = self.displaced(key, local, deciding) if not why else []
        pods = len(local) - len(others)
        older = ", ".join(sorted({f"{each.namespace}/{each.name}" for each in others}))
        if others and not pods:
            why = f"the older {older} decides about all pods of this node that it selects"
        state = f"no effect: {why}" if why else "in force"
        for less in () if why else (_unserved(policy), _unverifying(policy)):
            state += f"; {less}" if less else ""
        if others and pods:
            state += f"; about {len(others)} more pods the older {older} decides"
        if policy.refused:
            state = f"refused: {policy.refused}; {self.leaves_open(policy) or f'closes {pods} pods of this node'}"
        scope = "workload"
        if not policy.selector and not policy.targets:
            scope = "mesh" if policy.namespace == self.root else "namespace"
        labels = ",".join(f"{name}={value}" for name, value in policy.selector)
        return {
            "kind": policy.kind,
            "policy": f"{policy.namespace}/{policy.name}",
            "action": _action(policy),
            "selector": labels or ",".join(map(str, policy.targets)),
            "scope": scope,
            "pods": pods,
            "state": state,
            "file": self.files[key],
        }

    def _selects_nobody(self, policy: Policy) -> bool:
        """Say whether no pod is *policy*'s by namespace and selector."""
        return bool(policy.targets or self.leaves_open(policy))

    def _older(self, policy: Policy) -> Policy | None:
        """Return the PeerAuthentication that takes *policy*'s place for every pod: one with the same selector."""
        if not self._oldest:
            for each in sorted(self.known.values(), key=_age, reverse=True):
                if isinstance(each.spec, PeerAuthentication) and not self._selects_nobody(each):
                    self._oldest[self._scope(each), each.selector] = each
        oldest = self._oldest[self._scope(policy), policy.selector]
        return None if oldest is policy else oldest

    def _scope(self, policy: Policy) -> str:
        return "" if policy.namespace == self.root else policy.namespace

    def _term(self, policy: Policy) -> _Term:
        return (self._scope(policy), *min(policy.selector, default=_EVERYTHING))


_PREFIXES: Final = {
    "AuthorizationPolicy": "authorization",
    "RequestAuthentication": "authentication",
    "RateLimit": "ratelimit",
}


def entry_key(kind: str, namespace: str, name: str) -> str:
    """Return the key of the entry of a policy; empty: its kind has none."""
    return f"{_PREFIXES[kind]}/{namespace}/{name}" if kind in _PREFIXES else ""


def refused_row(refused: Refused) -> dict[str, object]:
    """Return the row of a document that is not in force."""
    policy = f"{refused.namespace}/{refused.name}" if refused.kind else ""
    stays = "; what it held stays in force" if refused.stays and not refused.kind else ""
    state = f"{'ignored' if refused.ignored else 'refused'}: {refused.error}{stays}"
    return {
        "kind": refused.kind,
        "policy": policy,
        "action": "",
        "selector": "",
        "scope": "",
        "pods": 0,
        "state": state,
        "file": refused.file,
    }


def _action(policy: Policy) -> str:
    spec = policy.spec
    if isinstance(spec, PeerAuthentication):
        ports = [f"{port}:{mode or 'UNSET'}" for port, mode in spec.ports]
        return " ".join([spec.mode or "UNSET", *ports])
    if isinstance(spec, AuthorizationPolicy):
        return spec.action + (f" {spec.provider}" if spec.provider else "") + (" (dry run)" if spec.dry_run else "")
    if isinstance(spec, RequestAuthentication):
        return "JWT " + ",".join(rule.issuer or rule.jwks_uri for rule in spec.rules)
    return " ".join([f"{len(spec.local)} local", *([f"global {spec.service.provider}"] if spec.service else [])])


def _age(policy: Policy) -> tuple[str, str, str, str]:
    return policy.created, policy.namespace, policy.name, policy.kind


def _is_service(target: PolicyTarget) -> bool:
    return target.kind == "Service" and target.group in ("", "core")


def _unserved(policy: Policy) -> str:
    """Return, in words, which of *policy*'s targets nobody serves here; empty: all are served."""
    others = [target for target in policy.targets if not _is_service(target)]
    return f"targetRefs: {', '.join(map(str, others))}: only a Service is served here" if others else ""


def _unverifying(policy: Policy) -> str:
    """Return, in words, which of *policy*'s key sets can verify no token; empty: none is such."""
    if not isinstance(policy.spec, RequestAuthentication):
        return ""
    # it brings a cryptography library, and nobody but people asks
    from nodeagent.policy.jwt_keys import key_set

    useless = [index for index, rule in enumerate(policy.spec.rules) if rule.jwks and not key_set(rule.jwks).usable]
    where = ", ".join(f"spec.jwtRules[{index}].jwks" for index in useless)
    return f"{where}: no key can verify a token (kty RSA, EC or OKP can): each is refused" if useless else ""


def _services(policy: Policy) -> list[NamespacedName]:
    return [(policy.namespace, target.name) for target in policy.targets if _is_service(target)]


def names(specs: Iterable[Spec]) -> tuple[str, ...]:
    """Return the keys of the entries of *specs*, sorted; PeerAuthentication has none, it is part
    of the workload's.
    """
    return tuple(sorted(spec.key for spec in specs if not isinstance(spec, PeerAuthentication)))
