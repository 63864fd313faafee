"""The order in which control brings the node to a change: what is there already, which may be
forbidden now, waits for nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.control.in_force import InForce
from nodeagent.control.main import Control
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import Trust
from nodeagent.identity.store import Certificates
from nodeagent.mesh.entries import Delta
from nodeagent.mesh.local import LocalPod
from nodeagent.places.place import Place
from nodeagent.resources.changes import Change
from nodeagent.vocabulary import PodUid, SpiffeId

OLD, NEW = PodUid("old"), PodUid("new")


class Silent:
    """An authority that never answers."""

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        await asyncio.Event().wait()
        raise AssertionError("it never answers")

    def trust(self) -> Trust:
        return Trust(b"", "nobody")


class Stage:
    """A control whose parts note what they are told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.there: set[PodUid] = set()
        self.captured: set[PodUid] = set()
        self.planned: set[PodUid] = set()
        control = self.control = Control.__new__(Control)
        control._listed, control._kernel_behind, control._unpruned = True, False, False
        control.config = SimpleNamespace(redirect=SimpleNamespace(enroll=True))  # type: ignore[assignment]
        control.store = None  # type: ignore[assignment]
        control.certificates = Certificates(Silent(), 60, lambda _: None, lambda _: None)
        control.mesh = SimpleNamespace(
            apply=self._apply, local_pods=self._pods, asking_pods=lambda: (), node_addresses=lambda: ()
        )  # type: ignore[assignment]
        control.workers = SimpleNamespace(  # type: ignore[assignment]
            entries=list, apply=lambda _: None, forget=lambda _: None, node=lambda _: None, generation=1
        )
        control.in_force = InForce()
        control.enrolment = SimpleNamespace(keep=self._keep, add=self._add)  # type: ignore[assignment]
        control.pod_sockets = SimpleNamespace(reconcile=lambda _: None)  # type: ignore[assignment]
        control.kernel_paths = SimpleNamespace(  # type: ignore[assignment]
            update=self._update,
            close_refused=lambda _: self.told.append("closed"),
            knows_all=lambda: self.planned == self.captured,
        )

    def _apply(self, change: list[Any]) -> Delta:
        words, *pods = change
        self.told.append(words.name)
        self.there |= {PodUid(pod.name) for pod in pods}
        return Delta()

    def _pods(self) -> tuple[LocalPod, ...]:
        return tuple(_pod(uid) for uid in self.there)

    def _keep(self, pods: Mapping[PodUid, LocalPod]) -> None:
        self.captured &= set(pods)

    def _add(self, pods: Mapping[PodUid, LocalPod]) -> None:
        new = set(pods) - self.captured
        self.captured |= new
        self.told += sorted(new)

    def _update(self, _: object) -> None:
        self.planned = set(self.captured)
        self.told.append("planned")


def _change(name: str) -> Change:
    return Change("", "", name, None)


def _pod(uid: PodUid) -> LocalPod:
    return LocalPod(
        uid,
        uid,
        "default",
        (),
        SpiffeId(f"spiffe://cluster.local/ns/default/sa/{uid}"),
        Place("", ""),
        frozenset(),
        frozenset(),
    )


def test_what_is_forbidden_waits_for_no_certificate() -> None:
    """Input: two batches in a row, a DENY with a new pod, then another DENY; no certificate ever
    comes. Verdict: for each the kernel path is planned and connections are closed before anything
    is done for the new pod, and the loop is not left in between.
    """
    stage = Stage()

    async def batches() -> AsyncIterator[list[Any]]:
        yield [_change("deny"), _change(OLD), _change(NEW)]
        yield [_change("deny again")]

    async def scene() -> None:
        work = asyncio.create_task(stage.control.certificates.run())
        stage.there, stage.captured, stage.planned = {OLD}, {OLD}, {OLD}
        stage.control.source = SimpleNamespace(changes=batches().__anext__)  # type: ignore[assignment]
        with pytest.raises(StopAsyncIteration):
            await stage.control._watch()
        assert stage.told == [
            "planned",
            "closed",
            "deny",
            "planned",
            "closed",
            NEW,
            "planned",
            "closed",
            "deny again",
            "planned",
            "closed",
        ]
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(scene())


def test_the_kernel_path_is_not_confirmed_while_pods_cannot_be_brought_to_a_change() -> None:
    """Input: a change, and what keeps pods captured fails. Verdict: the kernel's part is behind,
    and made good by the check of the pods.
    """
    stage = Stage()
    control = stage.control

    def fail(_: object) -> None:
        raise RuntimeError("of the pods")

    control.enrolment = SimpleNamespace(keep=fail)  # type: ignore[assignment]
    control._apply([_change("deny")])
    with pytest.raises(RuntimeError):
        control._reconcile()
    assert control._kernel_behind
    control._update_kernel_paths()
    assert not control._kernel_behind
