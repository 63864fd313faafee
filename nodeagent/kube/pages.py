"""Lists, read page by page, with as much in each page as the server can give at once.

A page is asked for anew with fewer objects where its answer is too large for who asks or for what is
between, or does not come in time: a list of large objects is no list that cannot be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import AnswerTooLargeError, LateAnswerError

if TYPE_CHECKING:
    from nodeagent.protocols.pods_pb2 import Pod

LARGE: Final = frozenset((413, 504))
"""What is said of what is too much: "content too large", and a gateway's, or the API server's own, that
waited too long for it.
"""
LATE_SHARE: Final = 8
"""After an answer that did not come in time so much fewer are asked for: each takes all of its time."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: Iterable[KubeObject | Pod]
    more: str
    """Where the next page is; empty: there is none."""
    version: str


AskPage = Callable[[dict[str, str]], Awaitable[Page]]
"""Returns the page that a query's ``limit`` and ``continue`` name. Raises ApiError."""


async def pages(ask: AskPage, most: int) -> AsyncGenerator[Page, None]:
    """Yield the pages of a list, of *most* objects at most; the server works on the next one while this
    one is read. Close the iterator (``contextlib.aclosing``) to leave it early. Raises ApiError, of
    which status 410 says that the list has become too old to be read on.
    """
    reader = _Reader(ask, most)
    following = asyncio.ensure_future(reader.page(""))
    try:
        page = await following
        while page.more:
            following = asyncio.ensure_future(reader.page(page.more))
            yield page
            page = await following
        yield page
    finally:
        following.cancel()


class _Reader:
    def __init__(self, ask: AskPage, most: int) -> None:
        self._ask = ask
        self._size = most

    async def page(self, more: str) -> Page:
        """Return the page at *more*, with so many objects as the server can give. Raises ApiError."""
        while True:
            try:
                return await self._ask({"limit": str(self._size), **({"continue": more} if more else {})})
            except ApiError as error:
                share = _share(error)
                if share == 1 or self._size == 1:
                    raise
                self._size = max(1, self._size // share)


def _share(error: ApiError) -> int:
    """Return by how much less is asked for after *error*; 1: less would help nothing."""
    if isinstance(error, LateAnswerError):
        return LATE_SHARE
    return 2 if isinstance(error, AnswerTooLargeError) or error.status in LARGE else 1


def as_page(document: KubeObject) -> Page:
    """Return the page that *document*, a list, is; what is not as it should be counts as not there."""
    items = document.get("items")
    listed = [item if isinstance(item, dict) else {} for item in (items if isinstance(items, list) else ())]
    found = document.get("metadata")
    metadata = found if isinstance(found, dict) else {}
    return Page(listed, _text(metadata.get("continue")), _text(metadata.get("resourceVersion")))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
