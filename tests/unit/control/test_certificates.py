"""Whose certificates control holds, and who hears of them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping

import orjson
import pytest

from nodeagent.control.certificates import NodeCertificates
from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import Trust
from nodeagent.parts import Parts
from nodeagent.telemetry.metrics import CERTIFICATE_EXPIRY
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import SpiffeId
from tests.unit.control.scene import Supervisor, Workers, certificate, identity, play, snapshot
from tests.waiting import until


class Authority:
    """Issues to those that it may."""

    def __init__(self) -> None:
        self.allowed = asyncio.Event()
        self.asked: list[SpiffeId] = []

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        self.asked.append(identity)
        await self.allowed.wait()
        return certificate(identity.rsplit("/", 1)[1])

    def trust(self) -> Trust:
        return Trust(b"roots", "somebody")


class Keeper(Supervisor):
    """Reads what it is to keep, for the caller closes its own."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[str, object] = {}

    def keep(self, files: Mapping[str, int]) -> None:
        for key, descriptor in files.items():
            self.read[key] = orjson.loads(os.pread(descriptor, 1 << 20, 0))


class Observer:
    def __init__(self) -> None:
        self.told: list[tuple[str, SpiffeId]] = []

    def certified(self, certificate: Certificate) -> None:
        self.told.append(("certified", certificate.identity))

    def ended(self, identity: SpiffeId) -> None:
        self.told.append(("ended", identity))


class Stage:
    def __init__(self) -> None:
        self.authority = Authority()
        self.workers = Workers()
        self.keeper = Keeper()
        self.observer = Observer()
        self.certificates = NodeCertificates(self.authority, 3600, self.workers, self.keeper)
        self.certificates.observe(self.observer)
        self.parts = Parts()


def test_each_identity_of_the_node_gets_one_and_nothing_waits_for_it() -> None:
    """Verdict: workers, who keeps it across a death of control, and observers hear of it, once it is there."""

    async def scene() -> None:
        stage = Stage()
        async with stage.certificates.run(stage.parts):
            stage.certificates.changed(snapshot(["a"], asking=["a", "b"]))
            await until(lambda: len(stage.authority.asked) == 2)
            with pytest.raises(IdentityError, match="it is being asked for"):
                stage.certificates.current(identity("a"))
            stage.authority.allowed.set()
            await until(lambda: len(stage.observer.told) == 2)
            assert sorted(stage.authority.asked) == [identity("a"), identity("b")]
            assert stage.workers.certificates.keys() == {identity("a"), identity("b")}
            assert stage.keeper.read.keys() == {f"{identity('a')}/certificate", f"{identity('b')}/certificate"}
            assert stage.keeper.read[f"{identity('a')}/certificate"] == certificate_json(stage, "a")
            assert stage.certificates.current(identity("a")).serial == "01"
        stage.parts.stop()

    play(scene)


def test_one_that_cannot_be_kept_for_another_control_is_in_force_all_the_same() -> None:
    """Input: no descriptors are left when a certificate comes. Verdict: workers and observers have it."""

    async def scene() -> None:
        stage = Stage()
        stage.authority.allowed.set()

        def keep(files: Mapping[str, int]) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        stage.keeper.keep = keep  # type: ignore[method-assign]
        async with stage.certificates.run(stage.parts):
            stage.certificates.changed(snapshot(["a"]))
            await until(lambda: len(stage.observer.told) == 1)
            assert stage.workers.certificates.keys() == {identity("a")}
            assert stage.certificates.current(identity("a")).serial == "01"
        stage.parts.stop()

    play(scene)


def test_a_pod_that_does_not_run_yet_has_its_certificate_already() -> None:
    """Input: a pod that was scheduled here and shall be captured; then it runs. Verdict: it is asked
    for at once, and once.
    """

    async def scene() -> None:
        stage = Stage()
        stage.authority.allowed.set()
        async with stage.certificates.run(stage.parts):
            stage.certificates.changed(snapshot(awaited=["a"]))
            await until(lambda: len(stage.observer.told) == 1)
            stage.certificates.changed(snapshot(["a"]))
            assert stage.certificates.current(identity("a")).serial == "01"
            assert stage.authority.asked == [identity("a")]
        stage.parts.stop()

    play(scene)


def certificate_json(stage: Stage, name: str) -> object:
    return stage.workers.certificates[identity(name)].certificate


def test_the_certificate_of_an_identity_that_nobody_has_any_more_is_forgotten_by_all() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.authority.allowed.set()
        async with stage.certificates.run(stage.parts):
            stage.certificates.changed(snapshot(["a", "b"]))
            await until(lambda: len(stage.observer.told) == 2)
            stage.certificates.changed(snapshot(["b"]))
            assert stage.workers.certificates.keys() == {identity("b")}
            assert stage.keeper.dropped == [identity("a")]
            with pytest.raises(IdentityError):
                stage.certificates.current(identity("a"))
        stage.parts.stop()

    play(scene)


def test_what_an_earlier_control_held_is_used_while_it_is_good() -> None:
    """Input: the authority is away. Verdict: pods have what is still good, and not what has ended."""

    async def scene() -> None:
        stage = Stage()
        stage.certificates.adopt([certificate("a"), certificate("b", seconds=-1.0)])
        assert stage.certificates.current(identity("a")).identity == identity("a")
        assert stage.workers.certificates.keys() == {identity("a")}
        with pytest.raises(IdentityError):
            stage.certificates.current(identity("b"))

    play(scene)


def test_observers_hear_that_one_has_ended() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.certificates.adopt([certificate("a", seconds=0.05)])
        async with stage.certificates.run(stage.parts):
            await until(lambda: ("ended", identity("a")) in stage.observer.told)
        stage.parts.stop()

    play(scene)


def test_what_is_held_is_told() -> None:
    async def scene() -> None:
        stage = Stage()
        held = certificate("a", serial="ab")
        stage.certificates.adopt([held])
        page = stage.certificates.routes()["GET", "/certs"]
        (row,) = orjson.loads(bytes((await page({})).body))  # type: ignore[arg-type]
        assert (row["identity"], row["serial"], row["not_after"]) == (identity("a"), "ab", held.not_after)
        assert row.keys() == {"identity", "serial", "issued", "not_after", "renew_at", "error"}, "no key is told"
        store = Store()
        stage.certificates.collect(store)
        assert f'{CERTIFICATE_EXPIRY.name}{{identity="{identity("a")}"}}' in b"".join(store.exposition()).decode()

    play(scene)
