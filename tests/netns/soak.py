"""The long storm: ``make soak``. Prints a line a failure, and at the end who was answered; exit
code 1 if anybody was.

usage: python -m tests.netns.soak [MINUTES [SEED]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.netns import chaos


def main(minutes: float, seed: int) -> int:
    begun = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory() as folder, chaos.storm("soak", Path(folder), tell, seed) as storm:
        answered = chaos.run(storm, minutes * 60)
    print(f"seed {seed}: {len(answered)} answered that policy refuses")
    print("\n".join(answered))
    return 1 if answered else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
