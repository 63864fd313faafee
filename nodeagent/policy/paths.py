"""Request paths: the form in which policies compare them and applications receive them, and path
templates.

The form is that of Istio's path normalisation BASE, which is Envoy's ``normalize_path``: dot
segments are removed (RFC 3986, section 5.2.4), also those with parameters (``..;x``),
percent-encoded unreserved characters are decoded once (section 2.3), a backslash becomes a slash,
characters that a path may not hold are percent-encoded. Slashes are not merged, and ``%2F`` and
``%5C`` stay as they are, unless the mesh's ``pathNormalization`` asks for that too; or for nothing.
https://istio.io/latest/docs/reference/config/security/normalization
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from nodeagent.errors import ResourceError
from nodeagent.policy.mesh_settings import PathNormalization

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN: Final = r"A-Za-z0-9_~!$&'()*+,:;=@\[\]/.\-"
_is_plain: Final = re.compile(f"/[{_PLAIN}]*".encode()).fullmatch
_is_merged: Final = re.compile(f"/(?:[{_PLAIN.replace('/', '')}]+/)*[{_PLAIN.replace('/', '')}]*".encode()).fullmatch
_TOKEN: Final = re.compile(rf"%[0-9A-Fa-f]{{2}}|[^{_PLAIN}]")
_STRAY: Final = "\0"
"""Stands for a percent sign that begins no escape, while those after it are decoded; a NUL that was
sent is encoded by then.
"""
_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/?#]*")
"""What precedes the path in an absolute target (RFC 9112, section 3.2.2)."""
_SLASHES: Final = re.compile("//+")
_ENCODED_SLASH: Final = re.compile("%2F|%5C", re.IGNORECASE)
"""A backslash, too: normalisation makes it a slash."""
_NESTED: Final = re.compile(f"{_STRAY}(?=[0-9A-Fa-f]{{2}})")

_OPERATORS: Final = {"{*}": "[^/]+", "{**}": ".*"}
"""A path template's, each a segment of its own, and the expressions that they stand for."""


def _normaliser(is_normal: Callable[[bytes], object], changed: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """Return what normalises request targets: those whose paths are not *is_normal* get *changed* ones."""

    def normalise(target: bytes) -> bytes:
        end = target.find(b"?")
        path = target if end < 0 else target[:end]
        if is_normal(path) and b"/." not in path and b"#" not in target:
            return target
        query = b"" if end < 0 or b"#" in path else target[end:].partition(b"#")[0]
        normalised = (path if path == b"*" else _changed(path, changed)) + query
        return target if normalised == target else normalised

    return normalise


def _changed(path: bytes, changed: Callable[[str], str]) -> bytes:
    """Return *path* without what precedes it in an absolute target, without a fragment, and *changed*."""
    text = path.decode("latin-1")
    absolute = _ORIGIN.match(text)
    text = changed(text[absolute.end() if absolute else 0 :].partition("#")[0])
    return text.encode("latin-1")


def holds_nul(target: bytes) -> bool:
    """Whether the path holds a NUL, which Istio answers with 400 whatever the policies say:
    applications may end the path there.
    """
    return b"%00" in target.partition(b"?")[0] or b"\0" in target


def _rooted(path: str) -> str:
    return path if path[:1] == "/" else f"/{path}"


def _canonical(path: str) -> str:
    path = _TOKEN.sub(_token, path)
    if _STRAY in path:
        # What only decoding made an escape must not be one for who decodes next ("%2%65" would be
        # "%2e").
        path = _NESTED.sub("%25", path).replace(_STRAY, "%")
    path = _rooted(path)
    return _without_dots(path) if "/." in path else path


def _merged(path: str) -> str:
    """Dots first, as Envoy has it: in ``/a//..`` they take the empty segment along."""
    return _SLASHES.sub("/", _canonical(path))


def _decoded(path: str) -> str:
    return _merged(_ENCODED_SLASH.sub("/", path))


def _token(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) == 3:
        character = chr(int(text[1:], 16))
        return character if character in _UNRESERVED else text
    if text == "%":
        return _STRAY
    if text == "\\":
        return "/"
    return "".join(f"%{byte:02X}" for byte in text.encode("latin-1" if text <= "\xff" else "utf-8"))


def _without_dots(path: str) -> str:
    kept: list[str] = []
    bare = ""
    for segment in path.split("/")[1:]:
        # Servers that know parameters (RFC 3986, section 3.3) take "..;x" for ".."; so does Envoy
        # since CVE-2026-73551.
        bare = segment.partition(";")[0]
        if bare == "..":
            if kept:
                kept.pop()
        elif bare != ".":
            kept.append(segment)
    if bare in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


normalise_target: Final = _normaliser(_is_plain, _canonical)
"""Return a request target, of one byte a character, in origin form with its path normalised (BASE),
its query kept and its fragment gone; the same object when nothing changes.
"""
NORMALISED: Final[dict[PathNormalization, Callable[[bytes], bytes]]] = {
    "NONE": _normaliser(_is_plain, _rooted),
    "BASE": normalise_target,
    "MERGE_SLASHES": _normaliser(_is_merged, _merged),
    "DECODE_AND_MERGE_SLASHES": _normaliser(_is_merged, _decoded),
}
"""What does the same as a mesh's ``pathNormalization`` wants it. Doing it twice changes nothing more."""


def is_template(pattern: str) -> bool:
    """Whether *pattern* of ``paths`` is a path template, not a text with ``*`` at an end."""
    return "{*}" in pattern or "{**}" in pattern


def template_problem(pattern: str) -> str:
    """Return what keeps *pattern* from being a path template as Istio allows it, empty: nothing."""
    segments = pattern.strip("/").split("/")
    operators = [segment for segment in segments if segment in _OPERATORS]
    literals = "/".join(segment for segment in segments if segment not in _OPERATORS)
    if not pattern.startswith("/"):
        return "a path template begins with '/'"
    if "{**}" in operators[:-1]:
        return "no {*} or {**} may follow {**} in a path template"
    if any(sign in literals for sign in "{}*"):
        return "in a path template, a segment is {*}, {**} or text without '{', '}' and '*'"
    return ""


def compile_template(pattern: str) -> re.Pattern[str]:
    """Return what matches the paths of the template *pattern*: ``{*}`` is one segment that is not
    empty, ``{**}`` any number of them.

    Envoy's operators refuse a few characters that paths may hold (``=`` for one), which would open
    a hole in a DENY policy; these take them all.

    Raises ResourceError when it is none as Istio allows it.
    """
    if problem := template_problem(pattern):
        raise ResourceError(f"paths: {pattern!r}: {problem}")
    return re.compile(
        "/".join(_OPERATORS.get(segment) or re.escape(segment) for segment in pattern.split("/")), re.DOTALL
    )
