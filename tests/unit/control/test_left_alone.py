"""Pods outside of the mesh: what the kernel is told, in which order, and who of those it refused is named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest

from nodeagent.control.left_alone import KernelOutside, LeftAlonePods
from nodeagent.parts import Parts
from nodeagent.places.place import Place
from nodeagent.redirect.left_alone import Denial
from nodeagent.vocabulary import PodUid
from tests.unit.control.scene import play, snapshot
from tests.waiting import until

A, B = PodUid("a"), PodUid("b")


class Kernel:
    """Knows whom it was told of."""

    def __init__(self) -> None:
        self.pods: dict[PodUid, Place] = {}
        self.refused: set[PodUid] = set()
        self.denied: list[Denial] = []
        self.tries = 0
        self.unwritable = False
        self.asked: list[Collection[int]] = []

    def concern(self) -> LeftAlonePods:
        told = KernelOutside(
            self.admit, self.dismiss, lambda: frozenset(self.pods), lambda: self.denied, self.cgroup_names
        )
        return LeftAlonePods(told, check_seconds=0.001)

    def admit(self, pods: Mapping[PodUid, Place]) -> list[str]:
        self.tries += 1
        self.pods |= {uid: place for uid, place in pods.items() if uid not in self.refused}
        return [f"pod {uid} cannot be told" for uid in pods if uid in self.refused]

    def dismiss(self, pods: Collection[PodUid]) -> None:
        if self.unwritable:
            raise OSError("no")
        for uid in pods:
            del self.pods[uid]

    def cgroup_names(self, numbers: Collection[int]) -> dict[int, str]:
        self.asked.append(numbers)
        return {number: f"pod{number}/app" for number in numbers if number < 10}


def bring(concern: LeftAlonePods, *uids: PodUid, captured: Collection[str] = ()) -> None:
    left = {uid: Place(f"/run/netns/{uid}", "") for uid in uids}
    now = replace(snapshot(captured), left_alone=left)
    concern.changed(now)
    concern.grown(now)


def test_who_is_outside_is_known_until_it_is_gone() -> None:
    kernel = Kernel()
    concern = kernel.concern()
    bring(concern, A, B)
    assert kernel.pods == {A: Place("/run/netns/a", ""), B: Place("/run/netns/b", "")}
    bring(concern, B)
    assert kernel.pods.keys() == {B}
    assert concern.missing() == []


def test_one_that_is_captured_now_stays_until_the_data_plane_has_it() -> None:
    kernel = Kernel()
    concern = kernel.concern()
    bring(concern, A)
    bring(concern, captured=["a"])
    assert kernel.pods.keys() == {A}


def test_what_fails_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    concern = kernel.concern()

    async def scene() -> None:
        kernel.refused = {A}
        bring(concern, A, B)
        parts = Parts()
        async with concern.run(parts):
            await until(lambda: kernel.tries > 3, "it is tried again")
            assert kernel.pods.keys() == {B}
            kernel.refused.clear()
            await until(lambda: kernel.pods.keys() == {A, B}, "it is tried again")
            parts.stop()

    play(scene)
    assert [record.message for record in caplog.records] == ["pod a cannot be told"]


def test_a_map_that_cannot_be_written_is_said(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    concern = kernel.concern()
    bring(concern, A)
    kernel.unwritable = True
    bring(concern)
    assert "pods that are gone are still known as left alone" in caplog.text


def test_who_was_refused_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Verdict: an unknown one once, by its cgroup; one that is known by now as that; a storm in one line."""
    caplog.set_level(logging.INFO)
    kernel = Kernel()
    concern = kernel.concern()
    kernel.denied = [Denial(1, 7, 2, None), Denial(2, 70, 1, None), Denial(3, 8, 4, A)]
    concern._tell()
    concern._tell()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    unknown, vanished, known = (record.message for record in caplog.records)
    assert unknown.endswith("no pod that is known on this node; the process is in the cgroup pod7/app")
    assert vanished.endswith("the cgroup with number 70, which is gone")
    assert known == "pod a: 4 connections were refused before it was known (redirect.unknownPods: deny)"
    assert kernel.asked == [{7, 70}]
    caplog.clear()
    kernel.denied = [Denial(1, 7, 3, None), *(Denial(cookie, 7, 1, None) for cookie in range(10, 20))]
    concern._tell()
    assert len(caplog.records) == 8, "what is known already is not said again"
    assert caplog.records[-1].message == "connections of 3 more unknown network namespaces were refused"
