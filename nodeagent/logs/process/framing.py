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
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import accumulate
from operator import itemgetter
from typing import Final, Literal, TypeAlias

import msgspec

from nodeagent.logs.process.times import ANY_DIGIT, are_alike_times, are_times, is_time
from nodeagent.logs.records import Chunk

Framing: TypeAlias = Literal["cri", "docker", "plain"]
STREAMS: Final = frozenset((b"stdout", b"stderr"))
_BEFORE_END: Final = itemgetter(slice(-1))


@dataclass(slots=True)
class Lines:
    """Lines in columns of the same length, in the order of the file."""

    offsets: list[int]
    """Of a line's first byte in the file."""
    times: list[bytes]
    """RFC 3339."""
    streams: list[bytes]
    texts: list[bytes]
    """UTF-8, without the line's end; valid unless *raw*."""
    partial: list[int] = field(default_factory=list)
    """Indices of those that go on in their stream's next line."""
    malformed: int = 0
    """How many are not of the format."""
    raw: bool = False
    """Whether texts may be no UTF-8 yet: where a line in pieces was cut, a character may have been."""

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

    def valid(self) -> Lines:
        """Return the same, with what is not UTF-8 in texts replaced by U+FFFD."""
        texts = [text if text.isascii() else valid_utf8(text) for text in self.texts]
        return replace(self, texts=texts, raw=False)


Frame: TypeAlias = Callable[[Chunk, bytes], Lines]
"""Takes a chunk and the time at which it was read (RFC 3339)."""


def plain(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of a file that nobody wrapped: each has the time *read_at*, and no stream."""
    lines = _lines(chunk.data)
    offsets = _offsets(lines, chunk.start)
    texts = _texts(_without_ends(lines), chunk.data)
    made = Lines(offsets, [read_at] * len(lines), [b""] * len(lines), texts)
    return made.valid() if _is_raw(chunk.data) else made


def cri(chunk: Chunk, read_at: bytes) -> Lines:
    """Return the lines of a file that a container runtime wrote in CRI's format."""
    lines = _lines(chunk.data)
    return _alike(lines, chunk) or _each(lines, chunk, read_at)


def _alike(lines: list[bytes], chunk: Chunk) -> Lines | None:
    """Return *lines* if all have ends and what stands before their texts is as wide in all of them and differs in
    digits and the stream alone, as runtimes write it; None: it does not.

    All of it is looked at joined. That costs no list a line, of which most is what the garbage collector costs.
    """
    first = lines[0].split(b" ", 3) if lines else []
    if not _is_cri(first) or first[2] != b"F" or not chunk.data.endswith(b"\n"):
        return None
    width = len(lines[0]) - len(first[3])
    heads = b"".join(map(itemgetter(slice(width)), lines))
    if _shape(heads) != _shape(heads[:width]) * len(lines):
        return None
    times = list(map(itemgetter(slice(len(first[0]))), lines))
    if not are_alike_times(times):
        return None
    letters = heads[len(first[0]) + _LETTER :: width]
    streams = list(map(_BY_LETTER.__getitem__, letters))
    texts = list(map(itemgetter(slice(width, -1)), lines))
    offsets = _offsets(lines, chunk.start)
    return Lines(offsets, times, streams, _texts(texts, chunk.data), raw=_is_raw(chunk.data))


def _shape(heads: bytes) -> bytes:
    return heads.translate(ANY_DIGIT).replace(b" stderr ", b" stdout ")


def _each(lines: list[bytes], chunk: Chunk, read_at: bytes) -> Lines:
    """Return *lines*, whatever they are."""
    offsets = _offsets(lines, chunk.start)
    lines = _without_ends(lines)
    rows = [line.split(b" ", 3) for line in lines]
    if any(length != _PARTS for length in set(map(len, rows))):
        rows = [row if len(row) == _PARTS else [b"", b"", b"", b""] for row in rows]
    times, streams, tags, texts = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    known = STREAMS.issuperset(streams) and _KNOWN_TAGS.issuperset(tags) and are_times(times)
    malformed = [] if known else [at for at, row in enumerate(rows) if not _is_cri(row)]
    for at in malformed:
        times[at] = read_at
        streams[at] = b""
        tags[at] = b"F"
        texts[at] = lines[at]
    whole = tags.count(b"F")
    partial = [at for at, tag in enumerate(tags) if tag[:1] == b"P"] if whole != len(tags) else []
    texts = _texts(texts, chunk.data, partial)
    return Lines(offsets, times, streams, texts, partial, len(malformed), _is_raw(chunk.data))


_PARTS: Final = 4
"""Of a line in CRI's format."""
_KNOWN_TAGS: Final = frozenset((b"F", b"P"))


_BY_LETTER: Final = {ord("o"): b"stdout", ord("e"): b"stderr"}
_LETTER: Final = len(" std")
"""Where it stands behind a time."""


def _is_cri(row: Sequence[bytes]) -> bool:
    if len(row) != _PARTS:
        return False
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
    for at, line in enumerate(_without_ends(lines)):
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
        if text.endswith(b"\n"):
            made.texts.append(text[:-1].removesuffix(b"\r"))
        else:
            made.partial.append(at)
            made.texts.append(text)
    return made


FRAMES: Final[dict[Framing, Frame]] = {"cri": cri, "docker": docker, "plain": plain}


def valid_utf8(text: bytes) -> bytes:
    """Return *text* with what is not UTF-8 in it replaced by U+FFFD."""
    return text.decode("utf-8", "replace").encode()


def _lines(data: bytes) -> list[bytes]:
    """Return the lines of *data* with their ends. They are searched for by memchr(3), in a fourth of split's time."""
    return BytesIO(data).readlines()


def _without_ends(lines: list[bytes]) -> list[bytes]:
    """Return *lines* without their ends, which the last one may not have."""
    bare = list(map(_BEFORE_END, lines))
    if lines and not lines[-1].endswith(b"\n"):
        bare[-1] = lines[-1]
    return bare


def _offsets(lines: list[bytes], start: int) -> list[int]:
    """Return where each of *lines*, with their ends, begins."""
    offsets = list(accumulate(map(len, lines), initial=start))
    offsets.pop()
    return offsets


def _texts(texts: list[bytes], data: bytes, partial: Sequence[int] = ()) -> list[bytes]:
    """Return *texts* without carriage returns at the ends of those that are not *partial*; *data* is where they come
    from.
    """
    if b"\r" not in data:
        return texts
    made = [text[:-1] if text[-1:] == b"\r" else text for text in texts]
    for at in partial:
        made[at] = texts[at]
    return made


def _is_raw(data: bytes) -> bool:
    """Return whether *data* is no valid UTF-8."""
    if data.isascii():
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False
