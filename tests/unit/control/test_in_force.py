"""A policy is in force when everybody who enforces it has said so."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from nodeagent.channel import Channel, pair
from nodeagent.control.in_force import InForce
from nodeagent.control.snapshot_parts import LARGEST_ENTRY
from nodeagent.control.worker_process import Needs
from nodeagent.control.workers import Workers
from nodeagent.mesh.entries import Delta
from nodeagent.messages import (
    FROM_SUPERVISOR,
    TO_SUPERVISOR,
    TO_WORKER,
    Fork,
    FromSupervisor,
    FromWorker,
    GenerationInForce,
    SnapshotPart,
    StartWorker,
    ToSupervisor,
    ToWorker,
)
from nodeagent.policy.model import AuthorizationPolicy, Jwks, Rule, RuleSource
from nodeagent.resources import security
from nodeagent.resources.changes import Change
from nodeagent.wire import FileDescriptor, MessageError

DOCUMENT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "x", "namespace": "shop"},
    "spec": {},
}


def rows(state: str = "in force") -> list[dict[str, Any]]:
    return [
        {"kind": "AuthorizationPolicy", "policy": "shop/x", "state": state},
        {"kind": "", "policy": "", "state": "refused: not YAML"},
    ]


def test_a_policy_waits_for_all_who_have_not_acknowledged_what_brought_it() -> None:
    force, acknowledged = InForce(), {"worker 0": 4, "the kernel": 5}

    def behind(generation: int) -> list[str]:
        return [who for who, last in acknowledged.items() if last < generation]

    policy = Change("AuthorizationPolicy", "shop", "x", security.parse(DOCUMENT))
    force.bring([policy], 5)
    assert [row["state"] for row in force.tell(rows(), behind)] == ["pending: worker 0", "refused: not YAML"]
    assert (
        force.tell(rows("last good one in force; refused: why"), behind)[0]["state"]
        == "last good one in force; refused: why; pending: worker 0"
    )
    acknowledged["worker 0"] = 7
    assert [(row["state"], row["pending"]) for row in force.tell(rows(), behind)] == [
        ("in force", []),
        ("refused: not YAML", []),
    ]
    force.bring([policy], 8)
    assert force.tell(rows(), behind)[0]["pending"] == ["worker 0", "the kernel"]
    force.bring([Change("AuthorizationPolicy", "shop", "x", None)], 9)
    assert force.tell(rows(), behind)[0]["pending"] == []


def fail(error: MessageError) -> None:
    raise error


def test_a_generation_is_in_force_when_its_last_part_is() -> None:
    """A worker is told which generation the last part of a change completes; what cannot be sent
    takes nothing else along.
    """

    async def run() -> None:
        loop = asyncio.get_running_loop()
        told: list[ToWorker] = []
        forks: list[Fork] = []
        ours, theirs = pair()
        supervisor: Channel[FromSupervisor, ToSupervisor] = Channel(
            loop, ours, FROM_SUPERVISOR, heard=lambda _: None, misunderstood=fail, closed=lambda: None
        )

        def forked(message: ToSupervisor) -> None:
            assert isinstance(message, Fork)
            forks.append(message)

        host: Channel[ToSupervisor, FromSupervisor] = Channel(
            loop, theirs, TO_SUPERVISOR, heard=forked, misunderstood=fail, closed=lambda: None
        )
        workers = Workers(
            loop,
            1,
            supervisor,
            Needs(lambda *_: [], lambda _: None, lambda _: None),
            drain_seconds=0.0,
            stop_seconds=0.0,
            hand_over_seconds=0.0,
        )
        workers.fill(StartWorker(0, {}, (), 1, FileDescriptor(0), FileDescriptor(0)))
        while not forks:
            await asyncio.sleep(0)

        end: Channel[ToWorker, FromWorker] = Channel(
            loop,
            socket.socket(fileno=forks[0].theirs),
            TO_WORKER,
            heard=told.append,
            misunderstood=fail,
            closed=lambda: None,
        )
        socket.socket(fileno=forks[0].controls).close()
        large = AuthorizationPolicy(
            "shop", "large", rules=tuple(Rule((RuleSource(principals=("p" * 1000,)),)) for _ in range(400))
        )
        too_large = Jwks("http://x", "k" * (LARGEST_ENTRY + 1))
        workers.apply(Delta((too_large,)))
        workers.apply(Delta((*(AuthorizationPolicy("shop", f"p{number}") for number in range(3000)), large, too_large)))
        generation = workers.generation

        def parts() -> list[SnapshotPart]:
            return [part for part in told if isinstance(part, SnapshotPart) and part.generation == generation]

        while not any(not part.more for part in parts()):
            await asyncio.sleep(0)
        assert len(parts()) > 3
        assert [part.more for part in parts()] == [True] * (len(parts()) - 1) + [False]
        assert sum(len(part.upserts) for part in parts()) == 3001
        assert [why.split(": ")[0] for why in workers.untold()] == ["jwks/http://x is not in the workers"]
        assert workers.behind(generation) == ["worker 0 (pid 0)"]
        for number, left in ((generation - 1, True), (generation + 5, False)):
            end.send(GenerationInForce(number))
            while workers._slots[0].generation < min(number, generation):
                await asyncio.sleep(0)
            assert bool(workers.behind(generation)) == left
        workers.apply(Delta(removals=("jwks/none",)))
        assert workers.behind(workers.generation)
        for channel in (end, host, supervisor, workers._slots[0].channel):
            channel.close()

    asyncio.run(run())
