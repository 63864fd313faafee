"""What a file is that nobody knows: a copy of what was read already, or a content of its own."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Final

from nodeagent.logs.tail.contents import Contents
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import ENOUGH, NOWHERE, Generation
from nodeagent.logs.tail.heads import Heads, head_of
from nodeagent.logs.tail.twins import Comparison
from nodeagent.logs.tail.unpacked import CompressedError

_SUSPICIONS: Final = 12
"""So many times ``rotated_seconds`` a file that goes on growing like another is taken for its copy."""
FEW: Final = 16
"""Where a log never had more files, all of them are compared."""


class Judge:
    """Decides for the unknown files of one log, a step at a time."""

    __slots__ = ("_comparisons", "_contents")

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._comparisons: dict[OpenFile, Comparison] = {}

    def again(self) -> None:
        """Begin all comparisons anew: contents have come or gone."""
        self._comparisons.clear()

    def anew(self, file: OpenFile, size: int, now: float) -> None:
        """The content of *file*, which had *size* bytes, is another one: what is its copy so far is a copy of the one
        that it was. All others are compared again, with what that left: they may have been compared with what came
        after it.
        """
        old = self._contents.anew(file, size, now)
        for copy, comparison in self._comparisons.items():
            copy.look_again()
            self._contents.stir(copy)
            if file in comparison.rivals and comparison.complete and comparison.at < old.read.offset:
                self._contents.twin(copy, old, comparison.at)
        self._comparisons.clear()

    def decide(self, file: OpenFile, now: float) -> bool:
        """Find out more of what *file* holds; return whether that may go on at once."""
        comparison = self._comparisons.get(file)
        try:
            if comparison is None:
                comparison = self._comparisons[file] = self._compare(file, now)
            at = comparison.at
            more = not comparison.pointless and comparison.step()
            if self._contents.heads is not None and comparison.at > at:
                comparison.serial = self._contents.heads.serial
        except OSError:
            if now - file.added < _SUSPICIONS * self._contents.tail.settings.rotated_seconds:
                self._comparisons.pop(file, None)
                return False  # the disk may give it yet; a copy that is taken for none comes twice
            comparison = self._comparisons[file] = Comparison(file, b"", (), ())
            more = False
        except CompressedError:
            self._comparisons.pop(file, None)
            file.let_go()
            self._contents.begin(file, 0)  # reading it will say what is wrong
            return True
        return more or self._judge(file, comparison, now)

    def _compare(self, file: OpenFile, now: float) -> Comparison:
        """Raises OSError, CompressedError."""
        head = head_of(file.read(0, ENOUGH)) if len(self._contents.files) > FEW or self._contents.heads else b""
        alike = [each for each in self._alike(head, now) if each is not file]
        if file.compressed:
            held = [each.generation for each in alike if each.generation is not None]
            unclaimed = [each for _, each in self._contents.unclaimed]
            return Comparison(file, head, [*held, *self._contents.orphans, *unclaimed], ())
        rivals = [each for each in alike if self._may_be_copied(each, file)]
        return Comparison(file, head, [each for each in self._contents.orphans if each.overwritten], rivals)

    def _alike(self, head: bytes, now: float) -> Iterable[OpenFile]:
        """Return the files of which one that begins with *head* may be a copy, as far as they are known. Where there
        are few, those are all.
        """
        if self._contents.heads is None:
            if len(self._contents.files) <= FEW:
                return self._contents.files
            self._contents.heads = Heads()
            self._contents.heads.unknown |= dict.fromkeys(self._contents.files)
        heads = self._contents.heads
        self._learn(heads, list(heads.unknown), now)
        short = [each for each in heads.alike(head) if heads.known(each) < ENOUGH]
        self._learn(heads, [each for each in short if _known(each.generation) > heads.known(each)], now)
        return sorted(heads.alike(head), key=attrgetter("place"))

    def _learn(self, heads: Heads, files: Iterable[OpenFile], now: float) -> None:
        """See how the contents of *files* begin, where they are still there."""
        for file in files:
            if file.generation is not None and not self._contents.fits(file, file.generation):
                self.anew(file, file.size, now)
            heads.unknown.pop(file, None)
            known = _known(file.generation)
            if not known:
                continue  # nothing is a copy of it
            try:
                heads.put(file, head_of(file.read(0, known)), known)
            except (OSError, CompressedError):
                heads.put(file, b"", 0)
            if file.done != NOWHERE:
                file.let_go()

    @staticmethod
    def _may_be_copied(original: OpenFile, copy: OpenFile) -> bool:
        """Say whether *copy* may have been made of *original*, which is then truncated: it keeps its name."""
        generation = original.generation
        if generation is None or not generation.reached.offset or original.compressed:
            return False
        stays = original.removed is None and not original.renamed
        return stays and original.name != copy.name and original.born <= copy.born

    def _find_overwritten(self, copy: OpenFile, comparison: Comparison, now: float) -> bool:
        """Return whether something that *copy* may have been made of was truncated since it was looked at, so that
        *copy* was compared with what came after it.
        """
        heads = self._contents.heads
        alike = self._contents.files if heads is None else heads.unsure(comparison.head, comparison.serial)
        found: list[OpenFile] = []
        for each in alike:
            if each.generation is None or not self._may_be_copied(each, copy):
                continue
            if not self._contents.fits(each, each.generation):
                found.append(each)
            elif heads is not None:
                heads.sure(each)
        for each in found:
            self.anew(each, each.size, now)
        return bool(found)

    def _waits_for_original(self, file: OpenFile, comparison: Comparison) -> bool:
        """Say whether the one that *file* is made of may be open, and is read first: then all is compared again."""
        for each in reversed(comparison.agreeing()):
            if each.held:
                del self._comparisons[file]
                file.original = each
                return True
        if any(each.size and self._goes_first(each, file) for each in self._contents.timed.plain()):
            del self._comparisons[file]
            return True
        return False

    @staticmethod
    def _goes_first(each: OpenFile, copy: OpenFile) -> bool:
        if each.generation is not None:
            return not each.generation.read.offset
        return not each.known and copy.name == f"{each.name}.gz"

    def _judge(self, file: OpenFile, comparison: Comparison, now: float) -> bool:
        """Decide what *file* holds; return whether it can be read now, or compared anew."""
        seconds = self._contents.tail.settings.rotated_seconds
        recently = now - file.changed < seconds and now - file.added < _SUSPICIONS * seconds
        if file.compressed and self._waits_for_original(file, comparison):
            return False
        found = comparison.original()
        if found is None:
            if self._contents.unclaimed and now - self._contents.restored_at < seconds:
                return False  # what it may be a copy of, or follow, is still to be handed over
            if (comparison.rivals or file.compressed) and not comparison.pointless and recently:
                return False  # its original may be truncated soon, or it is still being written
            del self._comparisons[file]
            if not self._find_overwritten(file, comparison, now):
                self._contents.begin(file, 0)
            return True
        if found in self._contents.unclaimed.still(found.inode) and now - self._contents.restored_at < seconds:
            return False
        del self._comparisons[file]
        if comparison.complete and comparison.at <= found.read.offset:
            self._contents.twin(file, found, comparison.at)
            return False
        self._contents.hand_on(found, file)
        return True


def _known(generation: Generation | None) -> int:
    """Return of how many bytes it is known how *generation* begins, of those that count."""
    return min(generation.reached.offset, ENOUGH) if generation is not None else 0
