"""Issue and renewal with a clock in hand, and a source that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import Trust
from nodeagent.identity.store import AT_ONCE, LONGEST_PAUSE, Certificates
from nodeagent.vocabulary import SpiffeId
from tests.unit.identity.waiting import ensure
from tests.waiting import DEADLINE

WEB, SHOP = SpiffeId("spiffe://cluster.local/ns/d/sa/web"), SpiffeId("spiffe://cluster.local/ns/d/sa/shop")
TTL = 1000.0


class World:
    """A source, a clock and dice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dice = 0.0
        self.broken: set[SpiffeId] = set()
        self.trusted = Trust(b"one", "first")
        self.unreadable = False
        self.gate: asyncio.Event | None = None
        self.asked: list[SpiffeId] = []
        self.under_way = self.most = 0
        self.serials = 0
        self.same_serial = False
        self.heard: list[Certificate] = []
        self.ended: list[SpiffeId] = []
        self.certificates = Certificates(
            self,
            TTL,
            self.heard.append,
            self.ended.append,
            clock=lambda: self.now,
            uniform=lambda low, high: low + (high - low) * (0.5 + self.dice / 2),
        )

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        self.asked.append(identity)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.gate is not None:
            await self.gate.wait()
        self.under_way -= 1
        if identity in self.broken:
            raise IdentityError("the authority is on holiday")
        self.serials += not self.same_serial
        return Certificate(
            identity, b"", b"", self.trusted.roots_pem, str(self.serials), self.now, self.now + ttl_seconds
        )

    def trust(self) -> Trust:
        if self.unreadable:
            raise IdentityError("the roots are gone")
        return self.trusted

    async def at(self, now: float) -> None:
        """Let it be *now*, and all that is due be done."""
        self.now = now
        self.certificates._wake.set()
        for _ in range(10):
            await asyncio.sleep(0)


def play(scene: Callable[[World], Awaitable[None]]) -> None:
    """Run *scene* while the store works."""

    async def run() -> None:
        world = World()
        work = asyncio.create_task(world.certificates.run())
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(world)
            assert not work.done()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    asyncio.run(run())


def test_one_certificate_an_identity() -> None:
    async def scene(world: World) -> None:
        with pytest.raises(IdentityError, match="yet"):
            world.certificates.current(WEB)
        await ensure(world.certificates, [WEB, SHOP, WEB], 5)
        await ensure(world.certificates, [WEB], 5)
        world.certificates.want(SHOP)
        await world.at(0)
        assert sorted(world.asked) == [SHOP, WEB]
        assert [held.certificate.identity for held in world.certificates.list()] == [SHOP, WEB]
        assert {certificate.identity: certificate for certificate in world.heard} == {
            name: world.certificates.current(name) for name in (WEB, SHOP)
        }

    play(scene)


@pytest.mark.parametrize(("dice", "due"), [(-1, 450), (0, 500), (1, 550)])
def test_renewed_at_half_life_with_jitter(dice: float, due: float) -> None:
    async def scene(world: World) -> None:
        world.dice = dice
        await ensure(world.certificates, [WEB], 5)
        assert world.certificates.list()[0].renew_at == due
        await world.at(due - 1)
        assert [certificate.serial for certificate in world.heard] == ["1"]
        await world.at(due)
        assert world.certificates.current(WEB).serial == "2"
        assert world.certificates.list()[0].renew_at == due + due
        assert [certificate.serial for certificate in world.heard] == ["1", "2"]

    play(scene)


def test_a_good_certificate_is_kept_while_renewal_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        first = world.certificates.current(WEB)
        world.broken = {WEB}
        pauses = []
        await world.at(500)
        while world.now < TTL - LONGEST_PAUSE:
            assert world.certificates.current(WEB) is first
            due = world.certificates.list()[0].renew_at
            pauses.append(due - world.now)
            await world.at(due)
        assert pauses[0] < pauses[1] < pauses[2]
        assert max(pauses) <= LONGEST_PAUSE
        assert "on holiday" in world.certificates.list()[0].error
        assert "the one held is good for 500 s" in caplog.text
        world.broken = set()
        await world.at(world.certificates.list()[0].renew_at)
        assert world.certificates.list()[0].error == ""
        assert world.certificates.current(WEB).serial == "2"

    play(scene)


def test_pauses_are_bounded_after_years_of_failure() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        world.broken = {WEB}
        await world.at(500)
        for _ in range(2000):
            await world.at(world.certificates.list()[0].renew_at)
        assert world.certificates.list()[0].failures > 1900
        assert world.certificates.list()[0].renew_at - world.now <= LONGEST_PAUSE

    play(scene)


def test_an_ended_certificate_is_told_once_and_never_handed_out() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        world.broken = {WEB}
        await world.at(500)
        await world.at(TTL - 1)
        assert world.ended == []
        await world.at(TTL)
        await world.at(TTL + 1)
        assert world.ended == [WEB]
        with pytest.raises(IdentityError, match="has ended and could not be renewed: the authority is on holiday"):
            world.certificates.current(WEB)
        world.broken = set()
        await world.at(world.certificates.list()[0].renew_at)
        assert world.certificates.current(WEB).serial == "2"

    play(scene)


def test_the_end_is_told_though_no_try_is_due() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        world.broken = {WEB}
        await world.at(500)
        for moment in (501, 503, 507, 515, 531, 563, 627, 755, 900):
            await world.at(moment)
        due = world.certificates.list()[0].renew_at
        assert due > TTL
        assert world.certificates.rotate() == TTL
        await world.at(TTL)
        assert world.ended == [WEB]
        assert world.certificates.rotate() == due

    play(scene)


def test_a_first_certificate_that_fails_is_tried_again_and_says_why() -> None:
    async def scene(world: World) -> None:
        world.broken = {WEB}
        await ensure(world.certificates, [WEB, SHOP], 5)
        with pytest.raises(IdentityError, match=r"no certificate for .*web yet: the authority is on holiday"):
            world.certificates.current(WEB)
        assert world.certificates.current(SHOP)
        assert [held.certificate.identity for held in world.certificates.list()] == [SHOP]
        world.broken = set()
        await world.at(1)
        assert world.certificates.current(WEB)

    play(scene)


def test_few_at_a_time_and_pods_that_wait_first() -> None:
    async def scene(world: World) -> None:
        old = [SpiffeId(f"spiffe://cluster.local/ns/d/sa/old-{number:03}") for number in range(40)]
        for moment, name in enumerate(old):
            world.now = moment / 100
            await ensure(world.certificates, [name], 5)
        world.asked.clear()
        world.gate = asyncio.Event()
        await world.at(600)
        assert len(world.asked) == AT_ONCE
        assert world.asked == old[:AT_ONCE]  # those that end first
        world.certificates.want(WEB)
        world.gate.set()
        await world.at(600)
        assert world.asked[AT_ONCE] == WEB
        assert sorted(world.asked) == sorted([*old, WEB])
        assert world.most == AT_ONCE

    play(scene)


def test_a_slow_authority_keeps_nobody_longer_than_asked_for() -> None:
    async def scene(world: World) -> None:
        world.gate = asyncio.Event()
        await ensure(world.certificates, [WEB], 0.01)
        with pytest.raises(IdentityError, match="it is being asked for"):
            world.certificates.current(WEB)
        world.gate.set()
        await world.at(0)
        assert [certificate.identity for certificate in world.heard] == [WEB]

    play(scene)


def test_forgotten_is_not_renewed_nor_taken_up_late() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        world.certificates.forget(WEB)
        world.certificates.forget(WEB)
        await world.at(500)
        assert world.asked == [WEB]
        world.gate = asyncio.Event()
        world.certificates.want(SHOP)
        await world.at(500)
        world.certificates.forget(SHOP)
        world.gate.set()
        await world.at(500)
        assert world.asked == [WEB, SHOP]
        assert [certificate.identity for certificate in world.heard] == [WEB]
        assert world.certificates.rotate() == float("inf")

    play(scene)


def test_other_roots_reach_all_at_once_with_the_same_certificates() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB, SHOP], 5)
        world.heard.clear()
        world.trusted = Trust(b"one two", "first")
        await world.at(1)
        assert sorted(certificate.identity for certificate in world.heard) == [SHOP, WEB]
        assert {certificate.roots_pem for certificate in world.heard} == {b"one two"}
        assert len(world.asked) == 2
        assert world.certificates.current(WEB).roots_pem == b"one two"

    play(scene)


def test_another_signer_has_all_issued_anew() -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB, SHOP], 5)
        world.trusted = Trust(b"one", "second")
        await world.at(1)
        assert sorted(world.asked) == [SHOP, SHOP, WEB, WEB]
        await world.at(2)
        assert len(world.asked) == 4

    play(scene)


def test_roots_that_cannot_be_read_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB], 5)
        first = world.certificates.current(WEB)
        world.unreadable = True
        await world.at(1)
        await world.at(2)
        assert world.certificates.current(WEB) is first
        assert world.certificates.trust_error() == "the roots are gone"
        assert caplog.text.count("the roots are gone") == 1
        world.unreadable = False
        await world.at(3)
        assert world.certificates.trust_error() == ""

    play(scene)


def test_what_its_owner_has_not_renewed_yet_is_looked_at_seldom() -> None:
    async def scene(world: World) -> None:
        world.same_serial = True
        await ensure(world.certificates, [WEB], 5)
        await world.at(500)
        assert len(world.asked) == 2
        assert world.certificates.list()[0].renew_at == 500 + LONGEST_PAUSE

    play(scene)


def test_a_fault_of_the_program_ends_the_store() -> None:
    async def scene() -> None:
        world = World()

        def fail(certificate: Certificate) -> None:
            raise RuntimeError("a bug")

        world.certificates._on_change = fail
        world.certificates.want(WEB)
        with pytest.raises(ExceptionGroup) as fault:
            await world.certificates.run()
        assert fault.group_contains(RuntimeError, match="a bug")

    asyncio.run(scene())


def test_a_clock_that_is_set_back_leaves_nobody_with_a_certificate_of_times_to_come() -> None:
    """Input: the clock is two hours ahead while a certificate is issued and another one fails, then it is right.
    Verdict: the first is not handed out, and both are asked for at once.
    """

    async def scene(world: World) -> None:
        world.now = 7200.0
        world.broken.add(SHOP)
        world.certificates.want(SHOP)
        await ensure(world.certificates, [WEB], 5)
        early = world.certificates.current(WEB)
        world.now = 0.0
        with pytest.raises(IdentityError, match="the clock was set back"):
            world.certificates.current(WEB)
        world.broken.clear()
        await world.at(0.0)
        assert world.certificates.current(WEB).serial != early.serial
        assert world.certificates.current(SHOP).issued == 0.0
        asked = len(world.asked)
        world.broken |= {WEB, SHOP}
        await world.at(60.0)
        assert len(world.asked) == asked, "what is good is not asked for again and again"

    play(scene)


def test_what_an_earlier_control_held_is_held_and_asked_for_anew() -> None:
    """Input: certificates taken over, one that has ended among them. Verdict: the good one serves
    at once, and another comes when it can be had.
    """

    async def scene(world: World) -> None:
        await ensure(world.certificates, [WEB, SHOP], 5)
        good = world.certificates.current(WEB)
        ended = replace(world.certificates.current(SHOP), not_after=world.now)
        for name in (WEB, SHOP):
            world.certificates.forget(name)
        world.certificates.adopt(good)
        world.certificates.adopt(ended)
        assert world.certificates.current(WEB) == good
        assert world.certificates.wanted() == {WEB}
        await world.at(world.now)
        assert world.certificates.current(WEB).serial != good.serial

    play(scene)
