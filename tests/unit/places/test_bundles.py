"""Sandboxes by the folders of a containerd that starts them: as it makes, writes and removes those."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import KernelError
from nodeagent.places import bundles
from nodeagent.places.bundles import Bundles, listed
from nodeagent.places.cri import CriPlaces
from nodeagent.places.place import Place
from nodeagent.places.runtime import CriRuntime
from nodeagent.places.sandbox import Listed, Sandbox, SandboxError, SandboxReport
from nodeagent.vocabulary import Address, PodUid
from tests.fakes.cri import FakeCri, FakeSandbox
from tests.waiting import DEADLINE, until

UID = PodUid("u-1")
ADDRESSES = (Address("10.0.0.5"), Address("fd00::5"))


def config(uid: str = UID, kind: str = "sandbox", netns: str = "/run/netns/a", **more: Any) -> dict[str, Any]:
    """Return what of a config.json is looked at, as containerd 1.6 writes it."""
    said = {"container-type": kind, "sandbox-uid": uid, "sandbox-namespace": "default", "sandbox-name": "web", **more}
    namespaces = [{"type": "ipc"}, {"type": "network", "path": netns} if netns else {"type": "mount"}]
    linux = {"cgroupsPath": f"/kubepods/pod{uid}/a", "namespaces": namespaces}
    return {"annotations": {f"io.kubernetes.cri.{name}": text for name, text in said.items()}, "linux": linux}


def read(found: Listed, report: SandboxReport) -> Sandbox:
    netns = json.loads(report.info)["runtimeSpec"]["linux"]["namespaces"][1]["path"]
    if netns.endswith("wrong"):
        raise SandboxError("no place to be")
    place = Place(netns, f"/kubepods/pod{found.uid}", found.id)
    return Sandbox(found.uid, found.namespace, found.name, found.id, place, tuple(map(Address, report.addresses)))


def network(namespace: Path) -> frozenset[Address]:
    if namespace.name == "gone":
        raise KernelError("it is gone")
    return frozenset(ADDRESSES)


def made(folder: Path, name: str, content: object, *, whole: bool = True) -> Path:
    """Make a bundle; its file is there at once, or not to its end yet."""
    bundle = folder / name
    bundle.mkdir(parents=True)
    text = json.dumps(content)
    (bundle / "config.json").write_text(text if whole else text[:-1])
    return bundle


class Watched:
    """Bundles that are followed, and how often there was news."""

    def __init__(self, folder: Path) -> None:
        self.news = 0
        self.bundles = Bundles(read, network, self._told, folders=[folder])
        self.bundles.follow()

    def _told(self) -> None:
        self.news += 1

    def ids(self) -> dict[str, str]:
        return {uid: found.id for uid, found in self.bundles.early(()).items()}


def play(folder: Path, scene: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        watched = Watched(folder)
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(watched)
        finally:
            watched.bundles.close()

    asyncio.run(main())


def test_a_sandbox_is_known_when_its_file_is_written(tmp_path: Path) -> None:
    async def scene(watched: Watched) -> None:
        bundle = made(tmp_path, "a", config(), whole=False)
        (bundle / "address").write_text("")
        await until(lambda: len(watched.bundles._unwritten) == 1)
        assert watched.ids() == {}
        (bundle / "config.json").write_text(json.dumps(config()))
        await until(lambda: watched.ids() == {UID: "a"})
        found = watched.bundles.early(())[UID]
        assert (found.namespace, found.name, found.place) == (
            "default",
            "web",
            Place("/run/netns/a", "/kubepods/podu-1", "a"),
        )
        assert found.addresses == ADDRESSES, "IPv4 first"
        assert watched.bundles._unwritten == {}
        assert watched.bundles.early(["a"]) == {}, "the runtime tells of it"

    play(tmp_path, scene)


def test_one_whose_folder_goes_or_that_never_becomes_one_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(watched: Watched) -> None:
        bundle = made(tmp_path, "a", config())
        await until(lambda: watched.ids() == {UID: "a"})
        shutil.rmtree(bundle)
        await until(lambda: watched.ids() == {})
        made(tmp_path, "b", config()).rename(tmp_path / ".b")
        made(tmp_path, "c", config())
        await until(lambda: watched.ids() == {UID: "c"})
        news = watched.news
        (tmp_path / "c").rename(tmp_path / ".c")
        await until(lambda: watched.ids() == {})
        assert watched.news == news + 1
        made(tmp_path, "d", config())
        await until(lambda: watched.ids() == {UID: "d"})
        monkeypatch.setattr(bundles, "EARLY_SECONDS", -1.0)
        assert watched.ids() == {}

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "content",
    [
        config(kind="container"),
        config(netns=""),
        config(uid="../u"),
        config(**{"sandbox-name": "Not a name"}),
        config(netns="/run/netns/wrong"),
        config(netns="/run/netns/gone"),
        [],
        {"annotations": [], "linux": {}},
    ],
)
def test_what_is_no_pods_sandbox_is_nothing_and_holds_up_none(tmp_path: Path, content: object) -> None:
    async def scene(watched: Watched) -> None:
        made(tmp_path, "first", content)
        made(tmp_path, "second", config("u-2"))
        await until(lambda: watched.ids() == {"u-2": "second"})
        assert watched.bundles._unwritten == {}

    play(tmp_path, scene)


def test_a_folder_that_comes_later_is_followed_from_then_on(tmp_path: Path) -> None:
    async def scene(watched: Watched) -> None:
        (tmp_path / "later").mkdir()
        watched.bundles.follow()
        watched.bundles.follow()
        made(tmp_path / "later", "a", config())
        await until(lambda: watched.ids() == {UID: "a"})
        assert watched.news == 1

    play(tmp_path / "later", scene)


def test_a_spec_that_says_nothing_is_no_sandbox() -> None:
    assert listed("a", None) is None
    assert listed("a", config()) == Listed("a", UID, "default", "web", 0, 0)  # type: ignore[arg-type]


def test_places_have_it_before_the_runtime_tells_and_keep_it_as_that_says(tmp_path: Path) -> None:
    """Input: a bundle, then a runtime that lists the sandbox, then neither. Verdict: the pod has its place at once,
    the same place when the runtime tells, and none after that.
    """
    fake = FakeCri(tmp_path / "cri.sock")
    fake.start()
    folder = tmp_path / "bundles"
    folder.mkdir()

    async def main() -> None:
        runtime = CriRuntime(fake.path)
        places = CriPlaces(runtime, read, folders=(), network=network, bundles=[folder])
        try:
            async with asyncio.timeout(DEADLINE):
                assert await places.changed() == frozenset()
                bundle = made(folder, "a", config())
                assert await places.changed() == {UID}
                early = places.sandbox(UID)
                assert early is not None
                assert fake.statuses == 0
                info = json.dumps({"runtimeSpec": config()})
                fake.sandboxes = [FakeSandbox("a", UID, addresses=ADDRESSES, info=info)]
                following = asyncio.ensure_future(places.changed())
                await until(lambda: fake.statuses == 1 and "a" in places._seen)
                assert places.sandbox(UID) == early
                shutil.rmtree(bundle)
                fake.sandboxes = []
                assert await following == {UID}
                assert places.sandbox(UID) is None
        finally:
            places.close()

    try:
        asyncio.run(main())
    finally:
        fake.stop()
