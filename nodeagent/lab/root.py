"""A pod's own view of the machine's files: all of them are there, and what it writes stays in it.

An overlay over the root, and one over every other file system that is mounted; written files are in
a tmpfs that only the pod's mount namespace holds, so they go with its last process, however that
ends. /run and /dev/shm begin empty: what lives there is the machine's own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nodeagent.errors import LabError
from nodeagent.lab.linux import MS_BIND, MS_NOSUID, MS_RDONLY, MS_REMOUNT, attach, bind, detached, mount, pivot_root

_SHARED = (Path("/sys"), Path("/dev"))
"""The kernel's own, with everything below."""
_EMPTY = (Path("/run"), Path("/dev/shm"))
_NOT_COPIED = (Path("/proc"), *_SHARED, *_EMPTY)


@dataclass(frozen=True, slots=True)
class Mount:
    source: Path
    target: str
    read_only: bool


def enter(place: Path) -> None:
    """Make this process's mount namespace, which must be its own and private, a pod's. *place*: an
    empty folder, which stays empty outside.

    Raises OSError, and LabError where the root's file system cannot be a lower layer.
    """
    others = _mount_points()
    mount("lab", place, "tmpfs", data="mode=0755")
    view = place / "view"
    try:
        _overlay(Path("/"), view, place / "0")
    except OSError as error:
        raise LabError(
            f"a pod's view of the machine's files cannot be made: {error}: the root's file system must be one "
            "that overlayfs takes"
        ) from None
    for number, point in enumerate(others, 1):
        _show(point, view / point.relative_to("/"), place / str(number))
    for shared in _SHARED:
        bind(shared, view / shared.relative_to("/"))
    for empty in _EMPTY:
        if (view / empty.relative_to("/")).is_dir():
            mount(
                "tmpfs",
                view / empty.relative_to("/"),
                "tmpfs",
                MS_NOSUID,
                "mode=1777" if empty.name == "shm" else "mode=0755",
            )
    mount("proc", view / "proc", "proc")
    pivot_root(view)


def _mount_points() -> list[Path]:
    """Return where other file systems are mounted that a pod sees, in the order in which they can
    be mounted again (proc_pid_mountinfo(5)).
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = {Path(line.split()[4].encode().decode("unicode_escape")) for line in lines}
    return sorted(
        point for point in points if point != Path("/") and not any(point.is_relative_to(each) for each in _NOT_COPIED)
    )


def _show(point: Path, target: Path, layers: Path) -> None:
    """Show what is mounted at *point*: under an overlay, or read only where overlayfs does not take it."""
    if not target.exists():
        return  # below something that is mounted over it
    if point.is_dir():
        with suppress(OSError):
            _overlay(point, target, layers)
            return
    mount(point, target, flags=MS_BIND)
    mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _overlay(lower: Path, target: Path, layers: Path) -> None:
    for folder in (layers / "upper", layers / "work", target):
        folder.mkdir(parents=True, exist_ok=True)
    status = lower.stat()
    (layers / "upper").chmod(status.st_mode & 0o7777)
    mount("overlay", target, "overlay", data=f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work")


class Volumes:
    """A container's volumes, taken hold of in the machine's mount namespace, to be put into the pod's."""

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        """Raises OSError."""
        self._held = [
            (each, each.source.is_dir(), detached(each.source)) for each in sorted(mounts, key=lambda each: each.target)
        ]

    def attach(self) -> None:
        """Mount them in the caller's mount namespace, which is the container's own; mount points
        are made in the pod's view. Raises OSError.
        """
        for each, directory, descriptor in self._held:
            target = Path(each.target)
            if not target.exists():
                (target if directory else target.parent).mkdir(parents=True, exist_ok=True)
                if not directory:
                    target.touch()
            attach(descriptor, target)
            if each.read_only:
                mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
