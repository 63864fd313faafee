"""JSON that is deeper than anybody looks is read and written all the same."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.kube import shallow
from nodeagent.kube.shallow import MAX_DEPTH

_TEXTS = st.text(alphabet='a"\\\n[]{}', max_size=6)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 9), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=12,
)


def nested(depth: int, begin: bytes, end: bytes) -> bytes:
    return begin * depth + b"1" + end * depth


@given(_JSON, st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
def test_what_stands_beside_something_too_deep_is_read_as_it_is(value: Any, ends: tuple[bytes, bytes]) -> None:
    deep = nested(3000, *ends)
    found: Any = shallow.loads(
        b'{"before":%b,"deep":%b,"behind":%b}' % (orjson.dumps(value), deep, orjson.dumps(value))
    )
    assert (found["before"], found["behind"]) == (value, value)
    below = orjson.dumps(found["deep"])
    assert below == nested(MAX_DEPTH - 1, *ends).replace(b"1", b"null")


@given(_JSON)
def test_what_is_not_too_deep_is_as_it_was(value: Any) -> None:
    assert shallow.loads(shallow.dumps(value)) == value


@pytest.mark.parametrize("depth", [200, 300, 1000])
def test_what_is_too_deep_to_be_written_is_written_without_its_depth(depth: int) -> None:
    document = orjson.loads(nested(depth, b'{"a":[', b"]}") if depth < 500 else nested(depth, b"[", b"]"))
    assert orjson.loads(shallow.dumps({"name": "p", "deep": document}))["name"] == "p"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 2000, b'{"a": "' + b"[" * 2000, b"[" * 2000 + b"}" * 2000, b"\xff"]
)
def test_what_is_no_json_is_none(content: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        shallow.loads(content)
