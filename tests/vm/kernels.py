"""On which kernels the agent works: ``make vm-kernels``, or within a room ``python -m tests.vm.kernels FILE.deb BOX…``.

Each box, named by whose kernel it has, is booted once; what ``nodeagent check`` says there is kept in
`tests/vm/kernels/`, and is the table of kernels in docs/vm.md.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import host, machines
from tests.vm.telling import Failed, tell

KEPT = Path(__file__).parent / "kernels"
FOLDER = machines.ROOT / "build" / "vm" / "kernels"


@dataclass(frozen=True)
class Kernel:
    """What ``nodeagent check`` found on a kernel: *suite* is Debian's, each finding as its JSON has it."""

    suite: str
    release: str
    findings: list[dict[str, Any]]

    @property
    def version(self) -> list[int]:
        """The numbers before what Debian adds: of ``6.12.117+deb13-cloud-amd64`` the first three."""
        return [int(part) for part in re.split(r"[^\d.]", self.release)[0].split(".")]

    @property
    def missing(self) -> list[str]:
        """The features without which the agent cannot work."""
        return [each["feature"] for each in self.findings if each["state"] == "missing"]

    @property
    def absent(self) -> list[str]:
        """Those that it can do without."""
        return [each["feature"] for each in self.findings if each["state"] == "absent"]


def kept() -> Iterator[Kernel]:
    """Yield the kernels that were tried, the oldest first."""
    found = [Kernel(**json.loads(path.read_text())) for path in KEPT.glob("*.json")]
    yield from sorted(found, key=lambda kernel: kernel.version)


def tried(package: Path, box: Path, found: host.Host) -> Kernel:
    """Boot *box*, install *package*, and return what ``nodeagent check`` says. Raises Failed."""
    suite = box.stem
    folder = FOLDER / suite
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with machines.up(box, package.parent, found, folder, ["node-a"], bare=True) as lab:
        node = lab.a
        node.send(package, "/tmp/nodeagent.deb")
        # Where the kernel is unfit the daemon does not start, as dpkg says; the check says why.
        node.ask("dpkg --install /tmp/nodeagent.deb", seconds=machines.UP_SECONDS)
        answer = node.ask("nodeagent check -o json", seconds=600)
        try:
            findings = json.loads(answer.output)
        except ValueError:
            raise Failed(f"{suite}: nodeagent check: {answer.output[-500:]}{answer.errors[-1500:]}") from None
        return Kernel(suite, node.run("uname -r").strip(), findings)


def main(package: Path, boxes: list[Path]) -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    KEPT.mkdir(exist_ok=True)
    found = host.examine(FOLDER)
    tell(found.words())
    for box in boxes:
        kernel = tried(package, box, found)
        text = json.dumps({"suite": kernel.suite, "release": kernel.release, "findings": kernel.findings}, indent=1)
        (KEPT / f"{kernel.suite}.json").write_text(text + "\n")
        missing = ", ".join(kernel.missing) or "nothing"
        tell(f"Linux {kernel.release}: missing: {missing}; absent: {', '.join(kernel.absent) or 'nothing'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]]))
    except Failed as error:
        print(f"vm-kernels: {error}", file=sys.stderr)
        sys.exit(1)
