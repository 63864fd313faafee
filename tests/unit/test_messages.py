"""Messages as packets and back: every one survives the way, and what is none is named."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import orjson
import pytest

from nodeagent.messages import (
    FROM_COLLECTOR,
    FROM_SUPERVISOR,
    FROM_WORKER,
    TO_COLLECTOR,
    TO_SUPERVISOR,
    TO_WORKER,
    AllLogsTold,
    Beats,
    CollectorRows,
    Counted,
    Drain,
    FinishLogs,
    FlowRows,
    Fork,
    GenerationInForce,
    Keep,
    Listen,
    LogFileClosed,
    LogFileOpened,
    LogFilePutAside,
    LogRoomWanted,
    LogSourceTold,
    NeedSockets,
    NextOriginals,
    PodCaptured,
    Pong,
    SnapshotPart,
    SocketsMade,
    StartCollector,
    StartWorker,
    Stilled,
)
from nodeagent.vocabulary import PodUid, SpiffeId
from nodeagent.wire import FileDescriptor, MessageDecoder, MessageError, encode

ONE, TWO = FileDescriptor(11), FileDescriptor(12)
DIRECTIONS: list[tuple[MessageDecoder[Any], object]] = [
    (FROM_SUPERVISOR, Beats(felt=True)),
    (FROM_SUPERVISOR, Stilled()),
    (TO_SUPERVISOR, Fork("worker", 3, ONE, TWO)),
    (TO_SUPERVISOR, Keep({"u/netns": TWO, "u/inbound/4/0": ONE})),
    (TO_SUPERVISOR, Keep({})),
    (TO_WORKER, StartWorker(0, {"node": "n"}, ("10.0.0.1",), 1, TWO, ONE)),
    (TO_WORKER, SnapshotPart([{"kind": "Workload"}], ("workload/u",), 7, more=True)),
    (TO_WORKER, PodCaptured(PodUid("u"), 5, SpiffeId("spiffe://d/ns/n/sa/a"))),
    (TO_WORKER, Listen(PodUid("u"), "inbound", 6, ONE)),
    (TO_WORKER, SocketsMade(PodUid("u"), 4, (ONE, TWO))),
    (TO_WORKER, SocketsMade(PodUid("u"), 4, ())),
    (TO_WORKER, Drain(2.5)),
    (TO_WORKER, NextOriginals(ONE)),
    (FROM_WORKER, NeedSockets(PodUid("u"), 4, 2)),
    (FROM_WORKER, Counted({"counts": [["x", ["a"], 1]]})),
    (FROM_WORKER, FlowRows(1, [{"id": "a"}], more=False)),
    (TO_COLLECTOR, StartCollector({"sinks": []}, "n", 1)),
    (TO_COLLECTOR, LogSourceTold("output/u/c", {"kind": "output"})),
    (TO_COLLECTOR, LogFileOpened("output/u/c", "0.log", 1 << 40, (1 << 63) + 1, 0, ONE)),
    (TO_COLLECTOR, AllLogsTold(("output/u/c",))),
    (TO_COLLECTOR, FinishLogs(2.5)),
    (TO_COLLECTOR, LogRoomWanted(PodUid("u"), 3)),
    (FROM_COLLECTOR, LogFileClosed(1, 2)),
    (FROM_COLLECTOR, LogFilePutAside(1, 2, 3, 4)),
    (FROM_COLLECTOR, CollectorRows(1, [{"file": "0.log"}], [{"name": "s"}], ("wrong",), more=False)),
]


@pytest.mark.parametrize(("decoder", "message"), DIRECTIONS, ids=lambda each: type(each).__name__)
def test_a_message_survives_the_way(decoder: MessageDecoder[Any], message: object) -> None:
    assert decoder.decode(*encode(message)) == message


def test_a_whole_number_is_a_number_of_seconds_too() -> None:
    assert TO_WORKER.decode(b'{"op": "Drain", "seconds": 2}', []) == Drain(2.0)


def test_a_message_of_another_direction_is_none() -> None:
    with pytest.raises(MessageError, match="no message of this direction is called 'Fork'"):
        FROM_WORKER.decode(*encode(Fork("worker", 1, ONE, TWO)))


def wrong(message: object, **content: object) -> bytes:
    """Return *message* with other *content*; ``...`` leaves a field out."""
    payload = orjson.loads(encode(message)[0]) | content
    return orjson.dumps({name: value for name, value in payload.items() if value is not ...})


NEED = NeedSockets(PodUid("u"), 4, 1)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (wrong(NEED, op=["NeedSockets"]), "no message of this direction is called ['NeedSockets']"),
        (wrong(NEED, op=...), "no message of this direction is called None"),
        (wrong(NEED, uid=...), "NeedSockets: uid is missing"),
        (wrong(NEED, uid=None), "NeedSockets: uid: str is expected, not None"),
        (wrong(NEED, family=5), "NeedSockets: family: one of (4, 6) is expected, not 5"),
        (wrong(NEED, family=4.0), "NeedSockets: family: one of (4, 6) is expected, not 4.0"),
        (wrong(NEED, count=True), "NeedSockets: count: int is expected, not True"),
        (wrong(NEED, count=1.5), "NeedSockets: count: int is expected, not 1.5"),
        (wrong(NEED, more=1), "NeedSockets: no field is called 'more'"),
        (wrong(Pong(1, 2), connections="x" * 200), "Pong: connections: int is expected, not"),
        (wrong(GenerationInForce(1), generation=10**25 + 0.5), "GenerationInForce: generation: int is expected"),
        (wrong(FlowRows(1, [], more=False), flows=[1]), "FlowRows: flows: a list of objects is expected"),
        (wrong(FlowRows(1, [], more=False), flows={}), "FlowRows: flows: a list of objects is expected"),
        (wrong(FlowRows(1, [], more=False), more=0), "FlowRows: more: bool is expected, not 0"),
        (wrong(Counted({}), report=[]), "Counted: report: dict is expected, not []"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(payload: bytes, why: str) -> None:
    with pytest.raises(MessageError) as raised:
        FROM_WORKER.decode(payload, [])
    assert str(raised.value).startswith(why)
    assert len(str(raised.value)) < 200, "it goes to the log"


@pytest.mark.parametrize(
    ("payload", "descriptors", "why"),
    [
        (encode(Fork("worker", 1, ONE, TWO))[0], [ONE], "Fork: controls: it brings fewer descriptors than that"),
        (encode(Fork("worker", 1, ONE, TWO))[0], [ONE, TWO, TWO], "Fork: it brings more descriptors than"),
        (encode(Keep({"a": ONE, "b": TWO}))[0], [ONE], "Keep: files: it brings fewer descriptors than that"),
        (encode(Keep({"a": ONE}))[0], [ONE, TWO], "Keep: it brings more descriptors than its fields take"),
        (wrong(Keep({}), files=[["a"]]), [ONE], "Keep: files: a list of str is expected"),
        (wrong(Keep({}), files=["a", "a"]), [ONE, TWO], "Keep: files: a name stands there twice"),
    ],
)
def test_descriptors_are_as_many_as_the_fields_take(
    payload: bytes, descriptors: list[FileDescriptor], why: str
) -> None:
    with pytest.raises(MessageError) as raised:
        TO_SUPERVISOR.decode(payload, descriptors)
    assert str(raised.value).startswith(why)


@pytest.mark.parametrize("count", [-1, 3, 1 << 62])
def test_a_count_of_descriptors_is_what_there_are(count: int) -> None:
    with pytest.raises(MessageError, match="SocketsMade: sockets: "):
        TO_WORKER.decode(wrong(SocketsMade(PodUid("u"), 4, ()), sockets=count), [ONE, TWO])


def test_a_field_that_no_message_carries_is_refused_at_the_start() -> None:
    @dataclass(frozen=True)
    class Odd:
        when: complex

    with pytest.raises(TypeError, match="no message carries it"):
        MessageDecoder((Odd,))


def test_every_kind_of_field_has_a_message_here() -> None:
    """A field of a new kind needs its line in DIRECTIONS."""
    shown = {str(each.type) for _, message in DIRECTIONS for each in fields(message)}  # type: ignore[arg-type]
    every = {
        str(each.type)
        for decoder in (FROM_SUPERVISOR, TO_SUPERVISOR, TO_WORKER, FROM_WORKER)
        for kind, _ in decoder._kinds.values()
        for each in fields(kind)
    }
    assert every <= shown
