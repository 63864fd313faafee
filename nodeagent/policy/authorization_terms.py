"""One rule of an AuthorizationPolicy, compiled: which of its terms a connection decides, and which
only a request can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import ResourceError
from nodeagent.policy import authorization_match as matchers
from nodeagent.policy.authorization_facts import PeerFacts, RequestFacts
from nodeagent.policy.claims import Claims
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import Condition, Operation, Rule, RuleSource

_Term = tuple[str, str, tuple[str, ...], bool]
"""A field's name, its key, its values, and whether they must not match."""
PeerTest = Callable[[PeerFacts], bool]
RequestTest = Callable[[RequestFacts], bool]
ClaimsTest = Callable[[Claims], bool]
_REMOTE: Final = "remote.ip"
"""The client's address, which a request tells, and where there are none the connection."""


def _columns(**keys: str) -> tuple[tuple[str, str, str, bool], ...]:
    """Return attribute, name in YAML, key, and whether values must not match, for each field and its opposite."""
    columns: list[tuple[str, str, str, bool]] = []
    for attribute, key in keys.items():
        first, *others = attribute.split("_")
        camel = first + "".join(word.capitalize() for word in others)
        columns += (attribute, camel, key, False), (f"not_{attribute}", f"not{camel[0].upper()}{camel[1:]}", key, True)
    return tuple(columns)


_SOURCE: Final = _columns(
    principals="source.principal",
    request_principals="request.auth.principal",
    namespaces="source.namespace",
    service_accounts="source.serviceAccount",
    trust_domains="source.trustDomain",
    ip_blocks="source.ip",
    remote_ip_blocks=_REMOTE,
)
_OPERATION: Final = _columns(hosts="hosts", ports="destination.port", methods="methods", paths="paths")
"""Fields of the model; where ``when`` knows the same thing, its name for it is the key."""
_HEADER: Final = re.compile(r"request\.headers\[([^\[\]]+)\]")
_ALWAYS_THERE: Final = frozenset((":authority", "host", ":method", ":path", ":scheme"))
_CLAIMS: Final = re.compile(r"request\.auth\.claims((?:\[[^\[\]]+\])+)")
_IN_LINE: Final = frozenset(
    ("methods", "paths", "hosts", *(f"request.headers[{name}]" for name in (":authority", "host", ":method", ":path")))
)
"""Keys of terms for which a request's method, target and host are enough."""


@dataclass(frozen=True, slots=True)
class Clause:
    """Terms that must all hold, each with the name of its field in YAML: one source, one operation,
    or all conditions.
    """

    peer: tuple[tuple[str, PeerTest], ...]
    request: tuple[tuple[str, RequestTest], ...]
    residual: RequestTest | None
    """All of ``request``, None when there are none."""
    remote: tuple[tuple[str, PeerTest], ...] = ()
    """Those of ``request`` that ask for the client's address, as they are of a connection that has no requests."""

    def admits(self, peer: PeerFacts) -> bool:
        """Whether the terms that *peer* decides hold."""
        for _, test in self.peer:  # noqa: SIM110 - a generator costs as much as the tests
            if not test(peer):
                return False
        return True

    def failing(self, peer: PeerFacts, request: RequestFacts | None) -> str:
        """Return the first field that does not hold, empty when all do; without a *request* its terms do not."""
        for name, test in self.peer:
            if not test(peer):
                return name
        for name, check in self.request:
            if request is None or not check(request):
                return name
        return ""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """Some of ``sources``, some of ``operations`` and all ``conditions``; no sources or operations at all: any."""

    sources: tuple[Clause, ...]
    operations: tuple[Clause, ...]
    conditions: Clause
    needs_request: bool
    """Some terms only a request decides."""
    remote: bool
    """Some terms ask for the client's address: a request's, or where there are none the peer's."""
    by_line: bool
    """Of a request, only its method, target and host matter."""
    permits: bool
    """It is an ALLOW policy's: only a proved identity counts. Any other rule meets whoever hides
    his identity as what he is presumed to be.
    """

    def without_request(self) -> CompiledRule:
        """Return the rule without the terms that only a request decides: it matches more."""
        sources = tuple(_peer_only(clause) for clause in self.sources)
        operations = tuple(_peer_only(clause) for clause in self.operations)
        return CompiledRule(
            sources,
            operations,
            _peer_only(self.conditions),
            needs_request=False,
            remote=False,
            by_line=True,
            permits=self.permits,
        )

    def at(self, peer: PeerFacts) -> bool | RequestTest:
        """Return whether the rule matches every or no request of *peer*, or else what tells it of one."""
        found = self._of(peer)
        if found is True or self.permits or peer.presumed is None:
            return found
        presumed = self._of(peer.presumed)
        if found is False or presumed is True:
            return presumed
        return found if presumed is False else matchers.any_of([found, presumed])

    def _of(self, peer: PeerFacts) -> bool | RequestTest:
        if not self.conditions.admits(peer):
            return False
        tests: list[RequestTest] = []
        for group in (self.operations, self.sources):
            if group:
                found = _alternatives(group, peer)
                if found is False:
                    return False
                if found is not True:
                    tests.append(found)
        if self.conditions.residual is not None:
            tests.append(self.conditions.residual)
        return matchers.all_of(tests) if tests else True

    def failing(self, peer: PeerFacts, request: RequestFacts | None) -> str:
        """Return what does not match, in the words of the YAML, empty when the rule matches."""
        failing = self._failing(peer, request)
        if failing and not self.permits and peer.presumed is not None:
            return self._failing(peer.presumed, request)
        return failing

    def _failing(self, peer: PeerFacts, request: RequestFacts | None) -> str:
        for name, group in (("from", self.sources), ("to", self.operations)):
            failing = [clause.failing(peer, request) for clause in group]
            if failing and all(failing):
                return f"{name}: {', '.join(dict.fromkeys(failing))}"
        condition = self.conditions.failing(peer, request)
        return f"when: {condition}" if condition else ""


def _alternatives(clauses: tuple[Clause, ...], peer: PeerFacts) -> bool | RequestTest:
    tests: list[RequestTest] = []
    for clause in clauses:
        if clause.admits(peer):
            if clause.residual is None:
                return True
            tests.append(clause.residual)
    return matchers.any_of(tests) if tests else False


def _peer_only(clause: Clause) -> Clause:
    return replace(clause, peer=clause.peer + clause.remote, request=(), residual=None, remote=())


def compile_rule(rule: Rule, namespace: str, mesh: MeshSettings, *, permits: bool) -> CompiledRule:
    """Compile *rule* of a policy in *namespace* of *mesh*; *permits*: it is an ALLOW policy.

    Raises ResourceError naming the field and value when one cannot be understood; the resources'
    validation refuses those already.
    """

    needs_request = False
    by_line = True

    def clause(fields: Iterable[_Term]) -> Clause:
        peer: list[tuple[str, PeerTest]] = []
        request: list[tuple[str, RequestTest]] = []
        remote: list[tuple[str, PeerTest]] = []
        nonlocal needs_request, by_line
        for name, key, values, negated in fields:
            if not values:
                continue
            on_peer = _peer_test(name, key, values, namespace, mesh)
            if on_peer is not None:
                known = remote if key == _REMOTE else peer
                known.append((name, _negated(on_peer) if negated else on_peer))
            if on_peer is None or key == _REMOTE:
                on_request = _request_test(name, key, values, every=permits != negated)
                needs_request = needs_request or on_peer is None
                by_line = by_line and key.lower() in _IN_LINE
                request.append((name, _negated(on_request) if negated else on_request))
        residual = matchers.all_of([test for _, test in request]) if request else None
        return Clause(tuple(peer), tuple(request), residual, tuple(remote))

    sources = tuple(clause(_fields(source, _SOURCE)) for source in rule.sources)
    operations = tuple(clause(_fields(operation, _OPERATION)) for operation in rule.operations)
    conditions = clause(_condition_fields(rule.conditions))
    remote = any(each.remote for each in (*sources, *operations, conditions))
    return CompiledRule(sources, operations, conditions, needs_request, remote, by_line, permits)


def _fields(holder: RuleSource | Operation, columns: tuple[tuple[str, str, str, bool], ...]) -> Iterator[_Term]:
    """Yield name, key, values, and whether they must not match, of what *holder* says."""
    for attribute, name, key, negated in columns:
        values = getattr(holder, attribute)
        if values:
            yield name, key, tuple(map(str, values)), negated


def _condition_fields(conditions: tuple[Condition, ...]) -> Iterator[_Term]:
    for condition in conditions:
        yield condition.key, condition.key, condition.values, False
        yield f"{condition.key} notValues", condition.key, condition.not_values, True


def _negated(test: Callable[[matchers.Subject], bool]) -> Callable[[matchers.Subject], bool]:
    return lambda subject: not test(subject)


# -- what the connection decides --


def _peer_test(name: str, key: str, values: tuple[str, ...], namespace: str, mesh: MeshSettings) -> PeerTest | None:
    match key:
        case "source.principal":
            identity = matchers.principals(values, mesh.trust_domains)
            return lambda peer: identity(peer.principal)
        case "source.namespace":
            within = matchers.globs(values)
            return lambda peer: within(peer.namespace)
        case "source.serviceAccount":
            accounts = frozenset(value if "/" in value else f"{namespace}/{value}" for value in values)
            return lambda peer: peer.service_account in accounts
        case "source.trustDomain":
            domain = matchers.domains(values, mesh.trust_domains)
            return lambda peer: domain(peer.trust_domain)
        case "source.ip" | "remote.ip":
            source = matchers.networks(values, name)
            return lambda peer: source(peer.source)
        case "destination.ip":
            destination = matchers.networks(values, name)
            return lambda peer: destination(peer.destination)
        case "destination.port":
            ports = matchers.ports(_port(value, name) for value in values)
            return lambda peer: ports(peer.port)
        case "connection.sni":
            server_name = matchers.folded(values)
            return lambda peer: server_name(peer.sni)
    return None


def _port(value: str, name: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() and len(value) <= 5 else -1
    if not 0 <= number <= 65535:
        raise ResourceError(f"{name}: {value!r} is not a port number: 0 to 65535 is allowed")
    return number


# -- what a request decides --


def _request_test(name: str, key: str, values: tuple[str, ...], *, every: bool) -> RequestTest:
    """*every*: what an application may read in different ways matches only if it does in every one, and of
    several tokens one alone counts, the first rule's, as in Istio; otherwise each does.
    """
    match key:
        case "methods":
            method = matchers.text(values)
            return lambda request: method(request.method)
        case "paths":
            path = matchers.paths(values)
            return lambda request: path(request.normal or request.normalised())
        case "hosts":
            host = matchers.hosts(values)
            return lambda request: host(request.host)
        case "remote.ip":
            remote = matchers.networks(values, name)
            return lambda request: remote(matchers.number_of(request.remote))
        case "request.auth.principal":
            return _on_claims(_request_principal(values), every=every)
        case "request.auth.audiences":
            audience = matchers.text(values)
            return _on_claims(lambda claims: any(map(audience, claims.audiences)), every=every)
        case "request.auth.presenter":
            presenter = matchers.text(values)
            return _on_claims(lambda claims: presenter(claims.presenter), every=every)
    if header := _HEADER.fullmatch(key):
        return _header(header[1].lower(), values, every=every)
    if claims := _CLAIMS.fullmatch(key):
        return _on_claims(_claim(tuple(claims[1][1:-1].split("][")), matchers.text(values)), every=every)
    raise ResourceError(
        f"{name!r} is not a key of 'when': allowed are request.headers[x], source.ip, source.namespace, "
        "source.serviceAccount, source.trustDomain,"
        " source.principal, remote.ip, request.auth.principal, request.auth.audiences, "
        "request.auth.presenter, request.auth.claims[x], destination.ip,"
        " destination.port and connection.sni"
    )


def _header(name: str, values: tuple[str, ...], *, every: bool) -> RequestTest:
    """``*`` means present, even if empty. HTTP/2's pseudo-headers are known, and every request has them, as in Envoy.

    Of several lines of one name some applications take the first, some the last, some all in one: the
    rule of an ALLOW policy matches in *every* reading, any other one in one of them. Envoy (since
    CVE-2026-26308) asks for one in both.
    """
    value = matchers.text([matchers.as_received(each) for each in values])
    if "*" in values and name not in _ALWAYS_THERE:
        return lambda request: request.header(name) is not None
    if "*" in values:
        value = matchers.anything
    match name:
        case ":authority" | "host":
            return lambda request: value(request.host)
        case ":method":
            return lambda request: value(request.method)
        case ":path":
            return lambda request: value(request.path)
        case ":scheme":
            return lambda request: value(_scheme(request))

    def matches(request: RequestFacts) -> bool:
        found = request.header(name)
        if found is None:
            return False
        if "," not in found:
            return value(found)
        readings = [found, *request.lines(name)]
        return all(map(value, readings)) if every else any(map(value, readings))

    return matches


def _scheme(request: RequestFacts) -> str:
    """Return ``:scheme`` as Envoy makes it of X-Forwarded-Proto; without a good one the application's
    own, plain connection says it. What HTTP/2 says goes no further than the first proxy.
    """
    forwarded = (request.header("x-forwarded-proto") or "").lower()
    return forwarded if forwarded in ("http", "https") else "http"


def _on_claims(test: ClaimsTest, *, every: bool) -> RequestTest:
    def first(request: RequestFacts) -> bool:
        claims = request.claims
        return claims is not None and test(claims)

    def each(request: RequestFacts) -> bool:
        claims = request.claims
        return claims is not None and (test(claims) or (claims.beside != () and any(map(test, claims.beside))))

    return first if every else each


def _request_principal(values: tuple[str, ...]) -> ClaimsTest:
    """Issuer and subject are compared apart, cut at the last slash of the value, as Istio does: an
    issuer may be an URL.
    """
    pairs = [_principal_pair(value) for value in values]

    def matches(claims: Claims) -> bool:
        for issuer, subject in pairs:
            if issuer(claims.issuer) and subject(claims.subject):
                # What a token does not say is nothing to compare, be it with an empty text.
                return "iss" in claims.values and "sub" in claims.values
        return False

    return matches


def _principal_pair(value: str) -> tuple[matchers.Text, matchers.Text]:
    issuer, slash, subject = value.rpartition("/")
    if value == "*":
        return bool, bool
    if value.startswith("*"):
        return (matchers.text([issuer]), _exactly(subject)) if slash else (bool, matchers.text([value]))
    if value.endswith("*"):
        return (_exactly(issuer), matchers.text([subject])) if slash else (matchers.text([value]), bool)
    return (_exactly(issuer), _exactly(subject)) if slash else (_exactly(value), _exactly(""))


def _exactly(expected: str) -> matchers.Text:
    return lambda value: value == expected


def _claim(names: tuple[str, ...], value: matchers.Text) -> ClaimsTest:
    """Match the claim at *names*: a text, or a list of which one text matches; nothing else, as in Istio."""
    top_level = names[0] if len(names) == 1 else ""

    def matches(claims: Claims) -> bool:
        found: object = claims.values
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, str):
            return any(map(value, found.split(" "))) if top_level in claims.space_delimited else value(found)
        return isinstance(found, list | tuple) and any(isinstance(item, str) and value(item) for item in found)

    return matches
