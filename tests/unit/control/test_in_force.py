"""A policy is in force when everybody who enforces it has said so."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from nodeagent.channel import Channel, Message, pair
from nodeagent.control.in_force import InForce
from nodeagent.control.workers import LARGEST_ENTRY, Needs, Workers
from nodeagent.mesh.entries import Delta
from nodeagent.policy.model import AuthorizationPolicy, Jwks, Rule, Source
from nodeagent.resources import security
from nodeagent.resources.changes import Change

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


def test_a_generation_is_in_force_when_its_last_part_is() -> None:
    """A worker is told which generation the last part of a change completes; what cannot be sent
    takes nothing else along.
    """

    async def run() -> None:
        loop, told, forks = asyncio.get_running_loop(), [], []
        ours, theirs = pair()
        supervisor = Channel(loop, ours, lambda *_: None, lambda: None)

        def forked(message: Message, descriptors: list[int]) -> None:
            forks.extend(descriptors)

        host = Channel(loop, theirs, forked, lambda: None)
        workers = Workers(loop, 1, supervisor, Needs(lambda *_: [], lambda _: None, lambda _: None))
        workers.start({}, [])
        while not forks:
            await asyncio.sleep(0)

        end = Channel(loop, socket.socket(fileno=forks[0]), lambda message, _: told.append(message), lambda: None)
        for extra in forks[1:]:
            socket.socket(fileno=extra).close()
        large = AuthorizationPolicy(
            "shop", "large", rules=tuple(Rule((Source(principals=("p" * 1000,)),)) for _ in range(400))
        )
        too_large = Jwks("http://x", "k" * (LARGEST_ENTRY + 1))
        workers.apply(Delta((too_large,)))
        workers.apply(Delta((*(AuthorizationPolicy("shop", f"p{number}") for number in range(3000)), large, too_large)))
        generation = workers.generation
        while not any(message.get("generation") == generation for message in told):
            await asyncio.sleep(0.001)
        meshes = [message for message in told if message["op"] == "mesh"][1:]
        assert len(meshes) > 3
        assert [message.get("more", False) for message in meshes] == [True] * (len(meshes) - 1) + [False]
        assert sum(len(message["upserts"]) for message in meshes) == 3001
        assert workers.unsent.keys() == {"jwks/http://x"}
        assert workers.behind(generation) == ["worker 0 (pid 0)"]
        for number, left in ((generation - 1, True), (generation + 5, False)):
            end.send({"op": "in_force", "generation": number})
            while workers._slots[0].generation < min(number, generation):
                await asyncio.sleep(0.001)
            assert bool(workers.behind(generation)) == left
        workers.apply(Delta(removals=("jwks/none",)))
        assert workers.behind(workers.generation)
        for channel in (end, host, supervisor, workers._slots[0].channel):
            channel.close()

    asyncio.run(run())
