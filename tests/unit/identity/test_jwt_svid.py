"""JWT-SVIDs: what is signed is validated, on every node, over changes of the key; everything else is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import IdentityError
from nodeagent.identity import jwt_svid
from nodeagent.identity.jwt_svid import LEAD_SECONDS, SIGNS_SECONDS, SKEW_SECONDS, TTL_SECONDS, JwtKeys
from nodeagent.policy.jwt_token import parse
from nodeagent.vocabulary import SpiffeId

WEB = SpiffeId("spiffe://cluster.local/ns/default/sa/web")
START = 1_700_000_000.0


class Clock(SimpleNamespace):
    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys_of(path: Path, clock: Clock, trust_domain: str = "cluster.local") -> JwtKeys:
    return JwtKeys(path / "ca", trust_domain, clock)


def names(keys: JwtKeys) -> list[str]:
    return [key["kid"] for key in json.loads(keys.bundle)["keys"]]


def test_what_is_signed_is_validated_on_another_node(tmp_path: Path, clock: Clock) -> None:
    token = keys_of(tmp_path, clock).sign(WEB, ["shop", "bank"])
    identity, claims = keys_of(tmp_path, clock).validate(token, "bank")
    assert identity == WEB
    assert claims == {
        "iss": "spiffe://cluster.local",
        "sub": WEB,
        "aud": ["shop", "bank"],
        "iat": START,
        "exp": START + TTL_SECONDS,
    }


def test_the_bundle_is_as_spiffe_wants_it_and_public(tmp_path: Path, clock: Clock) -> None:
    keys = keys_of(tmp_path, clock)
    (key,) = json.loads(keys.bundle)["keys"]
    assert set(key) == {"kty", "crv", "use", "kid", "x", "y"}
    assert (key["kty"], key["crv"], key["use"]) == ("EC", "P-256", "jwt-svid")
    assert parse(keys.sign(WEB, ["shop"])).key_id == key["kid"]
    assert (tmp_path / "ca" / jwt_svid.FILE).stat().st_mode & 0o777 == 0o600


def test_it_ends(tmp_path: Path, clock: Clock) -> None:
    keys = keys_of(tmp_path, clock)
    token = keys.sign(WEB, ["shop"])
    clock.now += TTL_SECONDS + SKEW_SECONDS - 1
    assert keys.validate(token, "shop")[0] == WEB
    clock.now += 1
    with pytest.raises(IdentityError, match="ended"):
        keys.validate(token, "shop")


def test_another_audience_trust_domain_or_authority_is_refused(tmp_path: Path, clock: Clock) -> None:
    keys = keys_of(tmp_path, clock)
    token = keys.sign(WEB, ["shop"])
    for audience in ("bank", "sho", "shop ", "SHOP"):
        with pytest.raises(IdentityError, match="audience"):
            keys.validate(token, audience)
    with pytest.raises(IdentityError, match="no key"):
        keys_of(tmp_path / "elsewhere", clock).validate(token, "shop")
    foreign = keys.sign(SpiffeId("spiffe://other.domain/ns/default/sa/web"), ["shop"])
    with pytest.raises(IdentityError, match="trust domain"):
        keys.validate(foreign, "shop")


def test_a_signature_in_another_form_is_refused(tmp_path: Path, clock: Clock) -> None:
    keys = keys_of(tmp_path, clock)
    token = keys.sign(WEB, ["shop"])
    raw = parse(token).signature
    head = token.rpartition(".")[0]
    for other in (raw + b"\0", raw[:-1], b"\0" * 64, raw[32:] + raw[:32], b"\xff" * 64):
        with pytest.raises(IdentityError, match="signature"):
            keys.validate(f"{head}.{jwt_svid._base64url(other)}", "shop")


@given(
    st.text(max_size=200) | st.lists(st.text(alphabet="AQabc-_=.", max_size=60), min_size=3, max_size=3).map(".".join)
)
def test_no_text_breaks_validation(text: str) -> None:
    with TemporaryDirectory() as directory, pytest.raises(IdentityError):
        keys_of(Path(directory), Clock()).validate(text, "shop")


def test_the_next_key_is_published_before_it_signs_and_the_old_one_stays_while_it_is_needed(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = keys_of(tmp_path, clock), keys_of(tmp_path, clock)
    (first,) = names(here)
    clock.now += SIGNS_SECONDS
    here.refresh()
    there.refresh()
    assert names(here) == names(there)
    assert len(names(here)) == 2
    assert parse(here.sign(WEB, ["shop"])).key_id == first, "the new one is not known to everybody yet"
    clock.now += LEAD_SECONDS
    last_of_old = there.sign(WEB, ["shop"])
    second = names(here)[1]
    assert parse(last_of_old).key_id == second
    clock.now += TTL_SECONDS
    here.refresh()
    assert names(here) == [first, second]
    clock.now += 2 * SKEW_SECONDS
    here.refresh()
    there.refresh()
    assert names(here) == names(there) == [second]


def test_a_token_holds_over_a_change_of_keys(tmp_path: Path, clock: Clock) -> None:
    keys = keys_of(tmp_path, clock)
    clock.now += SIGNS_SECONDS
    keys.refresh()
    clock.now += LEAD_SECONDS - 1
    token = keys.sign(WEB, ["shop"])
    while clock.now < START + SIGNS_SECONDS + LEAD_SECONDS + TTL_SECONDS:
        clock.now += 10
        keys.refresh()
        if clock.now < START + SIGNS_SECONDS + LEAD_SECONDS - 1 + TTL_SECONDS:
            assert keys.validate(token, "shop")[0] == WEB


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "[{}]",
        '[{"kid": "a", "signsFrom": 0, "key": "no key"}]',
        "[1]",
        '[{"kid": "a", "signsFrom": "x", "key": ""}]',
    ],
)
def test_damage_is_named_and_what_was_read_stays(tmp_path: Path, clock: Clock, content: str) -> None:
    keys = keys_of(tmp_path, clock)
    path = tmp_path / "ca" / jwt_svid.FILE
    path.write_text(content)
    with pytest.raises(IdentityError, match=jwt_svid.FILE):
        keys.refresh()
    assert keys.validate(keys.sign(WEB, ["shop"]), "shop")[0] == WEB


def test_a_key_that_others_may_read_is_refused(tmp_path: Path, clock: Clock) -> None:
    keys_of(tmp_path, clock)
    os.chmod(tmp_path / "ca" / jwt_svid.FILE, 0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        keys_of(tmp_path, clock)


def test_keys_do_not_show_themselves(tmp_path: Path, clock: Clock) -> None:
    key = keys_of(tmp_path, clock)._keys[0]
    assert isinstance(key.key, ec.EllipticCurvePrivateKey)
    assert "PrivateKey" not in repr(key)
