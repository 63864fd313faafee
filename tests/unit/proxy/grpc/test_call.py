"""What an exchange knows of the gRPC call that it is."""

from __future__ import annotations

import pytest

from nodeagent.errors import DEADLINE, NO_ENDPOINTS, UPSTREAM_RESET
from nodeagent.proxy.grpc.call import Call, WebCall, call_of
from nodeagent.proxy.http.exchange import UNKNOWN, Exchange
from nodeagent.telemetry.cells import MessageCell
from tests.unit.proxy.test_exchange import Client

MESSAGE = b"\x00\x00\x00\x00\x03abc"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        (b"application/grpc", Call),
        (b"application/grpc+proto", Call),
        (b"application/grpc;charset=utf-8", Call),
        (b"application/grpc-web", WebCall),
        (b"application/grpc-web+proto", WebCall),
        (b"application/grpc-web-text", WebCall),
        (b"application/grpc-web-text+proto", WebCall),
    ],
)
def test_the_content_type_says_what_is_a_call(content_type: bytes, kind: type[Call]) -> None:
    assert type(call_of(content_type, "HTTP/2")) is kind


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"application/grpcx", b"application/grpc-webx", b"application/grpc-web-texts"]
)
def test_what_is_no_call(content_type: bytes) -> None:
    assert call_of(content_type, "HTTP/2") is None


def test_over_http1_only_grpc_web_is_a_call() -> None:
    assert call_of(b"application/grpc", "HTTP/1.1") is None
    assert call_of(b"application/grpc-web", "HTTP/1.1") is not None


def exchange(content_type: bytes = b"application/grpc") -> Exchange:
    made = Client().asks(b"POST", UNKNOWN)
    made.call = call_of(content_type, "HTTP/2")
    assert made.call is not None
    made.call.cell = MessageCell()
    return made


def test_messages_of_both_directions_are_counted_as_they_pass() -> None:
    made = exchange()
    assert made.call is not None
    assert made.call.cell is not None
    made.data(MESSAGE * 2 + MESSAGE[:3])
    assert made.call.cell.take() == [2, 0]
    made.data(MESSAGE[3:])
    made.begins(200, [(b"content-type", b"application/grpc")])
    made.passes(MESSAGE * 5)
    assert made.call.cell.take() == [1, 5]
    assert (made.call.requests, made.call.responses) == (3, 5)


def test_the_status_is_the_trailers_else_the_heads_else_http() -> None:
    made = exchange()
    assert made.call is not None
    assert made.call.ended(0) == ""
    made.begins(200, [])
    assert made.call.ended(200) == "2"
    made.ends([(b"grpc-status", b"5")])
    assert made.call.ended(200) == "5"
    head_only = exchange()
    head_only.begins(200, [(b"grpc-status", b"12")])
    head_only.ends([])
    assert head_only.call is not None
    assert head_only.call.ended(200) == "12"


def test_a_refused_call_gets_a_status_without_a_body() -> None:
    made = exchange()
    client = made.downstream
    assert isinstance(client, Client)
    made.refuse(NO_ENDPOINTS)
    (_, _, status, fields, length), end = client.told
    assert (status, length) == (200, 0)
    assert (b"grpc-status", b"14") in fields
    assert end == ("end", made, [])


def test_a_call_that_was_answered_in_part_is_cut() -> None:
    made = exchange()
    client = made.downstream
    assert isinstance(client, Client)
    made.begins(200, [])
    made.refuse(UPSTREAM_RESET)
    assert client.told == [("cut", made)]


def test_a_browser_is_refused_in_http() -> None:
    made = exchange(b"application/grpc-web+proto")
    client = made.downstream
    assert isinstance(client, Client)
    made.refuse(NO_ENDPOINTS)
    assert client.told[0][2] == 503


def test_the_time_goes_on_shortened() -> None:
    call = Call()
    fields = [(b"te", b"trailers"), (b"grpc-timeout", b"2S"), (b"x", b"y")]
    assert call.waits(fields) == 2
    assert call.shortened(fields, 0.5) == [(b"te", b"trailers"), (b"grpc-timeout", b"1500m"), (b"x", b"y")]
    assert call.shortened(fields, 5.0)[1] == (b"grpc-timeout", b"1u")


def test_without_a_time_or_with_a_wrong_one_nothing_changes() -> None:
    for fields in ([(b"x", b"y")], [(b"grpc-timeout", b"soon")]):
        call = Call()
        assert call.waits(fields) == -1
        assert call.shortened(fields, 1.0) is fields


def test_what_an_endpoint_resets_at_the_deadline_has_it_for_a_reason() -> None:
    call = Call()
    assert call.waits([(b"grpc-timeout", b"200m")]) == 0.2
    assert call.why(UPSTREAM_RESET, 0.1) is UPSTREAM_RESET
    assert call.why(UPSTREAM_RESET, 0.199) is DEADLINE
    assert call.why(NO_ENDPOINTS, 0.3) is NO_ENDPOINTS
    assert Call().why(UPSTREAM_RESET, 100.0) is UPSTREAM_RESET
