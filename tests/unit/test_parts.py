"""What counts as passed, failed and unsteady when the tests are run in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import parts
from tests.parts import Outcome, Part

REPORT = """<testsuites><testsuite tests="5">
<testcase classname="tests.bpf.test_a" name="test_good" file="tests/bpf/test_a.py"/>
<testcase classname="tests.bpf.test_a" name="test_bad[4-x::y]" file="tests/bpf/test_a.py"><failure message="no"/></testcase>
<testcase classname="tests.bpf.test_a" name="test_not_set_up" file="tests/bpf/test_a.py"><error message="failed on setup"/></testcase>
<testcase classname="tests.bpf.test_a" name="test_skipped" file="tests/bpf/test_a.py"><skipped message="no root"/></testcase>
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
    monkeypatch.setattr(parts, "in_a_room", lambda target: Outcome("bpf", 1, 0, (target,) if "bad" in target else ()))
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
    monkeypatch.setattr(parts, "in_a_room", lambda target: pytest.fail("run again"))
    found = {"bpf": Part(failed=[f"tests/bpf/a.py::{number}" for number in range(parts.AGAIN_AT_MOST + 1)])}
    parts.again(found)
    assert len(found["bpf"].failed) == parts.AGAIN_AT_MOST + 1
