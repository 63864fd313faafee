"""Messages are counted by their prefixes, however the bytes are cut into pieces."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.proxy.grpc.messages import PREFIX, Messages
from nodeagent.proxy.grpc.web import KEPT, WebMessages

LENGTHS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 300)), max_size=12)
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def message(length: int, flags: int = 0) -> bytes:
    return bytes((flags,)) + length.to_bytes(4, "big") + bytes(length)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    cut = []
    for size in cuts:
        cut.append(data[:size])
        data = data[size:]
    return [piece for piece in (*cut, data) if piece]


@given(LENGTHS, CUTS)
def test_each_message_counts_once(lengths: list[int], cuts: list[int]) -> None:
    counter = Messages()
    body = b"".join(map(message, lengths))
    assert sum(map(counter.feed, pieces(body, cuts))) == len(lengths)


@given(LENGTHS, CUTS, st.integers(0, PREFIX - 1))
def test_a_message_counts_when_its_prefix_is_whole(lengths: list[int], cuts: list[int], part: int) -> None:
    counter = Messages()
    body = b"".join(map(message, lengths)) + message(7)[:part]
    assert sum(map(counter.feed, pieces(body, cuts))) == len(lengths)
    assert counter.feed(message(7)[part:]) == 1


def test_a_length_that_nobody_sends_counts_once_and_keeps_nothing() -> None:
    counter = Messages()
    assert counter.feed(b"\x00\xff\xff\xff\xff" + bytes(1000)) == 1
    assert counter.feed(bytes(1 << 20)) == 0


@pytest.mark.parametrize("text", [False, True])
@given(lengths=LENGTHS, cuts=CUTS, status=st.integers(0, 16))
def test_the_trailers_of_grpc_web_are_no_message_and_tell_the_status(
    text: bool, lengths: list[int], cuts: list[int], status: int
) -> None:
    counter = WebMessages(text=text)
    trailers = b"grpc-status: %d\r\ngrpc-message: no\r\n" % status
    frames = [*map(message, lengths), b"\x80" + len(trailers).to_bytes(4, "big") + trailers]
    body = b"".join([base64.b64encode(frame) if text else frame for frame in frames])
    assert sum(map(counter.feed, pieces(body, cuts))) == len(lengths)
    assert counter.status() == str(status)


def test_of_the_trailers_of_grpc_web_a_bounded_part_is_kept() -> None:
    counter = WebMessages(text=False)
    counter.feed(b"\x80\xff\xff\xff\xff" + b"x: y\r\n" * 1000)
    counter.feed(b"grpc-status: 7\r\n" * 100_000)
    assert len(counter._trailers) == KEPT


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_what_is_no_base64_says_nothing(parts: list[bytes]) -> None:
    counter = WebMessages(text=True)
    assert sum(map(counter.feed, parts)) <= sum(map(len, parts)) // PREFIX + 1
    assert counter.status() in ("", *map(str, range(17)))
