"""The sockets of pods that ask for their own certificate: there as long as the pod is."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

from nodeagent.control.pod_sockets import PodSockets
from nodeagent.parts import Parts
from nodeagent.vocabulary import PodUid
from tests.unit.control.scene import Certificates, play, snapshot
from tests.waiting import until

A = PodUid("a")


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True


def test_a_pod_has_a_socket_as_long_as_it_is_there_and_somebody_serves_it(tmp_path: Path) -> None:
    """Verdict: a folder each; that of a pod which is gone is removed, the others stay for the next
    daemon; a socket that was removed is made again.
    """

    async def scene() -> None:
        sockets = PodSockets(tmp_path, Certificates().current, None, "cluster.local", check_seconds=0.01)
        parts = Parts(sleep=lambda _: asyncio.sleep(0))
        async with sockets.run(parts):
            now = snapshot(asking=["a", "b"])
            sockets.changed(now)
            sockets.grown(now)
            a, b = (tmp_path / "pods" / uid / "socket" for uid in ("a", "b"))
            assert connects(a)
            assert connects(b)
            now = snapshot(asking=["b"])
            sockets.changed(now)
            sockets.grown(now)
            assert not a.parent.exists()
            assert connects(b)
            b.unlink()
            await until(b.exists)
            assert connects(b)
            parts.stop()
        assert not b.exists()
        assert b.parent.is_dir()
        assert sockets.missing() == []

    play(scene)


def test_a_pod_that_gets_another_sandbox_finds_its_socket_in_the_same_folder(tmp_path: Path) -> None:
    """Input: a pod with a volume, which shows the folder itself, is without a sandbox for a moment, then
    has another, then is gone. Verdict: the folder is the same until it is gone.
    """

    async def scene() -> None:
        sockets = PodSockets(tmp_path, Certificates().current, None, "cluster.local", check_seconds=0.01)
        folder = tmp_path / "pods" / "a"
        shown: list[tuple[bool, bool]] = []
        for asking in (["a"], [], ["a"]):
            now = replace(snapshot(asking=asking), here=frozenset({A}))
            sockets.changed(now)
            sockets.grown(now)
            if not shown:
                mounted = folder.stat()
            shown.append((folder.stat().st_ino == mounted.st_ino, connects(folder / "socket")))
        assert shown == [(True, True), (True, False), (True, True)]
        sockets.changed(replace(snapshot(), here=frozenset({A})))
        assert folder.is_dir()
        sockets.changed(snapshot())
        assert not folder.exists()
        sockets.close()

    play(scene)
