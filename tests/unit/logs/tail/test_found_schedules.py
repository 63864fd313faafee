"""Any schedule as in ``test_schedules.py``, where control's own search says which files are one log: what is
delivered depends neither on whether the pattern fits rotated names, nor on who was restarted when.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule

from nodeagent.control import log_finder, log_scan
from nodeagent.control.log_finder import IDLE_SOURCES, LogFinder
from nodeagent.control.log_scan import FileId, FoundFile, LogLook
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import SourceFacts
from nodeagent.logs.tail.interfaces import LogSource, SourceKey, TailSettings
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import PodUid
from tests.unit.logs.tail.rig import SOURCE, Rig
from tests.unit.logs.tail.test_schedules import Schedules

pytestmark = pytest.mark.timeout(600)
SETTINGS = TailSettings(turn_bytes=300, line_bytes=600)


class FoundRig(Rig):
    """A tail that is handed what the search finds in a volume's folder."""

    def __init__(self, folder: Path, pattern: str, settings: TailSettings = SETTINGS, most: int = 100) -> None:
        """*most*: files that are open at once."""
        self.most = most
        self.wanted = 0
        self.volume = folder / "volumes" / "uid-1" / "app"
        self.volume.mkdir(parents=True)
        annotations = {"nodeagent.io/log-files": f"app/{pattern}"}
        self.pod = PodObject(
            namespace="shop", name="cart", uid=PodUid("uid-1"), created="", terminating=False, owners=(), node="n",
            service_account="", host_network=False, containers=(), phase="Running", addresses=(), ready=True,
            labels={}, annotations=annotations,
        )  # fmt: skip
        self.finder: LogFinder | None = None
        super().__init__(folder, settings)
        shutil.rmtree(self.logs)
        self.logs = self.volume
        self.restart_control()

    def restart_control(self) -> None:
        """Begin another search, which knows nothing."""
        sinks = [{"name": "all", "stdout": {}}]
        folders = LogFolders(self.volume / "none", self.volume.parents[1], kubelet=False)
        limits = {"filesPerPod": self.most}
        made = LogSettings.model_validate({"containers": "none", "sinks": sinks, "limits": limits})
        self.finder = LogFinder(made, folders, self, clock=lambda: self.now, work=lambda: 0.0)

    def scan(self, source: LogSource = SOURCE) -> None:
        assert self.finder is not None
        for closed in self.tail.closed():
            self.finder.closed(closed)
        if self.wanted:
            for each in self.tail.make_room(self.pod.uid, self.wanted):
                self.finder.put_aside((each.inode.device, each.inode.number), each.size, each.modified)
        self.wanted = 0
        self.now += 60  # a look is never due before its time
        self.finder.follow({self.pod.uid: self.pod})
        self.finder.look_at_all()

    def restart(self, save: bool = True) -> None:
        super().restart(save)
        assert self.finder is not None
        self.finder.forget()

    # -- what the search tells, as control hands it on --

    def source(self, source: SourceFacts) -> None:
        pass

    def file(self, source: str, found: FoundFile) -> None:
        self.tail.add(os.dup(found.opened.descriptor), LogSource(SourceKey(source), PodUid("uid-1")), found.name)

    def renamed(self, file: FileId, name: str) -> None:
        self.tail.named(*file, name)

    def source_gone(self, key: str, *, left_out: bool) -> None:
        self.tail.leave(SourceKey(key), left_out=left_out)

    def room_wanted(self, uid: PodUid, files: int) -> None:
        self.wanted = files


class FoundSchedules(Schedules):
    """One pod whose files are looked for by a pattern that fits rotated ones too."""

    def rig_in(self, folder: Path) -> Rig:
        return FoundRig(folder, "*.log*")

    @rule()
    def restart_control(self) -> None:
        assert isinstance(self.rig, FoundRig)
        self.rig.restart_control()


FoundSchedules.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFoundSchedules = FoundSchedules.TestCase


# -- in order: each line once, under one name --


def _renamed(log: Path, to: str) -> None:
    log.rename(log.parent / to)


def _copied(log: Path, to: str) -> None:
    shutil.copyfile(log, log.with_name(to))
    os.truncate(log, 0)


def _compressed(log: Path, to: str) -> None:
    (log.parent / f"{to}.gz").write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FoundRig]:
    made = FoundRig(tmp_path, request.param, TailSettings())
    yield made
    made.tail.close()


@pytest.mark.parametrize("rig", ["app.log", "*.log", "*.log*", "*"], indirect=True)
@pytest.mark.parametrize("rotate", [_renamed, _copied, _compressed])
@pytest.mark.parametrize("to", ["app.log.1", "app.log-20260101", "app-2026-01-01.log"])
@pytest.mark.parametrize("restarts", ["nobody", "the tail", "control", "both"])
def test_a_rotated_line_comes_once_whatever_the_pattern_fits(
    rig: FoundRig, rotate: Callable[[Path, str], None], to: str, restarts: str
) -> None:
    def restart() -> None:
        rig.run(2)
        if restarts in ("the tail", "both"):
            rig.restart()
        if restarts in ("control", "both"):
            rig.restart_control()

    rig.write("app.log", *(f"first {number}" for number in range(900)))
    rig.look(70)
    restart()
    rotate(rig.logs / "app.log", to)
    if restarts == "nobody" or not to.endswith(".log"):
        rig.look(70)  # while there may be no app.log
    restart()
    rig.write("app.log", "second")
    rig.look(70)
    restart()
    rig.write("app.log", "third")
    lines = rig.look(70)
    assert sorted(lines) == sorted([*(f"first {number}" for number in range(900)), "second", "third"])


# -- with more files than may be open --


@pytest.fixture
def narrow(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FoundRig]:
    made = FoundRig(tmp_path, getattr(request, "param", "*.log*"), TailSettings(), most=4)
    (made.logs / "archive").mkdir()
    yield made
    made.tail.close()


@pytest.mark.parametrize("rotate", [_renamed, _compressed])
@pytest.mark.parametrize("to", ["app-2026-01-{:02}.log", "app.log.{}", "archive/app.log.{}"])
@pytest.mark.parametrize("restarts", ["nobody", "the tail"])
def test_what_was_rotated_makes_room_for_what_is_written(
    narrow: FoundRig, rotate: Callable[[Path, str], None], to: str, restarts: str
) -> None:
    said = []
    for number in range(12):
        said.append(f"line {number}")
        narrow.write("app.log", said[-1])
        if restarts == "the tail" and number % 4 == 3:
            narrow.restart()
        for _ in range(3):  # a look finds no room, the next one what was closed for it
            narrow.look(10)
        assert said[-1] in narrow.sink.texts()
        rotate(narrow.logs / "app.log", to.format(number))
    assert sorted(narrow.look(70)) == sorted(said)
    assert narrow.sink.repeated == 0


def test_more_files_than_may_be_open_are_all_read_the_one_that_is_written_first(narrow: FoundRig) -> None:
    said = ["live"]
    for number in range(20):
        said.append(f"old {number}")
        narrow.write(f"app.log.{number}", said[-1])
    narrow.write("app.log", "live")
    os.utime(narrow.logs / "app.log", (1, 1))  # idle since long
    assert "live" in narrow.look(1)
    for _ in range(20):
        narrow.look(10)
    assert sorted(narrow.sink.texts()) == sorted(said)


def test_a_file_that_was_closed_to_make_room_goes_on_where_it_was(narrow: FoundRig) -> None:
    for number in range(20):
        narrow.write(f"app.log.{number}", f"old {number}")
    for _ in range(20):
        narrow.look(10)
    assert len(narrow.sink.lines) == 20
    narrow.restart()
    for _ in range(20):
        narrow.look(10)
    for number in range(20):
        narrow.write(f"app.log.{number}", f"more of {number}")
    for _ in range(20):
        narrow.look(10)
    assert len(narrow.sink.lines) == 40
    assert narrow.sink.repeated == 0


def test_what_is_known_of_a_file_that_was_closed_to_make_room_is_forgotten_with_it(narrow: FoundRig) -> None:
    for number in range(20):
        narrow.write(f"app.log.{number}", f"old {number}")
    for _ in range(20):
        narrow.look(10)
    assert narrow.tail.remembered() == 20
    narrow.now += 100_000
    narrow.look(10)
    assert narrow.tail.remembered() == 20
    shutil.rmtree(narrow.logs)
    narrow.logs.mkdir()
    for _ in range(3):
        narrow.look(1000)
    assert narrow.tail.remembered() == 0


def test_a_file_that_cannot_be_read_any_further_makes_room_too(narrow: FoundRig) -> None:
    damaged = bytearray(gzip.compress(os.urandom(5000)))
    damaged[10:] = b"\xff" * (len(damaged) - 10)
    for number in range(4):
        (narrow.logs / f"app.log.{number}.gz").write_bytes(damaged)
    narrow.look(70)
    assert [each.state for each in narrow.tail.status()] == ["failed"] * 4
    for number in range(3):
        narrow.write(f"app.log-{number}", f"line {number}")
    for _ in range(20):
        narrow.look(10)
    assert sorted(narrow.sink.texts()) == ["line 0", "line 1", "line 2"]
    with (narrow.logs / "app.log.0.gz").open("ab") as file:
        file.write(b"more")
    for _ in range(20):
        narrow.look(10)
    assert narrow.tail.counts()[narrow.pod.uid].bytes_lost == 4 * len(damaged) + 4, "each byte once"


@pytest.mark.parametrize("narrow", ["*.log", "*.log*"], indirect=True)
@pytest.mark.parametrize("name", ["app-2026-01-{:02}.log", "app.2026-01-{:02}.0.log", "job-{}.log", "{}.log"])
@pytest.mark.parametrize("restarts", ["nobody", "the tail"])
def test_what_is_read_makes_room_where_each_file_is_a_log_of_its_own(
    narrow: FoundRig, name: str, restarts: str
) -> None:
    said = []
    for number in range(1, 13):
        for line in range(3):
            said.append(f"line {line} of {number}")
            narrow.write(name.format(number), said[-1])
            narrow.look(10)
        if restarts == "the tail" and number % 4 == 3:
            narrow.restart()
    for _ in range(3):
        narrow.look(10)
    assert sorted(narrow.sink.texts()) == sorted(said)
    assert narrow.sink.repeated == 0


def test_of_thousands_of_logs_each_is_read_and_few_sources_are_remembered(narrow: FoundRig) -> None:
    for number in range(3 * IDLE_SOURCES):
        narrow.write(f"job-{number}.log", f"from {number}")
    for _ in range(IDLE_SOURCES):
        narrow.look(10)
    assert len(narrow.sink.texts()) == 3 * IDLE_SOURCES
    assert narrow.finder is not None
    assert len(list(narrow.finder.keys())) <= narrow.most + IDLE_SOURCES
    narrow.write("job-0.log", "more")
    narrow.now += 10_000  # beyond what is remembered of what is gone
    for _ in range(3):
        narrow.look(10)
    assert narrow.sink.texts()[3 * IDLE_SOURCES :] == ["more"]
    assert narrow.sink.repeated == 0
    shutil.rmtree(narrow.logs)
    for _ in range(3):
        narrow.look(1000)
    assert narrow.tail.remembered() == 0


def test_what_was_put_aside_and_went_while_no_control_looked_is_forgotten_at_last(narrow: FoundRig) -> None:
    for number in range(12):
        narrow.write(f"app.log.{number}", f"from {number}")
    for _ in range(10):
        narrow.look(10)
    assert len(narrow.sink.lines) == 12
    assert narrow.finder is not None
    former = list(narrow.finder.keys())
    shutil.rmtree(narrow.logs)
    narrow.restart_control()
    for key in former:
        narrow.source_gone(key, left_out=False)
    narrow.tail.disregard(())
    for _ in range(3):
        narrow.look(100_000)
    assert narrow.tail.remembered() == 0


def test_a_file_that_grows_after_it_was_closed_waits_for_room_where_it_was(narrow: FoundRig) -> None:
    for number in range(60):
        narrow.write(f"app.log.{number}", f"old {number}")
    for _ in range(40):
        narrow.look(10)
    assert len(narrow.sink.lines) == 60
    for number in range(60):
        narrow.write(f"app.log.{number}", f"more of {number}")
    for _ in range(40):
        narrow.look(10)
    assert len(narrow.sink.lines) == 120
    assert narrow.sink.repeated == 0


@pytest.mark.parametrize("narrow", ["**/*.log*"], indirect=True)
@pytest.mark.parametrize("hindrance", ["a folder", "a listing", "entries", "folders"])
def test_what_a_look_did_not_get_to_goes_on_where_it_was(
    narrow: FoundRig, hindrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, "as if too many files were open")

    for number in range(40):
        narrow.write(f"archive/app.log.{number}", f"old {number}")
    for _ in range(40):
        narrow.look(10)
    with monkeypatch.context() as patched:
        match hindrance:
            case "a folder":
                patched.setattr(log_scan, "open_folder_beneath", fails)
            case "a listing":
                patched.setattr(os, "scandir", fails)
            case "entries":
                patched.setattr(log_finder, "LogLook", lambda: LogLook(left=5))
            case _:
                patched.setattr(log_finder, "LogLook", lambda: LogLook(folders=1))
        narrow.look(10)
    for number in range(40):
        narrow.write(f"archive/app.log.{number}", f"more of {number}")
    for _ in range(40):
        narrow.look(10)
    assert len(narrow.sink.lines) == 80
    assert narrow.sink.repeated == 0
