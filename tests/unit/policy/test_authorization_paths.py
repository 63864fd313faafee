"""The one form of a path that policies compare and applications receive."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.policy.authorization import holds_nul, normalise_path, normalise_target


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("*", "*"),
        ("", "/"),
        ("/a/b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/...", "/..."),
        ("/.a/..b/c.", "/.a/..b/c."),
        ("//a", "//a"),
        ("/a//../b", "/a/b"),
        ("//..", "/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/%41%7a%39%2d%5F%7E", "/Az9-_~"),
        ("/a%2Fb%2f%5C%5c", "/a%2Fb%2f%5C%5c"),
        ("/a%20b%C3%bc", "/a%20b%C3%bc"),
        ("/..%2Fa", "/..%2Fa"),
        ("\\a\\..\\b", "/b"),
        ("/a/..;/b", "/b"),
        ("/a/..;x=1;y/b", "/b"),
        ("/a/.;/b", "/a/b"),
        ("/a/b/..;", "/a/"),
        ("/a/%2e%2e;/b", "/b"),
        ("/a/..%3b/b", "/a/..%3b/b"),
        ("/;/a;/...;/..a;", "/;/a;/...;/..a;"),
        ("/a;p=1/b", "/a;p=1/b"),
        ("/a?b/../c", "/a"),
        ("/a#b", "/a"),
        ("/a#?b", "/a"),
        ("?x", "/"),
        ("a", "/a"),
        ('/ "<>^`{|}\x7f\xfc', "/%20%22%3C%3E%5E%60%7B%7C%7D%7F%FC"),
        ("/%", "/%"),
        ("/%4", "/%4"),
        ("/%zz", "/%zz"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/%2%65%2%65/a", "/%252e%252e/a"),
        ("/%%32%65/a", "/%252e/a"),
        ("/x%%2ephp", "/x%.php"),
        ("http://h/a/../b", "/b"),
        ("HTTPS://h:1", "/"),
        ("http://h?x", "/"),
        ("http://h/http://g/../a", "/http://a"),
    ],
)
def test_normalised(target: str, path: str) -> None:
    assert normalise_path(target) == path


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        (b"/a/../b?c=/../d", b"/b?c=/../d"),
        (b"/a?b#c", b"/a?b"),
        (b"/a#b?c", b"/a"),
        (b"http://h/a?b", b"/a?b"),
        (b"http://h", b"/"),
        (b"/%61?%61", b"/a?%61"),
        (b"/a?", b"/a?"),
    ],
)
def test_forwarded(target: bytes, forwarded: bytes) -> None:
    assert normalise_target(target) == forwarded


@pytest.mark.parametrize("target", [b"/", b"*", b"/a/b.c?d=e&f=/../g", b"/.well-known/x", b"//a%2F", b"/a?"])
def test_what_is_normal_is_forwarded_as_the_same_object(target: bytes) -> None:
    assert normalise_target(target) is target


def test_nul() -> None:
    assert holds_nul(b"/a%00b") and holds_nul(b"/a\0") and holds_nul(b"/a?\0")
    assert not holds_nul(b"/a?x=%00") and not holds_nul(b"/a%2500")


PARTS = [
    "/",
    ".",
    "..",
    "%",
    "%2e",
    "%2E",
    "%2",
    "e",
    "%65",
    "%25",
    "%2F",
    "\\",
    "a",
    ";",
    "#",
    "?",
    "\xff",
    "\0",
    "://",
    "*",
]
TRICKY = st.lists(st.sampled_from(PARTS)).map("".join)


@given(TRICKY)
def test_normalising_twice_changes_nothing_and_leaves_no_dot_segment(target: str) -> None:
    path = normalise_path(target)
    assert normalise_path(path) == path
    assert path == "*" or path.startswith("/")
    assert not {".", ".."} & {segment.partition(";")[0] for segment in path.split("/")}
    assert not re.search(r"%(2[dDeE]|3\d|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])", path), (
        "an unreserved character is left encoded"
    )


@given(TRICKY)
def test_what_is_forwarded_has_the_path_that_was_judged(target: str) -> None:
    forwarded = normalise_target(target.encode("latin-1"))
    assert normalise_target(forwarded) == forwarded
    assert forwarded.partition(b"?")[0].decode("latin-1") == normalise_path(target)
