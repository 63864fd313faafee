"""The statuses of gRPC: what fields tell, what stands for HTTP's, and how the proxy refuses a call."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent import errors
from nodeagent.errors import Reason
from nodeagent.proxy.grpc.status import of_http, percent_encoded, told, trailers_only


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"0", "0"), (b"16", "16"), (b"17", "2"), (b"-1", "2"), (b"", "2"), (b"00", "2"), (b"4294967296", "2")],
)
def test_a_status_is_one_of_those_that_there_are(value: bytes, expected: str) -> None:
    assert told([(b"grpc-message", b"x"), (b"Grpc-Status", value)]) == expected


def test_fields_may_tell_none() -> None:
    assert told([(b"grpc-message", b"x")]) == ""


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((400, "13"), (401, "16"), (403, "7"), (404, "12"), (429, "14"), (502, "14"), (503, "14"), (504, "14")),
        *((200, "2"), (418, "2"), (500, "2"), (0, "")),
    ],
)
def test_http_stands_for_a_status(status: int, expected: str) -> None:
    assert of_http(status) == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (errors.POLICY_DENIED, b"7"),
        (errors.PROBE_REFUSED, b"7"),
        (errors.EXTERNAL_DENIED, b"7"),
        (errors.JWT_REFUSED, b"16"),
        (replace(errors.RATE_LIMITED, policy="shop/limit"), b"8"),
        (errors.NO_ENDPOINTS, b"14"),
        (errors.CONNECT_FAILED, b"14"),
        (errors.UPSTREAM_RESET, b"14"),
        (errors.REQUEST_TIMEOUT, b"4"),
        (errors.DEADLINE, b"4"),
        (errors.BAD_REQUEST, b"13"),
    ],
)
def test_a_refusal_is_a_status_in_the_head(reason: Reason, expected: bytes) -> None:
    fields = dict(trailers_only(reason))
    assert fields[b"content-type"] == b"application/grpc"
    assert fields[b"grpc-status"] == expected
    words = reason.body or f"{reason.code} ({reason.flag}): {reason.hint}".encode()
    assert unquote_to_bytes(fields[b"grpc-message"]) == words


def test_a_refusal_brings_its_own_fields_but_none_that_frames_or_contradicts() -> None:
    headers = (("x-ratelimit-limit", "5"), ("Content-Type", "text/html"), ("content-length", "9"), ("grpc-status", "0"))
    fields = trailers_only(replace(errors.RATE_LIMITED, headers=headers))
    assert (b"x-ratelimit-limit", b"5") in fields
    names = [name.lower() for name, _ in fields]
    assert names.count(b"content-type") == names.count(b"grpc-status") == 1
    assert b"content-length" not in names


@given(st.binary(max_size=100))
def test_words_survive_as_a_fields_value(words: bytes) -> None:
    encoded = percent_encoded(words)
    assert unquote_to_bytes(encoded) == words
    assert all(0x20 <= byte < 0x7F for byte in encoded)
