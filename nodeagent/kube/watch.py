"""Follows all objects of one kind for ever: lists them, watches from there, and goes on where it was
when the connection ends.

Theory of operation
-------------------

A watch is a stream of JSON lines (Kubernetes API concepts, "Efficient detection of changes"). Each
event carries an object and with it the version up to which the stream has come; a BOOKMARK carries
only that. Where a stream ends the next one begins at that version, so nothing is missed, and a
server that has forgotten it says so (410), whereupon everything is listed anew.

The listing is a stream too (``sendInitialEvents``): every object as if it had just been added, then
a bookmark that says that this was all. So no more than one object is in memory at a time, however
many there are. A server that does not do that (before Kubernetes 1.32, or with an etcd that tells
no progress) is asked for pages.

    list ──▶ watch ──▶ the stream ends ──▶ watch from the last version ──▶ 410 ──▶ list
      ▲         │ error, or a stream that said nothing: a pause that grows, with jitter
      └─────────┴─ 404: the kind is gone, if discovery says so too; it is looked for again

A stream that says nothing for three minutes is left, as is one that goes on though its time is over
(whoever is between may repeat himself for ever), and the server asked how far it is: it may be stuck,
or behind the version that was watched from, as after its etcd was restored; then everything is
listed anew. The kernel notices neither, as somebody still acknowledges. Most are just quiet: there is
no bookmark either while the kind's version stays.

An event that cannot be read, as it is too long, is passed over, lest it end every watch that comes to
it. What it said is in the next listing: at once, then once a minute at most, and by pages, in which a
pod is smaller.

What comes is handed to a :class:`Sink` at once. Between ``begin`` and ``listed`` the sink learns what
there is: what it does not hear of is gone. It is told of each failure once, in words.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlencode

import orjson

from nodeagent.kube import shallow
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import JSON, MAX_LINE, PROTOBUF, KubeClient, as_document
from nodeagent.kube.kinds import WatchedKind
from nodeagent.kube.pages import Page, as_page, pages
from nodeagent.memory import uncollected

if TYPE_CHECKING:
    from nodeagent.protocols.pods_pb2 import Pod

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
LOOK_SECONDS: Final = 30.0
"""How often a kind is looked for that the cluster does not have."""
WATCH_SECONDS: Final = (300.0, 600.0)
"""How long one stream is asked for: not all end at once."""
LATE_SECONDS: Final = 30.0
"""After which a stream is left that the server should have ended."""
SILENT_SECONDS: Final = 180.0
"""After which a stream is left, and the server asked how far it is."""
LISTING_SECONDS: Final = 60.0
"""The same while it lists."""
RELIST_SECONDS: Final = 60.0
"""Between two listings for events that could not be read."""
PAGE: Final = 250
"""Objects of a listing in pages, where they are not too large together."""
TURN: Final = 32
"""Objects that are read before others have a turn."""
INITIAL_END: Final = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends a listing."""
GONE: Final = 410
_PASSING: Final = (0, 429)
"""No answer, and "too many requests", which is also said of a kind that has just come."""
DENIED: Final = (401, 403)
"""What says that a right is missing."""
Sleep = Callable[[float], Awaitable[None]]
log = logging.getLogger("nodeagent.kube")


class _NoStreamsError(ApiError):
    """Everything is to be listed by pages: the server cannot list by a stream."""


class _UnreadableError(ApiError):
    """Everything is to be listed by pages: the stream has something that cannot be read."""


class Sink(Protocol):
    """Who wants to know what objects of a kind there are."""

    def begin(self) -> None:
        """A listing begins."""

    def put(self, document: KubeObject) -> None:
        """*document* is there, or has changed."""

    def put_pod(self, pod: Pod) -> None:
        """*pod* is there, or has changed: of a kind of which there may be many."""

    def gone(self, document: KubeObject) -> None:
        """*document* is there no more; that is how it was last."""

    def listed(self) -> None:
        """What was put since the listing began was everything."""

    def absent(self) -> None:
        """The cluster does not have the kind."""

    def failed(self, why: str, status: int) -> None:
        """Following does not work, for the reason *why*; empty: it works again. *status*: of HTTP,
        0 where nobody answered.
        """


class Watch:
    """Follows *kind* for *sink*. *appears* returns when a kind that the cluster lacks may have come; None:
    nobody knows, and it is looked for now and then. *sleep*, *uniform* and *now*, a steady clock in
    seconds, are injected for tests.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: WatchedKind,
        sink: Sink,
        *,
        appears: Callable[[WatchedKind], Awaitable[None]] | None = None,
        sleep: Sleep = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._kind = kind
        self._sink = sink
        self._appears = appears
        self._sleep = sleep
        self._uniform = uniform
        self._now = now
        self._path = ""
        self._version = ""
        """Up to which everything is known; empty: nothing is."""
        self._streamed = True
        """The last listing was asked for by a stream."""
        self._missed = False
        """An event could not be read since the last listing."""
        self._relist_at = float("-inf")
        """When there may be a listing for that, by the clock."""
        self._pause = FIRST_PAUSE
        self._wrong = ""
        self._status = 0
        """Of HTTP, of what is wrong."""

    async def run(self) -> None:
        """Follow, until cancelled."""
        while True:
            try:
                if not self._path and not await self._found():
                    self._version = ""
                    self._sink.absent()
                    self._tell("")
                    await self._appearance()
                    continue
                heard = await self._follow()
            except ApiError as error:
                self._learn(error)
                heard = False
            if not heard:
                await self._sleep(self._pause * self._uniform(0.5, 1.0))
                self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _appearance(self) -> None:
        """Wait until the kind, which the cluster lacks, may have come."""
        if self._appears is not None:
            await self._appears(self._kind)
        else:
            await self._sleep(LOOK_SECONDS * self._uniform(0.8, 1.2))

    async def _found(self) -> bool:
        """Say whether the cluster has the kind, and where. Raises ApiError."""
        kind = self._kind
        if kind.builtin:
            self._path = kind.path(kind.versions[0])
            return True
        version = await served(self._client, kind) or await self._undiscovered()
        self._path = kind.path(version) if version else ""
        return bool(version)

    async def _undiscovered(self) -> str:
        """Return the version at which the kind is though discovery does not say so; empty: at none. Raises ApiError.

        While a server starts its discovery fills up, without a word (kubernetes/kubernetes#89145); what
        is asked for itself is there then, or answered with 503. Who believed discovery alone would
        take every policy away.
        """
        for version in self._kind.versions:
            try:
                await self._client.get(f"{self._kind.path(version)}?limit=1")
            except ApiError as error:
                if error.status != 404:
                    raise
                continue
            return version
        return ""

    async def _follow(self) -> bool:
        """Follow one stream to its end; say whether it said anything. Raises ApiError."""
        self._streamed = self._client.streams and not self._missed
        if not self._version and not self._streamed:
            with uncollected():  # a page is hundreds of objects that stay for as long as it is read
                await self._list_pages()
        try:
            return await self._stream()
        except TimeoutError:
            return await self._silent()

    async def _stream(self) -> bool:
        """Follow one stream to its end; say whether it said anything. Raises ApiError; TimeoutError when it
        has said nothing for too long, or the server does not end it.
        """
        heard = False
        seconds = int(self._uniform(*WATCH_SECONDS))
        lines = self._client.lines(f"{self._path}?{self._query(seconds)}", self._granted)
        last = asyncio.get_running_loop().time() + seconds + LATE_SECONDS
        async with asyncio.timeout_at(last) as limit, aclosing(lines):
            if not self._version:
                self._sink.begin()
            self._wait(limit, last)
            async for line in lines:
                self._take(line)
                heard = True
                if self._missed and self._now() >= self._relist_at:
                    self._relist_at = self._now() + RELIST_SECONDS
                    self._version = ""
                    break
                self._wait(limit, last)
        return heard

    def _wait(self, limit: asyncio.Timeout, last: float) -> None:
        """Have *limit* end when nothing comes for too long, or at *last* whatever comes, by the loop's clock."""
        seconds = SILENT_SECONDS if self._version else LISTING_SECONDS
        limit.reschedule(min(asyncio.get_running_loop().time() + seconds, last))

    async def _silent(self) -> bool:
        """The stream has said nothing for too long, or does not end: see whether the server is behind what
        is known from it. Raises ApiError, while the stream lists too.
        """
        if not self._version:
            raise ApiError(
                f"watch {self._path}: the listing stopped: nothing came for {LISTING_SECONDS:g} s, or it has no end"
            )
        there = as_page(await self._client.get(f"{self._path}?limit=1")).version
        if newer(self._version, there):
            log.warning("%s: the server is at %s, behind %s: all are listed anew", self._path, there, self._version)
            self._version = ""
        return True

    def _granted(self) -> None:
        """The server lets the agent watch: what it goes on from is known, and it may be a minute until
        anything comes. Other faults are over when something has come.
        """
        if self._version and self._status in DENIED:
            self._tell("")

    def _query(self, seconds: int) -> str:
        wanted = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        wanted |= self._selected()
        if self._version:
            wanted["resourceVersion"] = self._version
        else:
            wanted |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return urlencode(wanted)

    def _selected(self) -> dict[str, str]:
        return {"labelSelector": self._kind.labels} if self._kind.labels else {}

    async def _list_pages(self) -> None:
        """List everything, page by page. Raises ApiError."""
        self._sink.begin()
        version = ""
        async with aclosing(pages(self._page, PAGE)) as listed:
            async for page in listed:
                await self._put(page)
                version = page.version
        if not version:
            raise ApiError(f"GET {self._path}: the list says no metadata.resourceVersion")
        self._version = version
        self._missed = False
        self._listed()

    async def _page(self, wanted: dict[str, str]) -> Page:
        path = f"{self._path}?{urlencode({**wanted, **self._selected()})}"
        if self._kind.many:
            return await _pods(self._client, path)
        return as_page(await self._client.get(path))

    async def _put(self, page: Page) -> None:
        for number, item in enumerate(page.items):
            if isinstance(item, dict):
                self._sink.put(item)
            else:
                self._sink.put_pod(item)
            if number % TURN == 0:
                await asyncio.sleep(0)  # whoever else is there has a turn

    def _listed(self) -> None:
        self._sink.listed()
        self._tell("")
        self._pause = FIRST_PAUSE

    def _take(self, line: bytes) -> None:
        """Take one event. Raises ApiError."""
        try:
            event = _mapping(shallow.loads(line))
        except orjson.JSONDecodeError as error:
            self._miss(f"an event is not JSON: {error}" if line else f"an event has more than {MAX_LINE} bytes")
            return
        document = _mapping(event.get("object"))
        what = event.get("type")
        if what == "ERROR":
            raise self._error(document)
        if what in ("ADDED", "MODIFIED"):
            self._sink.put(document)
        elif what == "DELETED":
            self._sink.gone(document)
        self._advance(_mapping(document.get("metadata")))

    def _miss(self, why: str) -> None:
        """An event cannot be read. Raises ApiError while the stream lists: without it that is not everything."""
        if not self._missed:
            log.warning("watch %s: %s; all are listed anew", self._path, why)
        self._missed = True
        if not self._version:
            raise _UnreadableError(f"watch {self._path}: {why}")

    def _error(self, document: KubeObject) -> ApiError:
        """Return the error that the server put into the stream."""
        code = document.get("code")
        said = f"watch {self._path}: the server says: {str(document.get('message'))[:300]}"
        if not self._version and code != GONE:
            return _NoStreamsError(said)  # as with an etcd that tells no progress
        return ApiError(said, code if isinstance(code, int) else 0)

    def _advance(self, metadata: KubeObject) -> None:
        """Note how far the stream has come; while it lists, that is told by the last bookmark alone."""
        version = metadata.get("resourceVersion")
        if not isinstance(version, str) or not version:
            return
        if self._version:
            if newer(version, self._version):
                self._version = version
            self._pause = FIRST_PAUSE
            self._tell("")
        elif _mapping(metadata.get("annotations")).get(INITIAL_END) == "true":
            self._version = version
            self._listed()

    def _learn(self, error: ApiError) -> None:
        """Say what is wrong, and what the next attempt does otherwise."""
        if error.status == GONE:
            self._version = ""
            log.info("%s: what changed meanwhile is not known any more: all are listed anew", self._path)
            return
        if isinstance(error, _UnreadableError):
            return
        if not self._version and self._streamed and (isinstance(error, _NoStreamsError) or error.status in (400, 422)):
            self._list_by_pages(error)
            return
        if (error.status in _PASSING or error.status >= 500) and self._pause == FIRST_PAUSE:
            log.debug("%s; it is tried again", error)  # streams break off every now and then
            return
        if error.status == 404:
            self._path = ""
        words = f"{self._kind.plural}: {error}"
        if error.status == 403:
            words += f"; the agent's ClusterRole wants the rule {self._kind.rule}"
        self._tell(words, error.status)

    def _list_by_pages(self, error: ApiError) -> None:
        if self._client.streams:
            log.info("this API server lists by pages: %s", error)
        self._client.streams = False

    def _tell(self, words: str, status: int = 0) -> None:
        if words == self._wrong:
            return
        self._wrong = words
        self._status = status
        self._sink.failed(words, status)


async def served(client: KubeClient, kind: WatchedKind) -> str:
    """Return the first of *kind*'s versions that the cluster serves, empty: it has no such kind.
    Raises ApiError; what is no discovery document is one, lest a wrong answer pass for "none".
    """
    groups = (await client.get("/apis")).get("groups")
    if not isinstance(groups, list):
        raise ApiError("GET /apis: the answer is no APIGroupList")
    known: list[object] = []
    for group in map(_mapping, groups):
        if group.get("name") == kind.group:
            known += [_mapping(each).get("version") for each in group.get("versions") or ()]
    for version in kind.versions:
        if version in known:
            listed = (await client.get(f"/apis/{kind.group}/{version}")).get("resources")
            if not isinstance(listed, list):
                raise ApiError(f"GET /apis/{kind.group}/{version}: the answer is no APIResourceList")
            if any(_mapping(each).get("name") == kind.plural for each in listed):
                return version
    return ""


def newer(version: str, other: str) -> bool:
    """Say whether the resource version *version* is later than *other*. Both are decimal numbers
    (KEP-5504); what is none counts as later, as nothing is known of it.
    """
    if not (version.isdecimal() and other.isdecimal()):
        return version != other
    return int(version) > int(other)


async def _pods(client: KubeClient, path: str) -> Page:
    """Return the page at *path* of a list of pods: in JSON too, where somebody stands before the API
    server who has no other. Raises ApiError.
    """
    from nodeagent.kube import pod_messages  # 0.4 MB, for a cluster alone

    try:
        content = await client.content(path, f"{PROTOBUF}, {JSON}")
    except ApiError as error:
        if not error.status:
            raise
        return as_page(await client.get(path))  # why not is in protobuf, too: JSON says it in words
    if not content.startswith(pod_messages.MAGIC):
        return as_page(as_document(f"GET {path}", content))
    found = pod_messages.read_list(content)
    return Page(found.items, getattr(found.metadata, "continue"), found.metadata.resourceVersion)


def _mapping(value: object) -> KubeObject:
    return value if isinstance(value, dict) else {}
