"""``make vm-test``: run within a room as ``python -m tests.vm FILE.box FILES [CHECKS]``; prints one line a check."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.vm import checks, host, machines
from tests.vm.telling import BEGUN, Failed, tell

FOLDER = machines.ROOT / "build" / "vm" / "run"


def main(box: Path, files: Path, names: str) -> int:
    """Try the checks *names*, all where it is empty; return the exit code."""
    wanted = checks.chosen(names)
    if not os.environ.get("NODEAGENT_ROOM") and Path("/run/systemd/system").exists():
        raise Failed("run this by tests/room.sh, as make vm-test does: it hides the machine's own libvirt")
    if FOLDER.exists():
        tell(f"what an earlier run left in {FOLDER} is removed: its machines ended with it")
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True)
    found = host.examine(FOLDER)
    tell(found.words())
    lines: list[str] = []
    failed = 0
    nodes = [name for name in machines.NAMES if any(name in each.nodes for each in wanted)]
    with machines.up(box, files, found, FOLDER, nodes) as lab:
        tell(f"up: {', '.join(nodes)}; agents: {checks.memory(lab)}")
        for each in wanted:
            line, ok = attempted(each, lab)
            lines.append(line)
            if not ok:
                failed += 1
                tell(f"journals, states and consoles are kept in {lab.keep()}")
                break
    shutil.rmtree(FOLDER / "work", ignore_errors=True)
    print("\n" + "\n".join(lines))
    untried = len(wanted) - len(lines)
    print(f"\n{time.monotonic() - BEGUN:.0f} s, driver {found.driver}; untried: {untried}")
    print(f"{len(lines) - failed} passed, {failed} failed")
    return 1 if failed or untried else 0


def attempted(each: checks.Check, lab: machines.Lab) -> tuple[str, bool]:
    """Try *each*; return its line and whether it passed."""
    began = time.monotonic()
    try:
        said, ok = each.attempt(lab), True
    except (Failed, AssertionError) as error:
        said, ok = str(error), False
    line = f"{'ok' if ok else 'FAILED':<6} {each.name}: {said} ({time.monotonic() - began:.0f} s)"
    tell(line)
    return line, ok


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the machines are destroyed
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), ",".join(sys.argv[3:])))
    except Failed as error:
        print(f"vm-test: {error}", file=sys.stderr)
        sys.exit(1)
