"""The one form of a path that policies compare and applications receive."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.policy.mesh_settings import PathNormalization
from nodeagent.policy.paths import NORMALISED, holds_nul, normalise_target


def normalise_path(target: str) -> str:
    return normalise_target(target.encode("latin-1")).partition(b"?")[0].decode("latin-1")


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


FORMS = {
    # as it came: by NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
    b"/admin": (b"/admin", b"/admin", b"/admin", b"/admin"),
    b"//admin": (b"//admin", b"//admin", b"/admin", b"/admin"),
    b"/a//b///c//": (b"/a//b///c//", b"/a//b///c//", b"/a/b/c/", b"/a/b/c/"),
    b"/": (b"/", b"/", b"/", b"/"),
    b"//": (b"//", b"//", b"/", b"/"),
    b"": (b"/", b"/", b"/", b"/"),
    b"*": (b"*", b"*", b"*", b"*"),
    b"/a/../b": (b"/a/../b", b"/b", b"/b", b"/b"),
    b"/a//../b": (b"/a//../b", b"/a/b", b"/a/b", b"/a/b"),
    b"/%61": (b"/%61", b"/a", b"/a", b"/a"),
    b"/a%2Fb%2f%5C%5c": (b"/a%2Fb%2f%5C%5c", b"/a%2Fb%2f%5C%5c", b"/a%2Fb%2f%5C%5c", b"/a/b/"),
    b"%2Fadmin": (b"/%2Fadmin", b"/%2Fadmin", b"/%2Fadmin", b"/admin"),
    b"/x%2F..%2Fadmin": (b"/x%2F..%2Fadmin", b"/x%2F..%2Fadmin", b"/x%2F..%2Fadmin", b"/admin"),
    b"/x/%2e%2e%5Cadmin": (b"/x/%2e%2e%5Cadmin", b"/x/..%5Cadmin", b"/x/..%5Cadmin", b"/admin"),
    b"/x\\\\admin": (b"/x\\\\admin", b"/x//admin", b"/x/admin", b"/x/admin"),
    b"/%252Fadmin": (b"/%252Fadmin", b"/%252Fadmin", b"/%252Fadmin", b"/%252Fadmin"),
    b"/%2%46admin": (b"/%2%46admin", b"/%252Fadmin", b"/%252Fadmin", b"/%252Fadmin"),
    b"/a?b=//c%2F..": (b"/a?b=//c%2F..", b"/a?b=//c%2F..", b"/a?b=//c%2F..", b"/a?b=//c%2F.."),
    b"/a//#b?c": (b"/a//", b"/a//", b"/a/", b"/a/"),
    b"http://h//a?b": (b"//a?b", b"//a?b", b"/a?b", b"/a?b"),
    b"http://h%2Fadmin/a": (b"/a", b"/a", b"/a", b"/a"),
    b"/\xff b": (b"/\xff b", b"/%FF%20b", b"/%FF%20b", b"/%FF%20b"),
}


@pytest.mark.parametrize(("target", "forms"), FORMS.items())
def test_each_form(target: bytes, forms: tuple[bytes, ...]) -> None:
    assert tuple(NORMALISED[form](target) for form in get_args(PathNormalization)) == forms


@pytest.mark.parametrize("form", get_args(PathNormalization))
def test_what_is_in_its_form_is_forwarded_as_the_same_object(form: PathNormalization) -> None:
    for target in (b"/", b"*", b"/a/b.c?d=e&f=//g", b"/.well-known/x"):
        assert NORMALISED[form](target) is target


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
    "%5c",
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


@given(TRICKY, st.sampled_from(get_args(PathNormalization)))
def test_each_form_is_final_and_holds_what_it_promises(target: str, form: PathNormalization) -> None:
    once = NORMALISED[form](target.encode("latin-1"))
    assert NORMALISED[form](once) == once
    path = once.partition(b"?")[0]
    assert path == b"*" or path.startswith(b"/")
    if form != "NONE":
        assert NORMALISED["BASE"](once) == once
    if "MERGE" in form:
        assert b"//" not in path
    if "DECODE" in form:
        assert not re.search(rb"%(2f|5c)", path, re.IGNORECASE)


@given(TRICKY)
def test_what_is_forwarded_has_the_path_that_was_judged(target: str) -> None:
    forwarded = normalise_target(target.encode("latin-1"))
    assert normalise_target(forwarded) == forwarded
    assert forwarded.partition(b"?")[0].decode("latin-1") == normalise_path(target)
