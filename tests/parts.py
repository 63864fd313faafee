"""Run the linters and the tests in parts, and say how long each took; the exit code is 0 only if
all passed.

usage: parts.py [PART]…      parts: lint, and every folder of tests/ that holds tests

Unit tests share nothing and fill the machine by themselves. Every other file of tests makes
namespaces, labs and load: each runs in a room of its own (`tests/room.sh`), two rooms side by side,
those that take longest first.

A test that failed runs once more, alone, after all others. Passes it then, it is UNSTEADY: no
verdict on the change under test, but a fault of the test or of what it tests, to be mended next.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "build" / "tests"
LINTERS = (("ruff", "check", "."), ("ruff", "format", "--check", "--quiet", "."), ("mypy",))
LANES = 2
"""Rooms side by side."""
AGAIN_AT_MOST = 20
"""With more failures than this something is broken, and running them again says nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of pytest, or of the linters, came to; ``failed``: what to give to pytest to run
    the failures again.
    """

    part: str
    seconds: float
    passed: int
    failed: tuple[str, ...] = ()


@dataclass(slots=True)
class Part:
    """All outcomes of a part, added up."""

    seconds: float = 0.0
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seconds += outcome.seconds
        self.passed += outcome.passed
        self.failed += outcome.failed


def lint(part: str) -> Outcome:
    """Run the linters."""
    started = time.monotonic()
    wrong = tuple(
        " ".join(linter)
        for linter in LINTERS
        if subprocess.run([sys.executable, "-m", *linter], cwd=ROOT, check=False).returncode
    )
    return Outcome(part, time.monotonic() - started, len(LINTERS) - len(wrong), wrong)


def unit(part: str) -> Outcome:
    """Run the unit tests, two at a time."""
    return pytest(part, part, [f"tests/{part}", "-n", "2"], [])


def in_a_room(target: str) -> Outcome:
    """Run one file, or one test, in a room of its own."""
    part, name = Path(target.partition("::")[0]).parts[1:3]
    return pytest(part, f"{part}-{Path(name).stem}" + ("-again" if "::" in target else ""), [target], ["tests/room.sh"])


def pytest(part: str, name: str, arguments: Sequence[str], before: Sequence[str]) -> Outcome:
    """Run pytest with *arguments*, by the command *before*; what it said is printed when it has
    ended, so that two do not mix.
    """
    started = time.monotonic()
    report, log = REPORTS / f"{name}.xml", REPORTS / f"{name}.log"
    report.unlink(missing_ok=True)
    argv = [
        *before,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *arguments,
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
    ]
    with log.open("wb") as output:
        code = subprocess.run(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        ).returncode
    passed, failed = read(report)
    if code and not all(failed or ("",)):  # it ended before it could say what failed
        failed = (arguments[0],)
    said = log.read_text(errors="replace")
    seconds = time.monotonic() - started
    print(f"\n=== {name} ({seconds:.0f} s)\n{said if failed else said.strip().rpartition(chr(10))[2]}", flush=True)
    return Outcome(part, seconds, passed, failed)


def read(report: Path) -> tuple[int, tuple[str, ...]]:
    """Return how many tests passed, and what to run again, empty where it is not said; a skipped
    test has failed: tests must not skip.
    """
    if not report.exists():
        return 0, ()
    passed, failed = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [found for kind in ("failure", "error", "skipped") for found in case.iter(kind)]
        file = case.get("file", "")  # none: pytest itself failed
        if not wrong:
            passed += 1
        elif any("on teardown" in found.get("message", "") for found in wrong):
            failed.append(file)  # what a whole file leaves behind is told at its last test
        else:
            failed.append(file and f"{file}::{case.get('name')}")
    return passed, tuple(dict.fromkeys(failed))


def again(parts: dict[str, Part]) -> None:
    """Run what failed once more, one after the other; what passes is unsteady."""
    failures = [(part, target) for name, part in parts.items() if name != "lint" for target in part.failed]
    if len(failures) > AGAIN_AT_MOST:
        return
    for part, target in failures:
        if not in_a_room(target).failed:
            part.failed.remove(target)
            part.unsteady.append(target)


def files(part: str) -> list[str]:
    """Return the files of tests of *part*."""
    return [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / part).rglob("test_*.py")]


def run(wanted: Iterable[str]) -> dict[str, Part]:
    """Run the parts: linters, unit tests, then everything else in lanes."""
    parts = {name: Part() for name in wanted}
    whole: dict[str, Callable[[str], Outcome]] = {"lint": lint, "unit": unit}
    for name in (name for name in parts if name in whole):
        parts[name].add(whole[name](name))
    targets = [file for name in parts if name not in whole for file in files(name)]
    targets.sort(key=lambda file: (ROOT / file).stat().st_size, reverse=True)
    with ThreadPoolExecutor(LANES) as lanes:
        for outcome in lanes.map(in_a_room, targets):
            parts[outcome.part].add(outcome)
    again(parts)
    return parts


def summary(parts: dict[str, Part], seconds: float) -> None:
    print()
    for name, part in parts.items():
        verdict = "FAILED" if part.failed else "ok"
        passed = part.passed + len(part.unsteady)
        print(f"{name:<12} {verdict:<7} {passed:5} passed {len(part.failed):4} failed {part.seconds:8.1f} s")
    for part in parts.values():
        for target in part.unsteady:
            print(f"UNSTEADY {target}: failed, then passed alone; see build/tests/")
        for target in part.failed:
            print(f"FAILED {target}")
    passed = sum(part.passed + len(part.unsteady) for part in parts.values())
    print(
        f"\n{seconds:.0f} s in all, parts side by side\n{passed} passed, "
        f"{sum(len(part.failed) for part in parts.values())} failed"
    )


def main(wanted: list[str]) -> int:
    folders = sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py")))
    names = ["lint", *sorted(folders, key=lambda name: name != "unit")]  # what is quick first
    if unknown := set(wanted) - set(names):
        print(f"{', '.join(sorted(unknown))}: not a part; parts: {', '.join(names)}", file=sys.stderr)
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    parts = run(wanted or names)
    summary(parts, time.monotonic() - started)
    return 1 if any(part.failed for part in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
