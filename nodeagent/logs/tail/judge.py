"""What a file is that nobody knows: a copy of what was read already, or a content of its own."""

from __future__ import annotations

from typing import Final

from nodeagent.logs.tail.contents import Contents
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.twins import Comparison
from nodeagent.logs.tail.unpacked import CompressedError

_SUSPICIONS: Final = 12
"""So many times ``rotated_seconds`` a file that goes on growing like another is taken for its copy."""


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
            if file in comparison.rivals and comparison.complete and comparison.at < old.read.offset:
                self._contents.twin(copy, old, comparison.at)
        self._comparisons.clear()

    def decide(self, file: OpenFile, now: float) -> bool:
        """Find out more of what *file* holds; return whether that may go on at once."""
        comparison = self._comparisons.get(file)
        if comparison is None:
            comparison = self._comparisons[file] = self._compare(file)
        try:
            more = not comparison.pointless and comparison.step()
        except OSError:
            if now - file.added < _SUSPICIONS * self._contents.tail.settings.rotated_seconds:
                del self._comparisons[file]
                return False  # the disk may give it yet; a copy that is taken for none comes twice
            comparison = self._comparisons[file] = Comparison(file, (), ())
            more = False
        except CompressedError:
            del self._comparisons[file]
            file.let_go()
            self._contents.begin(file, 0)  # reading it will say what is wrong
            return True
        return more or self._judge(file, comparison, now)

    def _compare(self, file: OpenFile) -> Comparison:
        if file.compressed:
            held = [
                each.generation for each in self._contents.files if each.generation is not None and each is not file
            ]
            unclaimed = [each for _, each in self._contents.unclaimed]
            return Comparison(file, [*held, *self._contents.orphans, *unclaimed], ())
        rivals = [each for each in self._contents.files if self._may_be_copied(each, file)]
        return Comparison(file, [each for each in self._contents.orphans if each.overwritten], rivals)

    @staticmethod
    def _may_be_copied(original: OpenFile, copy: OpenFile) -> bool:
        """Say whether *copy* may have been made of *original*, which is then truncated: it keeps its name."""
        generation = original.generation
        if generation is None or not generation.read.offset or original.compressed:
            return False
        stays = original.removed is None and not original.renamed
        return stays and original.name != copy.name and original.born <= copy.born

    def _find_overwritten(self, copy: OpenFile, now: float) -> bool:
        """Return whether something that *copy* may have been made of was truncated since it was looked at, so that
        *copy* was compared with what came after it.
        """
        originals = [each for each in self._contents.files if self._may_be_copied(each, copy)]
        found = [each for each in originals if each.generation and not self._contents.holds(each, each.generation)]
        for each in found:
            self.anew(each, each.size, now)
        return bool(found)

    def _waits_for_original(self, file: OpenFile, comparison: Comparison) -> bool:
        """Say whether the one that *file* is made of may be open, and is read first: then all is compared again."""
        open_ones = [each for each in self._contents.files if each is not file and each.generation is not None]
        for each in open_ones:
            if each.generation in comparison.agreeing():
                del self._comparisons[file]
                file.original = each.generation
                return True
        first = [each for each in open_ones if each.generation is not None and not each.generation.read.offset]
        first += [each for each in self._contents.files if not each.known and file.name == f"{each.name}.gz"]
        if any(each.size and not each.compressed for each in first):
            del self._comparisons[file]
            return True
        return False

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
            if not self._find_overwritten(file, now):
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
