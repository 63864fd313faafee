"""The daemon's folder in bpffs: what keeps programs, maps and links alive when no process does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.places.cgroups import kernel_lines, plain
from nodeagent.redirect import hooks, syscall

BPFFS: Final = Path("/sys/fs/bpf")


@dataclass(frozen=True, slots=True)
class Pins:
    """``<directory>/maps/<map>``, ``progs/<program>``, ``links/<hook>`` and ``links/lookup-<netns cookie>``."""

    directory: Path

    @property
    def maps(self) -> Path:
        return self.directory / "maps"

    @property
    def programs(self) -> Path:
        return self.directory / "progs"

    @property
    def links(self) -> Path:
        return self.directory / "links"

    def lookup(self, cookie: int) -> Path:
        """Where the sk_lookup link of the network namespace *cookie* is pinned."""
        return self.links / self.lookup_name(cookie)

    @staticmethod
    def lookup_name(cookie: int) -> str:
        """Return what that pin is called."""
        return f"lookup-{cookie}"

    def cookies(self) -> list[int]:
        """Return the network namespaces of captured pods, by their links."""
        return [int(path.name.removeprefix("lookup-")) for path in self.links.glob("lookup-*")]

    def make(self) -> None:
        """Make the folders, and mount bpffs when /sys/fs/bpf is empty. Raises KernelError."""
        if self.directory.is_relative_to(BPFFS):
            mount_bpffs()
        if filesystem(self.directory) != "bpf":
            raise KernelError(f"{self.directory}: is not in bpffs; set redirect.pinDirectory to a folder below {BPFFS}")
        try:
            for directory in (self.maps, self.programs, self.links):
                directory.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KernelError(f"{error.filename}: cannot be made: {error.strerror}") from None

    @contextmanager
    def successor(self) -> Iterator[Pins]:
        """Yield a folder for what shall take the place of what is pinned; what is left in it, also
        by a loader that was killed, is removed.

        Raises KernelError.
        """
        beside = Pins(self.directory / "next")
        cleanup(beside.directory)
        beside.make()
        try:
            yield beside
        finally:
            cleanup(beside.directory)

    def take(self, successor: Pins) -> None:
        """Have the maps and programs of *successor* in place of those that are pinned, and no
        others. Raises OSError.
        """
        for mine, theirs in ((self.maps, successor.maps), (self.programs, successor.programs)):
            fresh = _files(theirs)
            for path in fresh:
                path.rename(mine / path.name)
            for path in _files(mine):
                if path.name not in {one.name for one in fresh}:
                    path.unlink()


def mount_bpffs() -> None:
    """Mount bpffs where everybody expects it, unless it is. Raises KernelError."""
    if filesystem(BPFFS) != "bpf":
        try:
            syscall.mount("bpf", str(BPFFS), "bpf")
        except OSError as error:
            raise KernelError(
                f"{BPFFS}: bpffs cannot be mounted: {error.strerror}; the daemon needs root and CAP_SYS_ADMIN"
            ) from None


def filesystem(path: Path) -> str:
    """Return the type of the file system that holds *path* ("bpf", "cgroup2", …), "" when there is
    none.

    By /proc/self/mountinfo (proc_pid_mountinfo(5)): the last mount whose mount point is a prefix
    wins.
    """
    found = ""
    best = -1
    for line in kernel_lines(Path("/proc/self/mountinfo")):
        before, _, after = line.partition(" - ")
        point = plain(before.split(" ")[4])
        if path.is_relative_to(point) and len(point) >= best:
            found = after.split()[0]
            best = len(point)
    return found


def open_pinned(path: Path) -> int:
    """Return a descriptor of the object pinned at *path*. Raises KernelError."""
    try:
        return syscall.get(path)
    except OSError as error:
        raise KernelError(f"{path}: cannot be opened: {error.strerror}; has the loader run?") from None


def pin(fd: int, path: Path) -> None:
    """Pin an open object. Raises KernelError."""
    try:
        syscall.pin(fd, path)
    except OSError as error:
        raise KernelError(f"{path}: cannot be pinned: {error.strerror}") from None


def cleanup(directory: Path) -> list[Path]:
    """Detach and remove everything pinned below *directory*, and the folder; return what was.
    Idempotent. Raises OSError.
    """
    pins = Pins(directory)
    removed = cleanup(directory / "next") if (directory / "next").exists() else []
    for link in _files(pins.links):
        hooks.remove(link)
        removed.append(link)
    for folder in (pins.programs, pins.maps):
        for path in _files(folder):
            path.unlink()
            removed.append(path)
    for folder in (pins.links, pins.programs, pins.maps, directory):
        if folder.exists():
            folder.rmdir()
    return removed


def program_ids(directory: Path) -> frozenset[int]:
    """Return the kernel's numbers of the programs that are pinned below *directory*; none, where nothing is."""
    found = set()
    for path in _files(Pins(directory).programs):
        program = open_pinned(path)
        found.add(hooks.program_id(program))
        os.close(program)
    return frozenset(found)


def names(folder: Path) -> frozenset[str]:
    """Return the names of what is pinned in *folder*; none, where it is gone."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()


def _files(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder)] if folder.is_dir() else []
