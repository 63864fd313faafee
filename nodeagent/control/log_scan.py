"""What files a pod has that are to be read, as its folders hold them now: one look, which opens what is
new.

Folders are watched before they are listed: what comes in between is seen twice, and not never. All
names are a pod's own to choose below its volumes, so a look is bounded: folders, entries and files. It
still takes a third of a second where it finds as many as it may: so it goes in steps, a name each
(:data:`Steps`), between which who drives it may let others have their turn.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final

from nodeagent.control.log_names import log_of
from nodeagent.control.log_opening import (
    FOLDER,
    Opened,
    UnfitError,
    open_file_beneath,
    open_folder,
    open_folder_beneath,
)
from nodeagent.errors import shown
from nodeagent.logs.patterns import ANY_FOLDERS, PathPattern, fits
from nodeagent.logs.sources import SourceKind

FileId = tuple[int, int]
"""Device and inode."""
Steps = Iterator[None]
"""Of a look: what is done between two of them takes some tens of microseconds, but for listing a folder."""
MAX_FOLDERS: Final = 256
"""Of a pod that are looked into."""
MAX_ENTRIES: Final = 5000
"""Of a pod's folders that are looked at."""
MAX_DEPTH: Final = 16
MAX_REFUSALS: Final = 32
"""Of a look that are told in words: a pod may make as many as it may have entries."""
_OUTPUT: Final = re.compile(r"\d{1,9}\.log(\..{1,100})?")
"""What the kubelet calls a container's file: as it is written, rotated, and compressed."""
_BEING_MADE: Final = re.compile(r".*\.(tmp|swp)")
_MACHINE: Final = re.compile(r"[0-9a-f]{32}(\.[-_a-zA-Z0-9]{1,100})?")
"""Whose journal it is, and of which of its namespaces (``LogNamespace=``)."""
_JOURNAL: Final = re.compile(r"(?P<log>system|user-\d{1,10})(?P<rotated>@[-0-9a-f]{1,100})?\.journal~?")
"""``~``: it was not closed when its machine ended."""
_DOCKER: Final = re.compile(r"(?P<folder>[0-9a-f]{12,64})/(?P<log>[0-9a-f]{12,64}-json\.log)")
_ROTATED: Final = re.compile(r"(\.\d{1,9}(\.gz)?)?")
"""What Docker puts behind a file's name (max-file, compress)."""
_NO_FOLDER: Final = frozenset((errno.ENOTDIR, errno.ELOOP, errno.EXDEV))
_ABSENT: Final = _NO_FOLDER | {errno.ENOENT}
_NO_TEXT: Final = re.compile("[\ud800-\udfff]")
"""What os.fsdecode makes of bytes that are no UTF-8."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that was not known before; it is open."""

    kind: SourceKind
    within: str
    """Of an output, the container's name; of a file, its path from the volume's name on, or on the node; of a journal's
    file, the one that is written.
    """
    name: str
    opened: Opened
    modified: int
    start: int = 0
    """Up to where another program has delivered it."""
    written: bool = True
    """It has no name of a rotated file."""

    @property
    def rank(self) -> tuple[bool, int]:
        """The higher one is read where there is no room for both."""
        return self.written, self.modified


@dataclass(slots=True)
class LogLook:
    """The result of one look."""

    found: list[FoundFile] = field(default_factory=list)
    names: dict[FileId, str] = field(default_factory=dict)
    """Of every file that is there, the known ones too, the name below its source's folder."""
    refusals: list[str] = field(default_factory=list)
    whole: bool = True
    """Nothing hindered it: what is not among *names* is not there."""
    waits: bool = False
    """For something else that is looked at first."""
    there: bool = False
    """Some folder of the pod is there."""
    missing: list[str] = field(default_factory=list)
    """Volumes that are not there."""
    kind: SourceKind = "output"
    """Of what is looked for now."""
    left: int = MAX_ENTRIES
    folders: int = MAX_FOLDERS

    more_refused: int = 0
    """Beside those in *refusals*."""
    lacking: int = 0
    """Files for which there is no room."""
    last: FoundFile | None = None
    """What has the least rank of those found, if that is known: it is looked for once, not for each file."""

    def refuse(self, why: str) -> None:
        """Tell *why* something is not read, or count it where enough is told."""
        if len(self.refusals) < MAX_REFUSALS:
            self.refusals.append(why)
        else:
            self.more_refused += 1

    def lack(self, source: str) -> None:
        """There is no room for a file of *source*."""
        self.lacking += 1
        self.refuse(f"{shown(source)}: more files than logs.limits allow; it is read when others are, or are gone")

    def least(self) -> FoundFile | None:
        """Return what has the least rank of what was found, once there is no room for more."""
        if self.last is None and self.found:
            self.last = min(self.found, key=attrgetter("rank"))
        return self.last

    def give_way(self) -> None:
        """Close what has the least rank: another file has its room."""
        if (least := self.least()) is not None:
            self.last = None
            self.found.remove(least)
            os.close(least.opened.descriptor)
            self.lack(least.within)

    def told(self) -> tuple[str, ...]:
        """Return what is not read, in words."""
        more = (f"and {self.more_refused} more",) if self.more_refused else ()
        return (*self.refusals, *more, *self.missing)

    def close(self) -> None:
        """Close what was found and nobody has taken."""
        for each in self.found:
            os.close(each.opened.descriptor)
        self.found.clear()


@dataclass(frozen=True, slots=True)
class Looker:
    """What a look needs: *known* says whether a file has been told already, *followed* whether a path is that of a log
    with files, *watch* has a folder watched by its descriptor, *room*: how many more files may be opened, *aside*:
    at which size, and when modified, a file was read and closed to make room; None: none was.
    """

    known: Callable[[FileId], bool]
    followed: Callable[[str], bool]
    watch: Callable[[int], None]
    room: int
    aside: Callable[[FileId], tuple[int, int] | None] = lambda _: None

    def outputs(self, folder: Path, wanted: Callable[[str], bool], docker: Path, look: LogLook) -> Steps:
        """Look for the output of those containers of a pod's *folder* that are *wanted*; links lead into *docker*."""
        look.kind = "output"
        with _opened(lambda: open_folder(folder), look) as pod:
            if pod is None:
                return
            look.there = True
            self.watch(pod)
            for container in self._entries(pod, look):
                if not wanted(container.name):
                    continue
                with _within(pod, container.name, look) as inner:
                    if inner is not None and self._takes_folder(look):
                        self.watch(inner)
                        yield from self._output(inner, container.name, docker, look)

    def _output(self, folder: int, container: str, docker: Path, look: LogLook) -> Steps:
        entries = [each for each in self._entries(folder, look) if _OUTPUT.fullmatch(each.name)]
        for entry in entries:
            yield
            if _BEING_MADE.fullmatch(entry.name):
                continue
            if entry.is_symlink():
                yield from self._linked(folder, entry.name, container, docker, look)
            else:
                self._file(folder, entry.name, entry.inode(), container, look)

    def _linked(self, folder: int, name: str, container: str, docker: Path, look: LogLook) -> Steps:
        """Docker's nodes have links to where it writes: nowhere else is followed to. The link stays as it is while
        Docker rotates what it leads to, so that folder is watched and looked into.
        """
        try:
            target = os.readlink(name, dir_fd=folder)
        except OSError:
            return
        match = _DOCKER.fullmatch(target.removeprefix(f"{docker}/"))
        if match is None:
            look.refuse(f"{container}/{name}: a symbolic link, and only those to {docker} are followed")
            return
        with _opened(lambda: open_folder(docker / match["folder"]), look) as inner:
            if inner is None or not self._takes_folder(look):
                return
            self.watch(inner)
            for entry in self._entries(inner, look):
                yield
                number = entry.name.removeprefix(match["log"])
                if entry.name.startswith(match["log"]) and _ROTATED.fullmatch(number):
                    self._file(inner, entry.name, entry.inode(), container, look, called=f"{name}{number}")

    def volume(self, root: Path, name: str, pattern: PathPattern, look: LogLook) -> Steps:
        """Look for the files of *pattern* in the volume *name*, which is at *root*."""
        look.kind = "file"
        with _opened(lambda: open_folder(root), look) as volume:
            if volume is None:
                look.missing.append(f"volume {name} is no emptyDir of this pod, or is not there yet")
                return
            look.there = True
            yield from self._walk(volume, name, pattern.parts, look, MAX_DEPTH)

    def node_file(self, path: Path, look: LogLook) -> Steps:
        """Look for the file *path* of the node, and what it was rotated to."""
        look.kind = "node"
        with _opened(lambda: os.open(path.parent, FOLDER), look) as folder:
            if folder is None:
                look.missing.append(f"{path.parent} is not there")
                return
            look.there = True
            self.watch(folder)
            for entry in self._entries(folder, look):
                yield
                if log_of(entry.name, path.name, path.name.__eq__) == path.name:
                    self._file(folder, entry.name, entry.inode(), str(path), look)

    def journal(self, root: Path, look: LogLook) -> Steps:
        """Look for the files of systemd's journal below *root*, which has a folder for each machine."""
        look.kind = "journal"
        with _opened(lambda: os.open(root, FOLDER), look) as folder:
            if folder is None:
                return
            look.there = True
            self.watch(folder)
            for machine in self._entries(folder, look):
                yield
                if not _MACHINE.fullmatch(machine.name):
                    continue
                with _within(folder, machine.name, look) as inner:
                    if inner is None or not self._takes_folder(look):
                        continue
                    self.watch(inner)
                    for entry in self._entries(inner, look):
                        yield
                        if match := _JOURNAL.fullmatch(entry.name):
                            source = f"{root}/{machine.name}/{match['log']}.journal"
                            written = match["rotated"] is None
                            self._file(inner, entry.name, entry.inode(), source, look, written=written)

    def _walk(self, folder: int, path: str, parts: tuple[str, ...], look: LogLook, depth: int) -> Steps:
        """Look for what fits *parts* below *folder*, which is called *path*."""
        if not self._takes_folder(look):
            return
        self.watch(folder)
        entries: list[os.DirEntry[str]] = []
        for entry in self._entries(folder, look):
            entries.append(entry)
            yield
        part = parts[0]
        if len(parts) == 1:
            yield from self._files(folder, path, part, entries, look)
            return
        if part == ANY_FOLDERS and len(parts) == 2:
            yield from self._files(folder, path, parts[1], entries, look)
        for entry in entries:
            yield
            if not entry.is_dir(follow_symlinks=False) or depth <= 0:
                continue
            below = parts if part == ANY_FOLDERS else parts[1:]
            if part != ANY_FOLDERS and not fits(part, entry.name):
                continue
            with _within(folder, entry.name, look) as inner:
                if inner is not None:
                    yield from self._walk(inner, f"{path}/{entry.name}", below, look, depth - 1)

    def _files(self, folder: int, path: str, part: str, entries: list[os.DirEntry[str]], look: LogLook) -> Steps:
        """Take those of *entries* that fit *part*, and what they are called once they are rotated; a file that is
        known is the pod's whatever it is called.
        """
        names: set[str] = set()
        for entry in entries:
            yield
            if fits(part, entry.name):
                names.add(entry.name)
        device = os.fstat(folder).st_dev
        links = Counter(each.inode() for each in entries)

        def there(name: str) -> bool:
            return name in names or self.followed(_as_text(f"{path}/{name}"))

        for entry in entries:
            yield
            base = log_of(entry.name, part, there)
            if base:
                number = links[entry.inode()]
                written = base == entry.name
                self._file(folder, entry.name, entry.inode(), f"{path}/{base}", look, links=number, written=written)
            elif self.known((device, entry.inode())) and entry.is_file(follow_symlinks=False):
                look.names[(device, entry.inode())] = _as_text(entry.name)

    def _file(
        self,
        folder: int,
        name: str,
        inode: int,
        source: str,
        look: LogLook,
        *,
        called: str = "",
        links: int = 0,
        written: bool = True,
    ) -> None:
        """Take a file that is not known; *links*: how many names it has here, where it may have none elsewhere.
        *written*: it has no name of a rotated one. Where there is no room for all, it goes before those that have,
        and what was modified last before the others.
        """
        source = _as_text(source)
        called = _as_text(called or name)
        device = os.fstat(folder).st_dev
        if inode and self.known((device, inode)):
            look.names[(device, inode)] = called
            return
        if self._is_aside(folder, name, (device, inode)):
            look.names[(device, inode)] = called
            return
        if not self._has_room(folder, name, written, look):
            if self.aside((device, inode)) is not None:
                look.names[(device, inode)] = called  # it goes on where it was once there is room
            look.lack(source)
            return
        try:
            opened = open_file_beneath(folder, name, links)
        except UnfitError as error:
            look.refuse(f"{_shown(source, name)}: {error}")
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                look.whole = False
                look.refuse(f"{_shown(source, name)}: cannot be opened: {error.strerror}{_hint(error)}")
            return
        if links and opened.inode != inode:
            os.close(opened.descriptor)  # another one since it was listed, whose names were not counted
            return
        identity = (opened.device, opened.inode)
        if self.known(identity) or identity in look.names:
            os.close(opened.descriptor)
            look.names.setdefault(identity, called)
            return
        look.names[identity] = called
        if len(look.found) >= self.room:
            look.give_way()
        modified = os.fstat(opened.descriptor).st_mtime_ns
        look.found.append(FoundFile(look.kind, source, called, opened, modified, written=written))

    def _is_aside(self, folder: int, name: str, file: FileId) -> bool:
        """Say whether *file* was read and closed to make room, and is as it was then."""
        aside = self.aside(file)
        if aside is None:
            return False
        status = _status(folder, name)
        return status is not None and (status.st_ino, status.st_size, status.st_mtime_ns) == (file[1], *aside)

    def _has_room(self, folder: int, name: str, written: bool, look: LogLook) -> bool:
        """Say whether there is room for a file, or for what has a lower rank than it."""
        if len(look.found) < self.room:
            return True
        least = look.least()
        status = _status(folder, name)
        return least is not None and status is not None and (written, status.st_mtime_ns) > least.rank

    def _takes_folder(self, look: LogLook) -> bool:
        look.folders -= 1
        if look.folders == -1:
            look.whole = False
            look.refuse(f"more than {MAX_FOLDERS} folders: the others are not looked into")
        return look.folders >= 0

    def _entries(self, folder: int, look: LogLook) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    look.left -= 1
                    if look.left < 0:
                        look.whole = False
                        if look.left == -1:
                            look.refuse(f"more than {MAX_ENTRIES} entries: the others are not looked at")
                        return
                    yield entry
        except OSError as error:
            look.whole = False
            look.refuse(f"a folder cannot be listed: {error.strerror}{_hint(error)}")


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None  # it is gone


def _as_text(name: str) -> str:
    """Return *name* as it can be told, character by character: a file's may be any bytes, which no message takes."""
    return _NO_TEXT.sub("\ufffd", name)


def _shown(source: str, name: str) -> str:
    return f"{shown(source)}: {shown(name)}"


def _hint(error: OSError) -> str:
    return "; the agent needs CAP_DAC_READ_SEARCH" if error.errno in (errno.EACCES, errno.EPERM) else ""


@contextmanager
def _opened(folder: Callable[[], int], look: LogLook, absent: Collection[int] = _ABSENT) -> Iterator[int | None]:
    """Have a folder open; None where it is not there, or no folder, or cannot be opened now: *look* is whole only where
    the error is one of *absent*.
    """
    try:
        descriptor = folder()
    except OSError as error:
        look.whole = look.whole and error.errno in absent
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _within(folder: int, name: str, look: LogLook) -> AbstractContextManager[int | None]:
    """Have a folder open that was listed in *folder*: one that is gone since may be found under another name."""
    return _opened(lambda: open_folder_beneath(folder, name), look, _NO_FOLDER)
