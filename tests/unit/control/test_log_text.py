"""What the files of a pod's logs hold, page by page."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.control import log_entries, log_text
from nodeagent.control.log_followed import FollowedPod
from nodeagent.control.log_opening import open_file_beneath
from nodeagent.control.log_scan import FoundFile
from nodeagent.control.log_text import LogText
from nodeagent.lab import cri_log
from nodeagent.logs.pods import plan
from nodeagent.logs.settings import LogSettings
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources import objects
from nodeagent.telemetry.http_request import Response
from tests.unit.logs import journal_files
from tests.unit.logs.journal_files import written

BEGIN = 1_700_000_000
UID = "11111111-2222-3333-4444-555555555555"


class Node:
    """A node's folders with one pod, and the pages about it."""

    def __init__(self, folder: Path) -> None:
        self.outputs = folder / "pods" / f"default_web_{UID}"
        self.volume = folder / "volumes" / UID / "logs"
        self.volume.mkdir(parents=True)
        settings = LogSettings.model_validate(
            {
                "podLogs": str(folder / "pods"),
                "podVolumes": str(folder / "volumes"),
                "sinks": [{"name": "a", "stdout": {}}],
            }
        )
        pod = objects.parse(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": "web",
                    "namespace": "default",
                    "uid": UID,
                    "annotations": {"nodeagent.io/log-files": "logs/*.log"},
                },
                "spec": {"nodeName": "node1", "containers": [{"name": "app"}]},
                "status": {},
            }
        )
        assert isinstance(pod, objects.PodObject)
        self.followed = FollowedPod("default/web", pod, plan(pod, settings))
        self.text = LogText(
            settings, LogFolders(settings.pod_logs, settings.pod_volumes, kubelet=False), lambda: [self.followed]
        )

    def write(
        self, container: str, text: str, seconds: int = 0, name: str = "0.log", stream: bytes = b"stdout"
    ) -> Path:
        folder = self.outputs / container
        folder.mkdir(parents=True, exist_ok=True)
        at = (BEGIN + seconds) * 1_000_000_000
        with (folder / name).open("ab") as file:
            file.write(cri_log.encode(stream, text.encode(), at))
        os.utime(folder / name, ns=(at, at))
        return folder / name

    def ask(self, **query: str) -> Mapping[str, Any]:
        response = asyncio.run(self.text.page({"pod": "default/web", **query}))
        assert isinstance(response.body, bytes)
        if response.status != 200:
            raise ValueError(f"{response.status}: {response.body.decode()}")
        found: Mapping[str, Any] = json.loads(response.body)
        return found

    def lines(self, **query: str) -> list[str]:
        return [line["text"] for line in self.ask(**query)["lines"]]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_lines_of_all_containers_by_time(node: Node) -> None:
    node.write("app", "one\n", 1)
    node.write("side", "two\n", 2, stream=b"stderr")
    node.write("app", "three\n", 3)
    answer = node.ask()
    assert [(line["source"], line["stream"], line["text"]) for line in answer["lines"]] == [
        ("app", "stdout", "one"),
        ("side", "stderr", "two"),
        ("app", "stdout", "three"),
    ]
    assert answer["lines"][0]["time"] == "2023-11-14T22:13:21Z"
    assert not answer["more"]
    assert node.lines(source="side") == ["two"]


def test_files_of_volumes(node: Node) -> None:
    (node.volume / "a.log").write_text('{"n": 1}\nplain\n')
    (node.volume / "secret").write_text("not asked for\n")
    (node.volume / "evil.log").symlink_to("/etc/passwd")
    answer = node.ask()
    assert [(line["source"], line["text"]) for line in answer["lines"]] == [
        ("logs/a.log", '{"n": 1}'),
        ("logs/a.log", "plain"),
    ]
    assert any("evil.log" in each for each in answer["refused"])
    assert node.lines(source="logs/a.log") == ['{"n": 1}', "plain"]


def test_the_next_answer_goes_on_where_the_last_one_ended(node: Node) -> None:
    path = node.write("app", "one\n")
    first = node.ask()
    assert node.lines(cursor=first["cursor"]) == []
    node.write("app", "two\n", 1)
    path.rename(path.with_name("0.log.20240101-000000"))
    node.write("app", "three\n", 2)
    second = node.ask(cursor=first["cursor"])
    assert [line["text"] for line in second["lines"]] == ["two", "three"]
    packed = path.with_name("0.log.20240101-000000.gz")
    packed.write_bytes(gzip.compress(path.with_name("0.log.20240101-000000").read_bytes()))
    path.with_name("0.log.20240101-000000").unlink()
    assert node.lines(cursor=second["cursor"]) == []
    assert node.lines() == ["one", "two", "three"]


def test_a_line_that_is_not_whole_yet_waits(node: Node) -> None:
    path = node.write("app", "one\n")
    with path.open("ab") as file:
        file.write(b"2023-11-14T22:13:21Z stdout F t")
    first = node.ask()
    assert [line["text"] for line in first["lines"]] == ["one"]
    with path.open("ab") as file:
        file.write(b"wo\n")
    assert node.lines(cursor=first["cursor"]) == ["two"]


def test_what_is_older_is_left_out(node: Node) -> None:
    node.write("app", "old\n", 1, "0.log.20240101-000000")
    node.write("app", "before\n", 5)
    node.write("app", "after\n", 7)
    assert node.lines(since=str(BEGIN + 6)) == ["after"]


def test_of_files_without_times_the_end_is_recent(node: Node) -> None:
    path = node.volume / "a.log"
    path.write_text("".join(f"{number:>99}\n" for number in range(1000)))
    found = node.lines(since=str(BEGIN))
    assert [int(line) for line in found] == list(range(1000 - len(found), 1000))
    assert len(found) == log_text.UNDATED_BYTES // 100
    os.utime(path, (BEGIN - 1, BEGIN - 1))
    assert node.lines(since=str(BEGIN)) == []
    assert len(node.lines()) == 1000


def test_an_answer_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_text, "ANSWER_BYTES", 1000)
    for number in range(100):
        node.write("app", f"line {number}\n")
    found: list[str] = []
    answer = node.ask()
    answers = 1
    found += [line["text"] for line in answer["lines"]]
    while answer["more"]:
        answer = node.ask(cursor=answer["cursor"])
        found += [line["text"] for line in answer["lines"]]
        answers += 1
    assert found == [f"line {number}" for number in range(100)]
    assert answers == 4


def pages(node: Node, **query: str) -> list[str]:
    """Return the lines of an answer and of those that go on with it, as the command asks for them: those that came in
    parts joined.
    """
    found = [""]
    answer: Mapping[str, Any] = {"more": True, "cursor": ""}
    asked = 0
    while answer["more"]:
        answer = node.ask(cursor=answer["cursor"], **query)
        asked += 1
        assert asked < 1000, "it goes on for ever"
        for line in answer["lines"]:
            found[-1] += line["text"]
            if not line["partial"]:
                found.append("")
    return found[:-1]


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=10), min_size=1, max_size=5),
    st.integers(20, 300),
    st.sets(st.integers(0, 4)),
)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_an_answer_takes_all_lines_come_whole(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], most: int, packed: set[int]
) -> None:
    node = Node(tmp_path_factory.mktemp("node"))
    expected = []
    for number, lengths in enumerate(files):
        lines = [f"{number}-{row}-" + "x" * length for row, length in enumerate(lengths)]
        expected += lines
        content = "".join(f"{line}\n" for line in lines).encode() + b"not whole"
        path = node.volume / f"f{number}.log"
        if number in packed:
            path = path.with_name(f"{path.name}.1.gz")
            content = gzip.compress(content)
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log_text, "ANSWER_BYTES", most)
        assert sorted(pages(node)) == sorted(expected)


@pytest.mark.parametrize("after", [10, 12, 13, 500])
def test_a_file_that_was_truncated_begins_anew(node: Node, after: int) -> None:
    """As copytruncate does; however much was written since."""
    path = node.volume / "a.log"
    path.write_text("".join(f"old {number}\n" for number in range(12)))
    first = node.ask()
    assert len(first["lines"]) == 12
    path.write_text("".join(f"new {number}\n" for number in range(after)))
    assert node.lines(cursor=first["cursor"]) == [f"new {number}" for number in range(after)]


def test_long_lines_say_that_they_go_on(node: Node) -> None:
    node.write("app", "x" * 40_000 + "\n")
    assert [(len(line["text"]), line["partial"]) for line in node.ask()["lines"]] == [
        (16384, True),
        (16384, True),
        (7232, False),
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"pod": "default/none"}, "pod 'default/none' is none of this node's; there are default/web"),
        ({"since": "soon"}, "since: seconds since the epoch are expected"),
        ({"cursor": "../../etc"}, "cursor: that of the answer before is expected"),
    ],
)
def test_a_wrong_question_is_named(node: Node, query: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match="400") as refused:
        node.ask(**query)
    assert says in str(refused.value)


def test_a_compressed_file_that_is_torn_harms_nobody(node: Node) -> None:
    node.write("app", "one\n")
    (node.outputs / "app" / "0.log.20240101-000000.gz").write_bytes(gzip.compress(b"x" * 1000)[:30])
    assert node.lines() == ["one"]


def test_the_loop_goes_on_while_a_compressed_file_is_unpacked(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    path = node.write("app", "one\n", 1)
    (path.parent / "0.log.20231114-221321.gz").write_bytes(gzip.compress(path.read_bytes()))
    turned = threading.Event()
    unpacked = log_text._unpacked

    def unpacked_later(found: FoundFile, begin: int, most: int) -> bytes:
        assert turned.wait(60), "the loop stands still"
        return unpacked(found, begin, most)

    monkeypatch.setattr(log_text, "_unpacked", unpacked_later)

    async def scenario() -> Response:
        asked = asyncio.create_task(node.text.page({"pod": "default/web"}))
        await asyncio.sleep(0)
        turned.set()
        return await asked

    body = asyncio.run(scenario()).body
    assert isinstance(body, bytes)
    assert [line["text"] for line in json.loads(body)["lines"]] == ["one", "one"]


def test_a_pod_that_goes_away_while_its_question_waits_is_answered_of(node: Node) -> None:
    node.write("app", "one\n")

    async def scenario() -> Response:
        async with node.text._reads:
            asked = asyncio.create_task(node.text.page({"pod": "default/web"}))
            await asyncio.sleep(0)
            node.followed.object = node.followed.plan = None
        return await asked

    body = asyncio.run(scenario()).body
    assert isinstance(body, bytes)
    assert [line["text"] for line in json.loads(body)["lines"]] == ["one"]


def test_what_the_journal_has_of_a_service(tmp_path: Path) -> None:
    node = Node(tmp_path)
    journal = tmp_path / "journal"
    settings = LogSettings.model_validate(
        {"sinks": [{"name": "a", "stdout": {}}], "node": {"journal": {"folders": [str(journal)]}}}
    )
    folders = LogFolders(tmp_path / "pods", tmp_path / "volumes", kubelet=False, unit=lambda _: "web.service")
    node.text = LogText(settings, folders, lambda: [node.followed])
    path = journal / ("0" * 32) / "system.journal"
    both = (b"web.service", b"other.service")
    entries = [{"MESSAGE": b"%d" % number, "_SYSTEMD_UNIT": both[number % 2]} for number in range(100)]
    written(path, entries)
    mine = [f"{number}" for number in range(0, 100, 2)]
    answer = node.ask()
    assert [line["text"] for line in answer["lines"]] == mine
    assert not answer["more"]
    assert (answer["lines"][0]["source"], answer["lines"][0]["time"]) == ("service", "2026-01-01T00:00:00.000001Z")
    assert node.lines(source="service") == mine
    assert node.lines(since=f"{(journal_files.BEGIN + 51) / 1e6}") == mine[25:]
    path.rename(path.with_name(f"system@{'0' * 32}-0000000000000001-0000000000000001.journal"))
    written(path, entries[:4], 100)
    assert node.lines(cursor=answer["cursor"]) == ["0", "2"]
    assert node.lines() == [*mine, "0", "2"]


def test_a_long_journal_comes_in_several_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_entries, "_AT_ONCE", 1000)
    path = tmp_path / "system.journal"
    written(path, [{"MESSAGE": b"%d" % number, "_SYSTEMD_UNIT": b"web.service"} for number in range(100)])
    opened = open_file_beneath(os.open(tmp_path, os.O_RDONLY), "system.journal")
    found = FoundFile("journal", str(path), path.name, opened, 0)
    said: list[object] = []
    begin = 0
    more = True
    while more:
        lines, begin, more = log_entries.read_entries(found, "web.service", begin, 0.0, 1 << 20)
        assert len(lines) < 10
        said += [line["text"] for line in lines]
    assert said == [f"{number}" for number in range(100)]
    os.close(opened.descriptor)
