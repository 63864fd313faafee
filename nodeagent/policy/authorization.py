"""AuthorizationPolicy: compiled for one workload, evaluated once a connection as far as that goes,
and the rest once a request.

The order is Istio's: CUSTOM first (its provider is asked, and JWTs are checked, before
:meth:`RequestAuthorizer.decide`), then AUDIT, which only notes, then DENY, then ALLOW. Without any
ALLOW policy what is not denied is allowed; with one, what none allows is denied.

Beyond Istio's rules: a peer that proved no identity is nobody to ALLOW, as there, but to all others
it is also the pod whose address it has (``ConnectionFacts.presumed``). Otherwise a DENY or CUSTOM
by identity would be passed by whoever leaves his out, wherever plaintext is taken.
https://istio.io/latest/docs/concepts/security/#authorization-policies
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from nodeagent.policy.authorization_facts import ConnectionFacts, PeerFacts, RequestFacts
from nodeagent.policy.authorization_terms import CompiledRule, RequestTest, compile_rule
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy

__all__ = [
    "Authorizer",
    "CompiledPolicy",
    "ConnectionFacts",
    "Decision",
    "Note",
    "RequestAuthorizer",
    "RequestFacts",
]

_NAMED: Final = 5
"""So many policies are named in one explanation."""
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, slots=True)
class Note:
    """A match that decides nothing."""

    policy: str
    """``namespace/name``; empty for a dry run in which none of several ALLOW policies matches."""
    rule: int
    """Index in ``rules``, -1: none."""
    kind: str
    """``audit``; ``dry_run_allow``, ``dry_run_deny`` or ``dry_run_custom``: what the policies in
    dry run would have done.
    """


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies say."""

    allowed: bool
    policy: str = ""
    """``namespace/name`` of the one that decides, empty when none does; with its kind before it
    where it is a wrong document.
    """
    rule: int = -1
    """Index in its ``rules``, -1: none."""
    custom: str = ""
    """The provider that must also allow the whole connection, empty: none."""
    notes: tuple[Note, ...] = ()
    explain: str = ""
    """The reason in words."""


class _Bound(Generic[_Outcome]):
    """The first of ``steps`` that matches a request gives the outcome, otherwise it is ``final``;
    ``by_line`` as in :class:`RequestAuthorizer`.
    """

    __slots__ = ("by_line", "final", "steps")

    def __init__(self, steps: tuple[tuple[RequestTest, _Outcome], ...], final: _Outcome, by_line: bool) -> None:
        self.steps = steps
        self.final = final
        self.by_line = by_line

    def first(self, request: RequestFacts) -> _Outcome:
        for test, outcome in self.steps:
            if test(request):
                return outcome
        return self.final


@dataclass(frozen=True, slots=True)
class _Chain(Generic[_Outcome]):
    """Rules in the order in which they are looked at, and the outcome when none matches."""

    steps: tuple[tuple[CompiledRule, _Outcome], ...]
    final: _Outcome

    def at(self, peer: PeerFacts) -> _Bound[_Outcome]:
        """Return what remains to be asked of the requests of *peer*."""
        left: list[tuple[RequestTest, _Outcome]] = []
        by_line = True
        for rule, outcome in self.steps:
            found = rule.at(peer)
            if found is True:
                return _Bound(tuple(left), outcome, by_line)
            if found is not False:
                left.append((found, outcome))
                by_line = by_line and rule.by_line
        return _Bound(tuple(left), self.final, by_line)


class RequestAuthorizer:
    """The policies of a workload as the requests of one connection meet them."""

    __slots__ = ("_customs", "_final", "_steps", "_watches", "by_line")

    def __init__(
        self, customs: _Bound[str], decisions: _Bound[Decision], watches: tuple[_Bound[Note | None], ...]
    ) -> None:
        self._customs = customs
        self._watches = watches
        self._steps = decisions.steps
        self._final = decisions.final
        self.by_line = customs.by_line and decisions.by_line and all(watch.by_line for watch in watches)
        """Every request with the same method, target and host meets the same outcome: nothing asks
        for fields or claims.
        """

    def custom(self, request: RequestFacts) -> str:
        """Return the provider that must allow *request* before anything else is decided, empty: none."""
        return self._customs.first(request)

    def decide(self, request: RequestFacts) -> Decision:
        """Return what AUDIT, DENY and ALLOW policies say of *request*."""
        decision = self._final
        for test, outcome in self._steps:
            if test(request):
                decision = outcome
                break
        if self._watches:
            notes = tuple(note for watch in self._watches if (note := watch.first(request)) is not None)
            if notes:
                return replace(decision, notes=notes)
        return decision


@dataclass(frozen=True, slots=True)
class Authorizer:
    """All AuthorizationPolicies that apply to one workload, for the ports it serves as HTTP or for the others."""

    needs_request: bool
    """Some rule has terms that a request decides."""
    remote: bool
    """Some of them ask for the client's address (:attr:`RequestFacts.remote`)."""
    _customs: _Chain[str]
    _decisions: _Chain[Decision]
    _watches: tuple[_Chain[Note | None], ...]
    _policies: tuple[CompiledPolicy, ...]
    """In order, for :meth:`trace`."""

    @classmethod
    def compile(cls, policies: Iterable[AuthorizationPolicy], *, http: bool, mesh: MeshSettings) -> Authorizer:
        """Compile *policies* of *mesh* and put them together.

        Raises ResourceError when a value cannot be understood.
        """
        return cls.of([CompiledPolicy.of(policy, mesh) for policy in policies], http=http)

    @classmethod
    def of(cls, policies: Iterable[CompiledPolicy], *, http: bool) -> Authorizer:
        """Put *policies* together, which costs little beside compiling them.

        Where the port is not *http*, an ALLOW rule with HTTP fields is left out, so its policy
        still denies what it does not allow, and rules of other actions lose just those fields, so
        they match more: never does that allow what HTTP would not. The client is the peer there.
        """
        ordered = sorted(policies, key=lambda policy: policy.order)
        if not http:
            ordered = [policy.without_request() for policy in ordered]
        enforced = [policy for policy in ordered if not policy.dry_run]
        customs = [policy for policy in enforced if policy.action == "CUSTOM"]
        providers = sorted({policy.provider for policy in customs})
        refused: list[CompiledPolicy] = []
        if providers[1:] or "" in providers:
            # Nobody says whom to ask: such rules deny, as in Istio.
            refused = customs
            customs = []
        denies = [*refused, *(policy for policy in enforced if policy.action == "DENY")]
        allows = [policy for policy in enforced if policy.action == "ALLOW"]
        return cls(
            needs_request=any(rule.needs_request or rule.remote for _, _, rule, _ in _rules(ordered)),
            remote=any(rule.remote for _, _, rule, _ in _rules(ordered)),
            _customs=_Chain(tuple((rule, policy.provider) for policy, _, rule, _ in _rules(customs)), ""),
            _decisions=_Chain(
                tuple((rule, decision) for _, _, rule, decision in _rules([*denies, *allows])),
                _otherwise(allows, denies),
            ),
            _watches=tuple(_watches(ordered)),
            _policies=tuple(ordered),
        )

    def connection(self, facts: ConnectionFacts) -> Decision | RequestAuthorizer:
        """Return the decision on every request of the connection of *facts*, or what decides on each of them."""
        peer = PeerFacts(facts)
        customs = self._customs.at(peer)
        decisions = self._decisions.at(peer)
        watches = tuple(filter(_notes_anything, [watch.at(peer) for watch in self._watches]))
        if customs.steps or decisions.steps or any(watch.steps for watch in watches):
            return RequestAuthorizer(customs, decisions, watches)
        notes = tuple(watch.final for watch in watches if watch.final is not None)
        return (
            replace(decisions.final, custom=customs.final, notes=notes) if notes or customs.final else decisions.final
        )

    def trace(self, facts: ConnectionFacts, request: RequestFacts | None) -> tuple[str, ...]:
        """Return a line for every rule: that it matches, or which of its fields do not. For people,
        not for the hot path.
        """
        peer = PeerFacts(facts)
        lines = []
        for policy, index, rule, _ in _rules(self._policies):
            failing = rule.failing(peer, request)
            lines.append(f"{policy.title}, rule {index}: {f'does not match ({failing})' if failing else 'matches'}")
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy whose rules are compiled, for any workload and port that it applies to."""

    order: tuple[str, str]
    """Namespace and name: policies are looked at in this order."""
    name: str
    action: str
    dry_run: bool
    provider: str
    rules: tuple[tuple[int, CompiledRule, Decision], ...]
    """Each rule with its index in the policy, and the decision where it matches and the policy decides."""

    @classmethod
    def of(cls, policy: AuthorizationPolicy, mesh: MeshSettings) -> CompiledPolicy:
        """Compile *policy* of *mesh*. Raises ResourceError when a value cannot be understood."""
        name = f"{policy.refused} {policy.namespace}/{policy.name}".lstrip()
        title = _title(policy.action, name, policy.dry_run)
        reason = (
            " and denies: the workload's CUSTOM policies do not agree on one provider"
            if policy.action == "CUSTOM"
            else ""
        )
        reason = (
            ": the document is wrong and closes what it selects (see nodeagent get policies)"
            if policy.refused
            else reason
        )
        rules = [
            (
                index,
                compile_rule(rule, policy.namespace, mesh, permits=policy.action == "ALLOW"),
                Decision(policy.action == "ALLOW", name, index, explain=f"{title}, rule {index} matches{reason}"),
            )
            for index, rule in enumerate(policy.rules)
        ]
        return cls((policy.namespace, policy.name), name, policy.action, policy.dry_run, policy.provider, tuple(rules))

    def without_request(self) -> CompiledPolicy:
        """Return what holds where there are no requests to ask about."""
        allow = self.action == "ALLOW"
        rules = [
            (index, rule.without_request(), decision)
            for index, rule, decision in self.rules
            if not (allow and rule.needs_request)
        ]
        return replace(self, rules=tuple(rules))

    @property
    def decides_requests(self) -> bool:
        """Say whether some rule in force decides by what only a request says."""
        return self._decides and any(rule.needs_request for _, rule, _ in self.rules)

    @property
    def judges_clients(self) -> bool:
        """Say whether some rule in force decides by the client's address, which a request may tell."""
        return self._decides and any(rule.remote for _, rule, _ in self.rules)

    @property
    def _decides(self) -> bool:
        return not self.dry_run and self.action != "AUDIT"

    @property
    def title(self) -> str:
        return _title(self.action, self.name, self.dry_run)


def _title(action: str, name: str, dry_run: bool) -> str:
    return f"{action} policy {name}{' (dry run)' if dry_run else ''}"


def _otherwise(allows: list[CompiledPolicy], denies: list[CompiledPolicy]) -> Decision:
    """Return the decision when no rule matches."""
    if allows:
        names = ", ".join(policy.name for policy in allows[:_NAMED]) + (
            f" and {len(allows) - _NAMED} more" if allows[_NAMED:] else ""
        )
        return Decision(False, explain=f"no rule of the workload's ALLOW policies matches: {names}")
    return Decision(
        True,
        explain="no DENY policy matches, and no ALLOW policy applies" if denies else "no policy that decides applies",
    )


def _rules(policies: Iterable[CompiledPolicy]) -> Iterator[tuple[CompiledPolicy, int, CompiledRule, Decision]]:
    """Yield the rules of *policies*: whose, its number, what it tests, and what is decided where it matches."""
    for policy in policies:
        for index, rule, decision in policy.rules:
            yield policy, index, rule, decision


def _notes_anything(watch: _Bound[Note | None]) -> bool:
    return bool(watch.steps) or watch.final is not None


def _watches(policies: list[CompiledPolicy]) -> Iterator[_Chain[Note | None]]:
    """Yield what only notes: each AUDIT policy, each other one in dry run, and all ALLOW policies
    in dry run together, as they would decide.
    """
    for policy in policies:
        if policy.action == "AUDIT" or (policy.dry_run and policy.action != "ALLOW"):
            kind = "audit" if policy.action == "AUDIT" else f"dry_run_{policy.action.lower()}"
            yield _Chain(tuple((rule, Note(policy.name, index, kind)) for index, rule, _ in policy.rules), None)
    allows = [policy for policy in policies if policy.dry_run and policy.action == "ALLOW"]
    if allows:
        steps = tuple((rule, Note(policy.name, index, "dry_run_allow")) for policy, index, rule, _ in _rules(allows))
        yield _Chain(steps, Note(allows[0].name if len(allows) == 1 else "", -1, "dry_run_deny"))
