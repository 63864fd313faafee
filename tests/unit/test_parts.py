"""What counts as passed, failed and unsteady when the tests are run in parts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings

from tests import parts
from tests.parts import Outcome, Part

REPORT = """<testsuites><testsuite tests="5">
<testcase classname="tests.bpf.test_a" name="test_good" file="tests/bpf/test_a.py"/>
<testcase classname="tests.bpf.test_a" name="test_bad[4-x::y]" file="tests/bpf/test_a.py"><failure message="no"/></testcase>
<testcase classname="tests.bpf.test_a" name="test_not_set_up" file="tests/bpf/test_a.py"><error message="failed on setup"/></testcase>
<testcase classname="tests.bpf.test_a" name="test_skipped" file="tests/bpf/test_a.py"><skipped message="no root"/></testcase>
<testcase classname="tests.bpf.test_a.TestSteps" name="runTest" file="tests/bpf/test_a.py"><failure message="no"/></testcase>
<testcase classname="tests.bpf.test_a" name="test_last" file="tests/bpf/test_a.py"><error message="failed on teardown with left behind"/></testcase>
</testsuite></testsuites>"""  # noqa: E501


def test_a_report_says_what_to_run_again(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    passed, failed = parts.read(tmp_path / "report.xml")
    assert passed == 1
    assert failed == (
        "tests/bpf/test_a.py::test_bad[4-x::y]",
        "tests/bpf/test_a.py::test_not_set_up",
        "tests/bpf/test_a.py::test_skipped",
        "tests/bpf/test_a.py::TestSteps::runTest",
        "tests/bpf/test_a.py",  # whoever left something behind: the file is run again
    )


def test_where_pytest_itself_fails_it_is_not_said_what_did(tmp_path: Path) -> None:
    case = '<testcase name="internal"><error message="internal error"/></testcase>'
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    assert parts.read(tmp_path / "report.xml") == (0, ("",))


def test_without_a_report_nothing_has_passed(tmp_path: Path) -> None:
    assert parts.read(tmp_path / "none.xml") == (0, ())


def test_what_passes_alone_is_unsteady_and_what_fails_again_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        parts, "in_a_room", lambda target, more: Outcome("bpf", 1, 1, 0, (target,) if "bad" in target else ())
    )
    found = {
        "bpf": Part(passed=7, failed=["tests/bpf/a.py::bad", "tests/bpf/a.py::noisy"]),
        "lint": Part(failed=["mypy"]),
    }
    parts.again(found)
    assert (found["bpf"].failed, found["bpf"].unsteady, found["lint"].failed) == (
        ["tests/bpf/a.py::bad"],
        ["tests/bpf/a.py::noisy"],
        ["mypy"],
    )
    parts.summary(found, 12)
    said = capsys.readouterr().out
    assert "UNSTEADY tests/bpf/a.py::noisy" in said
    assert "FAILED tests/bpf/a.py::bad" in said
    assert said.endswith("8 passed, 2 failed\n")


def test_many_failures_are_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "in_a_room", lambda *targets, more: pytest.fail("run again"))
    found = {"bpf": Part(failed=[f"tests/bpf/{number}.py::a" for number in range(parts.AGAIN_AT_MOST + 1)])}
    parts.again(found)
    assert len(found["bpf"].failed) == parts.AGAIN_AT_MOST + 1


@pytest.mark.parametrize(
    ("again", "failed"),
    [
        ((), []),
        (("tests/kube/test_mesh.py::test_1",), ["tests/kube/test_mesh.py::test_1"]),
        (("tests/kube/test_mesh.py",), [f"tests/kube/test_mesh.py::test_{number}" for number in range(9)]),
    ],
)
def test_a_cluster_that_did_not_come_up_is_made_once_more(
    monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...], failed: list[str]
) -> None:
    """Input: every test of a room failed, as where what they share could not be set up. Verdict: the room runs again,
    whole and once; what fails in it then, or whose file does, has failed.
    """
    ran: list[tuple[str, ...]] = []

    def room(*targets: str, more: tuple[str, ...]) -> Outcome:
        ran.append(targets)
        assert more == (f"--timeout={parts.AGAIN_SECONDS}",)
        return Outcome("kube", 1, 1, 9, again)

    monkeypatch.setattr(parts, "in_a_room", room)
    tests = [f"tests/kube/test_{name}.py::test_{number}" for name in ("mesh", "logs") for number in range(9)]
    found = {"kube": Part(failed=[*tests, "tests/kube/test_ca.py::test_a"])}
    parts.again(found)
    assert [tuple(Path(target).name for target in targets) for targets in ran] == [
        parts.SHARED[-1],
        ("test_ca.py::test_a",),
    ]
    assert found["kube"].failed == failed
    assert len(found["kube"].unsteady) == 19 - len(failed)


def test_files_that_share_a_lab_share_a_room_and_no_file_is_left_out() -> None:
    rooms = parts.files("netns") + parts.files("kube")
    assert [tuple(Path(file).name for file in room) for room in rooms if len(room) > 1] == list(parts.SHARED)
    assert sorted(file for room in rooms for file in room) == sorted(
        str(path.relative_to(parts.ROOT))
        for folder in ("netns", "kube")
        for path in (parts.ROOT / "tests" / folder).glob("test_*.py")
    )


def test_what_takes_longest_is_first() -> None:
    found = [Path(room[0]).name for room in parts.rooms(["bpf", "netns"])]
    assert tuple(found[: len(parts.LONGEST)]) == parts.LONGEST


def test_files_that_share_a_room_use_no_other_lab() -> None:
    for group in parts.files("netns"):
        for file in group if len(group) > 1 else ():
            text = (parts.ROOT / file).read_text()
            assert "mesh: Lab" in text
            assert "with cluster(" not in text


def test_where_pytest_dies_every_file_of_the_room_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "REPORTS", tmp_path)

    def died(argv: list[str], log: Path) -> parts.Ended:
        log.write_text("killed")
        return parts.Ended(-9, 1, 1)

    monkeypatch.setattr(parts, "ended", died)
    outcome = parts.in_a_room("tests/netns/test_a.py", "tests/netns/test_b.py")
    assert outcome.failed == ("tests/netns/test_a.py", "tests/netns/test_b.py")


def test_an_ended_command_tells_its_code_and_the_processors_time(tmp_path: Path) -> None:
    run = parts.ended(
        ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo said; exit 3"], tmp_path / "log"
    )
    assert run.code == 3
    assert run.cpu > 0
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was run, in order; nothing takes time."""
    taken: list[str] = []

    def step(name: str) -> Callable[..., Outcome]:
        def taking(part: str, *rest: str) -> Outcome:
            taken.append(" ".join((name, part, *rest)))
            return Outcome(part.split("/")[1] if "/" in part else part, 0, 0, 1)

        return taking

    for name in ("make", "lint", "unit", "in_a_room"):
        monkeypatch.setattr(parts, name, step(name))
    monkeypatch.setattr(parts, "rooms", lambda names: [(f"tests/{name}/test_x.py",) for name in names])
    return taken


def test_all_parts_are_started_and_kubes_tests_when_a_cluster_can_be_made(steps: list[str]) -> None:
    with ThreadPoolExecutor(1) as lane:
        begun = parts.start(["setup", "lint", "bpf", "kube", "unit"], lane)
    assert len(begun) == len(steps)
    assert steps == [
        "make setup .venv/.complete",
        "make setup setup",
        "make setup kube nice",
        "lint lint",
        "make setup artifacts",
        "unit unit",
        "in_a_room tests/bpf/test_x.py",
        "in_a_room tests/kube/test_x.py",
    ]


def test_without_the_part_nothing_is_made(steps: list[str]) -> None:
    with ThreadPoolExecutor(1) as lane:
        parts.start(["kube", "unit"], lane)
    assert steps == ["unit unit", "in_a_room tests/kube/test_x.py"]


def test_where_the_modules_do_not_compile_no_test_runs(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "make", lambda part, target, *before: Outcome(part, 0, 0, 0, (f"make {target}",)))
    with ThreadPoolExecutor(1) as lane:
        begun = parts.start(["setup", "lint", "unit", "bpf"], lane)
    assert steps == ["lint lint"]
    assert begun[1].result().failed == ("make setup",)


def test_properties_have_the_same_examples_in_every_run() -> None:
    explores = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
    assert settings().derandomize is not explores
    assert (settings().deadline, settings().database is not None) == (None, explores)


def test_whoever_starts_the_tests_leaves_no_signal_ignored() -> None:
    code = "import signal, tests.conftest; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    started = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(started, cwd=parts.ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
