"""Patterns of headers' names and texts with substitutions: what they mean, and what is none."""

from __future__ import annotations

import pytest

from nodeagent.policy.header_names import HeaderNames, name_pattern
from nodeagent.policy.substitutions import RequestAsTold, SubstitutedText, substituted_text

HEADERS = {"x-user": "ann", "cookie": "a=1; b=2"}
TOLD = RequestAsTold(
    method="GET",
    path="/a?b=1",
    authority="shop:80",
    scheme="http",
    protocol="HTTP/2",
    header=HEADERS.get,
    sni="sni.example",
    remote_address="fd00::1",
    remote_port=4000,
    remote_identity="spiffe://cluster.local/ns/shop/sa/cart",
    local_address="10.0.0.2",
    local_port=8080,
    local_identity="",
)


@pytest.mark.parametrize(
    ("patterns", "meant", "others"),
    [
        (("X-User",), ("x-user",), ("x-user-id", "x-use", "")),
        (("x-*",), ("x-", "x-a"), ("y-x-", "x")),
        (("*-ID",), ("-id", "x-id"), ("x-id-", "id")),
        (("a", "b-*", "*-c"), ("a", "b-1", "1-c"), ("ab", "c")),
        ((), (), ("", "a")),
    ],
)
def test_which_names_are_meant(patterns: tuple[str, ...], meant: tuple[str, ...], others: tuple[str, ...]) -> None:
    names = HeaderNames(map(name_pattern, patterns))
    assert [name in names for name in (*meant, *others)] == [True] * len(meant) + [False] * len(others)


@pytest.mark.parametrize("text", ["", "*", "**", "*a*", "a*b", "a b", ":path", "a\n", "\xe9", "x" * 257])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a header's name is expected"):
        name_pattern(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain, text", "plain, text"),
        ("100%%", "100%"),
        ("https://%REQ(:AUTHORITY)%%REQ(:path)%", "https://shop:80/a?b=1"),
        ("%REQ(:METHOD)% %REQ(:SCHEME)% %PROTOCOL%", "GET http HTTP/2"),
        ("%REQ(Host)%|%REQ(X-User)%|%REQ(x-none)%", "shop:80|ann|"),
        ("%REQ(x-envoy-original-path?:PATH)%", "/a?b=1"),
        ("%REQ(X-USER?x-none)%%REQ(x-none?x-other)%", "ann"),
        ("%REQ(:PATH):3%", "/a?"),
        ("%REQUESTED_SERVER_NAME%", "sni.example"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "[fd00::1]:4000"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", "fd00::1 4000"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.0.0.2:8080 10.0.0.2"),
        ("%DOWNSTREAM_LOCAL_PORT%", "8080"),
        ("%DOWNSTREAM_PEER_URI_SAN%%DOWNSTREAM_LOCAL_URI_SAN%", "spiffe://cluster.local/ns/shop/sa/cart"),
    ],
)
def test_a_text_is_made_whole(text: str, expected: str) -> None:
    assert SubstitutedText(substituted_text(text)).of(TOLD) == expected


@pytest.mark.parametrize(
    "text",
    [
        "50%",
        "%REQ%",
        "%REQ()%",
        "%REQ(:status)%",
        "%REQ(a b)%",
        "%REQ(a?b?c)%",
        "%REQ(a):x%",
        "%RESP(a)%",
        "%START_TIME%",
        "%req(:path)%",
        "%PROTOCOL",
        "a\nb",
        "\xe9",
    ],
)
def test_what_is_no_substitution_is_named_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"printable ASCII|%REQ\(name\?other\):length%, %PROTOCOL%"):
        substituted_text(text)


def test_a_value_breaks_no_line() -> None:
    HEADERS["x-odd"] = "a\r\nb\0"
    try:
        assert SubstitutedText("%REQ(x-odd)%").of(TOLD) == "a??b?"
    finally:
        del HEADERS["x-odd"]
