"""A plugin at a runtime that waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nodeagent.places import nri
from nodeagent.places.nri import Plugin, Start, Waits
from nodeagent.places.sandbox import Listed, SandboxReport
from nodeagent.protocols.nri_pb2 import PodRequest
from nodeagent.vocabulary import PodUid
from tests.fakes.nri import FakeNri, frame, head, pod
from tests.waiting import DEADLINE, quiet, until


class Told:
    """What a plugin tells; a start waits until the test lets it."""

    def __init__(self) -> None:
        self.sandboxes: list[tuple[Listed, SandboxReport]] = []
        self.starts: list[Start] = []
        self.refusal = ""
        self.let = asyncio.Event()
        self.error: Exception | None = None

    def made(self, listed: Listed, report: SandboxReport) -> None:
        self.sandboxes.append((listed, report))

    async def may_create(self, start: Start) -> str:
        await self.may_start(start)
        return self.refusal

    async def may_start(self, start: Start) -> None:
        self.starts.append(start)
        if self.error is not None:
            raise self.error
        await self.let.wait()


def play(runtime: FakeNri, scene: Callable[[Told, asyncio.Task[None]], Awaitable[None]]) -> None:
    """Have a plugin at *runtime*'s socket during *scene*, which runs the runtime."""

    async def main() -> None:
        told = Told()
        plugin = Plugin(runtime.path, Waits(told.made, told.may_create, told.may_start), uniform=lambda low, _: low)
        task = asyncio.create_task(plugin.keep())
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(told, task)
            assert not task.done() or task.cancelled(), task
        finally:
            task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("older", [False, True])
def test_a_sandbox_is_told_of_and_a_start_waits(tmp_path: Path, older: bool) -> None:
    runtime = FakeNri(tmp_path / "nri.sock", older=older)

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(runtime.ready)
            assert runtime.plugins[0].name == "90-nodeagent"
            await runtime.made(pod())
            await until(lambda: told.sandboxes)
            ((listed, report),) = told.sandboxes
            assert listed == Listed("s1", PodUid("u-1"), "default", "web", 0, 0)
            assert report.addresses == ("10.0.0.5",)
            linux = json.loads(report.info)["runtimeSpec"]["linux"]
            assert linux["cgroupsPath"] == "/kubepods/podu-1/s1"
            assert {"type": "network", "path": "/run/netns/a"} in linux["namespaces"]
            starting = asyncio.create_task(runtime.start(pod(), timeout=DEADLINE))
            await until(lambda: told.starts)
            assert told.starts == [Start("s1", PodUid("u-1"), "default/web", DEADLINE)]
            await quiet()
            assert not starting.done()
            told.let.set()
            assert await starting

    play(runtime, scene)


def test_what_has_no_network_of_its_own_or_no_name_starts_at_once(tmp_path: Path) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(runtime.ready)
            for each in (pod(netns=""), pod(name="../etc"), pod(uid=""), pod(sandbox="s" * 129)):
                await runtime.made(each)
                assert await runtime.start(each)
            assert told.sandboxes == [] and told.starts == []

    play(runtime, scene)


def test_a_container_is_made_when_that_may_be_or_refused_in_words(tmp_path: Path) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(runtime.ready)
            making = asyncio.create_task(runtime.create(pod(), timeout=DEADLINE))
            await until(lambda: told.starts)
            await quiet()
            assert not making.done()
            told.let.set()
            assert await making == ""
            told.refusal = "not captured yet"
            assert await runtime.create(pod(), timeout=DEADLINE) == "not captured yet"
            assert runtime.ready(), "a plugin that refuses stays"
            assert await runtime.create(pod(netns="")) == ""

    play(runtime, scene)


@pytest.mark.parametrize(("patience", "seconds"), [(3.5, 3.5), (0, nri.CALL_SECONDS)])
def test_a_call_without_a_time_has_the_one_that_the_runtime_told(
    tmp_path: Path, patience: float, seconds: float
) -> None:
    runtime = FakeNri(tmp_path / "nri.sock", patience=patience)

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        told.let.set()
        async with runtime.running():
            await until(runtime.ready)
            (plugin,) = runtime.plugins
            await plugin.call("CreateContainer", PodRequest(pod=pod()), DEADLINE, told=False)
            assert [each.seconds for each in told.starts] == [seconds]

    play(runtime, scene)


def test_a_plugin_that_is_dropped_is_back_at_once_and_one_that_is_not_taken_tries_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: the runtime drops a plugin that was well; then it refuses it, again and again.
    Verdict: no pause before the first attempt, and growing ones between the others.
    """
    runtime = FakeNri(tmp_path / "nri.sock")
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(nri, "STEADY_SECONDS", 0.0)

    async def main() -> None:
        told = Told()
        plugin = Plugin(
            runtime.path, Waits(told.made, told.may_create, told.may_start), sleep=noted, uniform=lambda low, _: low
        )
        async with asyncio.timeout(DEADLINE), runtime.running():
            task = asyncio.create_task(plugin.keep())
            await until(runtime.ready)
            pauses.clear()
            runtime.plugins[0].writer.close()
            await until(lambda: len(runtime.plugins) == 2 and runtime.ready())
            assert pauses == []
            monkeypatch.setattr(nri, "STEADY_SECONDS", DEADLINE)
            runtime.refusal = "no"
            runtime.plugins[1].writer.close()
            await until(lambda: len(pauses) >= 6)
            assert pauses[:6] == [0.8 * each for each in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]
            task.cancel()

    asyncio.run(main())


def test_a_fault_of_who_is_asked_keeps_nothing_from_starting(tmp_path: Path) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        told.error = RuntimeError("none")
        async with runtime.running():
            await until(runtime.ready)
            assert await runtime.start(pod())

    play(runtime, scene)


def test_of_two_plugins_as_during_an_upgrade_each_is_asked(tmp_path: Path) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        other = Told()
        other.let.set()
        plugin = asyncio.create_task(Plugin(runtime.path, Waits(other.made, other.may_create, other.may_start)).keep())
        async with runtime.running():
            await until(lambda: len(runtime.ready()) == 2)
            starting = asyncio.create_task(runtime.start(pod(), timeout=DEADLINE))
            await until(lambda: told.starts)
            await quiet()
            assert not starting.done()
            told.let.set()
            assert await starting
            assert len(other.starts) == 1
            plugin.cancel()
            await until(lambda: len(runtime.ready()) == 1)
            assert await runtime.start(pod())

    play(runtime, scene)


def test_who_leaves_lets_start_what_waits(tmp_path: Path) -> None:
    """As a daemon whose node another one takes over."""
    runtime = FakeNri(tmp_path / "nri.sock")

    async def scene(told: Told, plugin: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(runtime.ready)
            starting = asyncio.create_task(runtime.start(pod(), timeout=DEADLINE))
            await until(lambda: told.starts)
            plugin.cancel()
            assert await starting
            await runtime.plugins[0].gone.wait()

    play(runtime, scene)


def test_a_runtime_that_comes_goes_and_drops_the_plugin_has_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")
    caplog.set_level("INFO", "nodeagent.places")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        await until(lambda: "there is no such socket" in caplog.text)
        for _ in range(2):
            async with runtime.running():
                await until(runtime.ready)
                assert not await runtime.start(pod(), timeout=0.01), "it is dropped"
                await until(lambda: len(runtime.ready()) == 1 and len(runtime.plugins) == 2)
                told.let.set()
                assert await runtime.start(pod(sandbox="s2"))
                told.let.clear()

    play(runtime, scene)
    assert caplog.text.count("none waits") == 1 + 2 + 1, "while nothing changes it is said once"


@pytest.mark.parametrize(("refusal", "why"), [("too many", "'too many'"), (None, "takes no plugin")])
def test_a_runtime_that_takes_no_plugin_is_no_fault(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refusal: str | None,
    why: str,
) -> None:
    """One refuses it; the other one says nothing."""
    runtime = FakeNri(tmp_path / "nri.sock", refusal=refusal or "", is_mute=refusal is None)
    caplog.set_level("INFO", "nodeagent.places")
    if runtime.is_mute:
        monkeypatch.setattr(nri, "REGISTER_SECONDS", 0.1)

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(lambda: "none waits" in caplog.text)
            await until(lambda: len(runtime.plugins) > 1, "it tries again")

    play(runtime, scene)
    assert why in caplog.text


@pytest.mark.parametrize("hostile", [b"\xff" * 64, frame(1, head(4, 1, 1) + b"\xff" * 4), frame(1, head(1, 2, 3))])
def test_whatever_comes_ends_the_connection_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hostile: bytes
) -> None:
    runtime = FakeNri(tmp_path / "nri.sock")
    caplog.set_level("INFO", "nodeagent.places")

    async def scene(told: Told, _: asyncio.Task[None]) -> None:
        async with runtime.running():
            await until(runtime.ready)
            first = runtime.plugins[0]
            first.writer.write(hostile)
            await first.gone.wait()
            await until(runtime.ready)

    play(runtime, scene)
