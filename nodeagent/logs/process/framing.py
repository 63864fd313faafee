"""Lines of a file taken out of what their writer wrapped them in: the container runtimes' formats, or
nothing. Whole chunks at a time, in columns; pure.

CRI (containerd, CRI-O; kubernetes/kubernetes ``pkg/kubelet/kuberuntime/logs``): ``time stream tags text``,
where tags, parted by ``:``, begin with ``F`` for a line's end or ``P`` for a piece that goes on in the
stream's next line. json-file (Docker): ``{"log":"text\\n","stream":"stdout","time":"…"}``, a text
without ``\\n`` going on in the stream's next line.

A line that is not of its format is kept whole as text, with the time of reading and without a stream,
and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add, itemgetter, sub
from typing import Final, Literal, TypeAlias

import msgspec

from nodeagent.logs.process.times import are_times, is_time
from nodeagent.logs.records import Chunk

Framing: TypeAlias = Literal["cri", "docker", "plain"]
STREAMS: Final = frozenset((b"stdout", b"stderr"))


@dataclass(slots=True)
class Lines:
    """Lines in columns of the same length, in the order of the file."""

    offsets: list[int]
    """Of a line's first byte in the file."""
    times: list[bytes]
    """RFC 3339."""
    streams: list[bytes]
    texts: list[bytes]
    """Valid UTF-8, without the line's end."""
    partial: list[int] = field(default_factory=list)
    """Indices of those that go on in their stream's next line."""
    malformed: int = 0
    """How many are not of the format."""

    def __len__(self) -> int:
        return len(self.offsets)

    def only(self, kept: Sequence[int]) -> Lines:
        """Return the lines with indices *kept*, in order, none of which is partial."""
        return Lines(
            [self.offsets[at] for at in kept],
            [self.times[at] for at in kept],
            [self.streams[at] for at in kept],
            [self.texts[at] for at in kept],
        )


Frame: TypeAlias = Callable[[Chunk, bytes], Lines]
"""Takes a chunk and the time at which it was read (RFC 3339)."""


def plain(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of a file that nobody wrapped: each has the time *read_at*, and no stream."""
    lines = _lines(chunk.data)
    offsets = _offsets(lines, chunk.start)
    texts = _texts(lines, chunk.data)
    return Lines(offsets, [read_at] * len(lines), [b""] * len(lines), texts)


def cri(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of a file that a container runtime wrote in CRI's format."""
    return _whole_cri(chunk) or _each_cri(chunk, read_at)


def _whole_cri(chunk: Chunk) -> Lines | None:
    """Return the lines of a chunk in which all are whole and of CRI's format, None: some are not, or it cannot be
    told so quickly.

    The chunk is cut where a line's text begins, not at its end: each piece but the first holds a text, the
    line's end, and the next line's head. Where each piece has one end, no line has been cut in two,
    and none was taken for two.
    """
    data = chunk.data
    mark = _mark(data)
    first, *pieces = data.split(mark)
    if not pieces or data[-1:] != b"\n" or b"\n" in first:
        return None
    texts, ends, heads = map(list, zip(*[piece.rpartition(b"\n") for piece in pieces], strict=True))
    count = len(texts)
    if ends.count(b"\n") != count or b"\n" in b"".join(texts):
        return None
    heads.insert(0, first)
    heads.pop()
    if mark == _ANY_STREAM:
        streams = [head[-6:] for head in heads]
        times = [head[:-7] for head in heads]
        if not STREAMS.issuperset(streams) or {head[-7:-6] for head in heads} != {b" "}:
            return None
    else:
        streams = [mark[1:7]] * count
        times = heads
    if not are_times(times):
        return None
    texts_begin = accumulate(map(len, pieces), initial=len(first))
    places = map(add, texts_begin, range(chunk.start, chunk.start + count * len(mark), len(mark)))
    offsets = list(map(sub, places, map(len, heads)))
    return Lines(offsets, times, streams, _texts(texts, data))


def _mark(data: bytes) -> bytes:
    """Return what stands between head and text of most lines, and is not worth a second try where it does not."""
    here = next((mark for mark in _ONE_STREAM if mark in data[:_HEAD]), _ANY_STREAM)
    others = (mark for mark in _ONE_STREAM if mark != here)
    return _ANY_STREAM if any(mark in data for mark in others) else here


_ONE_STREAM: Final = (b" stdout F ", b" stderr F ")
_ANY_STREAM: Final = b" F "
_HEAD: Final = 64
"""A line's head has fewer bytes."""


def _each_cri(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of any chunk, those that are not of CRI's format as text."""
    lines = _lines(chunk.data)
    offsets = _offsets(lines, chunk.start)
    rows = [line.split(b" ", 3) for line in lines]
    malformed = [at for at, row in enumerate(rows) if len(row) != 4]
    for at in malformed:
        rows[at] = [read_at, b"", b"F", lines[at]]
    times = list(map(itemgetter(0), rows))
    streams = list(map(itemgetter(1), rows))
    tags = list(map(itemgetter(2), rows))
    texts = list(map(itemgetter(3), rows))
    if malformed or not STREAMS.issuperset(streams) or not are_times(times) or not _KNOWN_TAGS.issuperset(tags):
        malformed = [at for at, row in enumerate(rows) if not _is_cri(row)]
        for at in malformed:
            times[at] = read_at
            streams[at] = b""
            tags[at] = b"F"
            texts[at] = lines[at]
    whole = tags.count(b"F")
    partial = [at for at, tag in enumerate(tags) if tag[:1] == b"P"] if whole != len(tags) else []
    return Lines(offsets, times, streams, _texts(texts, chunk.data), partial, len(malformed))


_KNOWN_TAGS: Final = frozenset((b"F", b"P"))


def _is_cri(row: Sequence[bytes]) -> bool:
    time, stream, tags, _ = row
    return stream in STREAMS and tags.split(b":", 1)[0] in _KNOWN_TAGS and is_time(time)


class _DockerLine(msgspec.Struct, gc=False):
    log: str
    stream: str
    time: str


_DOCKER: Final = msgspec.json.Decoder(_DockerLine)


def docker(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of a file that Docker's json-file driver wrote."""
    lines = _lines(chunk.data)
    made = Lines(_offsets(lines, chunk.start), [], [], [])
    for at, line in enumerate(lines):
        try:
            found = _DOCKER.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            found = None
        time = found.time.encode() if found else b""
        stream = found.stream.encode() if found else b""
        if found is None or stream not in STREAMS or not is_time(time):
            made.malformed += 1
            made.times.append(read_at)
            made.streams.append(b"")
            made.texts.append(valid_utf8(line))
            continue
        made.times.append(time)
        made.streams.append(stream)
        text = found.log.encode()
        if not text.endswith(b"\n"):
            made.partial.append(at)
        made.texts.append(text.removesuffix(b"\n").removesuffix(b"\r"))
    return made


FRAMES: Final[dict[Framing, Frame]] = {"cri": cri, "docker": docker, "plain": plain}


def valid_utf8(text: bytes) -> bytes:
    """Return *text* with what is not UTF-8 in it replaced by U+FFFD."""
    return text.decode("utf-8", "replace").encode()


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _offsets(lines: list[bytes], start: int) -> list[int]:
    """Return where each of *lines* begins; between them stands one byte."""
    ends = accumulate(map(len, lines), initial=0)
    return list(map(add, ends, range(start, start + len(lines))))


def _texts(texts: list[bytes], data: bytes) -> list[bytes]:
    """Return *texts* as valid UTF-8 without carriage returns at their ends; *data* is where they come from."""
    if b"\r" in data:
        texts = [text[:-1] if text[-1:] == b"\r" else text for text in texts]
    if data.isascii():
        return texts
    try:
        data.decode()
    except UnicodeDecodeError:
        return [text if text.isascii() else valid_utf8(text) for text in texts]
    return texts
