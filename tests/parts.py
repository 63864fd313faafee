"""Run the linters and the tests in parts, and say how long each took; the exit code is 0 only if
all passed.

usage: parts.py [PART]…      parts: setup (`make setup`), lint, and every folder of tests/ that holds tests

Unit tests share nothing. Every other file of tests makes namespaces, labs and load: each runs in a
room of its own (`tests/room.sh`), but those that share a lab in one. A room waits half of its time,
so that two rooms a core, side by side, fill the machine; those that take longest come first. What
tests need is made beside the linters: compiled modules, and for tests/kube Kubernetes and the
agent's image.

A test that failed runs once more, alone, after all others; where many of a room did, so does the
room: what they share has failed. Passes it then, it is UNSTEADY: no verdict on the change under
test, but a fault of the test or of what it tests, to be mended next.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "build" / "tests"
LINTERS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "--quiet", "."),
    ("mypy",),
    ("mypy", "--config-file", "tests/mypy.ini"),
)
PROCESSES = os.cpu_count() or 1
"""Processes of the unit tests, and of make; they are one lane's, others are beside it."""
LANES = 2 * PROCESSES
"""Rooms side by side."""
SHARED = (
    ("test_agent_tools.py", "test_agent_dial.py", "test_agent_mtls.py"),
    ("test_agent_http.py", "test_agent_enrolment.py", "test_agent_tcp.py"),
    (
        *("test_cluster.py", "test_installation.py", "test_mesh.py", "test_network_policies.py", "test_sidecars.py"),
        *("test_overlays.py", "test_upgrade.py", "test_bad_days.py", "test_logs.py"),
    ),
)
"""Files that only use the lab, or the cluster, of their folder's conftest.py, which is up once for each group."""
LONGEST = ("test_agent_chaos.py", "test_compare_command.py", "test_compare.py", "test_plane.py", "test_demo.py")
"""Files that take longest, in this order; the others follow by size."""
WITHOUT_HYPOTHESIS = ("-p", "no:hypothesispytest")
"""Its plugin takes nearly half of the time in which pytest starts, and only unit tests use it."""
OF_ARTIFACTS = ("kube", "package")
"""Parts that test the image and the packages."""
FEW = 5
"""Failures of a room that run again one by one; with more, the room does."""
AGAIN_AT_MOST = 20
"""With more to run again than this something is broken, and that would say nothing."""
AGAIN_SECONDS = 900
"""Of a test that runs again, unless it has a timeout of its own: it may have been the machine that was slow."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of pytest, of the linters or of make came to: *seconds* of time and of processors;
    *failed*: what to give to pytest to run the failures again.
    """

    part: str
    seconds: float
    cpu: float
    passed: int
    failed: tuple[str, ...] = ()


@dataclass(slots=True)
class Part:
    """All outcomes of a part, added up."""

    seconds: float = 0.0
    cpu: float = 0.0
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seconds += outcome.seconds
        self.cpu += outcome.cpu
        self.passed += outcome.passed
        self.failed += outcome.failed


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit code, and the seconds of time and of processors that it
    and those of its children took that it waited for.
    """

    code: int
    seconds: float
    cpu: float


def ended(argv: Sequence[str], log: Path) -> Ended:
    """Run *argv* to its end; what it says goes to *log*."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, time.monotonic() - started, used.ru_utime + used.ru_stime)


def told(name: str, run: Ended, said: str) -> None:
    """Print how a run went, in one piece: several go on at the same time."""
    print(f"\n=== {name} ({run.seconds:.0f} s, {run.cpu:.0f} s of CPU)\n{said}", flush=True)


def lint(part: str) -> Outcome:
    """Run the linters."""
    seconds, cpu, wrong = 0.0, 0.0, []
    for linter in LINTERS:
        name, log = linter[0], REPORTS / f"{linter[0]}.log"
        run = ended([sys.executable, "-m", *linter], log)
        told(name, run, log.read_text(errors="replace").strip())
        seconds += run.seconds
        cpu += run.cpu
        if run.code:
            wrong.append(" ".join(linter))
    return Outcome(part, seconds, cpu, len(LINTERS) - len(wrong), tuple(wrong))


def make(part: str, target: str, *before: str) -> Outcome:
    """Run ``make`` for *target*, which is no test, but what tests need."""
    log = REPORTS / f"make-{Path(target).name.lstrip('.')}.log"
    run = ended([*before, "make", "--silent", "-j", str(PROCESSES), target], log)
    if run.seconds > 1 or run.code:  # else nothing was to be made
        told(f"make {target}", run, log.read_text(errors="replace").strip())
    return Outcome(part, run.seconds, run.cpu, 0, (f"make {target}",) if run.code else ())


def unit(part: str) -> Outcome:
    """Run the unit tests, those of one ``xdist_group`` in one process."""
    return pytest(part, part, [f"tests/{part}"], [], ["-n", str(PROCESSES), "--dist", "loadgroup"])


def in_a_room(*targets: str, more: Sequence[str] = ()) -> Outcome:
    """Run one file, files of one group, or one test, in a room of its own; *more* options: it is run again."""
    part, file = Path(targets[0].partition("::")[0]).parts[1:3]
    name = f"{part}-{Path(file).stem}" + ("-again" if more else "")
    return pytest(part, name, targets, ["tests/room.sh"], (*WITHOUT_HYPOTHESIS, *more))


def pytest(part: str, name: str, targets: Sequence[str], before: Sequence[str], options: Sequence[str]) -> Outcome:
    """Run pytest for *targets*, by the command *before*."""
    report, log = REPORTS / f"{name}.xml", REPORTS / f"{name}.log"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1"]
    run = ended([*before, *command, *options, *targets], log)
    passed, failed = read(report)
    if run.code and not all(failed or ("",)):  # it ended before it could say what failed
        failed = tuple(targets)
    said = log.read_text(errors="replace").strip()
    told(name, run, said if failed else said.rpartition("\n")[2])
    return Outcome(part, run.seconds, run.cpu, passed, failed)


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
            failed.append(file and "::".join((file, *classes(case, file), case.get("name", ""))))
    return passed, tuple(dict.fromkeys(failed))


def classes(case: ElementTree.Element, file: str) -> Sequence[str]:
    """Return the classes that *case* is in, outermost first."""
    module = Path(file).with_suffix("").parts
    return case.get("classname", "").split(".")[len(module) :]


def attempts(part: str, failed: Iterable[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return what to run again, each with the failures of which it decides."""
    room_of = {file: room for room in files(part) if len(room) > 1 for file in room}
    of: dict[tuple[str, ...], list[str]] = {}
    for target in failed:
        file = target.partition("::")[0]
        of.setdefault(room_of.get(file, (file,)), []).append(target)
    found: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for room, targets in of.items():
        alone = [((target,), (target,)) for target in targets]
        found += alone if len(targets) <= FEW else [(room, tuple(targets))]
    return found


def again(parts: dict[str, Part]) -> None:
    """Run what failed once more, one after the other; what passes is unsteady. A part that failed as a
    whole, since its tests cannot be collected, stays as it is.
    """
    due = {
        name: attempts(name, [target for target in part.failed if target != f"tests/{name}"])
        for name, part in parts.items()
        if name not in ("setup", "lint")
    }
    if sum(map(len, due.values())) > AGAIN_AT_MOST:
        return
    for name, tried in due.items():
        for targets, failures in tried:
            still = in_a_room(*targets, more=(f"--timeout={AGAIN_SECONDS}",)).failed
            steady = [each for each in failures if not {each, each.partition("::")[0]} & set(still)]
            parts[name].failed = [each for each in parts[name].failed if each not in steady]
            parts[name].unsteady += steady


def files(part: str) -> list[tuple[str, ...]]:
    """Return the files of tests of *part*, those together that share a room."""
    found = {path.name: str(path.relative_to(ROOT)) for path in (ROOT / "tests" / part).rglob("test_*.py")}
    groups = [tuple(found.pop(name) for name in group if name in found) for group in SHARED]
    alone = [(file,) for file in found.values()]
    return [group for group in groups if group] + alone


def order(targets: Sequence[str]) -> tuple[int, int]:
    """Return what to sort rooms by, so that those that take longest come first and none is waited for at the end."""
    name = Path(targets[0]).name
    rank = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return rank, -sum((ROOT / target).stat().st_size for target in targets)


def rooms(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the rooms of all these parts, those that take longest first."""
    found: list[tuple[str, ...]] = []
    for name in names:
        found += files(name)
    return sorted(found, key=order)


def start(names: Collection[str], lanes: Executor) -> list[Future[Outcome]]:
    """Start everything in *lanes*; tests only when what they are run with is made."""
    begun: list[Future[Outcome]] = []
    made: list[Future[Outcome]] = []
    if "setup" in names:  # both of the next need the environment, which one alone may make
        begun.append(lanes.submit(make, "setup", ".venv/.complete"))
        begun[0].result()
        begun.append(lanes.submit(make, "setup", "setup"))
    if "setup" in names and "kube" in names:  # minutes of both cores the first time: it gives way to the tests
        made.append(lanes.submit(make, "setup", "kube", "nice"))
    if "lint" in names:
        begun.append(lanes.submit(lint, "lint"))
    if "setup" in names and begun[1].result().failed:
        return begun + made
    if "setup" in names and {"kube", "package"} & set(names):  # of what setup compiled
        made.append(lanes.submit(make, "setup", "artifacts"))
    if "unit" in names:
        begun.append(lanes.submit(unit, "unit"))
    if "setup" in names and "netns" in names:  # half a minute, once; then nothing
        begun.append(lanes.submit(make, "setup", "peers"))
        begun[-1].result()
    others = rooms([name for name in names if name not in ("setup", "lint", "unit", *OF_ARTIFACTS)])
    clusters = rooms([name for name in OF_ARTIFACTS if name in names])
    soon = len(LONGEST)
    begun += [lanes.submit(in_a_room, *targets) for targets in others[:soon]]
    # The first cluster takes longer than anything else, and would be alone if it came last.
    begun += [lanes.submit(in_a_room_after, made, *targets) for targets in clusters[:1]]
    begun += [lanes.submit(in_a_room, *targets) for targets in others[soon:]]
    begun += [lanes.submit(in_a_room_after, made, *targets) for targets in clusters[1:]]
    return begun + made


def in_a_room_after(made: Sequence[Future[Outcome]], *targets: str) -> Outcome:
    """As :func:`in_a_room`, when all of *made* has ended; where it failed, the tests say what is missing."""
    for each in made:
        each.result()
    return in_a_room(*targets)


def run(wanted: Iterable[str]) -> dict[str, Part]:
    """Run the parts side by side, then what failed once more."""
    parts = {name: Part() for name in wanted}
    with ThreadPoolExecutor(LANES) as lanes:
        for begun in as_completed(start(parts, lanes)):
            outcome = begun.result()
            parts[outcome.part].add(outcome)
    again(parts)
    return parts


def summary(parts: dict[str, Part], seconds: float) -> None:
    print()
    for name, part in parts.items():
        verdict = "FAILED" if part.failed else "ok"
        passed = part.passed + len(part.unsteady)
        times = f"{part.seconds:8.1f} s {part.cpu:8.1f} s of CPU"
        print(f"{name:<12} {verdict:<7} {passed:5} passed {len(part.failed):4} failed {times}")
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
    names = ["setup", "lint", *folders]
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
