"""Kubernetes' API server in memory, over HTTPS on loopback: lists, watches, server-side apply, events.

What it keeps of the protocol is what the API's documentation says (API concepts: "Efficient
detection of changes", "Streaming lists"): one version for all, watches from a version on, bookmarks,
410 for a version that is forgotten. What goes wrong in clusters can be had on demand. The real one
is in tests/kube.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.tls import load_chain
from nodeagent.kube.access import Access
from nodeagent.kube.client import PROTOBUF
from nodeagent.kube.kinds import FOLLOWED, WatchedKind
from nodeagent.kube.pod_messages import MAGIC
from tests.fakes.kube_protobuf import encoded

Document = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace and name."""
DEEP = "something deep"
"""A text in a document for which it says lists in lists, deeper than most can read."""
_DEEP = b"[" * 2000 + b"]" * 2000
CLUSTER_WIDE = ("Namespace", "Node", "NodeStatus", "ValidatingAdmissionPolicy")
EVENTS = WatchedKind("Event", "events.k8s.io", ("v1",), "events")


class FakeKubeApi:
    """The server; its objects are changed by :meth:`put` and :meth:`remove`."""

    def __init__(self, folder: Path, kinds: tuple[WatchedKind, ...] = (*FOLLOWED, EVENTS)) -> None:
        authority = CertificateAuthority.open_or_create(folder / "api", "cluster.local")
        certificate = authority.issue_server(("127.0.0.1",), 3600)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_chain(self._context, certificate.chain_pem, certificate.key_pem)
        self._roots = authority.roots_pem.decode()
        self.kinds = {each.plural: each for each in kinds}
        self.served = set(self.kinds)
        """Plurals of the kinds that it has by now."""
        self.undiscovered: set[str] = set()
        """Kinds of which discovery says nothing yet, as while a server starts."""
        self.starting: set[str] = set()
        """Kinds that are answered with 503 by now."""
        self.groups: set[str] = set()
        """Further API groups."""
        self.forbidden: set[str] = set()
        """Plurals that nobody may touch."""
        self.terminating: set[str] = set()
        """Namespaces that take nothing new."""
        self.full: set[str] = set()
        """Namespaces whose quota is used up."""
        self.misrouted: set[str] = set()
        """Plurals of kinds that it has and does not find, as behind a load balancer that is wrong."""
        self.streams = True
        """It can list by a stream."""
        self.trickles = False
        """Watches that are stuck say again and again that nothing has changed, and never end."""
        self.stuck = False
        """It agrees to every watch, and says nothing."""
        self.most = 1_000_000
        """Objects of a page that it can give; what it answers who asks for more says ``unable``."""
        self.unable = 413
        """A status; 0: it says nothing."""
        self.forgets = 0
        """How many of the next pages behind a first one it has forgotten."""
        self.protobuf = True
        """It answers in protobuf who asks for it."""
        self.objects: dict[Key, Document] = {}
        self.logs: dict[tuple[str, str], str] = {}
        """What containers printed, by pod and container; of others a log has no end."""
        self.requests: list[tuple[str, str]] = []
        self._version = 100
        self._oldest = 0
        self._history: list[tuple[int, str, str, Document]] = []
        self._changed = asyncio.Condition()
        self._watches: set[asyncio.Task[Any]] = set()
        self._stuck: set[asyncio.Task[Any]] = set()
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Access:
        """Listen, at the same port again after :meth:`stop`; return how to get there."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return Access(f"https://127.0.0.1:{self._port}", ssl.create_default_context(cadata=self._roots), token="t")

    async def stop(self) -> None:
        """Be away."""
        self.tear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def tear(self) -> None:
        """Break every watch off."""
        for task in list(self._watches):
            task.cancel()

    def stick(self) -> None:
        """Say nothing any more in the watches that there are."""
        self._stuck |= self._watches

    def restore(self) -> None:
        """Begin again with an early version, as with an etcd that was restored; every watch breaks off."""
        self._version = 10
        self._history.clear()
        self.tear()

    def forget(self) -> None:
        """Forget what changed until now: who watches from an earlier version gets 410."""
        self._oldest = self._version
        self._history.clear()

    def put(self, document: Document) -> None:
        """Have *document* as the object that its metadata names."""
        plural = next(each.plural for each in self.kinds.values() if each.kind == document["kind"])
        metadata = document["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        self._version += 1
        stored = {**document, "metadata": {**metadata, "resourceVersion": str(self._version)}}
        what = "MODIFIED" if key in self.objects else "ADDED"
        self.objects[key] = stored
        self._note(what, plural, stored)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        plural = next(each.plural for each in self.kinds.values() if each.kind == kind)
        gone = self.objects.pop((plural, namespace, name))
        self._version += 1
        metadata = {**gone["metadata"], "resourceVersion": str(self._version)}
        self._note("DELETED", plural, {**gone, "metadata": metadata})

    def say(self, what: str, document: Document) -> None:
        """Tell the watches something that is no change: late, twice, or never true."""
        plural = next(each.plural for each in self.kinds.values() if each.kind == document["kind"])
        self._version += 1
        self._note(what, plural, document)

    def of(self, kind: str) -> list[Document]:
        """Return the objects of *kind*."""
        plural = next(each.plural for each in self.kinds.values() if each.kind == kind)
        return [document for (found, _, _), document in self.objects.items() if found == plural]

    def _note(self, what: str, plural: str, document: Document) -> None:
        self._history.append((self._version, what, plural, document))

        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        parts = request.path.strip("/").split("/")
        if request.path == "/apis":
            return web.json_response(self._groups())
        if request.path == "/version":
            return web.json_response({"gitVersion": "v1.36.0"})
        if len(parts) == (3 if parts[0] == "apis" else 2):
            return self._resources(parts[1] if parts[0] == "apis" else "", parts[-1])
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else ""
        plural, *name = rest[2:] if namespace else rest
        kind = self.kinds.get(plural)
        if name[1:] == ["log"]:
            said = self.logs.get((name[0], request.query.get("container", "")))
            return web.Response(text=said) if said is not None else await self._endless(request)
        if kind is None or plural not in self.served or plural in self.misrouted:
            return web.Response(status=404, text="404 page not found\n")
        if plural in self.starting:
            return _status(503, "the server is currently unable to handle the request")
        if plural in self.forbidden:
            if self._in_protobuf(request, kind):  # what the server says of it is in that form, too
                return web.Response(status=403, body=MAGIC, content_type=PROTOBUF)
            return _status(403, f'{plural} is forbidden: User "agent" cannot do that')
        if request.method == "POST" and namespace in self.terminating:
            return _status(403, f"forbidden: unable to create new content in namespace {namespace}: being terminated")
        if request.method == "POST" and namespace in self.full:
            return _status(403, f'{plural} "a-" is forbidden: exceeded quota: q, used: count/{plural}=1, limited: 1')
        if request.method == "GET" and not name:
            return await (self._watch(request, kind) if "watch" in request.query else self._list(request, kind))
        return await self._one(request, kind, namespace, name[0] if name else "")

    def _groups(self) -> Document:
        groups: dict[str, list[Document]] = {name: [] for name in self.groups}
        for each in self.kinds.values():
            if each.group and each.plural in self.served - self.undiscovered:
                groups.setdefault(each.group, []).append(_version(each.group, each.versions[0]))
        return {"kind": "APIGroupList", "groups": [{"name": name, "versions": found} for name, found in groups.items()]}

    def _resources(self, group: str, version: str) -> web.Response:
        kinds = [each for each in self.kinds.values() if each.group == group and version in each.versions]
        known = self.served - self.undiscovered
        resources = [
            {"name": each.plural, "kind": each.kind, "namespaced": each.kind not in CLUSTER_WIDE}
            for each in kinds
            if each.plural in known
        ]
        return web.json_response({"kind": "APIResourceList", "resources": resources})

    def _in_protobuf(self, request: web.Request, kind: WatchedKind) -> bool:
        return kind.many and PROTOBUF in request.headers.get("Accept", "") and self.protobuf

    def _items(self, kind: WatchedKind, chosen: str) -> list[Document]:
        found = [self.objects[key] for key in sorted(self.objects) if key[0] == kind.plural]
        return [document for document in found if _selected(document, chosen)]

    async def _list(self, request: web.Request, kind: WatchedKind) -> web.Response:
        items = self._items(kind, request.query.get("labelSelector", ""))
        _, _, name = request.query.get("fieldSelector", "").partition("metadata.name=")
        items = [item for item in items if not name or item["metadata"]["name"] == name]
        begin = int(request.query.get("continue", "0"))
        limit = int(request.query.get("limit", "1000000"))
        if limit > self.most:
            return await self._unable()
        if begin and self.forgets:
            self.forgets -= 1
            return _status(410, "The provided continue parameter is too old")
        end = begin + limit
        metadata = {"resourceVersion": str(self._version)}
        if end < len(items):
            metadata["continue"] = str(end)
        if self._in_protobuf(request, kind):
            return web.Response(body=encoded(items[begin:end], metadata), content_type=PROTOBUF)
        bare = [{name: value for name, value in item.items() if name != "kind"} for item in items[begin:end]]
        return web.Response(body=_line({"kind": f"{kind.kind}List", "metadata": metadata, "items": bare}))

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        """Answer with a log that has no end, and says nothing."""
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async def _unable(self) -> web.Response:
        """Answer for what is too much."""
        if not self.unable:
            await asyncio.Event().wait()
        return _status(self.unable, "too much")

    async def _watch(self, request: web.Request, kind: WatchedKind) -> web.StreamResponse:
        initial = "sendInitialEvents" in request.query
        if initial and not self.streams:
            return _status(422, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch")
        since = self._version if initial else int(request.query["resourceVersion"])
        if since < self._oldest:
            return _status(410, "too old resource version")
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            chosen = request.query.get("labelSelector", "")
            if self.stuck:
                self._stuck.add(task)
            elif initial:
                await response.write(b"".join(self._initial(kind, since, chosen)))
            while True:
                if self.trickles and task in self._stuck:
                    metadata = {"resourceVersion": str(since)}
                    await response.write(_line({"type": "BOOKMARK", "object": {"metadata": metadata}}))
                    await asyncio.sleep(0.01)  # it is slow
                    continue
                for version, what, plural, document in [] if task in self._stuck else list(self._history):
                    if version > since and plural == kind.plural and _selected(document, chosen):
                        await response.write(_line({"type": what, "object": document}))
                since = max([since, *(version for version, *_ in self._history)])
                async with self._changed:
                    if not any(version > since for version, *_ in self._history):
                        await self._changed.wait()
        finally:
            self._watches.discard(task)
            self._stuck.discard(task)

    def _initial(self, kind: WatchedKind, version: int, chosen: str) -> Iterator[bytes]:
        for document in self._items(kind, chosen):
            yield _line({"type": "ADDED", "object": document})
        metadata = {"resourceVersion": str(version), "annotations": {"k8s.io/initial-events-end": "true"}}
        yield _line({"type": "BOOKMARK", "object": {"kind": kind.kind, "metadata": metadata}})

    async def _one(self, request: web.Request, kind: WatchedKind, namespace: str, name: str) -> web.Response:
        body: Document = json.loads(await request.read() or b"{}")
        if request.method == "POST":
            body["kind"] = kind.kind
            name = body["metadata"].setdefault("name", f"{body['metadata'].get('generateName', '')}{self._version}")
            if namespace:
                body["metadata"]["namespace"] = namespace
        before = self.objects.get((kind.plural, namespace, name))
        applied = request.content_type == "application/apply-patch+yaml"
        if before is None and not applied and request.method != "POST":
            return _status(404, f"{kind.plural} {name!r} not found")
        if request.method == "GET":
            return web.json_response(before)
        if request.method == "DELETE":
            self.remove(kind.kind, namespace, name)
            return web.json_response({"kind": "Status"})
        merged = body if applied or before is None else _merged(before, body)
        self.put(merged)
        return web.json_response(self.objects[kind.plural, namespace, name])


def _selected(document: Document, selector: str) -> bool:
    """Say whether *document* is of those that *selector* asks for: ``LABEL!=VALUE``, or empty for all."""
    label, _, value = selector.partition("!=")
    return not selector or (document["metadata"].get("labels") or {}).get(label) != value


def _merged(document: Document, patch: Document) -> Document:
    """Return *document* with *patch* (RFC 7396, without what removes)."""
    found = dict(document)
    for name, value in patch.items():
        if isinstance(value, dict):
            found[name] = _merged(found.get(name) or {}, value)
        else:
            found[name] = value
    return found


def _version(group: str, version: str) -> Document:
    return {"groupVersion": f"{group}/{version}", "version": version}


def _line(event: Document) -> bytes:
    return json.dumps(event).encode().replace(b'"%b"' % DEEP.encode(), _DEEP) + b"\n"


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)
