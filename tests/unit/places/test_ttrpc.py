"""What comes as ttrpc: whole, in pieces, and hostile."""

from __future__ import annotations

import pytest

from nodeagent.places import ttrpc
from nodeagent.places.ttrpc import Incoming, TtrpcAnswer, TtrpcCall, TtrpcError
from nodeagent.protocols.nri_pb2 import Empty
from nodeagent.protocols.status_pb2 import Status
from nodeagent.protocols.ttrpc_pb2 import Request, Response
from tests.fakes.nri import frame, head

ASKED = Request(service="a.B", method="C", payload=b"p", timeout_nano=2 * 10**9).SerializeToString()
CALL = frame(1, head(len(ASKED), 5, 1) + ASKED)
TAKEN = TtrpcCall(1, 5, "a.B/C", b"p", 2.0)


def fed(*pieces: bytes) -> list[TtrpcCall | TtrpcAnswer]:
    incoming = Incoming((1, 2))
    found: list[TtrpcCall | TtrpcAnswer] = []
    for piece in pieces:
        found += incoming.feed(piece)
    return found


def test_a_call_is_read_however_it_is_cut() -> None:
    assert fed(CALL) == [TAKEN]
    assert fed(*(CALL[number : number + 1] for number in range(len(CALL)))) == [TAKEN]
    assert fed(CALL + CALL) == [TAKEN, TAKEN]
    in_frames = frame(1, head(len(ASKED), 5, 1)) + frame(1, ASKED[:3]) + frame(1, b"") + frame(1, ASKED[3:])
    assert fed(in_frames) == [TAKEN]


def test_connections_do_not_mix_and_unknown_ones_are_passed_over() -> None:
    answered = Response(payload=b"").SerializeToString()
    begun, ended = CALL[8:20], CALL[20:]
    pieces = frame(1, begun) + frame(2, head(len(answered), 1, 2) + answered) + frame(7, b"\xff" * 99) + frame(1, ended)
    assert fed(pieces) == [TtrpcAnswer(1, ""), TAKEN]


def test_a_refusal_says_why() -> None:
    for status, refusal in ((Status(code=2, message="no\nplugins"), r"'no\nplugins'"), (Status(code=7), "code 7")):
        said = Response(status=status).SerializeToString()
        assert fed(frame(2, head(len(said), 1, 2) + said)) == [TtrpcAnswer(1, refusal)]


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (frame(1, b"")[:4] + b"\xff" * 4, "a frame of"),
        (frame(9, b"")[:4] + b"\xff" * 4, "a frame of"),
        (frame(1, head(2**32 - 1, 1, 1)), "a message of"),
        (frame(1, head(1, 1, 3) + b"x"), "kind 3"),
        (frame(1, head(1, 1, 1, flags=2) + b"x"), "flags 2"),
        (frame(1, head(4, 1, 1) + b"\xff" * 4), "no Request"),
        (frame(2, head(4, 1, 2) + b"\xff" * 4), "no Response"),
    ],
)
def test_what_is_no_ttrpc_is_refused_before_it_is_kept(hostile: bytes, why: str) -> None:
    with pytest.raises(TtrpcError, match=why):
        fed(hostile)


def test_what_is_sent_is_one_frame_that_the_other_side_reads() -> None:
    asked = ttrpc.asks(2, 1, "a.B", "C", Empty(), 2.0)
    assert fed(asked) == [TtrpcCall(2, 1, "a.B/C", b"", 2.0)]
    assert fed(ttrpc.answers(TAKEN, Empty())) == [TtrpcAnswer(5, "")]
    assert fed(ttrpc.refuses(TAKEN, ttrpc.UNIMPLEMENTED, "none such")) == [TtrpcAnswer(5, "'none such'")]
