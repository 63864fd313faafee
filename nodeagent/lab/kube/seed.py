"""Containerd's folder with images in it, made once and given to every node as hard links.

To unpack an image takes seconds a node; to link its files, a part of one. What containerd keeps of an
image it never changes: blobs are named by their digest, and layers lie under the containers' own. What
it does change, its two databases, is copied.

Made where no cluster can see it half made; a seed that is used is touched, and only the newest are
kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from nodeagent.errors import LabError
from nodeagent.lab.kube import images
from nodeagent.lab.kube.config import containerd_file
from nodeagent.lab.processes import tail

KEPT: Final = 4
"""Seeds; each takes about twice its images' size of the disk."""
_FORMAT: Final = "1"
_NAMESPACE: Final = "k8s.io"
"""Of containerd, where Kubernetes keeps its own."""
_START_SECONDS: Final = 60.0


def made(folder: Path, archives: Sequence[Path], work: Path, say: Callable[[str], None]) -> Path:
    """Return a folder below *folder* for containerd, with the images of *archives*; it is made if it
    is not there. *work*: an empty folder, for what does not last.

    Raises LabError.
    """
    parts = [_FORMAT, *(images.identity(archive) for archive in archives)]
    seed = folder / f"containerd-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "containerd.lock"):
        if not seed.exists():
            say(f"unpacking {', '.join(archive.name for archive in archives)}: once")
            new = seed.with_name(f".{seed.name}")
            shutil.rmtree(new, ignore_errors=True)
            _make(new, archives, work)
            new.rename(seed)
        os.utime(seed)
        for old in sorted(folder.glob("containerd-*/"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old)
    return seed


def give(seed: Path, target: Path) -> None:
    """Fill the folder *target*, which is not there yet, from *seed*; raises LabError."""
    link = subprocess.run(["cp", "-al", seed, target], capture_output=True, text=True, check=False)
    if link.returncode:  # another file system
        shutil.rmtree(target, ignore_errors=True)
        _checked(["cp", "-a", "--reflink=auto", str(seed), str(target)], "the images cannot be copied")
    for database in target.rglob("*.db"):
        copy = database.with_suffix(".copy")
        shutil.copy2(database, copy)
        copy.replace(database)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(root: Path, archives: Sequence[Path], work: Path) -> None:
    """Import *archives* with a containerd that runs no containers."""
    socket = work / "containerd.sock"
    log = work / "containerd.log"
    config = work / "containerd.toml"
    config.write_text(
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n' + containerd_file(root, work / "state", socket)
    )
    with log.open("wb") as output:
        daemon = subprocess.Popen(["containerd", "-c", config], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(["ctr", "-a", socket, "version"], capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"containerd does not start:\n{tail(log)}")
            time.sleep(0.05)
        for archive in archives:
            load(archive, socket)
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(10)
        daemon.kill()
        daemon.wait()
    for name in ("tmpmounts", "io.containerd.grpc.v1.introspection"):
        shutil.rmtree(root / name, ignore_errors=True)


def load(archive: Path, socket: Path, before: Sequence[str] = ()) -> None:
    """Import the images of *archive* into the containerd at *socket*; *before*: a command to run ctr
    by. Raises LabError.

    It is read here: a node that has seen a file sees it as it was when another has taken its place, as
    overlayfs keeps what it has looked up.
    """
    command = [*before, "ctr", "-a", str(socket), "-n", _NAMESPACE, "images", "import", "-"]
    with archive.open("rb") as file:
        _checked(command, f"{archive} cannot be imported", file)


def _checked(command: Sequence[str], what: str, given: BinaryIO | None = None) -> None:
    done = subprocess.run(command, stdin=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{what}: {done.stderr.strip() or f'exit status {done.returncode}'}")
