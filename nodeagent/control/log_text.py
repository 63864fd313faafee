"""What the files of a pod's logs hold, for who asks at the admin port: read anew for each answer, and
nothing is kept. It is a debugging aid: who ships logs is the collector.

An answer has at most so many bytes of the files, and says where the next one goes on: a *cursor*, an
offset for each file by device and inode, with what stands before it. So following costs nothing while
nobody asks, and control never stands still for a large file.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zlib import crc32

from nodeagent.control.log_followed import FollowedPod
from nodeagent.control.log_scan import FileId, FoundFile, LogLook, Looker, Steps
from nodeagent.errors import shown
from nodeagent.logs.pods import PodPlan
from nodeagent.logs.settings import LogSettings
from nodeagent.places.log_folders import LogFolders
from nodeagent.resources.objects import PodObject
from nodeagent.services.as_pods import CONTAINER
from nodeagent.telemetry.http_request import Response

ANSWER_BYTES: Final = 1 << 20
"""Of the files that one answer reads."""
UNDATED_BYTES: Final = 16 << 10
"""Of a file in a volume, whose lines say no time, the end that counts as recent where it has changed lately."""
MAX_FILES: Final = 64
"""Of a pod; the newest."""
_UNPACKED: Final = 64 << 20
"""Of a compressed file that are looked at: the kubelet rotates at 10 MiB."""
_MARK_BYTES: Final = 64
"""Before an offset, by which a file is known for the one that was read."""
_CURSOR: Final = re.compile(r"(\d{1,20})-(\d{1,20})-(\d{1,20})-(\d{1,10})")
_GZIP: Final = b"\x1f\x8b"
NOT_HERE: Final = "is none of this node's"
"""What is said of a pod that another node may have."""


@dataclass(frozen=True, slots=True)
class _Question:
    pod: str
    """``NAMESPACE/NAME``."""
    source: str
    """A container, or a file from its volume's name on; empty: all."""
    since: float
    """Lines before that time since the epoch are left out."""
    cursor: Mapping[FileId, tuple[int, int]]
    """Offsets, and what stands before them."""


@dataclass(frozen=True, slots=True)
class _Pod:
    object: PodObject
    plan: PodPlan | None


class LogText:
    """Reads for who asks. *pods* are those that are followed."""

    def __init__(self, settings: LogSettings, folders: LogFolders, pods: Callable[[], Iterable[FollowedPod]]) -> None:
        self._settings = settings
        self._folders = folders
        self._pods = pods
        self._reads = asyncio.Lock()
        """One answer at a time: who asks often waits, and has no thread more."""

    async def page(self, query: Mapping[str, str]) -> Response:
        """Answer ``pod``, ``source``, ``since`` and ``cursor``, the last answer's own."""
        try:
            question = _question(query)
        except ValueError as error:
            return Response(f"{error}\n".encode(), 400)
        pods = self._by_name()
        pod = pods.get(question.pod)
        if pod is None:
            there = ", ".join(sorted(pods)[:20])
            return Response(f"pod {shown(question.pod)} {NOT_HERE}; there are {there}\n".encode(), 400)
        async with self._reads:  # beside the loop: a compressed file takes its time
            try:
                return Response.json(await asyncio.to_thread(self._answer, pod, question))
            except ValueError as error:
                return Response(f"{error}\n".encode(), 400)

    async def names(self, query: Mapping[str, str]) -> Response:
        """Tell whose logs can be asked for."""
        return Response.json({"pods": sorted(self._by_name())})

    def _by_name(self) -> dict[str, _Pod]:
        """Return the pods that are followed now, without the node: a question is answered of the pod as it
        was when it was asked, whatever becomes of it meanwhile.
        """
        return {each.name: _Pod(each.object, each.plan) for each in self._pods() if each.object is not None}

    def _answer(self, pod: _Pod, question: _Question) -> Mapping[str, object]:
        """Raises ValueError for a source that the pod has not, naming those that it has."""
        with closing(LogLook()) as look:
            self._look(pod, question.source, look)
            if question.source and not look.found and not _may_come(pod, question.source):
                there = ", ".join(self._sources(pod)[:20])
                raise ValueError(
                    f"pod {shown(question.pod)} has no container or file {shown(question.source)}; there are {there}"
                )
            files = sorted(look.found, key=lambda each: each.modified)[-MAX_FILES:]
            if len(look.found) > MAX_FILES:
                look.refuse(f"of {len(look.found)} files the {MAX_FILES} newest are read; --container names one")
            lines: list[Mapping[str, object]] = []
            told = []
            more = False
            left = ANSWER_BYTES
            for found in files:
                if found.kind == "journal":
                    entries, end, goes_on = self._entries(pod, found, question, left)
                    more = more or goes_on
                    left -= sum(len(str(line["text"])) for line in entries)
                    told.append(f"{found.opened.device}-{found.opened.inode}-{end}-0")
                    lines.extend(entries)
                    continue
                begin = _begin(found, question)
                data, goes_on = _read(found, begin, left)
                more = more or goes_on
                left -= len(data)
                end = begin + len(data)
                told.append(f"{found.opened.device}-{found.opened.inode}-{end}-{_mark(found, end)}")
                lines.extend(_lines(found, data, begin, question.since))
        lines.sort(key=lambda line: _utc(str(line["time"])))  # where there is none, files stay in their order
        return {"lines": lines, "cursor": ".".join(told), "more": more, "refused": list(look.told())}

    def _entries(
        self, pod: _Pod, found: FoundFile, question: _Question, most: int
    ) -> tuple[list[Mapping[str, object]], int, bool]:
        from nodeagent.control.log_entries import read_entries  # memory: only who asks pays for it

        begin, _ = question.cursor.get((found.opened.device, found.opened.inode), (0, 0))
        if most <= 0 or (not begin and found.modified < question.since * 1e9):
            return [], begin, most <= 0
        return read_entries(found, self._folders.unit(pod.object), begin, question.since, most)

    def _sources(self, pod: _Pod) -> list[str]:
        """Return the pod's containers, and what else has written."""
        with closing(LogLook()) as look:
            self._look(pod, "", look)
            return list(
                dict.fromkeys(
                    (*_containers(pod), *sorted(each.within for each in look.found if each.kind != "journal"))
                )
            )

    def _look(self, pod: _Pod, source: str, look: LogLook) -> None:
        looker = Looker(known=lambda _: False, followed=lambda _: False, watch=lambda _: None, room=4 * MAX_FILES)
        for _ in self._steps(looker, pod, source, look):
            pass  # in a thread: nobody waits for its turn
        named = (each for each in look.found if each.kind != "journal")  # whose name is not its source's
        for found in [each for each in named if source not in ("", each.within)]:
            os.close(found.opened.descriptor)
            look.found.remove(found)

    def _steps(self, looker: Looker, pod: _Pod, source: str, look: LogLook) -> Steps:
        if "/" not in source:
            folder = self._folders.output(pod.object)
            docker = self._settings.docker_containers
            yield from looker.outputs(folder, lambda name: source in ("", name), docker, look)
        journal = self._settings.node.journal
        if journal is not None and self._folders.unit(pod.object) and source in ("", CONTAINER):
            for root in journal.folders:
                yield from looker.journal(root, look)
        for each in pod.plan.files if pod.plan is not None else ():
            yield from looker.volume(self._folders.volume(pod.object, each.volume), each.volume, each.pattern, look)


def _containers(pod: _Pod) -> Iterator[str]:
    return (each.name for each in pod.object.containers)


def _may_come(pod: _Pod, source: str) -> bool:
    """Say whether *source* is one of the pod's containers, or a file that would be read if it were there."""
    return source in _containers(pod) or (pod.plan is not None and pod.plan.reading_of_file(source) is not None)


def _question(query: Mapping[str, str]) -> _Question:
    """Raises ValueError, in words."""
    try:
        since = float(query.get("since") or 0)
    except ValueError:
        raise ValueError("since: seconds since the epoch are expected") from None
    cursor = {}
    for each in (query.get("cursor") or "").split("."):
        if each:
            match = _CURSOR.fullmatch(each)
            if match is None:
                raise ValueError("cursor: that of the answer before is expected")
            cursor[(int(match[1]), int(match[2]))] = (int(match[3]), int(match[4]))
    return _Question(query.get("pod") or "", query.get("source") or "", since, cursor)


def _begin(found: FoundFile, question: _Question) -> int:
    """Return where a file is gone on with, or begun with that the last answer did not have: at its beginning, or
    nowhere. One that was truncated, or written anew, begins anew.
    """
    known = question.cursor.get((found.opened.device, found.opened.inode))
    if known is not None:
        offset, mark = known
        return offset if _mark(found, offset) == mark else 0
    if _is_packed(found):
        seen = bool(question.cursor)  # as it was before it was compressed
        return _UNPACKED if seen or found.modified < question.since * 1e9 else 0
    if found.modified < question.since * 1e9:
        return found.opened.size
    if found.kind == "output" or not question.since:
        return 0
    start = max(0, found.opened.size - UNDATED_BYTES)
    skipped = os.pread(found.opened.descriptor, UNDATED_BYTES, start).find(b"\n") + 1 if start else 0
    return start + skipped


def _is_packed(found: FoundFile) -> bool:
    return found.name.endswith(".gz") and os.pread(found.opened.descriptor, 2, 0) == _GZIP


def _mark(found: FoundFile, offset: int) -> int:
    """Return what tells that the file, up to *offset*, is the one that was read."""
    if _is_packed(found):
        return 0
    before = min(offset, _MARK_BYTES)
    data = os.pread(found.opened.descriptor, before, offset - before)
    return crc32(data, len(data))


def _read(found: FoundFile, begin: int, most: int) -> tuple[bytes, bool]:
    """Return whole lines of the file from *begin* on, at most *most* bytes, and whether more of them may follow; of a
    line that is longer than an answer, a part.
    """
    packed = _is_packed(found)
    if most <= 0:
        return b"", begin < (_UNPACKED if packed else os.fstat(found.opened.descriptor).st_size)
    data = _unpacked(found, begin, most) if packed else os.pread(found.opened.descriptor, most, begin)
    whole = data.rfind(b"\n") + 1
    if len(data) < most:
        return data[:whole], False
    return (data[:whole] if whole or most < ANSWER_BYTES else data), True


def _unpacked(found: FoundFile, begin: int, most: int) -> bytes:
    if begin >= _UNPACKED:
        return b""
    from nodeagent.logs.tail.compressed import Content  # memory: only who asks pays for it
    from nodeagent.logs.tail.unpacked import CompressedError

    try:
        return Content(found.opened.descriptor).read(begin, most)
    except (OSError, CompressedError):  # no such file, or one that is made to be read for ever
        return b""


def _lines(found: FoundFile, data: bytes, begin: int, since: float) -> Iterator[Mapping[str, object]]:
    """Yield the lines in *data* that are not before *since*."""
    from nodeagent.logs.process.framing import cri, docker, plain  # memory: only who asks pays for it
    from nodeagent.logs.records import Chunk

    chunk = Chunk(b"", begin, data)
    frame = plain
    if found.kind == "output":
        frame = docker if data[:1] == b"{" else cri
    earliest = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S") if since else ""
    lines = frame(chunk, b"")
    partial = set(lines.partial)
    if not data.endswith(b"\n"):
        partial.add(len(lines) - 1)
    for index, text in enumerate(lines.texts):
        time = lines.times[index].decode()
        if earliest and time and _utc(time) < earliest:
            continue
        yield {
            "source": found.within,
            "time": time,
            "stream": lines.streams[index].decode(),
            "text": text.decode(errors="replace"),
            "partial": index in partial,
        }


def _utc(time: str) -> str:
    """Return *time* (RFC 3339) so that it can be compared with others as text: fractions have any number of digits."""
    if time.endswith("Z"):
        return time[:-1]
    try:
        return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    except ValueError:
        return time
