"""RequestAuthentication, compiled: which tokens a request brings, whether they are valid, what they
say.

As in Istio, whose filter asks for any of the rules, sorted by issuer, else for no token at all: a
request without a token passes. Otherwise the first rule decides that proves every token where it
looks, by what these say and how they go on; without one the request is refused. Tokens where only
other rules look go on as they are, unproved ones too; what is proved of them is told to policies that
refuse (``Claims.beside``), so that nobody hides who he is behind a token more. Beyond Istio, a place
with several tokens must have all of them proved, whoever decides: a good one among them would hide.
https://istio.io/latest/docs/reference/config/security/request_authentication
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import orjson

from nodeagent.policy.claims import SPACE_DELIMITED, Claims
from nodeagent.policy.jwt_keys import KeySet, key_set
from nodeagent.policy.jwt_places import (
    MAX_TOKENS,
    HeaderPlace,
    JwtRequest,
    Place,
    QueryPlace,
    places_of,
    without_parameters,
)
from nodeagent.policy.jwt_token import EXPIRED, NOT_VALID_YET, Token, TokenError, parse
from nodeagent.policy.model import Jwks, JwtRule, RequestAuthentication

SKEW_SECONDS: Final = 60
"""By how much the issuer's clock may differ, as in Envoy."""
FETCH_FAILED: Final = "Jwks remote fetch is failed"
_UNKNOWN_ISSUER: Final = "Jwt issuer is not configured"
_WRONG_AUDIENCE: Final = "Audiences in Jwt are not allowed"
_TOO_MANY: Final = "Too many Jwts"
_CACHED_TOKENS: Final = 1024
_CACHED_CHARACTERS: Final = 1 << 20
_MAX_REALM: Final = 256
_in_field_value: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]+").fullmatch
_not_in_realm: Final = re.compile(r'[^\x21-\x7e]|["\\]').sub


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The request goes on."""

    claims: Claims | None = None
    """Of the first token of the rule that decides; None without one."""
    remove: tuple[str, ...] = ()
    """Lower-case names of fields to take out, all lines of each, before :attr:`add`: also what a
    client may not say in the proxy's stead.
    """
    add: tuple[tuple[str, str], ...] = ()
    """Lower-case names and values, one character a byte."""
    target: str | None = None
    """The request target to send on when a token was taken out of the query, otherwise None."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request is answered with *status* (401, or 403 for a wrong audience) and the body
    *words*, which are Envoy's.
    """

    status: int
    words: str
    headers: tuple[tuple[str, str], ...]
    """``www-authenticate``."""

    @property
    def details(self) -> str:
        """Envoy's response code details."""
        return f"jwt_authn_access_denied{{{self.words.replace(' ', '_')}}}"


class _Rule:
    """A :class:`JwtRule`, compiled."""

    __slots__ = (
        "_fetched",
        "_keys",
        "_keys_of",
        "audiences",
        "forward",
        "issuer",
        "outputs",
        "payload_header",
        "space_delimited",
        "uri",
    )

    def __init__(self, rule: JwtRule, keys_of: Callable[[str], Jwks | None]) -> None:
        self.issuer = rule.issuer
        self.audiences = frozenset(map(_plain_audience, rule.audiences))
        self.forward = rule.forward_original_token
        self.space_delimited = SPACE_DELIMITED.union(rule.space_delimited_claims)
        self.payload_header = rule.output_payload_to_header.lower()
        self.outputs = tuple(
            (header.lower(), tuple(claim.split("."))) for header, claim in rule.output_claim_to_headers
        )
        self.uri = rule.keys_uri
        self._keys_of = keys_of
        self._fetched: Jwks | None = None
        self._keys: KeySet | None = None if self.uri else key_set(rule.jwks)

    def keys(self) -> KeySet | None:
        """Return the keys now; None while there are none. A look-up only, unless they changed."""
        if not self.uri:
            return self._keys
        fetched = self._keys_of(self.uri)
        if fetched is not self._fetched:
            self._fetched = fetched
            self._keys = key_set(fetched.keys) if fetched is not None and fetched.keys else None
        return self._keys

    def check(self, token: Token, now: float) -> KeySet:
        """Check *token* in Envoy's order, so that the words are Envoy's too; return the keys that
        prove it. Raises TokenError.
        """
        if self.issuer and token.issuer != self.issuer:
            raise TokenError(_UNKNOWN_ISSUER)
        if now + SKEW_SECONDS < token.not_before:
            raise TokenError(NOT_VALID_YET)
        if now > token.expires + SKEW_SECONDS:
            raise TokenError(EXPIRED)
        if self.audiences and self.audiences.isdisjoint(map(_plain_audience, token.audiences)):
            raise TokenError(_WRONG_AUDIENCE, 403)
        keys = self.keys()
        if keys is None:
            raise TokenError(FETCH_FAILED)
        keys.check(token)
        return keys

    def headers(self, token: Token) -> tuple[tuple[str, str], ...]:
        """Return the fields that say what *token* says."""
        told = [(self.payload_header, token.payload)] if self.payload_header else []
        for header, path in self.outputs:
            value = _field_value(token.claims, path)
            if value is not None:
                told.append((header, value))
        return tuple(told)


class _Proof(NamedTuple):
    """By which rule and which of its keys a token is valid, and what comes of it where that rule decides."""

    rule: _Rule
    keys: KeySet
    result: Authenticated


class _Proved(NamedTuple):
    """A valid token, and for how long it is."""

    begin: float
    end: float
    proofs: tuple[_Proof, ...]
    """At least one, in the order of the rules."""

    def by(self, rule: _Rule) -> Authenticated | None:
        """Return what comes of the token by *rule*; None: that does not prove it."""
        for proof in self.proofs:
            if proof.rule is rule:
                return proof.result
        return None


class _PlaceReader:
    """One place, and the rules that look there, in their order."""

    __slots__ = ("find", "place", "removed", "rules")

    def __init__(self, place: Place, rules: tuple[_Rule, ...]) -> None:
        self.place = place
        self.rules = rules
        self.find = place.find
        self.removed = (place.name,) if isinstance(place, HeaderPlace) else ()

    def check(self, text: str, now: float, spoken_for: tuple[str, ...]) -> _Proved:
        """Return what the token *text* is proved to be; *spoken_for* are fields always removed. Raises TokenError."""
        token = parse(text)
        refused: TokenError | None = None
        proofs: list[_Proof] = []
        for rule in self.rules:
            try:
                keys = rule.check(token, now)
            except TokenError as error:
                if refused is None or error.words != _UNKNOWN_ISSUER:
                    refused = error
                continue
            remove = spoken_for if rule.forward else spoken_for + self.removed
            proofs.append(_Proof(rule, keys, Authenticated(_claims(token, rule), remove, rule.headers(token))))
        if proofs:
            return _Proved(token.not_before - SKEW_SECONDS, token.expires + SKEW_SECONDS, tuple(proofs))
        assert refused is not None, "a place without a rule"
        raise refused


def _claims(token: Token, rule: _Rule) -> Claims:
    presenter = token.claims.get("azp")
    return Claims(
        token.issuer,
        token.subject,
        token.audiences,
        presenter if isinstance(presenter, str) else "",
        token.claims,
        rule.space_delimited,
    )


class _Cache:
    """Valid tokens of the whole worker, the oldest forgotten first."""

    __slots__ = ("_entries", "_left", "get")

    def __init__(self) -> None:
        self._entries: dict[tuple[str, _PlaceReader], _Proved] = {}
        self._left = _CACHED_CHARACTERS
        self.get = self._entries.get

    def put(self, key: tuple[str, _PlaceReader], proved: _Proved) -> None:
        self.drop(key)
        self._entries[key] = proved
        self._left -= len(key[0])
        while self._left < 0 or len(self._entries) > _CACHED_TOKENS:
            self.drop(next(iter(self._entries)))

    def drop(self, key: tuple[str, _PlaceReader]) -> None:
        if self._entries.pop(key, None) is not None:
            self._left += len(key[0])


_cache: Final = _Cache()


class Authenticator:
    """The RequestAuthentications of one workload. Made by :meth:`compile`; for one thread."""

    __slots__ = ("_now", "_readers", "_rules", "_tokenless")

    def __init__(
        self,
        readers: Sequence[_PlaceReader],
        rules: Sequence[_Rule],
        tokenless: Authenticated,
        now: Callable[[], float],
    ) -> None:
        self._readers = tuple(readers)
        self._rules = tuple(rules)
        self._tokenless = tokenless
        self._now = now

    @classmethod
    def compile(
        cls,
        authentications: Iterable[RequestAuthentication],
        keys: Callable[[str], Jwks | None],
        now: Callable[[], float],
    ) -> Authenticator:
        """Compile all that apply to a workload. *keys* gives what was fetched for a
        ``JwtRule.keys_uri`` and is asked whenever a token is checked; *now* gives seconds since
        1970. What is wrong with keys is found when a token comes: it is refused, everything else
        passes.
        """
        by_place: dict[Place, list[_Rule]] = {}
        told: list[str] = []
        rules: list[_Rule] = []
        every = itertools.chain.from_iterable(each.rules for each in authentications)
        for rule in sorted(every, key=lambda rule: rule.issuer):
            compiled = _Rule(rule, keys)
            rules.append(compiled)
            told += [name for name in (compiled.payload_header, *(header for header, _ in compiled.outputs)) if name]
            for place in places_of(rule):
                by_place.setdefault(place, []).append(compiled)
        # Headers before parameters before cookies, as Envoy looks; a sort keeps the order of the
        # rules within.
        order = sorted(
            by_place.items(),
            key=lambda item: (not isinstance(item[0], HeaderPlace), not isinstance(item[0], QueryPlace)),
        )
        return cls(
            [_PlaceReader(place, tuple(found)) for place, found in order],
            rules,
            Authenticated(remove=tuple(dict.fromkeys(told))),
            now,
        )

    @property
    def spoken_for(self) -> tuple[str, ...]:
        """Lower-case names of the fields in which the application is told what tokens say: no client
        may send one.
        """
        return self._tokenless.remove

    def authenticate(self, request: JwtRequest) -> Authenticated | Rejected:
        """Check the tokens of *request*. Nothing is changed: the caller removes, adds and rewrites
        what the result says.
        """
        if request.method == "OPTIONS" and request.header("origin") and request.header("access-control-request-method"):
            return self._tokenless  # a browser sends no token with a CORS preflight
        alone: _PlaceReader | None = None
        text = ""
        for reader in self._readers:
            tokens = reader.find(request)
            if not tokens:
                continue
            if alone is not None or len(tokens) > 1:
                return self._several(request)
            alone = reader
            text = tokens[0]
        if alone is None:
            return self._tokenless
        try:
            proved = self._prove(alone, text, self._now())
        except TokenError as error:
            return _rejected(request, error)
        proof = proved.proofs[0]
        if proof.rule.forward or not isinstance(alone.place, QueryPlace):
            return proof.result
        return replace(proof.result, target=without_parameters(request.path, frozenset((alone.place.name,))))

    def _several(self, request: JwtRequest) -> Authenticated | Rejected:
        """Do the same for a request that brings several tokens."""
        now = self._now()
        found: dict[_PlaceReader, list[_Proved]] = {}
        unproved: list[_PlaceReader] = []
        refused = TokenError(_UNKNOWN_ISSUER)
        for reader in self._readers:
            tokens = reader.find(request)
            if len(tokens) > MAX_TOKENS:
                return _rejected(request, TokenError(_TOO_MANY))
            try:
                if tokens:
                    found[reader] = [self._prove(reader, text, now) for text in tokens]
            except TokenError as error:
                if len(tokens) > 1 or "," in tokens[0]:  # a header's list is one text, which no token is
                    return _rejected(request, error)
                unproved.append(reader)
                if refused.words == _UNKNOWN_ISSUER:
                    refused = error
        for rule in self._rules:
            if not any(rule in reader.rules for reader in unproved):
                results = _results(rule, found)
                if results:
                    return _decided(rule, results, found, request.path)
        return _rejected(request, refused)

    def _prove(self, reader: _PlaceReader, text: str, now: float) -> _Proved:
        key = (text, reader)
        proved = _cache.get(key)
        if proved is not None and proved.begin <= now <= proved.end and _is_current(proved):
            return proved
        _cache.drop(key)
        proved = reader.check(text, now, self._tokenless.remove)
        _cache.put(key, proved)
        return proved


def _is_current(proved: _Proved) -> bool:
    """Say whether the keys are those by which it was proved."""
    for proof in proved.proofs:  # noqa: SIM110 - a generator costs as much as the look
        if proof.rule.keys() is not proof.keys:
            return False
    return True


def _results(rule: _Rule, found: Mapping[_PlaceReader, Sequence[_Proved]]) -> list[Authenticated]:
    """Return what comes of the tokens in the places of *rule*; nothing where it does not prove them all."""
    results: list[Authenticated] = []
    for reader, tokens in found.items():
        for proved in tokens if rule in reader.rules else ():
            result = proved.by(rule)
            if result is None:
                return []
            results.append(result)
    return results


def _decided(
    rule: _Rule, results: Sequence[Authenticated], found: Mapping[_PlaceReader, Sequence[_Proved]], path: str
) -> Authenticated:
    """Return the *results* of *rule*, which decides, as one; of other tokens only what they say is told."""
    claims = results[0].claims
    assert claims is not None, "a token without claims"
    beside: list[Claims] = []
    consumed: list[str] = []
    for reader, tokens in found.items():
        if rule in reader.rules and isinstance(reader.place, QueryPlace):
            consumed.append(reader.place.name)
        for proved in tokens:
            said = (proved.by(rule) or proved.proofs[0].result).claims
            if said is not None and said is not claims:
                beside.append(said)
    remove: dict[str, None] = {}
    add: list[tuple[str, str]] = []
    for each in results:
        remove.update(dict.fromkeys(each.remove))
        add += each.add
    target = without_parameters(path, frozenset(consumed)) if consumed and not rule.forward else None
    return Authenticated(replace(claims, beside=tuple(beside)), tuple(remove), tuple(add), target)


def _rejected(request: JwtRequest, error: TokenError) -> Rejected:
    # Without the query, which may hold the token.
    realm = _not_in_realm("", f"http://{request.host}{request.path.partition('?')[0]}")[:_MAX_REALM]
    return Rejected(
        error.status, error.words, (("www-authenticate", f'Bearer realm="{realm}", error="invalid_token"'),)
    )


def _plain_audience(audience: str) -> str:
    """Return *audience* as Envoy compares it: without scheme and final slash."""
    return audience.removeprefix("https://").removeprefix("http://").removesuffix("/")


def _field_value(claims: Mapping[str, object], path: tuple[str, ...]) -> str | None:
    """Return the claim at *path* as Envoy writes it in a header field; None when it is absent,
    empty or cannot stand there.
    """
    value: object = claims
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    elif isinstance(value, int | float):
        text = str(value)
    elif isinstance(value, str):
        text = value.encode().decode("latin-1")
    elif isinstance(value, dict | list):
        text = _as_base64(value)
    else:
        return None
    return text if _in_field_value(text) else None


def _as_base64(value: object) -> str:
    try:
        return base64.b64encode(orjson.dumps(value)).decode()
    except orjson.JSONEncodeError:
        return ""  # numbers or characters that JSON's other readers do not take
