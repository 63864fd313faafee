"""Renewal with a clock in hand."""

from __future__ import annotations

import asyncio

import pytest

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.store import LONGEST_PAUSE, Certificates
from nodeagent.mesh.entries import SpiffeId

WEB, SHOP = SpiffeId("spiffe://cluster.local/ns/d/sa/web"), SpiffeId("spiffe://cluster.local/ns/d/sa/shop")
TTL = 1000.0


class World:
    """An authority, a clock and dice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dice = 0.0
        self.broken = False
        self.issued: list[SpiffeId] = []
        self.heard: list[Certificate] = []
        self.certificates = Certificates(self.issue, self.heard.append, lambda: self.now, lambda low, high: low + (high - low) * (0.5 + self.dice / 2))

    def issue(self, identity: SpiffeId) -> Certificate:
        if self.broken:
            raise IdentityError("the authority is on holiday")
        self.issued.append(identity)
        return Certificate(identity, b"", b"", b"", str(len(self.issued)), self.now, self.now + TTL)


@pytest.fixture
def world() -> World:
    return World()


def test_one_certificate_an_identity(world: World) -> None:
    first = world.certificates.ensure(WEB)
    assert world.certificates.ensure(WEB) is first
    world.certificates.ensure(SHOP)
    assert world.issued == [WEB, SHOP]
    assert [held.certificate.identity for held in world.certificates.list()] == [SHOP, WEB]
    assert world.heard == [first, world.certificates.ensure(SHOP)]


@pytest.mark.parametrize(("dice", "due"), [(-1, 450), (0, 500), (1, 550)])
def test_renewed_at_half_life_with_jitter(world: World, dice: float, due: float) -> None:
    world.dice = dice
    first = world.certificates.ensure(WEB)
    assert world.certificates.rotate() == due
    world.now = due - 1
    world.certificates.rotate()
    assert world.certificates.ensure(WEB) is first
    world.now = due
    assert world.certificates.rotate() == due + due
    assert world.certificates.ensure(WEB).serial == "2"
    assert [certificate.serial for certificate in world.heard] == ["1", "2"]


def test_a_good_certificate_is_kept_while_renewal_fails(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first = world.certificates.ensure(WEB)
    world.broken = True
    world.now = 500
    pauses = []
    while world.now < TTL:
        due = world.certificates.rotate()
        pauses.append(due - world.now)
        assert world.certificates.ensure(WEB) is first
        world.now = due
    assert pauses[0] < pauses[1] < pauses[2]
    assert max(pauses) <= LONGEST_PAUSE
    assert "on holiday" in world.certificates.list()[0].error
    assert "on holiday" in caplog.text
    world.broken = False
    world.certificates.rotate()
    assert world.certificates.list()[0].error == ""
    assert world.certificates.ensure(WEB).serial == "2"


def test_pauses_are_bounded_after_years_of_failure(world: World) -> None:
    world.certificates.ensure(WEB)
    world.broken = True
    world.now = 500
    for _ in range(3000):
        world.now = world.certificates.rotate()
    assert world.certificates.rotate() - world.now <= LONGEST_PAUSE


def test_an_ended_certificate_is_never_handed_out(world: World) -> None:
    world.certificates.ensure(WEB)
    world.now = TTL
    assert world.certificates.ensure(WEB).serial == "2"
    world.broken = True
    world.now = 2 * TTL
    with pytest.raises(IdentityError):
        world.certificates.ensure(WEB)


def test_forgotten_is_not_renewed(world: World) -> None:
    world.certificates.ensure(WEB)
    world.certificates.forget(WEB)
    world.certificates.forget(WEB)
    world.now = 500
    assert world.certificates.rotate() == float("inf")
    assert world.issued == [WEB]


def test_run_sleeps_until_something_is_due(world: World) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(world.certificates.run())
        await asyncio.sleep(0.01)
        assert world.issued == []
        world.certificates.ensure(WEB)
        await asyncio.sleep(0.01)
        world.now = 499.99
        world.certificates.ensure(SHOP)  # wakes it; WEB is due 10 ms later
        await asyncio.sleep(0.005)
        assert world.issued == [WEB, SHOP]
        world.now = 500
        for _ in range(50):
            await asyncio.sleep(0.01)
            if len(world.issued) == 3:
                break
        assert world.issued == [WEB, SHOP, WEB]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
