"""Run the linters and the tests in parts, one after the other, and say how long each took; the exit code is 0 only if all passed.

usage: parts.py [PART]…      parts: lint, and every folder of tests/ that holds tests
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "build" / "tests"
LINTERS = (("ruff", "check", "."), ("mypy",))


@dataclass(frozen=True, slots=True)
class Outcome:
    part: str
    seconds: float
    passed: int
    failed: int


def lint() -> tuple[int, int]:
    """Return (linters that were content, linters that were not)."""
    results = [subprocess.run([sys.executable, "-m", *linter], cwd=ROOT, check=False).returncode for linter in LINTERS]
    return results.count(0), len(results) - results.count(0)


def pytest(part: str) -> tuple[int, int]:
    """Run the tests of folder *part* in a process of its own; return (passed, failed), where a run that ends badly has failed at least once."""
    report = REPORTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    # Unit tests share nothing, so two at a time; the others make namespaces, labs and load, and are told apart by running one after the other.
    together = ["-n", "2"] if part == "unit" else []
    argv = [sys.executable, "-m", "pytest", "-q", *together, f"tests/{part}", f"--junitxml={report}"]
    code = subprocess.run(argv, cwd=ROOT, check=False).returncode
    if not report.exists():
        return 0, 1
    suite = next(ElementTree.parse(report).iter("testsuite")).attrib
    total, failed, skipped = int(suite["tests"]), int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    return max(0, total - failed - skipped), failed or int(code != 0)


def run(part: str) -> Outcome:
    print(f"\n=== {part}", flush=True)
    started = time.monotonic()
    passed, failed = lint() if part == "lint" else pytest(part)
    return Outcome(part, time.monotonic() - started, passed, failed)


def main(wanted: list[str]) -> int:
    folders = sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py")))
    parts = ["lint", *sorted(folders, key=lambda name: name != "unit")]  # what is quick first
    if unknown := set(wanted) - set(parts):
        print(f"{', '.join(sorted(unknown))}: not a part; parts: {', '.join(parts)}", file=sys.stderr)
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    outcomes = [run(part) for part in wanted or parts]
    print()
    for outcome in outcomes:
        verdict = "FAILED" if outcome.failed else "ok"
        print(f"{outcome.part:<12} {verdict:<7} {outcome.passed:5} passed {outcome.failed:4} failed {outcome.seconds:8.1f} s")
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"\n{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
