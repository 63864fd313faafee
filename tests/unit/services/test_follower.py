"""Services of a machine, as they come, change and go, with a folder that is real."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import KernelError
from nodeagent.parts import Parts
from nodeagent.places.annotation import NETNS
from nodeagent.resources import object_file
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.objects import PodObject, parse
from nodeagent.services.as_pods import UNIT, Machine, Network
from nodeagent.services.follower import LOOK_SECONDS, SOON_LOOKS, SOON_SECONDS, Services
from nodeagent.services.objects import own_files
from nodeagent.services.settings import ServiceSettings
from nodeagent.services.source import ServiceSource
from nodeagent.vocabulary import Address, JsonObject
from tests.fakes.units import FakeUnits
from tests.waiting import until

LEGACY, OTHER = "legacy.service", "other.service"
SETTINGS = (
    ServiceSettings.model_validate(
        {"unit": LEGACY, "namespace": "old", "serviceAccount": "legacy", "labels": {"app": "legacy"}}
    ),
    ServiceSettings(unit=OTHER, name="second"),
)
MACHINE = Machine("node-a", uuid.UUID(int=1), Path("/sys/fs/cgroup"), network=1, captured=Path("/sys/fs/cgroup"))
NETNS_PATH = "/run/netns/legacy"
NETWORK = Network(5, frozenset((Address("10.7.0.2"), Address("fd00::2"))), (4, 1))
OTHER_PATH = "/run/netns/other"
OTHER_NETWORK = Network(9, frozenset((Address("10.7.0.3"),)))


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "objects").mkdir()
        self.running = folder / "running"
        self.running.mkdir()
        self.units = FakeUnits()
        self.seconds = 0
        self.services = self.made()

    def made(self, machine: Machine = MACHINE, settings: Sequence[ServiceSettings] = SETTINGS) -> Services:
        return Services(
            settings, machine, self.folder, self.units, self.units.network, running=self.running, clock=self.now
        )

    def now(self) -> datetime:
        self.seconds += 1
        return datetime(2026, 1, 1, second=self.seconds, tzinfo=UTC)

    def legacy(self, **options: Any) -> None:
        self.units.put(LEGACY, namespace=NETNS_PATH, **options)
        self.units.networks[NETNS_PATH] = NETWORK

    def other(self, network: Network = OTHER_NETWORK) -> None:
        self.units.put(OTHER, namespace=OTHER_PATH)
        self.units.networks[OTHER_PATH] = network

    def warned(self) -> dict[str, str]:
        """Return what is wrong, by unit."""
        return {each.split(": ")[1]: each.split(": ", 2)[2] for each in self.services.warnings()}

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Look, and publish what was found."""
        asyncio.run(self.services.look())
        self.services.publish()
        yield

    def look(self) -> dict[str, dict[str, Any]]:
        """Return the pods in the folder after a look, by name."""
        with self.settled():
            found = [json.loads(path.read_text()) for path in (self.folder / "objects").iterdir()]
        return {document["metadata"]["name"]: document for document in found}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def pod_of(document: dict[str, Any]) -> PodObject:
    pod = parse(document)
    assert isinstance(pod, PodObject)
    return pod


def test_a_unit_is_a_pod(world: World) -> None:
    world.legacy()
    document = world.look()["legacy-node-a"]
    pod = pod_of(document)
    assert (pod.namespace, pod.service_account, pod.node, pod.labels) == ("old", "legacy", "node-a", {"app": "legacy"})
    assert pod.addresses == ("10.7.0.2", "fd00::2")
    assert pod.ready and pod.owners[0].name == "legacy" and pod.owners[0].controller
    place = world.services.of(pod)
    assert place is not None
    assert (place.netns, place.network) == (NETNS_PATH, NETWORK.file)
    assert place.cgroup == "/sys/fs/cgroup/system.slice/legacy.service"
    assert world.services.logs(pod) == (Path("/var/log/legacy"),)


def test_a_unit_that_is_started_anew_in_its_network_is_the_same_pod(world: World) -> None:
    world.legacy()
    before = world.look()["legacy-node-a"]
    world.legacy(state="inactive", pid=0)
    between = world.look()["legacy-node-a"]
    world.legacy(pid=9)
    after = world.look()["legacy-node-a"]
    assert [pod_of(each).ready for each in (before, between, after)] == [True, False, True]
    assert after == before
    assert pod_of(between).uid == pod_of(before).uid


def test_a_unit_whose_connections_would_not_be_captured_is_refused(world: World) -> None:
    """Input: redirect.cgroup is the pods' alone. Verdict: told, rather than in the mesh by half."""
    world.legacy()
    world.services = world.made(replace(MACHINE, captured=Path("/sys/fs/cgroup/kubepods.slice")))
    assert world.look() == {}
    assert world.warned()[LEGACY].startswith(
        "its cgroup /sys/fs/cgroup/system.slice/legacy.service is not below redirect.cgroup, "
    )


def test_another_network_is_another_pod(world: World) -> None:
    world.legacy()
    before = pod_of(world.look()["legacy-node-a"])
    world.units.networks[NETNS_PATH] = replace(NETWORK, cookie=6)
    after = pod_of(world.look()["legacy-node-a"])
    assert after.uid != before.uid and after.created > before.created
    assert world.services.of(before) is None


def test_a_unit_with_a_private_network_is_there_while_it_runs(world: World) -> None:
    world.units.put(OTHER, pid=44)
    world.units.networks["/proc/44/ns/net"] = NETWORK
    assert list(world.look()) == ["second"]
    world.units.put(OTHER, pid=0, state="inactive")
    assert world.look() == {}
    assert world.services.warnings() == [
        f"services: {LEGACY}: systemd has it as not-found: is the name right, and was daemon-reload run?"
    ]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (replace(NETWORK, cookie=1), "in the machine's own network"),
        (replace(NETWORK, addresses=frozenset()), "no address but loopback's"),
    ],
)
def test_what_cannot_be_captured_is_a_warning(world: World, network: Network, words: str) -> None:
    world.legacy()
    world.units.networks[NETNS_PATH] = network
    assert world.look() == {}
    assert words in world.services.warnings()[0]
    world.legacy()
    assert list(world.look()) == ["legacy-node-a"]
    assert not any(LEGACY in warning for warning in world.services.warnings())


def test_where_systemd_does_not_answer_all_is_as_it_was(world: World) -> None:
    world.legacy()
    before = world.look()
    world.units.silent = "systemd does not answer"
    with pytest.raises(KernelError):
        asyncio.run(world.services.look())
    world.services.publish()
    assert {path.name for path in (world.folder / "objects").iterdir()} == {"Pod.old.legacy-node-a.json"}
    assert world.services.of(pod_of(before["legacy-node-a"])) is not None


def test_a_place_of_an_earlier_boot_is_not_believed(world: World) -> None:
    world.legacy()
    earlier = pod_of(world.look()["legacy-node-a"])
    world.services = world.made(replace(MACHINE, boot=uuid.UUID(int=2)))
    now = pod_of(world.look()["legacy-node-a"])
    assert world.services.of(earlier) is None and world.services.of(now) is not None


def test_a_daemon_that_starts_again_finds_its_pods_as_old_as_they_are(world: World) -> None:
    world.legacy()
    before = world.look()
    world.services = world.made()
    assert world.look() == before


def test_files_of_others_stay(world: World) -> None:
    world.legacy()
    elsewhere = world.look()["legacy-node-a"]
    elsewhere["spec"]["nodeName"] = "node-b"
    elsewhere["metadata"]["name"] = "legacy-node-b"
    theirs = {
        "Pod.old.legacy-node-b.json": elsewhere,
        "Pod.default.lab.json": {
            "metadata": {"annotations": {NETNS: "/run/netns/lab"}},
            "spec": {"nodeName": "node-a"},
        },
    }
    for name, document in theirs.items():
        (world.folder / "objects" / name).write_text(json.dumps(document))
    (world.folder / "objects" / "Pod.default.broken.json").write_text("{")
    world.units.put(LEGACY, loaded="not-found")
    with world.settled():
        assert {path.name for path in (world.folder / "objects").iterdir()} == {*theirs, "Pod.default.broken.json"}
    assert list(own_files(world.folder, "node-a")) == []


def test_units_of_one_network_are_no_pods(world: World) -> None:
    """One would have the other's address and identity. Verdict: both are told, and are pods once each has its own."""
    world.legacy()
    world.other(NETWORK)
    assert world.look() == {}
    warned = world.warned()
    assert f"shares its network with {OTHER}" in warned[LEGACY]
    assert f"shares its network with {LEGACY}" in warned[OTHER]
    world.other()
    assert set(world.look()) == {"legacy-node-a", "second"}
    assert world.warned() == {}


def test_units_of_one_name_are_no_pods(world: World) -> None:
    same = [
        ServiceSettings.model_validate({"unit": unit, "namespace": "old", "name": "same"}) for unit in (LEGACY, OTHER)
    ]
    world.services = world.made(settings=same)
    world.legacy()
    world.other()
    assert world.look() == {}
    warned = world.warned()
    assert f"it is old/same, as {OTHER} is" in warned[LEGACY] and f"it is old/same, as {LEGACY} is" in warned[OTHER]
    world.services = world.made(settings=[same[0], same[1].model_copy(update={"namespace": "new"})])
    world.look()
    assert {path.name for path in (world.folder / "objects").iterdir()} == {"Pod.old.same.json", "Pod.new.same.json"}


def test_a_derived_name_fits_a_files_name(world: World) -> None:
    unit = f"{'u' * 240}.service"
    world.services = world.made(settings=[ServiceSettings.model_validate({"unit": unit, "namespace": "n" * 63})])
    world.units.put(unit, namespace=NETNS_PATH)
    world.units.networks[NETNS_PATH] = NETWORK
    assert list(world.look()) == ["u" * 157]


THEIRS = {"kind": "Pod", "metadata": {"annotations": {UNIT: LEGACY}}, "spec": {"nodeName": "node-b"}}


@pytest.mark.parametrize("content", [json.dumps(THEIRS), '{"kind": "Pod"}', "{"])
@pytest.mark.parametrize("told", [True, False], ids=["after", "before"])
def test_a_file_of_another_is_not_written(world: World, content: str, told: bool) -> None:
    """Input: another's file of a service's name, from before the service is told or after."""
    file = world.folder / "objects" / "Pod.old.legacy-node-a.json"
    if told:
        world.legacy()
        world.look()
    file.write_text(content)
    world.legacy()
    with world.settled():
        assert file.read_text() == content
    assert "is another's" in world.warned()[LEGACY]
    world.units.put(LEGACY, loaded="not-found")
    with world.settled():
        assert file.read_text() == content
    file.unlink()
    world.legacy()
    assert list(world.look()) == ["legacy-node-a"]
    assert LEGACY not in world.warned()


def test_a_file_that_became_anothers_is_not_removed(world: World) -> None:
    """Input: another's file in place of a service's, and the service ends before that is seen."""
    world.legacy()
    world.look()
    file = world.folder / "objects" / "Pod.old.legacy-node-a.json"
    file.write_text(json.dumps(THEIRS))
    world.units.put(LEGACY, loaded="not-found")
    with world.settled():
        assert json.loads(file.read_text()) == THEIRS


def test_a_file_that_was_left_empty_is_nobodys(world: World) -> None:
    (world.folder / "objects" / "Pod.old.legacy-node-a.json").touch()
    world.legacy()
    assert list(world.look()) == ["legacy-node-a"]


def test_the_folder_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a pod of others, and looks. Verdict: neither it nor what was told is read again, until something else
    stands there.
    """
    (world.folder / "objects" / "Pod.default.lab.json").write_text(json.dumps(THEIRS | {"metadata": {"name": "lab"}}))
    read: list[str] = []
    read_json = object_file.read_json

    def noted(path: Path) -> JsonObject:
        read.append(path.name)
        return read_json(path)

    monkeypatch.setattr(object_file, "read_json", noted)
    world.legacy()
    before = world.look()
    assert read == ["Pod.default.lab.json"]
    world.legacy(state="reloading")
    assert world.look() == before
    file = world.folder / "objects" / "Pod.old.legacy-node-a.json"
    file.write_text(file.read_text().replace("10.7.0.2", "10.7.0.9"))
    assert world.look() == before
    assert read == ["Pod.default.lab.json", file.name]
    file.unlink()
    assert world.look() == before


def test_services_that_are_none_any_more_are_removed(world: World) -> None:
    world.legacy()
    assert world.look() != {}
    world.services = world.made(settings=())
    assert world.look() == {}


def test_a_state_that_lasts_is_looked_at_as_others(world: World) -> None:
    """Input: a unit that never ends starting, then another one that starts."""
    world.units.put(LEGACY, state="activating")
    pauses = []
    for _ in range(SOON_LOOKS + 1):
        world.look()
        pauses.append(world.services.pause())
    assert pauses[:-2] == [SOON_SECONDS] * (SOON_LOOKS - 1)
    assert pauses[-2:] == [LOOK_SECONDS] * 2
    world.units.put(OTHER, state="activating")
    world.look()
    assert world.services.pause() == SOON_SECONDS


def test_when_a_pod_was_seen_first_is_forgotten_with_it(world: World) -> None:
    """Input: networks that come and go."""
    for cookie in range(10, 20):
        world.legacy()
        world.units.networks[NETNS_PATH] = replace(NETWORK, cookie=cookie)
        world.look()
    assert len(world.services._created) == 1  # nothing else shows it: it grows


def test_one_that_resigned_writes_nothing(world: World) -> None:
    world.legacy()
    world.services.resign()
    assert world.look() == {}


def test_a_unit_that_starts_is_seen_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: no look but for events. Verdict: systemd's file of a unit makes one, others' do not."""
    monkeypatch.setattr("nodeagent.services.follower.LOOK_SECONDS", 3600.0)
    world.other()

    async def scenario() -> None:
        parts = Parts()
        await world.services.look()
        async with world.services.run(parts):
            await until((world.folder / "objects" / "Pod.default.second.json").exists, "it watches")
            (world.running / "invocation:cron.service").symlink_to("0")
            world.legacy()
            (world.running / f"invocation:{LEGACY}").symlink_to("1")
            file = world.folder / "objects" / "Pod.old.legacy-node-a.json"
            await until(file.exists, "the pod is told")
        parts.stop()

    asyncio.run(scenario())
    assert world.units.looks == 2


def test_the_folder_is_read_once_places_are_known(world: World) -> None:
    world.legacy()
    world.look()
    world.services = world.made()
    source = ServiceSource(DirectorySource(world.folder), world.services.look)

    async def scenario() -> PodObject:
        (change,) = await source.changes()
        source.close()
        assert isinstance(change.object, PodObject)  # type: ignore[union-attr]
        return change.object  # type: ignore[union-attr,return-value]

    assert world.services.of(asyncio.run(scenario())) is not None
