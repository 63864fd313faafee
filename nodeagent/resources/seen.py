"""What can be seen of a text that is no YAML: mappings and lists that know whether all of them was
seen.

What is not in one that is not whole may stand there all the same: after the break, behind a merge
key (``<<``), or under a key that stands twice.
"""

from __future__ import annotations


class SeenMapping(dict[str, object]):
    """A mapping as far as it was seen; a key without a value has one that nobody knows."""

    __slots__ = ("whole",)

    def __init__(self, *, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        """Nothing but what was seen stands in it."""


class SeenList(list[object]):
    """A list as far as it was seen."""

    __slots__ = ("whole",)

    def __init__(self) -> None:
        super().__init__()
        self.whole = True
        """Nothing but what was seen stands in it."""


def is_whole(value: object) -> bool:
    """Say whether all keys or items of *value* were seen; what stands within them may not have been."""
    return not isinstance(value, SeenMapping | SeenList) or value.whole


def is_known(value: object) -> bool:
    """Say whether *value* and everything within it was seen."""
    if not is_whole(value):
        return False
    if isinstance(value, dict):
        return all(is_known(each) for each in value.values())
    return not isinstance(value, list) or all(is_known(each) for each in value)
