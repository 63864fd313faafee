"""RequestAuthentication: which tokens pass, which do not, and what of them reaches the application."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.policy.claims import SPACE_DELIMITED
from nodeagent.policy.jwt import Authenticated
from nodeagent.policy.jwt_places import MAX_TOKENS
from nodeagent.policy.model import Jwks, JwtRule, RequestAuthentication, TokenHeader
from tests.unit.policy.jwt_issuer import (
    ISSUER,
    NOW,
    Authenticator,
    Clock,
    Rejected,
    accepted,
    authenticator,
    bearer,
    ec_jwk,
    key_set,
    refused,
    request,
    rsa_jwk,
    rule,
    token,
)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
URI = "https://keys.example/jwks"


# -- what a valid token gives --


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("named", [True, False])
def test_every_algorithm(algorithm: str, named: bool) -> None:
    text = token(algorithm=algorithm) if named else token(algorithm=algorithm, kid=None)
    it = authenticator()
    for _ in range(2):  # the second time from the cache
        claims = accepted(it.authenticate(bearer(text))).claims
        assert claims is not None and claims.principal == f"{ISSUER}/alice"


def test_claims() -> None:
    text = token({"aud": ["a", "b"], "azp": "app", "scope": "read write", "realm": {"roles": ["x"]}})
    claims = accepted(authenticator().authenticate(bearer(text))).claims
    assert claims is not None
    assert (claims.issuer, claims.subject, claims.audiences, claims.presenter) == (ISSUER, "alice", ("a", "b"), "app")
    assert claims.values["scope"] == "read write" and claims.values["realm"] == {"roles": ["x"]}


def test_claims_that_a_rule_says_are_lists_in_one_text() -> None:
    for rules, expected in (((), SPACE_DELIMITED), (("roles",), SPACE_DELIMITED | {"roles"})):
        it = authenticator(replace(rule(), space_delimited_claims=rules))
        claims = accepted(it.authenticate(bearer(token({"roles": "read write"})))).claims
        assert claims is not None and claims.space_delimited == expected


def test_no_token_passes_without_claims() -> None:
    assert authenticator().authenticate(request()) == Authenticated()
    assert authenticator().authenticate(request(authorization="Basic dXNlcjpwYXNz")).claims is None


def test_refusal_is_envoys() -> None:
    outcome = authenticator().authenticate(request(path='/a"b?access_token=x.y.z', authorization="Bearer x"))
    assert isinstance(outcome, Rejected)
    assert outcome.status == 401
    assert outcome.words == "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
    assert outcome.headers == (("www-authenticate", 'Bearer realm="http://shop.example/ab", error="invalid_token"'),)
    assert (
        outcome.details
        == "jwt_authn_access_denied{Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections}"
    )


# -- time --


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": NOW - 60}, ""),
        ({"exp": NOW - 61}, "Jwt is expired"),
        ({"exp": 0}, "Jwt is expired"),
        ({"exp": None}, ""),
        ({"nbf": NOW + 60}, ""),
        ({"nbf": NOW + 61}, "Jwt not yet valid"),
        ({"iat": NOW + 9999}, ""),  # not compared, as in Envoy
        ({"exp": NOW + 0.5}, ""),
        ({"exp": str(int(NOW + 600))}, "Jwt payload [exp] field is not an integer"),
        ({"exp": True}, "Jwt payload [exp] field is not an integer"),
        ({"exp": -1}, "Jwt payload [exp] field is not a positive 64 bit integer"),
        ({"exp": 2**64}, "Jwt payload [exp] field is not a positive 64 bit integer"),
        ({"nbf": [NOW]}, "Jwt payload [nbf] field is not an integer"),
        ({"iat": "now"}, "Jwt payload [iat] field is not an integer"),
    ],
)
def test_times(claims: dict[str, Any], words: str) -> None:
    outcome = authenticator().authenticate(bearer(token(claims)))
    assert (outcome.words if isinstance(outcome, Rejected) else "") == words


def test_a_remembered_token_expires() -> None:
    clock = Clock()
    it, text = authenticator(clock=clock), token({"exp": NOW + 10, "nbf": NOW})
    accepted(it.authenticate(bearer(text)))
    clock.now = NOW + 70
    accepted(it.authenticate(bearer(text)))
    clock.now = NOW + 71
    assert refused(it.authenticate(bearer(text))) == "Jwt is expired"
    clock.now = NOW - 61
    assert refused(it.authenticate(bearer(text))) == "Jwt not yet valid"


# -- issuer and audience --


@pytest.mark.parametrize(
    "issuer", ["https://issuer.example/", "https://ISSUER.example", "", "https://evil.example", None]
)
def test_issuer_is_exact(issuer: str | None) -> None:
    assert refused(authenticator().authenticate(bearer(token({"iss": issuer})))) == "Jwt issuer is not configured"


def test_rule_without_issuer_takes_any() -> None:
    it = authenticator(rule(issuer="", jwks_uri=URI), fetched={URI: Jwks(URI, key_set())})
    claims = accepted(it.authenticate(bearer(token({"iss": "anybody"})))).claims
    assert claims is not None and claims.issuer == "anybody"


@pytest.mark.parametrize(
    ("audience", "status"),
    [
        ("api", 200),
        (["other", "api"], 200),
        ("https://api/", 200),
        ("http://api", 200),
        ("API", 403),
        ("api2", 403),
        ([], 403),
        (None, 403),
        (["other"], 403),
        (7, 401),
        ({"api": 1}, 401),
        (["api", 7], 401),
    ],
)
def test_audiences(audience: Any, status: int) -> None:
    outcome = authenticator(rule(audiences=("web", "api"))).authenticate(bearer(token({"aud": audience})))
    assert (outcome.status if isinstance(outcome, Rejected) else 200) == status
    if status == 403:
        assert refused(outcome) == "Audiences in Jwt are not allowed"


def test_rules_of_several_resources_combine_by_issuer() -> None:
    other = "https://other.example"
    both = [
        RequestAuthentication("ns", "one", (rule(),)),
        RequestAuthentication("ns", "two", (rule(issuer=other, jwks=key_set(rsa_jwk())),)),
    ]
    it = Authenticator.compile(both, {}.get, Clock())
    accepted(it.authenticate(bearer(token())))
    accepted(it.authenticate(bearer(token({"iss": other}, "RS256"))))
    # Each issuer's keys are for that issuer only.
    assert (
        refused(it.authenticate(bearer(token({"iss": other})))) == "Jwks doesn't have key to match kid or alg from Jwt"
    )


def test_two_rules_of_one_issuer() -> None:
    it = authenticator(rule(audiences=("a",)), rule(audiences=("b",)))
    for audience in ("a", "b"):
        accepted(it.authenticate(bearer(token({"aud": audience}))))
    outcome = it.authenticate(bearer(token({"aud": "c"})))
    assert isinstance(outcome, Rejected) and outcome.status == 403


# -- places --


def test_default_places() -> None:
    it, text = authenticator(), token()
    assert accepted(it.authenticate(request(path=f"/?a=b&access_token={text}"))).claims is not None
    assert accepted(it.authenticate(request(path=f"/?access%5Ftoken={text}"))).claims is not None
    assert (
        accepted(it.authenticate(request(path=f"/?token={text}", x_token=text, cookie=f"access_token={text}"))).claims
        is None
    )
    assert accepted(it.authenticate(request(authorization=f"bearer {text}"))).claims is None


@pytest.mark.parametrize(
    "places", [{"from_headers": (TokenHeader("X-Jwt"),)}, {"from_params": ("t",)}, {"from_cookies": ("t",)}]
)
def test_naming_any_place_leaves_out_the_default_ones(places: dict[str, Any]) -> None:
    outcome = authenticator(rule(**places)).authenticate(request(path="/?access_token=bad", authorization="Bearer bad"))
    assert outcome == Authenticated()


@pytest.mark.parametrize(
    ("places", "path", "headers"),
    [
        ({"from_headers": (TokenHeader("X-Jwt"),)}, "/", {"x_jwt": "{}"}),
        ({"from_headers": (TokenHeader("X-Jwt"),)}, "/", {"x_jwt": " {}\t"}),
        ({"from_headers": (TokenHeader("X-Jwt", "jwt="),)}, "/", {"x_jwt": 'a; jwt="{}"; b'}),
        ({"from_headers": (TokenHeader("Authorization", "Bearer "),)}, "/", {"authorization": "Bearer {}"}),
        ({"from_params": ("t",)}, "/x?t={}", {}),
        ({"from_params": ("t",)}, "/x?a&&t={}&b=c", {}),
        ({"from_cookies": ("t",)}, "/", {"cookie": "a=b; t={}; c"}),
        ({"from_cookies": ("t",)}, "/", {"cookie": 't="{}"'}),
        ({"from_cookies": ("t",)}, "/", {"cookie": "a=b,t={}"}),
    ],
)
def test_named_places(places: dict[str, Any], path: str, headers: dict[str, str]) -> None:
    for text, good in ((token(), True), (token({"exp": NOW - 100}), False)):
        outcome = authenticator(rule(**places)).authenticate(
            request("GET", path.format(text), **{name: value.format(text) for name, value in headers.items()})
        )
        assert isinstance(outcome, Authenticated) == good
        assert not good or accepted(outcome).claims is not None


def test_all_tokens_must_be_valid() -> None:
    first, second, bad = token(), token({"sub": "bob"}), token({"exp": 1})
    it = authenticator()
    claims = accepted(it.authenticate(request(path=f"/?access_token={second}", authorization=f"Bearer {first}"))).claims
    assert claims is not None and claims.subject == "alice"
    for header, query in ((first, bad), (bad, first)):
        outcome = it.authenticate(request(path=f"/?access_token={query}", authorization=f"Bearer {header}"))
        assert refused(outcome) == "Jwt is expired"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/?access_token={good}&access_token={bad}", {}),
        ("/?access_token={good}&access%5ftoken={bad}", {}),
        ("/?" + "access_token={good}&" * (MAX_TOKENS + 1), {}),
        ("/", {"authorization": "Bearer {good},Bearer {bad}"}),
        ("/", {"authorization": "Bearer {good},bearer {bad}"}),
        ("/", {"authorization": "bearer {bad},Bearer {good}"}),
        ("/", {"authorization": "Bearer {good}, Basic dXNlcg"}),
        ("/", {"authorization": "Bearer "}),
        ("/", {"authorization": "Bearer !"}),
        ("/?access_token=", {}),
    ],
)
def test_one_place_with_more_or_less_than_a_token(path: str, headers: dict[str, str]) -> None:
    texts = {"good": token(), "bad": token({"sub": "root"}, key=None, alg="none")}
    outcome = authenticator().authenticate(
        request("GET", path.format(**texts), **{name: value.format(**texts) for name, value in headers.items()})
    )
    assert isinstance(outcome, Rejected) and outcome.status == 401


# -- several rules, each with places of its own --

A, Z = "https://a.example", "https://z.example"
Z_FIRST = (
    rule(issuer=Z, from_headers=(TokenHeader("x-z"),), output_payload_to_header="x-z-said"),
    rule(issuer=A, output_payload_to_header="x-a-said"),
)


def of(issuer: str, subject: str = "alice", **claims: Any) -> str:
    return token({"iss": issuer, "sub": subject, **claims})


def principals(outcome: Authenticated | Rejected) -> list[str]:
    """Whose token decides, and whose are beside it."""
    claims = accepted(outcome).claims
    assert claims is not None
    return [claims.principal, *(each.principal for each in claims.beside)]


@pytest.mark.parametrize("rules", [Z_FIRST, Z_FIRST[::-1]])
def test_the_first_rule_by_issuer_decides_whatever_else_a_request_brings(rules: tuple[JwtRule, ...]) -> None:
    it = authenticator(*rules)
    assert principals(it.authenticate(bearer(of(A)))) == [f"{A}/alice"]
    assert principals(it.authenticate(request(x_z=of(Z)))) == [f"{Z}/alice"]
    outcome = accepted(it.authenticate(request(authorization=f"Bearer {of(A, 'mallory')}", x_z=of(Z))))
    assert principals(outcome) == [f"{A}/mallory", f"{Z}/alice"]
    # What the other rule would do with its token is not done.
    assert [name for name, _ in outcome.add] == ["x-a-said"]
    assert set(outcome.remove) == {"x-a-said", "x-z-said", "authorization"}


def test_what_no_rule_proves_is_refused_only_where_no_other_rule_decides() -> None:
    it = authenticator(*Z_FIRST)
    junk, old = "x.y.z", of(Z, exp=1)
    assert principals(it.authenticate(request(authorization=f"Bearer {of(A)}", x_z=junk))) == [f"{A}/alice"]
    outcome = accepted(it.authenticate(request(authorization=f"Bearer {junk}", x_z=of(Z))))
    assert principals(outcome) == [f"{Z}/alice"] and "authorization" not in outcome.remove
    assert refused(it.authenticate(request(authorization=f"Bearer {of(Z)}", x_z=old))) == "Jwt is expired"
    assert refused(it.authenticate(request(x_z=old))) == "Jwt is expired"


def test_two_rules_with_the_same_places_want_all_tokens_there_to_be_ones_own() -> None:
    it = authenticator(rule(issuer=A), rule(issuer=Z))
    for issuer in (A, Z):
        assert principals(it.authenticate(bearer(of(issuer)))) == [f"{issuer}/alice"]
    outcome = it.authenticate(request(path=f"/?access_token={of(Z)}", authorization=f"Bearer {of(A)}"))
    assert refused(outcome) == "Jwt issuer is not configured"
    outcome = it.authenticate(request(path=f"/?access_token={of(Z, 'bob')}&a=b", authorization=f"Bearer {of(Z)}"))
    assert principals(outcome) == [f"{Z}/alice", f"{Z}/bob"] and accepted(outcome).target == "/?a=b"


def test_keys_that_change_prove_no_token_beside_another_one() -> None:
    fetched = {URI: Jwks(URI, key_set())}
    it = authenticator(rule(issuer=A), rule(issuer=Z, jwks_uri=URI, from_params=("t",)), fetched=fetched)
    both = request(path=f"/?t={of(Z)}", authorization=f"Bearer {of(A)}")
    assert principals(it.authenticate(both)) == [f"{A}/alice", f"{Z}/alice"]
    fetched[URI] = Jwks(URI, key_set(rsa_jwk()))
    assert principals(it.authenticate(both)) == [f"{A}/alice"]
    assert "Jwks" in refused(it.authenticate(request(path=f"/?t={of(Z)}")))


PLACES: dict[str, dict[str, Any]] = {
    "default": {},
    "header": {"from_headers": (TokenHeader("x-t"),)},
    "query": {"from_params": ("access_token", "t")},
    "cookie": {"from_cookies": ("t",)},
}
LOOKS = {
    "default": {"authorization", "access_token"},
    "header": {"x-t"},
    "query": {"access_token", "t"},
    "cookie": {"cookie"},
}
WRITTEN = {name: of(name[0] and {"a": A, "z": Z}[name[0]], name) for name in ("a1", "a2", "z1", "z2")} | {
    "junk": "x.y.z"
}


@given(
    st.lists(st.tuples(st.sampled_from([A, Z]), st.sampled_from(sorted(PLACES))), min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(["authorization", "access_token", "x-t", "t", "cookie"]),
        st.lists(st.sampled_from(sorted(WRITTEN)), min_size=1, max_size=2),
    ),
)
def test_several_tokens_are_judged_as_istios_filter_does(
    rules: list[tuple[str, str]], brought: dict[str, list[str]]
) -> None:
    """And beyond Istio: nobody proved is hidden by another token, in his place or elsewhere."""
    it = authenticator(*(rule(issuer=issuer, **PLACES[places]) for issuer, places in rules))
    query = "&".join(f"{name}={WRITTEN[each]}" for name in ("access_token", "t") for each in brought.get(name, ()))
    fields = {"authorization": ("Bearer {}", ","), "x-t": ("{}", ","), "cookie": ("t={}", "; ")}
    said = {
        name: between.join(form.format(WRITTEN[each]) for each in brought[name])
        for name, (form, between) in fields.items()
        if name in brought
    }
    outcome = it.authenticate(request(path=f"/?{query}", **said))

    issuers = {"a": A, "z": Z}
    order = ["authorization", "x-t", "access_token", "t", "cookie"]
    looked = {name: {issuer for issuer, places in rules if name in LOOKS[places]} for name in order}
    found = {name: brought[name] for name in order if name in brought and looked[name]}
    proved = {name: [each for each in tokens if issuers.get(each[0]) in looked[name]] for name, tokens in found.items()}

    def seen(places: str) -> list[str]:
        return [each for name, tokens in found.items() if name in LOOKS[places] for each in tokens]

    def good(issuer: str, tokens: list[str]) -> bool:
        return bool(tokens) and all(issuers.get(each[0]) == issuer for each in tokens)

    deciding = [
        tokens for issuer, places in sorted(rules, key=lambda each: each[0]) if good(issuer, tokens := seen(places))
    ]
    mixed = any(
        len(tokens) > 1 and (proved[name] != tokens or name in ("authorization", "x-t"))
        for name, tokens in found.items()
    )
    if not found:
        assert outcome == Authenticated()
    elif mixed or not deciding:
        assert isinstance(outcome, Rejected)
    else:
        told = [each.rpartition("/")[2] for each in principals(outcome)]
        assert told[0] == deciding[0][0]
        assert set(told) == set(itertools.chain.from_iterable(proved.values()))


@pytest.mark.parametrize(
    ("place", "path", "fields"),
    [
        ({"from_params": ("t",)}, "/?t={0}&t={1}", {}),
        ({"from_cookies": ("t",)}, "/", {"cookie": "t={0}; t={1}"}),
        ({"from_headers": (TokenHeader("x-z"),)}, "/", {"x-z": "{0},{1}"}),
        ({"from_headers": (TokenHeader("x-z", "Bearer "),)}, "/", {"x-z": "Bearer {0}, Bearer {1}"}),
    ],
)
def test_nobody_is_hidden_by_junk_in_his_place(place: dict[str, Any], path: str, fields: dict[str, str]) -> None:
    it = authenticator(rule(issuer=A), rule(issuer=Z, **place))
    evil, good = of(Z, "evil"), {"authorization": f"Bearer {of(A)}"}
    for texts in ((evil, "x.y.z"), ("x.y.z", evil)):
        said = {name: form.format(*texts) for name, form in fields.items()}
        assert isinstance(it.authenticate(request(path=path.format(*texts), **good, **said)), Rejected)


def test_two_cookies_of_the_name() -> None:
    it = authenticator(rule(from_cookies=("t",)))
    assert isinstance(it.authenticate(request(cookie=f"t={token()}; t=x.y.z")), Rejected)
    assert isinstance(it.authenticate(request(cookie=f"t={token()},t=x.y.z")), Rejected)


def test_preflight_passes() -> None:
    preflight = {"origin": "https://a.example", "access_control_request_method": "PUT", "authorization": "Bearer bad"}
    it = authenticator(rule(output_payload_to_header="x-payload"))
    assert it.authenticate(request("OPTIONS", **preflight)) == Authenticated(remove=("x-payload",))
    for method, missing in (("GET", ""), ("OPTIONS", "origin"), ("OPTIONS", "access_control_request_method")):
        fields = {name: value for name, value in preflight.items() if name != missing}
        assert isinstance(it.authenticate(request(method, **fields)), Rejected)


# -- what reaches the application --


def test_token_is_taken_out_unless_it_is_to_be_forwarded() -> None:
    text = token()
    assert accepted(authenticator().authenticate(bearer(text))).remove == ("authorization",)
    forwarding = accepted(
        authenticator(rule(forward_original_token=True)).authenticate(
            request(path=f"/?access_token={text}", authorization=f"Bearer {text}")
        )
    )
    assert forwarding.remove == () and forwarding.target is None
    queried = accepted(
        authenticator().authenticate(
            request(path=f"/a%20b?x=1&access_token={text}&y=%20&", authorization=f"Bearer {text}")
        )
    )
    assert queried.target == "/a%20b?x=1&y=%20&" and queried.remove == ("authorization",)
    assert accepted(authenticator().authenticate(request(path=f"/a?access%5Ftoken={text}"))).target == "/a"
    cookie = accepted(authenticator(rule(from_cookies=("t",))).authenticate(request(cookie=f"t={text}")))
    assert cookie.remove == () and cookie.target is None  # as in Envoy


def test_outputs() -> None:
    outputs = (
        ("X-Sub", "sub"),
        ("x-role", "realm.role"),
        ("x-level", "level"),
        ("x-whole", "whole"),
        ("x-half", "half"),
        ("x-ok", "ok"),
        ("x-list", "list"),
        ("x-object", "realm"),
        ("x-none", "none"),
        ("x-missing", "realm.no.such"),
        ("x-empty", "empty"),
        ("x-name", "name"),
    )
    claims = {
        "realm": {"role": "admin"},
        "level": 7,
        "whole": 2.0,
        "half": 2.5,
        "ok": True,
        "list": ["a", 1],
        "none": None,
        "empty": "",
        "name": "Zoë",
    }
    text = token(claims)
    result = accepted(
        authenticator(rule(output_claim_to_headers=outputs, output_payload_to_header="X-Payload")).authenticate(
            bearer(text)
        )
    )
    assert dict(result.add) == {
        "x-payload": text.split(".")[1],
        "x-sub": "alice",
        "x-role": "admin",
        "x-level": "7",
        "x-whole": "2",
        "x-half": "2.5",
        "x-ok": "true",
        "x-list": base64.b64encode(b'["a",1]').decode(),
        "x-object": base64.b64encode(b'{"role":"admin"}').decode(),
        "x-name": "Zo\xc3\xab",
    }
    assert set(result.remove) == {"x-payload", "authorization", *(name.lower() for name, _ in outputs)}


def test_what_a_client_says_in_our_stead_is_removed_without_a_token_too() -> None:
    it = authenticator(rule(output_claim_to_headers=(("X-Sub", "sub"),), output_payload_to_header="X-Payload"))
    assert it.authenticate(request(x_sub="root")) == Authenticated(remove=("x-payload", "x-sub"))


@pytest.mark.parametrize("value", ["a\r\nx-admin: 1", "a\nb", "a\0b", "\x7f", "\x1b[0m"])
def test_claim_cannot_inject_a_header(value: str) -> None:
    it = authenticator(rule(output_claim_to_headers=(("x-sub", "sub"),)))
    assert accepted(it.authenticate(bearer(token({"sub": value})))).add == ()


# -- keys --


def test_keys_that_change_are_used_at_once() -> None:
    fetched = {URI: Jwks(URI, key_set(ec_jwk()))}
    it, text = authenticator(rule(jwks_uri=URI), fetched=fetched), token()
    accepted(it.authenticate(bearer(text)))
    fetched[URI] = Jwks(URI, key_set(ec_jwk()), "could not be refreshed")
    accepted(it.authenticate(bearer(text)))
    fetched[URI] = Jwks(URI, key_set(rsa_jwk()))
    assert refused(it.authenticate(bearer(text))) == "Jwks doesn't have key to match kid or alg from Jwt"
    accepted(it.authenticate(bearer(token(algorithm="RS256"))))
    del fetched[URI]
    assert refused(it.authenticate(bearer(text))) == "Jwks remote fetch is failed"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("", "Jwks remote fetch is failed"),
        ("<html>", "Jwks is an invalid JSON"),
        ("[]", "Jwks is an invalid JSON"),
        ('{"keys": {}}', "Jwks is an invalid JSON"),
        ('{"keys": [], "keys": []}', "Jwks is an invalid JSON"),
        ('{"keys": [7, {"kty": "oct", "k": "AAAA"}, {}]}', "Jwks doesn't have any valid public key"),
        (json.dumps({"keys": [ec_jwk()] * 257}), "Jwks is an invalid JSON"),
    ],
)
def test_bad_key_set(keys: str, words: str) -> None:
    it = authenticator(rule(jwks_uri=URI), fetched={URI: Jwks(URI, keys, "wrong")})
    assert it.authenticate(request()) == Authenticated()
    assert refused(it.authenticate(bearer(token()))) == words


def test_keys_uri() -> None:
    assert JwtRule("i", jwks="{}").keys_uri == ""
    assert JwtRule("i", jwks_uri=URI).keys_uri == URI
    assert (
        JwtRule("https://i.example/").keys_uri
        == JwtRule("https://i.example").keys_uri
        == "https://i.example/.well-known/openid-configuration"
    )


# -- properties --


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    text = token({"aud": "api"}, data.draw(st.sampled_from(ALGORITHMS)))
    position = data.draw(st.integers(0, len(text) - 1))
    changed = text[:position] + data.draw(st.characters()) + text[position + 1 :]
    it = authenticator(rule(from_headers=(TokenHeader("x-jwt"),)))
    outcome = it.authenticate(request(x_jwt=changed))
    assert isinstance(outcome, Rejected) != (changed.strip(" \t") == text)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_anything_is_answered(authorization: str, query: str, cookie: str) -> None:
    it = authenticator(rule(), rule(from_cookies=("t",)))
    outcome = it.authenticate(
        request(path=f"/?access_token={query}&{query}", authorization=f"Bearer {authorization}", cookie=f"t={cookie}")
    )
    assert isinstance(outcome, Rejected) and outcome.status == 401
    assert all(value.isascii() and value.isprintable() for _, value in outcome.headers)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_claim_is_carried(value: Any) -> None:
    it = authenticator(rule(output_claim_to_headers=(("x-it", "it"),)))
    result = it.authenticate(bearer(token({"it": value})))
    if isinstance(result, Rejected):
        assert "inf" in json.dumps(value).lower()
        return
    assert result.claims is not None and result.claims.values.get("it") == value
    for _, text in result.add:
        assert not set(text) & {"\r", "\n", "\0"} and max(text) <= "\xff"
