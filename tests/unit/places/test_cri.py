"""Which sandboxes the node has, by a runtime that comes, goes, lies and restarts: over its real protocol."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from nodeagent.errors import ConfigError
from nodeagent.places import cri, runtime
from nodeagent.places.cri import MIRROR, CriPlaces, pause
from nodeagent.places.place import Place
from nodeagent.places.preflight import try_runtime
from nodeagent.places.runtime import CriRuntime, RuntimeUnavailable, find_socket, takes_events_from_others
from nodeagent.places.sandbox import Listed, Sandbox, SandboxError, SandboxGone, SandboxReport, addresses
from nodeagent.protocols import cri_pb2
from nodeagent.resources.objects import PodObject, parse
from nodeagent.vocabulary import PodUid
from tests.fakes.cri import FakeCri, FakeSandbox
from tests.fakes.serving import Method, serve
from tests.unit.descriptors import open_descriptors
from tests.waiting import DEADLINE, eventually, until

FIRST = PodUid("u-1")
SECOND = PodUid("u-2")


def read(listed: Listed, report: SandboxReport) -> Sandbox:
    if report.info == "bad":
        raise SandboxError("no place to be")
    place = Place(f"/run/netns/{listed.id}", f"/kubepods/pod{listed.uid}", listed.id)
    return Sandbox(listed.uid, listed.namespace, listed.name, listed.id, place, addresses(report.addresses))


def at(netns: Path, found: Sandbox) -> Sandbox:
    """Return *found*, whose network namespace's file is *netns*."""
    file = netns.stat() if netns.exists() else None
    network = (file.st_dev, file.st_ino) if file is not None else None
    return replace(found, place=replace(found.place, netns=str(netns), network=network))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look waits for all that is told of, however busy the machine is."""
    monkeypatch.setattr(cri, "STILL_SECONDS", DEADLINE)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCri]:
    made = FakeCri(tmp_path / "cri.sock")
    made.start()
    yield made
    made.stop()


def run(fake: FakeCri, script: Callable[[CriPlaces], Awaitable[None]], *folders: Path) -> None:
    """Run *script* with places by *fake*; it must end in time."""

    async def all_of_it() -> None:
        places = CriPlaces(CriRuntime(fake.path), read, folders=folders, uniform=lambda low, high: low)
        try:
            async with asyncio.timeout(DEADLINE):
                await script(places)
        finally:
            places.close()

    asyncio.run(all_of_it())


def pod(uid: str, name: str = "web", annotations: dict[str, str] | None = None) -> PodObject:
    metadata = {"name": name, "namespace": "default", "uid": uid, "annotations": annotations or {}}
    found = parse({"kind": "Pod", "metadata": metadata, "spec": {}})
    assert isinstance(found, PodObject)
    return found


def test_what_is_there_what_comes_goes_and_is_made_anew(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST), FakeSandbox("old", "u-9", ready=False)]

    async def script(places: CriPlaces) -> None:
        assert not places.known()
        assert await places.changed() == {FIRST}
        assert places.known()
        assert places.trouble() == ""
        assert places.of(pod(FIRST)) == Place("/run/netns/a", "/kubepods/podu-1", "a")
        fake.sandboxes.append(FakeSandbox("b", SECOND, addresses=("10.0.0.6", "fd00::6")))
        assert await places.changed() == {SECOND}
        found = places.sandbox(SECOND)
        assert found is not None
        assert found.addresses == ("10.0.0.6", "fd00::6")
        fake.sandboxes[0] = FakeSandbox("c", FIRST, attempt=1)
        assert await places.changed() == {FIRST}
        assert places.of(pod(FIRST)) == Place("/run/netns/c", "/kubepods/podu-1", "c")
        fake.sandboxes[0].ready = False
        assert await places.changed() == {FIRST}
        assert set(places.all()) == {SECOND}
        assert fake.statuses == 4, "a sandbox is asked for once, also one that has ended"

    run(fake, script)


def test_a_status_that_takes_long_keeps_back_no_other(fake: FakeCri) -> None:
    """As on a busy node. Verdict: others are told at once; a pod whose next sandbox is not known yet stays
    where it was.
    """
    held = threading.Event()
    fake.sandboxes = [FakeSandbox("a", FIRST)]

    async def script(places: CriPlaces) -> None:
        await places.changed()
        fake.sandboxes = [FakeSandbox("a2", FIRST, attempt=1, held=held), FakeSandbox("b", SECOND)]
        assert await places.changed() == {SECOND}
        assert places.of(pod(FIRST)) == Place("/run/netns/a", "/kubepods/podu-1", "a")
        held.set()
        assert await places.changed() == {FIRST}
        assert places.of(pod(FIRST)) == Place("/run/netns/a2", "/kubepods/podu-1", "a2")
        assert fake.statuses == 3, "a sandbox is asked for once"

    try:
        run(fake, script)
    finally:
        held.set()


def test_shims_that_hang_keep_no_other_pod_from_the_first_look(fake: FakeCri, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: as many sandboxes as are asked for at once, and whose status never comes, before one that is well.
    Verdict: that one is known at once, and the connection stays; the others are named, and found once they are told.
    """
    monkeypatch.setattr(cri, "AT_ONCE", 2)
    monkeypatch.setattr(cri, "STUCK_SECONDS", 0.02)
    monkeypatch.setattr(cri, "STILL_SECONDS", 2.0)
    monkeypatch.setattr(runtime, "STATUS_SECONDS", 0.3)
    held = threading.Event()
    stuck = [PodUid(f"u-stuck-{number}") for number in range(cri.AT_ONCE)]
    fake.sandboxes = [FakeSandbox(uid, uid, held=held) for uid in stuck] + [FakeSandbox("b", SECOND)]

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == {SECOND}
        assert places.known()
        assert set(places.faults()) == set(stuck)
        await until(lambda: all("does its shim hang?" in why for why in places.faults().values()))
        fake.sandboxes.append(FakeSandbox("a", FIRST))
        assert await places.changed() == {FIRST}
        assert places.trouble() == ""
        held.set()
        found: set[PodUid] = set()
        while found < set(stuck):
            found |= await places.changed()
        assert places.faults() == {}

    try:
        run(fake, script)
    finally:
        held.set()


def test_looks_follow_each_other_while_a_namespace_has_no_sandbox(
    fake: FakeCri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cri, "ALARM_SECONDS", 0.0)

    async def script(places: CriPlaces) -> None:
        await places.changed()
        assert places._due() == cri.WATCHED_SECONDS
        for name in ("a", "b"):
            (tmp_path / name).touch()
        await until(lambda: len(places._building) == 2)
        assert places._due() == cri.FAST_SECONDS
        fake.sandboxes = [FakeSandbox("a", FIRST)]
        await places.changed()
        assert places._due() == cri.FAST_SECONDS, "the other one has none yet"
        (tmp_path / "b").unlink()
        await until(lambda: places._building == {})
        assert places._due() == cri.WATCHED_SECONDS
        monkeypatch.setattr(cri, "ALARM_SECONDS", 3600.0)
        places._alarm = float("-inf")
        assert places._due() == cri.SLOW_SECONDS, "its sandbox goes a little later than its namespace"

    run(fake, script, tmp_path)


def test_a_sandbox_that_is_ready_no_more_is_there_while_its_network_is(fake: FakeCri, tmp_path: Path) -> None:
    """As after the process that holds its namespaces was killed. Verdict: it is where it was until the namespace is
    taken down, or another file is in its place; then it is gone.
    """

    def read_here(listed: Listed, report: SandboxReport) -> Sandbox:
        return at(tmp_path / listed.id, read(listed, report))

    async def script() -> None:
        places = CriPlaces(CriRuntime(fake.path), read_here, folders=(tmp_path,), uniform=lambda low, high: low)
        async with asyncio.timeout(DEADLINE):
            assert await places.changed() == {FIRST, SECOND}
            for each in fake.sandboxes:
                each.ready = False
            fake.sandboxes.append(FakeSandbox("c", "u-3"))
            assert await places.changed() == {"u-3"}
            assert {FIRST, SECOND} < set(places.all())
            assert places._due() <= cri.SLOW_SECONDS
            (tmp_path / "a").unlink()
            assert await places.changed() == {FIRST}
            (tmp_path / "other").touch()
            (tmp_path / "other").rename(tmp_path / "b")
            assert await places.changed() == {SECOND}
            assert set(places.all()) == {"u-3"}
            assert not places._lost
        places.close()

    for name in ("a", "b"):
        (tmp_path / name).touch()
    fake.sandboxes = [FakeSandbox("a", FIRST), FakeSandbox("b", SECOND)]
    asyncio.run(script())


def test_who_starts_while_a_sandbox_is_ready_no_more_finds_it_while_its_network_is_there(
    fake: FakeCri, tmp_path: Path
) -> None:
    """Input: sandboxes that have ended before anybody looks: one with its network, one without, one whose pod has
    another. Verdict: the first is where it was, and goes with its network; it is expected all the same.
    """

    def read_here(listed: Listed, report: SandboxReport) -> Sandbox:
        return at(tmp_path / listed.id, read(listed, report))

    async def script() -> None:
        places = CriPlaces(CriRuntime(fake.path), read_here, folders=(tmp_path,), uniform=lambda low, high: low)
        async with asyncio.timeout(DEADLINE):
            assert await places.changed() == {FIRST, SECOND}
            assert {found.id for found in places.all().values()} == {"a", "new"}
            assert places.of(pod(FIRST)) == at(tmp_path / "a", places.all()[FIRST]).place
            assert (places.faults(), places.untold(), places.missing()) == ({}, {}, [])
            places.expect({FIRST})
            assert set(places._expected) == {FIRST}, "its next one is looked for"
            (tmp_path / "a").unlink()
            assert await places.changed() == {FIRST}
            assert set(places.all()) == {SECOND}
        places.close()

    for name in ("a", "old", "new"):
        (tmp_path / name).touch()
    fake.sandboxes = [
        FakeSandbox("a", FIRST, ready=False),
        FakeSandbox("b", "u-3", ready=False),
        FakeSandbox("old", SECOND, ready=False),
        FakeSandbox("new", SECOND, attempt=1),
    ]
    asyncio.run(script())


async def told(places: CriPlaces) -> frozenset[PodUid]:
    """Return what is told next; where the runtime is slow, the first look has nothing."""
    while not (found := await places.changed()):
        pass
    return found


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("how", ["refused", "slow", "no place"])
@pytest.mark.parametrize("ended", ["before", "meanwhile"])
def test_of_a_sandbox_that_has_ended_the_runtime_is_asked_until_it_tells(
    fake: FakeCri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, how: str, left: bool
) -> None:
    """Input: a sandbox of which the runtime does not tell at first, and which is ready no more, before anybody looks
    or after. Verdict: it is named and untold, and keeps nobody from being ready, until it is told: where it is, or
    that it is gone.
    """
    monkeypatch.setattr(cri, "STILL_SECONDS", 0.2)
    monkeypatch.setattr(cri, "SLOW_SECONDS", 0.05)
    held = threading.Event()
    box = FakeSandbox("a", FIRST, ready=ended == "meanwhile", broken=how == "refused")
    box.held = held if how == "slow" else None
    box.info = "bad" if how == "no place" else "{}"

    def read_here(listed: Listed, report: SandboxReport) -> Sandbox:
        if not left and listed.id == "a" and report.info != "bad":
            raise SandboxGone("nothing is left")
        return at(tmp_path / listed.id, read(listed, report))

    async def script() -> None:
        places = CriPlaces(CriRuntime(fake.path), read_here, folders=(), uniform=lambda low, high: low)
        try:
            async with asyncio.timeout(DEADLINE):
                assert await told(places) == {SECOND}
                box.ready = False
                coming = asyncio.ensure_future(told(places))
                await until(lambda: set(places._ended) == {FIRST})
                await until(lambda: how == "slow" or places._ended[FIRST].pause > 2 * cri.SLOW_SECONDS)
                assert set(places.untold()) == set(places.faults()) == {FIRST}
                assert (places.trouble(), places.missing()) == ("", [])
                box.broken, box.info = False, "{}"
                held.set()
                assert await coming == {FIRST}
                assert (places.untold(), places.faults()) == ({}, {})
                assert set(places.all()) == ({FIRST, SECOND} if left else {SECOND})
        finally:
            places.close()

    (tmp_path / "a").touch()
    fake.sandboxes = [box, FakeSandbox("b", SECOND)]
    try:
        asyncio.run(script())
    finally:
        held.set()


def test_a_number_that_is_another_pods_process_by_now_is_no_place(fake: FakeCri, tmp_path: Path) -> None:
    """Input: who stood for the network of a sandbox that ended is gone as well, and its number another pod's, before
    the look at all sandboxes has come to its end.
    """
    stood = tmp_path / "4711"
    stood.symlink_to(tmp_path / "own")

    def read_here(listed: Listed, report: SandboxReport) -> Sandbox:
        found = at(stood, read(listed, report)) if listed.id == "a" else read(listed, report)
        if listed.id == "a":
            stood.unlink()
            stood.symlink_to(tmp_path / "others")
        return found

    async def script() -> None:
        places = CriPlaces(CriRuntime(fake.path), read_here, folders=(), uniform=lambda low, high: low)
        async with asyncio.timeout(DEADLINE):
            assert await places.changed() == {SECOND}
            assert places.of(pod(FIRST)) is None
        places.close()

    for name in ("own", "others"):
        (tmp_path / name).touch()
    fake.sandboxes = [FakeSandbox("a", FIRST, ready=False), FakeSandbox("b", SECOND)]
    asyncio.run(script())


def test_where_a_process_stood_for_the_network_another_one_of_the_pod_does(fake: FakeCri, tmp_path: Path) -> None:
    """Input: the sandbox's own process ends, while one of the pod's containers is in its network, and then that one.
    Verdict: the place is that other process's; then there is none.
    """
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    own, container = (subprocess.Popen(waits, stdin=subprocess.PIPE) for _ in range(2))
    group = tmp_path / "pod"
    group.mkdir()
    (group / "cgroup.procs").write_text(f"{own.pid}\n{container.pid}\n")

    def read_here(listed: Listed, report: SandboxReport) -> Sandbox:
        found = read(listed, report)
        return at(Path(f"/proc/{own.pid}/ns/net"), replace(found, place=replace(found.place, cgroup=str(group))))

    async def script() -> None:
        places = CriPlaces(CriRuntime(fake.path), read_here, folders=(tmp_path,), uniform=lambda low, high: low)
        async with asyncio.timeout(DEADLINE):
            assert await places.changed() == {FIRST}
            own.communicate()
            fake.sandboxes[0].ready = False
            assert await places.changed() == {FIRST}
            found = places.of(pod(FIRST))
            assert found is not None
            assert (found.netns, found.cgroup) == (f"/proc/{container.pid}/ns/net", str(group))
            container.communicate()
            assert await places.changed() == {FIRST}
            assert places.all() == {}
        places.close()

    fake.sandboxes = [FakeSandbox("a", FIRST)]
    try:
        asyncio.run(script())
    finally:
        for process in (own, container):
            process.communicate()


def test_the_newest_of_several_sandboxes_is_the_pods(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("new", FIRST, attempt=1), FakeSandbox("old", FIRST), FakeSandbox("b", SECOND)]

    async def script(places: CriPlaces) -> None:
        await places.changed()
        assert {found.id for found in places.all().values()} == {"new", "b"}

    run(fake, script)


def test_who_shares_the_nodes_network_is_nowhere_and_waits_for_nothing(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST, host_network=True), FakeSandbox("b", SECOND)]

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == {SECOND}
        places.expect({FIRST})
        assert places._expected == {}

    run(fake, script)


def test_a_sandbox_that_cannot_be_used_is_named_and_tried_again(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST, info="bad"), FakeSandbox("b", SECOND, addresses=())]

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == {SECOND}, "one pod's is no other's"
        assert places.faults() == {FIRST: "no place to be"}
        assert places.missing() == [], "one pod's fault is not the node's"
        fake.sandboxes[0].info = "{}"
        fake.sandboxes[1].addresses = ("10.0.0.6",)
        told = set(await places.changed())
        while told != {FIRST, SECOND}:
            told |= await places.changed()
        assert places.faults() == {}

    run(fake, script)


def test_who_can_use_no_sandbox_at_all_is_not_ready(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST, info="bad"), FakeSandbox("b", SECOND, info="bad")]

    async def script(places: CriPlaces) -> None:
        assert places.missing() == ["the container runtime has not been asked yet"]
        assert await places.changed() == frozenset()
        assert places.missing() == ["no sandbox of this node can be used, as of one of 2: no place to be"]
        fake.sandboxes[0].info = "{}"
        assert await places.changed() == {FIRST}
        assert places.missing() == []

    run(fake, script)


def test_a_node_without_pods_lacks_nothing(fake: FakeCri) -> None:
    async def script(places: CriPlaces) -> None:
        await places.changed()
        assert places.missing() == []

    run(fake, script)


def test_a_sandbox_that_the_runtime_itself_cannot_tell_of_is_no_others_fault(fake: FakeCri) -> None:
    """Input: the status of one of two is refused, at the first look and when it is there anew. Verdict: the
    other is known at once, the fault names the runtime's words, and it is asked for again.
    """
    fake.sandboxes = [FakeSandbox("a", FIRST, broken=True), FakeSandbox("b", SECOND)]

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == {SECOND}
        assert places.known()
        assert places.trouble() == ""
        assert "UNKNOWN: 'failed to get its task'" in places.faults()[FIRST]
        fake.sandboxes[1] = FakeSandbox("b2", SECOND, attempt=1)
        assert await places.changed() == {SECOND}
        fake.sandboxes[0].broken = False
        assert await places.changed() == {FIRST}
        assert places.faults() == {}

    run(fake, script)


def test_a_mirror_is_where_its_static_pod_is_and_nobody_else(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST, name="etcd-node1")]

    async def script(places: CriPlaces) -> None:
        await places.changed()
        assert places.of(pod("m", "etcd-node1", {MIRROR: FIRST})) is not None
        assert places.of(pod("m", "thief", {MIRROR: FIRST})) is None
        assert places.of(pod(FIRST, "another")) is None

    run(fake, script)


def test_while_the_runtime_is_away_the_last_answer_holds(fake: FakeCri) -> None:
    fake.sandboxes = [FakeSandbox("a", FIRST)]

    async def script(places: CriPlaces) -> None:
        await places.changed()
        await asyncio.to_thread(fake.stop)
        waiting = asyncio.ensure_future(places.changed())
        await until(places.trouble)
        assert "there is no such file" in places.trouble() or "closed before" in places.trouble()
        assert set(places.all()) == {FIRST}
        fake.sandboxes = [FakeSandbox("a", FIRST), FakeSandbox("b", SECOND)]
        fake.start()
        assert await waiting == {SECOND}
        assert places.trouble() == ""

    run(fake, script)


def test_a_runtime_that_is_not_there_at_first_keeps_nobody(tmp_path: Path) -> None:
    fake = FakeCri(tmp_path / "cri.sock", sandboxes=[FakeSandbox("a", FIRST)])

    async def script(places: CriPlaces) -> None:
        assert await places.changed() == frozenset()
        assert not places.known()
        assert "there is no such file" in places.trouble()
        fake.start()
        assert await places.changed() == {FIRST}
        assert places.known()

    try:
        run(fake, script)
    finally:
        fake.stop()


def test_an_event_is_looked_at_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "SLOW_SECONDS", 3600.0)
    monkeypatch.setattr(cri, "WATCHED_SECONDS", 3600.0)
    fake = FakeCri(tmp_path / "cri.sock", events=True)
    fake.start()

    async def script(places: CriPlaces) -> None:
        await places.changed()
        for number in range(3):
            waiting = asyncio.ensure_future(places.changed())
            fake.sandboxes.append(FakeSandbox(f"id{number}", f"u-{number}"))
            fake.happen()
            assert await waiting == {PodUid(f"u-{number}")}

    try:
        run(fake, script)
    finally:
        fake.stop()


@pytest.mark.parametrize(("served", "off"), [(True, False), (False, False), (False, True)])
def test_a_stream_that_is_not_refused_has_events_though_none_comes_and_one_that_is_is_not_asked_for_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: bool, off: bool
) -> None:
    """Verdict: where events are served, looks are as rare as where something is heard; where they are not, by a
    refusal or by a stream that ends at once, the runtime is not asked for them at each turn.
    """
    monkeypatch.setattr(cri, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(cri, "SILENT_SECONDS", 0.1)
    asked: list[int] = []
    fake = FakeCri(tmp_path / "cri.sock", events=served, events_off=off)
    fake.start()
    runtime = CriRuntime(fake.path)

    async def script() -> None:
        ask = runtime.events

        def events() -> AsyncIterator[None]:
            asked.append(1)
            return ask()

        monkeypatch.setattr(runtime, "events", events)
        places = CriPlaces(runtime, read, folders=(), uniform=lambda low, high: low)
        try:
            async with asyncio.timeout(DEADLINE):
                await places.changed()
                if served:
                    await until(lambda: places._due() == cri.WATCHED_SECONDS)
                for number in range(3):  # in which the runtime answers often enough
                    places.expect({PodUid(f"u-{number}")})
                    fake.sandboxes.append(FakeSandbox(f"id{number}", f"u-{number}"))
                    assert await places.changed() == {PodUid(f"u-{number}")}
        finally:
            places.close()
        assert asked == [1]

    try:
        asyncio.run(script())
    finally:
        fake.stop()


@pytest.mark.parametrize(
    ("name", "version", "takes"),
    [
        ("containerd", "1.7.24", True),
        ("containerd", "v1.7.0", True),
        ("containerd", "1.6.20~ds1", True),
        ("containerd", "v2.0.1", False),
        ("containerd", "2.1.0", False),
        ("containerd", "unknown", True),
        ("cri-o", "1.26.4", True),
        ("cri-o", "1.27.8", True),
        ("cri-o", "1.28.0", False),
        ("cri-o", "1.30.0-dev", False),
        ("cri-o", "", True),
        ("another", "1.0.0", False),
    ],
)
def test_no_event_is_taken_from_the_kubelet(name: str, version: str, takes: bool) -> None:
    assert takes_events_from_others(name, version) == takes


def test_a_namespace_that_is_mounted_is_looked_for_at_once(
    fake: FakeCri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cri, "WATCHED_SECONDS", 3600.0)
    folder = tmp_path / "netns"
    folder.mkdir()

    async def script(places: CriPlaces) -> None:
        await places.changed()
        waiting = asyncio.ensure_future(places.changed())
        (folder / "cni-1").touch()
        await until(lambda: fake.lists >= 3)  # the sandbox is ready only some looks later
        fake.sandboxes.append(FakeSandbox("a", FIRST))
        assert await waiting == {FIRST}

    run(fake, script, folder, tmp_path / "absent")


def test_a_pod_that_is_expected_is_looked_for_at_once(fake: FakeCri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "SLOW_SECONDS", 3600.0)

    async def script(places: CriPlaces) -> None:
        await places.changed()
        waiting = asyncio.ensure_future(places.changed())
        await asyncio.sleep(0)
        places.expect({FIRST})
        await until(lambda: fake.lists >= 3)
        fake.sandboxes.append(FakeSandbox("a", FIRST))
        assert await waiting == {FIRST}
        assert places._expected == {}

    run(fake, script)


@pytest.mark.parametrize(
    ("waited", "since_alarm", "events", "watched", "seconds"),
    [
        (None, 99.0, False, False, 1.0),
        (None, 99.0, False, True, 10.0),
        (None, 99.0, True, False, 10.0),
        (None, 99.0, True, True, 10.0),
        (0.0, 99.0, False, True, 0.075),
        (2.0, 99.0, False, False, 0.075),
        (20.0, 99.0, False, True, 0.5),
        (9999.0, 99.0, False, True, 1.0),
        (0.0, 99.0, True, True, 1.0),
        (9999.0, 1.0, False, True, 0.075),
        (None, 1.0, True, True, 0.075),
    ],
)
def test_how_often_is_looked(
    waited: float | None, since_alarm: float, events: bool, watched: bool, seconds: float
) -> None:
    assert pause(waited, since_alarm, events=events, watched=watched) == seconds


def test_check_says_what_the_runtime_is_and_which_sandbox_cannot_be_used(fake: FakeCri, tmp_path: Path) -> None:
    assert try_runtime(fake.path, tmp_path) == "'fake' '1', 0 sandboxes with a network of their own"
    fake.sandboxes = [FakeSandbox("h", SECOND, host_network=True), FakeSandbox("a", FIRST, info="{}")]
    with pytest.raises(SandboxError, match="the sandbox of pod 'default'/'web': the runtime says neither its network"):
        try_runtime(fake.path, tmp_path)
    with pytest.raises(RuntimeUnavailable, match="is no socket"):
        try_runtime(tmp_path, tmp_path)


# -- sockets that are none --


@contextmanager
def answering(path: Path, words: bytes) -> Iterator[None]:
    """Listen at *path*, and answer every connection with *words*."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def refusal(path: Path) -> str:
    async def ask() -> str:
        asked = CriRuntime(path)
        try:
            with pytest.raises(RuntimeUnavailable) as caught:
                await asked.sandboxes()
        finally:
            asked.close()
        return str(caught.value)

    return asyncio.run(ask())


def test_what_is_no_runtimes_socket_is_named_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert refusal(path) == (
        f"kubernetes.runtime: {path}: there is no such file: mount the folder of the runtime's socket into the "
        "agent's pod"
    )
    path.touch()
    assert refusal(path) == f"kubernetes.runtime: {path}: is no socket"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert "nobody listens: does the container runtime run" in refusal(path)
    path.unlink()
    with answering(path, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"):
        assert "is it a container runtime's socket?" in refusal(path)


def test_another_service_over_grpc_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    method = Method("runtime.v1alpha2.RuntimeService", "Version", cri_pb2.VersionRequest, cri_pb2.VersionResponse)
    server, _ = serve(method, lambda request, _: cri_pb2.VersionResponse(), f"unix:{path}")
    try:
        assert "speaks no CRI v1" in refusal(path)
        assert "disabled_plugins" in refusal(path)
    finally:
        server.stop(None).wait()


def test_a_refusal_is_named_by_its_status(fake: FakeCri) -> None:
    fake.refuse = grpc.StatusCode.PERMISSION_DENIED
    assert refusal(fake.path) == f"kubernetes.runtime: {fake.path}: PERMISSION_DENIED: 'it was told to'"


def test_an_answer_that_is_too_long_is_not_read(fake: FakeCri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_LIST", 64)
    fake.sandboxes = [FakeSandbox(f"id{number}", f"u-{number}") for number in range(10)]
    assert "longer than 64 bytes" in refusal(fake.path)


def test_a_sandbox_that_is_gone_has_no_report(fake: FakeCri) -> None:
    async def ask() -> None:
        asked = CriRuntime(fake.path)
        assert await asked.report("none") is None
        assert await asked.version() == "'fake' '1'"
        asked.close()

    asyncio.run(ask())


def test_the_socket_is_found_where_runtimes_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "crio.sock"
    monkeypatch.setattr(runtime, "SOCKETS", (tmp_path / "containerd.sock", other))
    with pytest.raises(ConfigError, match=r"kubernetes\.runtime: none of .*crio\.sock is a socket"):
        find_socket(None)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(other))
        assert find_socket(None) == other
    assert find_socket(tmp_path / "mine") == tmp_path / "mine"


def test_nothing_is_left_open(fake: FakeCri) -> None:
    before = open_descriptors()

    async def script(places: CriPlaces) -> None:
        await places.changed()

    run(fake, script, fake.path.parent)
    eventually(lambda: open_descriptors() <= before, "the fake's end of the connection is closed too")
