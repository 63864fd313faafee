"""Which key sets control keeps: those that the node's policies name."""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.control.key_sets import NodeKeySets
from nodeagent.parts import Parts
from nodeagent.policy.model import Jwks, JwtRule, RequestAuthentication
from tests.unit.control.scene import Workers, play, snapshot


class Fetches:
    def __init__(self) -> None:
        self.last: Mapping[str, float] = {}
        self.closed = False

    def wanted(self, timeouts: Mapping[str, float]) -> tuple[str, ...]:
        self.last = timeouts
        return ()

    def failing(self) -> list[str]:
        return ["the keeper of the key set http://a/keys failed 1 times: KeyError"]

    async def close(self) -> None:
        self.closed = True


def authentication(name: str, uri: str) -> RequestAuthentication:
    return RequestAuthentication("shop", name, (JwtRule("issuer", jwks_uri=uri),))


def test_key_sets_are_those_that_policies_name_and_others_leave_the_snapshot() -> None:
    fetches, workers = Fetches(), Workers()
    key_sets = NodeKeySets(fetches, workers)
    kept, left = Jwks("http://a/keys", "{}"), Jwks("http://b/keys", "{}")
    workers.entries = {kept.key: kept, left.key: left}
    key_sets.changed(snapshot(entries=[authentication("one", "http://a/keys"), kept, left]))
    assert fetches.last.keys() == {"http://a/keys"}
    assert workers.entries.keys() == {kept.key}
    assert workers.generation == 1
    key_sets.changed(snapshot(entries=[authentication("one", "http://a/keys"), kept]))
    assert workers.generation == 1, "no change, no generation"
    key_sets.changed(snapshot(entries=[kept]))
    assert fetches.last == {}
    assert workers.entries == {}


def test_leaving_ends_every_fetch_and_what_nobody_foresaw_is_named() -> None:
    async def scene() -> None:
        fetches = Fetches()
        key_sets = NodeKeySets(fetches, Workers())
        async with key_sets.run(Parts()):
            assert not fetches.closed
            assert key_sets.missing() == fetches.failing()
        assert fetches.closed

    play(scene)
