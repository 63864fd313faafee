"""What a policy says that is right by its form, and cannot be meant: nothing ever matches it, or nobody is
there to answer it. Pure. What it does stays as it is: Istio does the same, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nodeagent.mesh.entries import Entry
from nodeagent.policy.authorization_match import is_foreign
from nodeagent.policy.mesh_settings import ProviderNames
from nodeagent.policy.model import AuthorizationPolicy, Jwks, RateLimit, RequestAuthentication
from nodeagent.policy.paths import is_template
from nodeagent.resources.security import Spec

_NAMED: Final = 3
"""So many values are named in one note."""
_SCHEME: Final = "spiffe://"
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_Values = Mapping[str, Sequence[str]]
"""What stands in fields that are about the same, by what that is."""


def never_matched(spec: Spec, trust_domains: Sequence[str]) -> list[str]:
    """Return, in words, which values of *spec* nothing matches in a mesh that has *trust_domains*."""
    if not isinstance(spec, AuthorizationPolicy):
        return []
    values = _values(spec)
    notes = [
        _note(values["principals"], lambda text: text.startswith(_SCHEME), f"written without {_SCHEME}, so nobody's"),
        _note(
            values["principals"],
            lambda text: is_foreign(text, trust_domains),
            f"of no trust domain of this mesh ({', '.join(trust_domains)}: see identity.trustDomainAliases), so "
            "nobody's",
        ),
        _note(values["methods"], _is_miswritten, "methods are compared with their case, so no request has it"),
        _note(values["paths"], _is_rootless, "a path begins with /, so no request has it"),
        _note(values["paths"], lambda text: "?" in text, "paths are compared without a query, so no request has it"),
        _note(
            values["paths"],
            lambda text: _has_star_amid(text) and not is_template(text),
            "a star amid stands for itself ({*} is any segment, {**} any number of them)",
        ),
    ]
    others = [*values["principals"], *values["methods"], *values["hosts"]]
    notes.append(_note(others, _has_star_amid, "a star is any text at the beginning or the end alone"))
    return [note for note in notes if note]


def unanswered(spec: Spec, providers: ProviderNames, known: Callable[[str], Entry | None]) -> list[str]:
    """Return, in words, whom *spec* asks that cannot answer: one who is not among *providers*, or a server of
    keys of which nothing fresh is *known*, by the entry's key.
    """
    if isinstance(spec, AuthorizationPolicy):
        why = providers.no_authorizer(spec.provider) if spec.action == "CUSTOM" else ""
        return [why] if why else []
    if isinstance(spec, RateLimit):
        why = providers.no_limiter(spec.service.provider) if spec.service else ""
        return [f"{why}: failureMode decides"] if why else []
    return stale_keys(spec, known) if isinstance(spec, RequestAuthentication) else []


def stale_keys(spec: RequestAuthentication, known: Callable[[str], Entry | None]) -> list[str]:
    """Return, in words, of which key sets that *spec* names nothing fresh is *known*, by the entry's key."""
    found = []
    for uri in dict.fromkeys(rule.keys_uri for rule in spec.rules):
        entry = known(Jwks(uri).key)
        if isinstance(entry, Jwks) and entry.error:
            kept = "the last good keys stay in force" if entry.keys else "each of its tokens is refused"
            found.append(f"{entry.error}; {kept}")
    return found


def _note(values: Iterable[str], wrong: Callable[[str], bool], why: str) -> str:
    """Name those of *values* that are *wrong*, and *why*; empty: none is."""
    found = sorted(set(filter(wrong, values)))
    more = f" and {len(found) - _NAMED} more" if found[_NAMED:] else ""
    return f"{', '.join(found[:_NAMED])}{more}: {why}" if found else ""


def _values(policy: AuthorizationPolicy) -> _Values:
    found: dict[str, list[str]] = {"principals": [], "methods": [], "paths": [], "hosts": []}
    for rule in policy.rules:
        for source in rule.sources:
            found["principals"] += source.principals + source.not_principals
        for operation in rule.operations:
            found["methods"] += operation.methods + operation.not_methods
            found["paths"] += operation.paths + operation.not_paths
            found["hosts"] += operation.hosts + operation.not_hosts
        for condition in rule.conditions:
            if condition.key == "source.principal":
                found["principals"] += condition.values + condition.not_values
    return found


def _is_miswritten(method: str) -> bool:
    name = method.strip("*")
    return name not in _METHODS and name.upper() in _METHODS


def _is_rootless(path: str) -> bool:
    return path[:1] not in ("/", "*") and not is_template(path)


def _has_star_amid(text: str) -> bool:
    literal = text[1:] if text.startswith("*") else text.removesuffix("*")
    return "*" in literal
