"""A folder of objects under inotify: what comes, what goes, and what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ConfigError, ResourceError
from nodeagent.resources import objects
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.marks import DirectoryMarks
from nodeagent.vocabulary import PodUid
from tests.unit.descriptors import open_descriptors
from tests.waiting import DEADLINE

Step = Callable[[], Awaitable[list[AnyChange]]]


def pod(name: str = "web", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"nodeName": "node1"},
        "status": status,
    }


def write(state: Path, document: Any, name: str = "Pod.default.web.json") -> None:
    """Write as the lab does."""
    temporary = state / "objects" / f".{name}.tmp"
    temporary.write_text(document if isinstance(document, str) else json.dumps(document))
    temporary.replace(state / "objects" / name)


def watch(state: Path, scenario: Callable[[DirectorySource, Step], Awaitable[None]]) -> None:
    async def run() -> None:
        source = DirectorySource(state)

        async def step() -> list[AnyChange]:
            return await asyncio.wait_for(source.changes(), DEADLINE)

        try:
            await scenario(source, step)
        finally:
            source.close()

    asyncio.run(run())


async def quiet(step: Step) -> bool:
    """Say that nothing comes; ends the iteration."""
    try:
        await asyncio.wait_for(step(), 0.1)
    except TimeoutError:
        return True
    return False


def described(changes: list[AnyChange]) -> list[str]:
    return [
        f"{'+' if change.enrolled else '-'}{change.uid}"
        if isinstance(change, EnrolledChange)
        else f"{'+' if change.object else '-'}{change.kind}/{change.name}"
        for change in changes
    ]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    (tmp_path / "enrolled").mkdir()
    return tmp_path


def test_first_everything_then_what_changes(state: Path) -> None:
    write(state, pod())
    (state / "enrolled" / "uid-old").touch()

    async def scenario(source: DirectorySource, step: Step) -> None:
        first = await step()
        assert described(first) == ["+Pod/web", "+uid-old"]
        assert isinstance(first[0], Change)
        assert isinstance(first[0].object, objects.PodObject)
        assert first[0].object.node == "node1"
        write(state, pod("shop"), "Pod.default.shop.json")
        assert described(await step()) == ["+Pod/shop"]
        write(state, pod(phase="Running"))
        assert described(await step()) == ["+Pod/web"]
        (state / "objects" / "Pod.default.web.json").unlink()
        assert described(await step()) == ["-Pod/web"]
        DirectoryMarks(state).publish(PodUid("uid-new"), True)
        assert described(await step()) == ["+uid-new"]
        (state / "enrolled" / "uid-old").unlink()
        assert described(await step()) == ["-uid-old"]
        assert await quiet(step)

    watch(state, scenario)


def test_an_empty_folder_is_an_empty_first_batch(state: Path) -> None:
    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == []
        write(state, pod())
        assert described(await step()) == ["+Pod/web"]

    watch(state, scenario)


def test_folders_that_come_later_are_taken_up(tmp_path: Path) -> None:
    async def scenario(source: DirectorySource, step: Step) -> None:
        assert await step() == []
        (tmp_path / "objects").mkdir()
        write(tmp_path, pod())
        assert described(await step()) == ["+Pod/web"]
        DirectoryMarks(tmp_path).publish(PodUid("u"), True)
        assert described(await step()) == ["+u"]

    watch(tmp_path, scenario)


def test_what_says_nothing_new_is_no_change(state: Path) -> None:
    write(state, pod())

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        write(state, pod() | {"metadata": pod()["metadata"] | {"resourceVersion": "17"}})
        write(
            state, {"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}}, "ConfigMap.default.c.json"
        )
        (state / "objects" / ".hidden.json").write_text("{")
        (state / "objects" / "README").write_text("x")
        assert await quiet(step)

    watch(state, scenario)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "a mapping is expected"),
        (pod() | {"kind": 5}, "kind: 5: a text is expected"),
        (pod() | {"metadata": []}, "metadata: []: a mapping is expected"),
        (pod() | {"metadata": {"name": "web", "namespace": "default"}}, "metadata.uid"),
        (pod() | {"spec": {"nodeName": ["x"]}}, "spec.nodeName: ['x']: a text is expected"),
        (pod(podIPs=[{"ip": "10.0.0.256"}]), "status.podIPs[0].ip: '10.0.0.256': an IPv4 or IPv6 address is expected"),
        (pod(podIPs={}), "status.podIPs"),
        (
            pod() | {"spec": {"containers": [{"ports": [{"containerPort": 70000}]}]}},
            "spec.containers[0].ports[0].containerPort: 70000: a port from 1 to 65535",
        ),
        (pod() | {"metadata": pod()["metadata"] | {"labels": {"a": 1}}}, "metadata.labels"),
        (pod("other"), "its name must be 'Pod.default.other.json'"),
        (pod() | {"kind": "Pod/../../etc", "metadata": []}, "metadata"),
    ],
)
def test_a_wrong_file_is_said_once_and_the_last_good_object_stays(
    state: Path, caplog: pytest.LogCaptureFixture, wrong: Any, words: str
) -> None:
    write(state, pod())

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        for number in range(3):
            write(state, wrong)
            write(state, pod("shop", phase=f"Phase{number}"), "Pod.default.shop.json")
            assert "+Pod/shop" in described(await step())
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1
        assert words in errors[0]
        assert "Pod.default.web.json" in errors[0]
        assert "the last good object stays" in errors[0]
        write(state, pod(phase="Running"))
        assert described(await step()) == ["+Pod/web"]

    watch(state, scenario)


def test_pods_that_never_were_right_are_unread(state: Path) -> None:
    """A pod that was right is known, whatever its file says now; one that is gone is gone."""
    write(state, pod())
    write(state, "{", "Pod.default.odd.json")
    write(state, "{", "Service.default.odd.json")

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        assert source.unread_pods() == ["Pod.default.odd.json"]
        write(state, "{")
        write(state, pod("odd"), "Pod.default.odd.json")
        await step()
        assert source.unread_pods() == []
        (state / "objects").rename(state / "away")
        assert source.unread_pods() == ["objects"]

    watch(state, scenario)


def test_files_that_are_no_files_are_left_out(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = state / "secret.json"
    secret.write_text(json.dumps(pod("link")))
    (state / "objects" / "Pod.default.link.json").symlink_to(secret)
    os.mkfifo(state / "objects" / "Pod.default.pipe.json")
    (state / "objects" / "Pod.default.folder.json").mkdir()
    (state / "objects" / "Pod.default.big.json").write_text(" " * (5 << 20))
    write(state, pod())

    async def scenario(source: DirectorySource, step: Step) -> None:
        assert described(await step()) == ["+Pod/web"]

    watch(state, scenario)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 4


def test_a_burst_is_complete(state: Path) -> None:
    """More events than the kernel queues: what was lost is found by listing again."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        for number in range(300):
            write(state, pod(f"p{number}"), f"Pod.default.p{number}.json")
        mark = state / "enrolled" / "x"
        for _ in range(limit // 3 + 10):
            mark.touch()
            mark.unlink()
        write(state, pod("last"), "Pod.default.last.json")
        found: list[str] = []
        while "+Pod/last" not in found:
            found += described(await step())
        assert sorted(found) == sorted([*(f"+Pod/p{number}" for number in range(300)), "+Pod/last"])

    watch(state, scenario)


def test_a_folder_that_vanishes_and_comes_back(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(state, pod())

    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()
        (state / "objects").rename(state / "elsewhere")
        (state / "elsewhere" / "Pod.default.web.json").unlink()
        (state / "objects").mkdir()
        write(state, pod("shop"), "Pod.default.shop.json")
        found = described(await step())
        assert "+Pod/shop" in found
        assert "-Pod/web" in found

    watch(state, scenario)


def test_watching_begins_anew_after_a_failure_whatever_was_watched_before(state: Path) -> None:
    """Input: a folder that was replaced, then a failure of the reader. Verdict: its successor hears
    of what changes, and not only at its start.
    """

    async def scenario(source: DirectorySource, _: Step) -> None:
        async def batch() -> list[str]:
            return described(await asyncio.wait_for(source.changes(), DEADLINE))

        assert await batch() == []
        (state / "objects").rename(state / "elsewhere")
        (state / "objects").mkdir()
        write(state, pod())
        assert await batch() == ["+Pod/web"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.changes(), 0.01)
        assert await batch() == []
        write(state, pod("shop"), "Pod.default.shop.json")
        assert await batch() == ["+Pod/shop"]

    watch(state, scenario)


def test_publish_is_idempotent_and_takes_no_path(state: Path) -> None:
    marks = DirectoryMarks(state)
    for enrolled in (True, True, False, False):
        marks.publish(PodUid("uid-1"), enrolled)
        assert (state / "enrolled" / "uid-1").exists() == enrolled
    for uid in ("../objects/x", "", ".hidden", "a/b", "x" * 300):
        with pytest.raises(ResourceError):
            marks.publish(PodUid(uid), True)


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()

    with pytest.raises(ConfigError, match="no such folder"):
        watch(tmp_path / "nowhere", scenario)


def test_nothing_is_left_open(state: Path) -> None:
    async def scenario(source: DirectorySource, step: Step) -> None:
        await step()

    before = open_descriptors()
    for _ in range(3):
        watch(state, scenario)
    assert open_descriptors() == before
