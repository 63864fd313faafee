"""The search for files: what is told of pods' folders as they change, and what never is."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.control import log_finder, log_scan
from nodeagent.control.log_finder import IDLE_SOURCES, SURE_SECONDS, LogFinder
from nodeagent.control.log_opening import Opened, open_file_beneath
from nodeagent.control.log_scan import MAX_REFUSALS, FileId, FoundFile
from nodeagent.control.log_shares import KEPT, room_of
from nodeagent.logs.settings import LogLimits, LogSettings
from nodeagent.logs.sources import SourceFacts
from nodeagent.messages import LogSourceTold
from nodeagent.parts import Parts
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources.objects import ContainerObject, PodObject
from nodeagent.vocabulary import PodUid
from nodeagent.wire import encode
from tests.waiting import until


@dataclass
class Heard:
    """What a collector would hear; it keeps files open as one does."""

    sources: dict[str, SourceFacts] = field(default_factory=dict)
    files: dict[FileId, tuple[str, str, int]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    wanted: list[tuple[str, int]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def source(self, source: SourceFacts) -> None:
        self.sources[source.key] = source

    def file(self, source: str, found: FoundFile) -> None:
        identity = (found.opened.device, found.opened.inode)
        assert identity not in self.files, "told twice"
        assert source in self.sources, "a file before its source"
        self.files[identity] = (source, found.name, os.dup(found.opened.descriptor))
        self.starts[found.name] = found.start

    def renamed(self, file: FileId, name: str) -> None:
        source, _, descriptor = self.files[file]
        self.files[file] = (source, name, descriptor)

    def room_wanted(self, uid: PodUid, files: int) -> None:
        self.wanted.append((uid, files))

    def source_gone(self, key: str, *, left_out: bool) -> None:
        self.gone.append(key)
        if left_out:
            self.left_out.append(key)

    def names(self) -> list[tuple[str, str]]:
        """Return (container or path, name) of each file."""
        return sorted((each.partition("/")[2].partition("/")[2], name) for each, name, _ in self.files.values())

    def contents(self) -> set[bytes]:
        return {os.pread(descriptor, 1000, 0) for _, _, descriptor in self.files.values()}

    def close(self) -> None:
        for _, _, descriptor in self.files.values():
            os.close(descriptor)


class Node:
    """A node's folders, and a finder that looks at them."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.outputs = root / "pods"
        self.volumes = root / "volumes"
        self.outputs.mkdir()
        self.volumes.mkdir()
        self.now = 1000.0
        self.heard = Heard()
        sinks = [{"name": "all", "stdout": {}}]
        docker = {"dockerContainers": str(root / "docker")}
        self.settings = LogSettings.model_validate({"sinks": sinks, **docker, **settings})
        folders = LogFolders(self.outputs, self.volumes, kubelet=False)
        self.finder = LogFinder(self.settings, folders, self.heard, clock=lambda: self.now, work=lambda: 0.0)
        self.pods: dict[PodUid, PodObject] = {}

    def pod(self, name: str = "cart", uid: str = "u1", **more: Any) -> PodObject:
        made: dict[str, Any] = {
            "labels": {"app": name}, "annotations": {}, "ready": True, "containers": (), **more,
        }  # fmt: skip
        pod = PodObject(
            namespace="shop", name=name, uid=PodUid(uid), created="", terminating=False, owners=(), node="node1",
            service_account="", host_network=False, phase="Running", addresses=(), **made,
        )  # fmt: skip
        self.pods[pod.uid] = pod
        return pod

    def look(self) -> None:
        self.now += 60
        self.finder.follow(self.pods)
        self.finder.look_at_all()

    def output(self, name: str, content: bytes = b"x\n", container: str = "app") -> Path:
        path = self.outputs / "shop_cart_u1" / container / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def file(self, path: str, content: bytes = b"x\n") -> Path:
        made = self.volumes / "u1" / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(content)
        return made

    def refusals(self) -> str:
        return "\n".join(self.finder.warnings())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.heard.close()


FILES = {"nodeagent.io/log-files": "varlog/app/*.log"}


def test_a_containers_files_rotated_and_compressed_ones_too(node: Node) -> None:
    node.pod()
    node.output("0.log")
    node.output("0.log.20260101-000000")
    node.output("0.log.20250101-000000.gz", gzip.compress(b"old\n"))
    node.output("1.log")
    node.output("0.log.20260101-000000.tmp")
    node.output("notes.txt")
    node.look()
    assert [name for _, name in node.heard.names()] == [
        "0.log",
        "0.log.20250101-000000.gz",
        "0.log.20260101-000000",
        "1.log",
    ]
    assert {each.container for each in node.heard.sources.values()} == {"app"}


def test_every_source_has_whose_it_is(node: Node) -> None:
    node.pod(annotations={**FILES, "team": "till"})
    node.output("0.log")
    node.file("varlog/app/a.log")
    node.look()
    for each in node.heard.sources.values():
        assert (each.namespace, each.pod, each.uid, each.labels) == ("shop", "cart", "u1", {"app": "cart"})
        assert each.reading.sinks == ("all",)
    assert {each.path for each in node.heard.sources.values()} == {"", "varlog/app/a.log"}


def test_a_rotated_file_is_the_same_one_under_another_name(node: Node) -> None:
    node.pod()
    path = node.output("0.log", b"first\n")
    node.look()
    path.rename(path.with_name("0.log.20260101-000000"))
    node.output("0.log", b"second\n")
    node.look()
    assert node.heard.names() == [("app", "0.log"), ("app", "0.log.20260101-000000")]
    assert node.heard.contents() == {b"first\n", b"second\n"}


def test_a_file_whose_new_name_no_longer_fits_is_still_the_pods(node: Node) -> None:
    node.pod(annotations=FILES)
    path = node.file("varlog/app/a.log", b"first\n")
    node.look()
    path.rename(path.with_name("archived"))
    node.file("varlog/app/a.log", b"second\n")
    node.look()
    assert node.heard.names() == [("varlog/app/a.log", "a.log"), ("varlog/app/a.log", "archived")]


@pytest.mark.parametrize("name", ["a.log.1", "a.log.2.gz", "a.log-20260101", "a.log-20260101.gz", "a.log.old"])
def test_what_was_rotated_before_the_first_look_is_of_the_file_that_it_was(node: Node, name: str) -> None:
    node.pod(annotations=FILES)
    node.file(f"varlog/app/{name}")
    node.look()
    assert node.heard.names() == [("varlog/app/a.log", name)]


def test_a_removed_file_has_no_name_and_its_inode_is_told_anew_once_it_was_closed(node: Node) -> None:
    node.pod()
    path = node.output("0.log")
    node.look()
    (identity,) = node.heard.files
    path.unlink()
    node.look()
    assert node.heard.files[identity][1] == ""
    os.close(node.heard.files.pop(identity)[2])
    node.finder.closed(identity)
    node.output("0.log", b"again\n")
    node.look()
    assert node.heard.contents() == {b"again\n"}


def test_a_new_file_with_the_inode_of_another_pods_is_told_once_that_was_closed(node: Node) -> None:
    """The former pod's file is gone, and whom it was told has it open still."""
    node.pod()
    node.output("0.log")
    node.look()
    (identity,) = node.heard.files
    other = node.outputs / "shop_till_u2" / "app"
    other.mkdir(parents=True)
    (node.outputs / "shop_cart_u1" / "app" / "0.log").rename(other / "0.log")  # so it has that inode
    node.pod("till", "u2")
    node.look()
    os.close(node.heard.files.pop(identity)[2])
    node.finder.closed(identity)
    node.finder.look_at_all()  # without a while in between
    assert [source for source, _, _ in node.heard.files.values()] == ["output/u2/app"]


@pytest.mark.parametrize("content", [b"x\n", b"yy\n"])
def test_a_new_file_with_the_inode_of_one_that_was_put_aside_is_told(node: Node, content: bytes) -> None:
    node.pod()
    path = node.output("0.log")
    node.look()
    (identity,) = node.heard.files
    found = path.stat()
    os.close(node.heard.files.pop(identity)[2])
    node.finder.put_aside(identity, found.st_size, found.st_mtime_ns)
    node.look()
    assert node.heard.files == {}
    path.write_bytes(content)
    os.utime(path, (9, 9))
    node.look()
    assert node.heard.contents() == {content}


def test_what_fluentd_has_read_and_what_was_rotated_before_is_told_with_where_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "positions").touch()
    node = Node(tmp_path, fluentdPositions=[str(tmp_path / "positions")])
    node.pod()
    path = node.output("0.log", b"one\ntwo\n")
    old = node.output("0.log.20260101-000000", b"old\n")
    os.utime(old, (9, 9))
    (tmp_path / "positions").write_text(f"/var/log/containers/a.log\t{4:016x}\t{path.stat().st_ino:016x}\n")
    os.utime(tmp_path / "positions", ns=(1 << 62, 1 << 62))
    folders = LogFolders(node.outputs, node.volumes, kubelet=False)
    made = LogFinder(node.settings, folders, node.heard, clock=lambda: node.now)
    made.follow(node.pods)
    made.look_at_all()
    assert node.heard.starts == {"0.log": 4, old.name: 4}
    older = node.output("0.log.20251231-000000", b"older\n")
    os.utime(older, (9, 9))
    node.now += 60
    made.look_at_all()
    assert node.heard.starts[older.name] == 6, "found later, as what there was no room for is"
    node.heard.close()


def test_labels_that_change_are_told_and_files_are_not_told_twice(node: Node) -> None:
    node.pod()
    node.output("0.log")
    node.look()
    node.pod(labels={"app": "cart", "tier": "front"})
    node.look()
    (source,) = node.heard.sources.values()
    assert source.labels == {"app": "cart", "tier": "front"}
    assert len(node.heard.files) == 1


def test_a_pod_that_leaves_the_api_keeps_its_sources_until_its_files_are_gone(node: Node) -> None:
    pod = node.pod()
    path = node.output("0.log")
    node.look()
    del node.pods[pod.uid]
    node.output("0.log.20260101-000000", b"last words\n")
    node.look()
    assert len(node.heard.files) == 2
    assert node.heard.gone == []
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    node.look()
    assert node.heard.gone == ["output/u1/app"]


def test_a_pod_that_asks_to_be_left_out_later_is(node: Node) -> None:
    node.pod()
    node.output("0.log")
    node.look()
    node.pod(annotations={"nodeagent.io/logs": "disabled"}, containers=(ContainerObject((), (), "app"),))
    node.look()
    assert node.heard.gone == node.heard.left_out == ["output/u1/app"]
    assert list(node.finder.excluded()) == ["output/u1/app"], "who succeeds tells it anew"


def test_what_is_no_file_of_the_volume_is_refused_by_name(node: Node) -> None:
    node.pod(annotations=FILES)
    good = node.file("varlog/app/good.log")
    good.with_name("evil.log").symlink_to("/etc/passwd")
    os.mkfifo(good.with_name("fifo.log"))
    node.look()
    assert node.heard.names() == [("varlog/app/good.log", "good.log")]
    rows = {words for _, refusals in node.finder.rows() for words in refusals}
    assert any("evil.log" in each and "a symbolic link" in each for each in rows)
    assert any("fifo.log" in each and "a FIFO" in each for each in rows)
    assert "logs of shop/cart: " in node.refusals()


def test_an_annotation_that_names_an_unknown_container_is_told(node: Node) -> None:
    annotations = {"nodeagent.io/log-exclude": "porxy", "fluentbit.io/parser-app": "json"}
    node.pod(annotations=annotations)
    node.look()
    assert "porxy" not in node.refusals(), "nothing is known of its containers yet"
    node.output("0.log")
    node.output("0.log", container="proxy")
    node.look()
    words = "nodeagent.io/log-exclude: 'porxy': no container of that name; there are app, proxy"
    assert words in node.refusals()
    assert "parser-app" not in node.refusals()
    assert len(node.heard.files) == 2


def test_a_container_that_has_not_started_is_not_unknown(node: Node) -> None:
    two = (ContainerObject((), ()), ContainerObject((), ()))
    node.pod(annotations={"nodeagent.io/log-exclude": "porxy"}, ready=False, containers=two)
    node.output("0.log")
    node.look()
    assert "porxy" not in node.refusals(), "it may be the one that is missing"
    node.output("0.log", container="proxy")
    node.look()
    assert "porxy" in node.refusals()


def test_a_file_with_another_name_elsewhere_is_not_the_pods(node: Node, tmp_path: Path) -> None:
    """A hard link: of another pod's log, or of the node's secrets."""
    node.pod(annotations=FILES)
    node.pod("till", "u2", annotations=FILES)
    good = node.file("varlog/app/good.log")
    os.link(good, good.with_name("good.log.1"))  # so do some rotate
    secret = tmp_path / "shadow"
    secret.write_text("secret")
    os.link(secret, good.with_name("evil.log"))
    other = node.volumes / "u2" / "varlog" / "app"
    other.mkdir(parents=True)
    (other / "theirs.log").write_text("theirs")
    os.link(other / "theirs.log", good.with_name("mine.log"))
    node.look()
    assert node.heard.contents() == {b"x\n"}
    rows = {words for _, refusals in node.finder.rows() for words in refusals}
    for name in ("evil", "mine", "theirs"):
        words = f"varlog/app/{name}.log': '{name}.log': it is a hard link: 1 names of it are not in this folder"
        assert any(words in each for each in rows), rows
    good.with_name("mine.log").unlink()
    node.look()
    assert node.heard.contents() == {b"x\n", b"theirs"}


def test_a_hard_link_in_the_place_of_what_was_listed_is_not_read(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has several names here is listed, what has one elsewhere is opened."""
    node.pod(annotations=FILES)
    path = node.file("varlog/app/a.log")
    for number in range(3):
        os.link(path, path.with_name(f"decoy{number}"))
    secret = tmp_path / "shadow"
    secret.write_text("secret")

    def exchanged(folder: int, name: str, links: int) -> Opened:
        made = path.with_name(".made")
        os.link(secret, made)
        made.replace(path)
        return open_file_beneath(folder, name, links)

    monkeypatch.setattr(log_scan, "open_file_beneath", exchanged)
    node.look()
    assert node.heard.files == {}
    monkeypatch.undo()
    node.look()
    assert node.heard.files == {}
    assert "hard link" in node.refusals()


def test_what_is_exchanged_all_the_time_is_read_as_a_file_or_not_at_all(node: Node, tmp_path: Path) -> None:
    """A link, a FIFO, a folder and a file in turn under one name, between any two steps of a look."""
    node.pod(annotations=FILES)
    path = node.file("varlog/app/a.log")
    secret = tmp_path / "shadow"
    secret.write_text("secret")
    ended = threading.Event()

    def exchange() -> None:
        made = path.with_name(".made")
        while not ended.is_set():
            for make in (lambda: made.symlink_to(secret), lambda: os.mkfifo(made), lambda: made.write_text("x\n")):
                make()
                made.replace(path)

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    try:
        for _ in range(300):
            node.look()
            for identity, (_, _, descriptor) in list(node.heard.files.items()):
                node.finder.closed(identity)
                assert os.pread(descriptor, 100, 0) in (b"", b"x\n")
                os.close(descriptor)
                del node.heard.files[identity]
    finally:
        ended.set()
        exchanging.join()


def test_a_volume_that_is_a_link_or_missing_is_not_read(node: Node, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "app").mkdir(parents=True)
    (tmp_path / "elsewhere" / "app" / "a.log").write_text("secret")
    (node.volumes / "u1").mkdir()
    (node.volumes / "u1" / "varlog").symlink_to(tmp_path / "elsewhere")
    node.pod(annotations=FILES)
    node.look()
    assert node.heard.files == {}
    assert "volume varlog is no emptyDir of this pod" in node.refusals()


def test_no_pod_has_more_files_than_it_may(tmp_path: Path) -> None:
    node = Node(tmp_path, limits={"filesPerPod": 3})
    node.pod(annotations=FILES)
    for number in range(10):
        node.file(f"varlog/app/{number}.log")
    node.look()
    assert len(node.heard.files) == 3
    assert "more files than logs.limits allow" in node.refusals()
    node.heard.close()


@pytest.mark.parametrize("names", ["app-2026-{:03}.log", "app.log.{}", "app-{}.log"])
def test_of_too_many_files_the_newest_are_read(tmp_path: Path, names: str) -> None:
    node = Node(tmp_path, limits={"filesPerPod": 20})
    node.pod(annotations=FILES)
    order = random.Random(names).sample(range(100), 100)
    paths = {number: node.file(f"varlog/app/{names.format(number)}") for number in order}
    paths[100] = node.file("varlog/app/app.log")
    for number, path in paths.items():
        os.utime(path, (1000 + number, 1000 + number))
    node.look()
    newest = {paths[number].name for number in range(81, 101)}
    assert {name for _, name in node.heard.names()} == newest
    assert node.heard.wanted == [("u1", 81)]
    node.look()
    assert len(node.heard.files) == 20
    node.heard.close()


def test_a_pod_with_thousands_of_files_leaves_others_theirs(tmp_path: Path) -> None:
    node = Node(tmp_path, limits={"filesPerPod": 1000, "files": 100})
    for number in range(4):
        node.pod(f"cart{number}", f"u{number}", annotations=FILES)
        folder = node.volumes / f"u{number}" / "varlog" / "app"
        folder.mkdir(parents=True)
        for each in range(500 if number == 0 else 10):
            (folder / f"{each}.log").write_bytes(b"x\n")
    node.look()
    found = Counter(source.uid for source in node.heard.sources.values())
    assert [found[PodUid(f"u{number}")] for number in range(1, 4)] == [10, 10, 10]
    assert 16 < found[PodUid("u0")] < 70
    assert "shop/cart0" in node.refusals() and "shop/cart1" not in node.refusals()
    node.heard.close()


class Walked(dict[Any, Any]):
    """Counts how often all of it is gone through."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.walks = 0

    def items(self) -> Any:
        self.walks += 1
        return super().items()


@pytest.mark.parametrize("how", ["gone", "left out", "idle"])
def test_what_thousands_of_files_take_grows_with_their_number_only(tmp_path: Path, how: str) -> None:
    """Input: as many logs as files, given up at once. Verdict: the files are gone through a few times, not for each."""
    node = Node(tmp_path, limits={"filesPerPod": 500})
    node.pod(annotations=FILES)
    for number in range(500):
        node.file(f"varlog/app/{number}.log")
    node.look()
    (followed,) = node.finder.pods()
    assert len(followed.files) == len(followed.sources) == 500
    followed.files = walked = Walked(followed.files)
    if how == "gone":
        node.pods.clear()
        shutil.rmtree(node.volumes / "u1")
    elif how == "left out":
        node.pod(annotations={})
    else:
        for identity in list(node.heard.files)[:400]:
            node.finder.closed(identity)
        shutil.rmtree(node.volumes / "u1")
    node.look()
    assert len(node.heard.gone) == (500 if how != "idle" else 400 - IDLE_SOURCES)
    assert walked.walks < 5
    node.heard.close()


@given(st.integers(1, 200), st.integers(1, 300), st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_every_pod_has_its_share_in_whatever_order_they_come(files: int, per_pod: int, wanted: list[int]) -> None:
    limits = LogLimits.model_validate({"files": files, "filesPerPod": per_pod})
    have = [0] * len(wanted)
    for at in [*range(len(wanted)), *range(len(wanted))]:
        others = [count for number, count in enumerate(have) if number != at]
        have[at] += min(wanted[at] - have[at], room_of(limits, have[at], others))
    share = min(KEPT, files // len(wanted), per_pod)
    assert all(count >= min(want, share) for count, want in zip(have, wanted, strict=True))
    assert sum(have) <= files and max(have) <= per_pod


class _Ticking:
    """A clock on which each look at it takes a millisecond, or *seconds*."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.now = 1000.0
        self._seconds = seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


def sliced(node: Node, heard: Heard, meanwhile: Callable[[LogFinder, int], None], looks: int) -> LogFinder:
    """Look at all pods so often, with *meanwhile* called between slices with their number."""
    finder = LogFinder(node.settings, LogFolders(node.outputs, node.volumes, kubelet=False), heard, work=_Ticking())
    finder.follow(node.pods)
    between = 0
    for _ in range(looks):
        for uid in node.pods:
            for _ in finder._look(uid):
                between += 1
                meanwhile(finder, between)
    return finder


def test_a_look_at_many_names_lets_others_have_their_turn(node: Node) -> None:
    node.pod(annotations=FILES)
    for number in range(90):
        node.file(f"varlog/app/{number}.log")
    names = 90
    between: list[int] = []
    sliced(node, node.heard, lambda _finder, number: between.append(number), looks=1)
    assert len(node.heard.files) == names
    assert between[-1] > names / 2, "each of three steps for a name takes a millisecond here, and a slice some"


def test_on_a_starved_machine_a_look_does_as_much_at_once_and_the_next_one_comes_as_soon(node: Node) -> None:
    node.pod(annotations=FILES)
    for number in range(90):
        node.file(f"varlog/app/{number}.log")
    folders = LogFolders(node.outputs, node.volumes, kubelet=False)
    slow = _Ticking(1.0)
    finder = LogFinder(node.settings, folders, node.heard, clock=slow, work=lambda: 0.0, queued=lambda: slow.now)
    finder.follow(node.pods)
    assert sum(1 for _ in finder._look(PodUid("u1"))) == 0
    (followed,) = finder.pods()
    assert followed.not_before <= slow.now < followed.next_look


def test_a_look_that_waits_for_a_disk_lets_others_have_their_turn_and_the_next_one_comes_later(node: Node) -> None:
    node.pod(annotations=FILES)
    for number in range(90):
        node.file(f"varlog/app/{number}.log")
    folders = LogFolders(node.outputs, node.volumes, kubelet=False)
    disk = _Ticking(0.02)
    finder = LogFinder(node.settings, folders, node.heard, clock=disk, work=lambda: 0.0, queued=lambda: 0.0)
    finder.follow(node.pods)
    began = disk.now
    assert sum(1 for _ in finder._look(PodUid("u1"))) > 30
    took = disk.now - began
    (followed,) = finder.pods()
    assert SURE_SECONDS / 2 < followed.not_before - disk.now <= max(SURE_SECONDS, took), "later, but not by minutes"
    (warning,) = finder.warnings()
    assert f"{followed.name}: a look for files took {followed.took:.1f} s" in warning


def test_what_is_told_while_a_look_goes_on_begins_it_anew(node: Node) -> None:
    """A collector that comes in its midst knows nothing; what the look took for known it was not told."""
    node.pod(annotations=FILES)
    for number in range(30):
        node.file(f"varlog/app/{number}.log")
    forgotten: list[int] = []

    def forget(finder: LogFinder, number: int) -> None:
        if len(node.heard.files) == 30 and not forgotten:
            forgotten.append(number)
            finder.forget()

    finder = sliced(node, node.heard, forget, looks=2)
    assert forgotten and not finder.settled, "it is due at once"


def test_an_event_while_a_look_goes_on_has_it_looked_at_again(node: Node) -> None:
    node.pod(annotations=FILES)
    for number in range(30):
        node.file(f"varlog/app/{number}.log")
    folders = LogFolders(node.outputs, node.volumes, kubelet=False)
    finder = LogFinder(node.settings, folders, node.heard, work=_Ticking())
    finder.follow(node.pods)
    for number, _ in enumerate(finder._look(PodUid("u1"))):
        if number == 1:
            finder._happened(PodUid("u1"))
    (followed,) = finder.pods()
    assert followed.next_look <= finder._clock(), "what came is seen by the next look, not in ten seconds"


def test_names_that_are_no_text_are_told_as_text(node: Node) -> None:
    node.pod(annotations=FILES)
    folder = os.fsencode(node.file("varlog/app/a.log").parent)
    with open(folder + b"/\xff\xfe.log", "wb") as file:
        file.write(b"found\n")
    node.look()
    names = [name for _, name in node.heard.names()]
    assert names == ["a.log", "\ufffd\ufffd.log"]
    assert b"found\n" in node.heard.contents()
    for key, source in node.heard.sources.items():
        encode(LogSourceTold(key, source.to_json()))
    os.rename(folder + b"/a.log", folder + b"/a.log\xff")
    node.look()
    assert "a.log\ufffd" in [name for _, name in node.heard.names()]
    assert len(node.heard.files) == 2


def test_sources_whose_files_are_gone_are_not_remembered_for_ever(node: Node) -> None:
    node.pod(annotations=FILES)
    kept = node.file("varlog/app/kept.log")
    for number in range(2 * IDLE_SOURCES):
        made = node.file(f"varlog/app/{number}.log")
        node.look()
        made.unlink()
        for identity, (source, _, descriptor) in list(node.heard.files.items()):
            if not source.endswith("/kept.log"):
                node.finder.closed(identity)
                os.close(descriptor)
                del node.heard.files[identity]
    node.look()
    told = list(node.finder.keys())
    assert len(told) <= 1 + IDLE_SOURCES
    assert [each for each in told if each.endswith("/kept.log")]
    assert len(node.heard.gone) >= IDLE_SOURCES
    assert kept.exists()


def test_a_look_that_fails_for_one_pod_ends_neither_the_search_nor_others(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.pod(annotations=FILES)
    node.pod("till", "u2", annotations=FILES)
    node.file("varlog/app/a.log")
    other = node.volumes / "u2" / "varlog" / "app"
    other.mkdir(parents=True)
    (other / "b.log").write_bytes(b"x\n")
    told = node.heard.source

    def fails(source: SourceFacts) -> None:
        if source.uid == "u1":
            raise TypeError("no message has this")
        told(source)

    async def scenario() -> None:
        node.heard.source = fails  # type: ignore[method-assign]

        async def follow(finder: LogFinder) -> None:
            finder.follow(node.pods)
            await until(lambda: any(name == "b.log" for _, name in node.heard.names()), "the other pod's file")

        await running(node, follow)

    asyncio.run(scenario())
    assert "shop/cart: a bug in the look" in caplog.text


def test_a_look_tells_a_bounded_number_of_things_that_are_wrong(node: Node) -> None:
    node.pod(annotations=FILES)
    for number in range(3 * MAX_REFUSALS):
        os.mkfifo(node.file(f"varlog/app/{number}.txt").with_suffix(".log"))
    node.look()
    (_, refusals), *_ = node.finder.rows()
    assert len(refusals) == MAX_REFUSALS + 1
    assert refusals[-1] == f"and {2 * MAX_REFUSALS} more"


def test_docker_links_are_followed_to_where_docker_writes_and_nowhere_else(node: Node, tmp_path: Path) -> None:
    number = "0123456789ab" * 5 + "cdef"
    target = tmp_path / "docker" / number / f"{number}-json.log"
    target.parent.mkdir(parents=True)
    target.write_text('{"log":"hello\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n')
    (tmp_path / "secret").write_text("secret")
    node.pod()
    folder = node.output("0.log").parent
    (folder / "0.log").unlink()
    (folder / "0.log").symlink_to(target)
    (folder / "1.log").symlink_to(tmp_path / "secret")
    (folder / "2.log").symlink_to(target.parent / ".." / ".." / "secret")
    node.look()
    assert node.heard.names() == [("app", "0.log")]
    assert node.refusals().count("a symbolic link") == 1


def docker_log(node: Node, root: Path) -> Path:
    """Return where Docker writes the output of the pod's container, which its link leads to."""
    number = "0123456789ab" * 5 + "cdef"
    target = root / "docker" / number / f"{number}-json.log"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"one")
    node.pod()
    link = node.output("0.log")
    link.unlink()
    link.symlink_to(target)
    return target


def test_what_docker_has_rotated_is_found_whenever_it_is_looked(node: Node, tmp_path: Path) -> None:
    target = docker_log(node, tmp_path)
    (target.parent / "hostconfig.json").write_text("{}")
    target.with_name(f"{target.name}.1").write_bytes(b"before")
    target.with_name(f"{target.name}.2.gz").write_bytes(b"long before")
    node.look()
    assert node.heard.names() == [("app", "0.log"), ("app", "0.log.1"), ("app", "0.log.2.gz")]
    target.with_name(f"{target.name}.1").rename(target.with_name(f"{target.name}.2"))
    target.rename(target.with_name(f"{target.name}.1"))
    target.write_bytes(b"two")
    node.look()
    assert node.heard.contents() == {b"one", b"two", b"before", b"long before"}
    assert ("app", "0.log.2") in node.heard.names()


def test_docker_s_rotation_is_told_by_an_event(node: Node, tmp_path: Path) -> None:
    target = docker_log(node, tmp_path)

    async def follow(finder: LogFinder) -> None:
        await until(lambda: len(node.heard.files) == 1)
        for count in range(1, 4):
            target.rename(target.with_name(f"{target.name}.{count}"))
            target.write_bytes(b"another")
            await until(partial(files_are, node, 1 + count))

    asyncio.run(running(node, follow))


def files_are(node: Node, count: int) -> bool:
    return len(node.heard.files) == count


def test_node_files_are_read_with_what_they_were_rotated_to(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.log"
    node = Node(tmp_path, node={"files": [{"path": str(path), "parser": "logfmt"}]})
    path.write_text("x\n")
    path.with_name("kubelet.log.1").write_text("y\n")
    path.with_name("other.log").write_text("z\n")
    node.look()
    (source,) = node.heard.sources.values()
    assert (source.kind, source.path, source.namespace, source.reading.parser) == ("node", str(path), "", "logfmt")
    assert node.heard.contents() == {b"x\n", b"y\n"}
    node.heard.close()


def test_who_knows_nothing_is_told_everything_anew(node: Node) -> None:
    node.pod()
    node.output("0.log")
    node.look()
    before = node.heard.names()
    node.heard.close()
    node.heard.files.clear()
    node.heard.sources.clear()
    node.finder.forget()
    node.look()
    assert node.heard.names() == before


def test_other_settings_are_gone_by_for_pods_that_are_there(node: Node) -> None:
    node.pod()
    node.output("0.log")
    node.look()
    node.heard.close()
    node.heard.files.clear()
    node.heard.sources.clear()
    settings = node.settings.model_copy(update={"containers": "none"})
    node.finder.reconfigure(settings, LogFolders(node.outputs, node.volumes, kubelet=False))
    node.look()
    assert node.heard.files == {}


def test_a_new_file_is_told_by_the_event_of_its_folder(node: Node) -> None:
    """No look is due: inotify brings it."""
    node.pod()
    node.output("0.log")

    async def follow(finder: LogFinder) -> None:
        await until(lambda: node.heard.names() == [("app", "0.log")])
        node.output("1.log")
        node.output("0.log", container="second")
        await until(lambda: len(node.heard.files) == 3)

    asyncio.run(running(node, follow))


def test_a_pod_whose_folder_comes_later_is_found(node: Node) -> None:
    node.pod(annotations=FILES)

    async def follow(finder: LogFinder) -> None:
        await until(lambda: finder.settled)
        node.output("0.log")
        node.file("varlog/app/deep.log")
        await until(lambda: len(node.heard.files) == 2)

    asyncio.run(running(node, follow))


async def running(node: Node, follow: Callable[[LogFinder], Awaitable[None]]) -> None:
    """Have a finder look by itself while *follow* runs: where an event tells it to, for no look is due."""
    finder = LogFinder(node.settings, LogFolders(node.outputs, node.volumes, kubelet=False), node.heard)
    parts = Parts()
    with mock.patch.object(log_finder, "SURE_SECONDS", 3600.0):
        async with finder.run(parts):
            finder.follow(node.pods)
            await follow(finder)
            parts.stop()


MACHINE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Node]:
    """A node whose journal is read, and the pod ``legacy`` is its ``legacy.service``."""
    made = Node(tmp_path, node={"journal": {"folders": [str(tmp_path / "journal"), str(tmp_path / "none")]}})
    units = {"legacy": "legacy.service"}
    folders = LogFolders(made.outputs, made.volumes, kubelet=False, unit=lambda pod: units.get(pod.name, ""))
    made.finder.reconfigure(made.settings, folders)
    folder = tmp_path / "journal" / MACHINE
    folder.mkdir(parents=True)
    (folder / "system.journal").touch()
    yield made
    made.heard.close()


def journal_names(node: Node) -> list[tuple[str, str]]:
    return [(key, name) for key, name in node.heard.names() if key.endswith(".journal")]


def test_a_journals_files_are_one_log_each_with_what_they_were_rotated_to(machine: Node, tmp_path: Path) -> None:
    folder = tmp_path / "journal" / MACHINE
    rotated = f"system@{MACHINE}-0000000000000001-0000000000000002.journal"
    for name in (
        rotated,
        "system@0006473a-89ab.journal~",
        "user-1000.journal",
        "fss",
        "system.journal.tmp",
        "x.journal",
    ):
        (folder / name).touch()
    (folder.parent / f"{MACHINE}.own").mkdir()
    (folder.parent / f"{MACHINE}.own" / "system.journal").touch()
    (folder.parent / "remote").mkdir()
    (folder.parent / "remote" / "system.journal").touch()
    machine.look()
    system, user = (f"{folder}/{name}.journal" for name in ("system", "user-1000"))
    assert sorted(journal_names(machine)) == sorted([
        (system, "system.journal"), (system, rotated), (system, "system@0006473a-89ab.journal~"),
        (user, "user-1000.journal"), (f"{folder}.own/system.journal", "system.journal"),
    ])  # fmt: skip
    source = machine.heard.sources[f"journal//{system}"]
    assert (source.kind, source.uid, source.path, source.unit) == ("journal", "", system, "")
    assert source.reading.sinks == ("all",)
    assert machine.refusals() == ""


def test_a_journals_file_that_is_renamed_stays_what_it_is(machine: Node, tmp_path: Path) -> None:
    machine.look()
    folder = tmp_path / "journal" / MACHINE
    rotated = f"system@{MACHINE}-0000000000000001-0000000000000002.journal"
    (folder / "system.journal").rename(folder / rotated)
    (folder / "system.journal").touch()
    machine.look()
    assert [name for _, name in journal_names(machine)] == ["system.journal", rotated]
    assert len({key for key, _ in journal_names(machine)}) == 1


def test_whose_entries_the_journal_has_is_told_before_it(machine: Node) -> None:
    machine.finder.look_at_all()
    assert not machine.finder.settled
    assert journal_names(machine) == [], "nobody knows the pods yet"
    machine.pod("legacy", uid="u1")
    machine.pod("other", uid="u2")
    machine.look()
    assert journal_names(machine)
    assert machine.finder.settled
    units = {each.unit: each for each in machine.heard.sources.values() if each.kind == "output"}
    assert list(units) == ["legacy.service"]
    assert (units["legacy.service"].namespace, units["legacy.service"].pod) == ("shop", "legacy")
    keys = list(machine.heard.sources)
    assert keys.index(units["legacy.service"].key) < keys.index(next(each for each in keys if "journal" in each))


def test_entries_of_a_service_that_is_left_out_are_nobodys(machine: Node) -> None:
    machine.pod("legacy", uid="u1", annotations={"nodeagent.io/logs": "disabled"})
    machine.look()
    told = next(each for each in machine.heard.sources.values() if each.unit)
    assert "" in told.reading.without
    machine.pod("legacy", uid="u1")
    machine.look()
    assert not machine.heard.sources[told.key].reading.without
    assert not machine.heard.gone


def test_a_service_that_is_gone_has_no_entries_any_more(machine: Node) -> None:
    machine.pod("legacy", uid="u1")
    machine.look()
    machine.pods.clear()
    machine.look()
    machine.look()
    assert machine.heard.gone == ["output/u1/service"]


def test_that_there_is_no_journal_is_said(tmp_path: Path) -> None:
    made = Node(tmp_path, node={"journal": {"folders": [str(tmp_path / "a"), str(tmp_path / "b")]}})
    made.look()
    assert f"the journal: {tmp_path}/a and {tmp_path}/b: no such folder" in made.refusals()
