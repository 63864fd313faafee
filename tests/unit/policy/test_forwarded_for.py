"""Who the client is, by X-Forwarded-For."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.policy.authorization_match import number_of
from nodeagent.policy.forwarded_for import client_address

PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("told", "proxies", "client"),
    [
        ("", 0, PEER),
        ("203.0.113.9", 0, "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", 0, "203.0.113.9"),
        ("198.51.100.1,203.0.113.9", 0, "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9 \t", 0, "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 192.0.2.1", 1, "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 192.0.2.1", 2, "198.51.100.1"),
        ("198.51.100.1, 203.0.113.9, 192.0.2.1", 3, PEER),
        ("203.0.113.9", 1, PEER),
        ("2001:db8::1", 0, "2001:db8::1"),
        ("198.51.100.1, 2001:DB8::1", 0, "2001:DB8::1"),
        ("[2001:db8::1]", 0, "2001:db8::1"),
        ("::ffff:203.0.113.9", 0, "::ffff:203.0.113.9"),
        ("203.0.113.9:555", 0, "203.0.113.9"),
        ("[2001:db8::1]:80", 0, "2001:db8::1"),
        ("[::ffff:203.0.113.9]:65535", 0, "::ffff:203.0.113.9"),
        ("203.0.113.9:", 0, PEER),
        ("203.0.113.9:555555", 0, PEER),
        ("[203.0.113.9", 0, PEER),
        ("203.0.113.9,", 0, PEER),
        (",", 0, PEER),
        ("203.0.113.9, unknown", 0, PEER),
        ("unknown, 203.0.113.9", 0, "203.0.113.9"),
        ("203.0.113.9, _hidden", 1, "203.0.113.9"),
        ("203.0.113.9;10", 0, PEER),
        ("203.0.113.0/24", 0, PEER),
        ("203.0.113.09", 0, PEER),
        ("3405803785", 0, PEER),
        ('"203.0.113.9"', 0, PEER),
        ("\xa0203.0.113.9", 0, PEER),
        ("2001:db8::1:80", 0, "2001:db8::1:80"),
        ("x" * 60000, 0, PEER),
        ("," * 60000, 0, PEER),
    ],
)
def test_the_client(told: str, proxies: int, client: str) -> None:
    assert client_address(told, proxies, PEER) == client


def test_what_is_too_long_for_an_address_is_not_remembered_as_one() -> None:
    before = number_of.cache_info().misses
    assert client_address("1" * 100, 0, PEER) == PEER
    assert number_of.cache_info().misses == before


ADDRESSES = st.ip_addresses().map(str)
JUNK = st.text(st.characters(max_codepoint=255, exclude_characters=","), max_size=30)


@given(st.lists(ADDRESSES | JUNK, max_size=4), ADDRESSES, st.lists(ADDRESSES | JUNK, max_size=3), st.booleans())
def test_what_stands_before_and_behind_it_changes_nothing(
    before: list[str], client: str, proxies: list[str], port: bool
) -> None:
    entry = (f"[{client}]:80" if ":" in client else f"{client}:80") if port else client
    found = client_address(",".join((*before, entry, *proxies)), len(proxies), PEER)
    assert ip_address(found) == ip_address(client)


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.integers(0, 4))
def test_it_is_always_an_address(told: str, proxies: int) -> None:
    ip_address(client_address(told, proxies, PEER))
