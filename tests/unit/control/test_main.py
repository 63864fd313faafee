"""How control begins and ends: in which order its concerns start, and what stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.channel import pair
from nodeagent.config import AgentConfig
from nodeagent.control.concern import Concern
from nodeagent.control.main import Beginning, Concerns, hurried, run, start
from nodeagent.messages import Begin, ToSupervisor
from nodeagent.pulse import Pulses
from nodeagent.wire import MessageError, encode
from tests.unit.control.scene import Noted, play


def config(runtime: Path) -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "node": "n1",
            "source": "/",
            "redirect": {"cgroup": "/"},
            "identity": {"caDirectory": "/"},
            "runtimeDirectory": str(runtime),
            "telemetry": {"adminPort": 0, "metricsPort": 0, "readyPort": 0},
            "proxy": {"timeouts": {"stop": 0.1}},
        }
    )


def test_a_control_that_is_told_what_no_supervisor_tells_ends_for_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: a message of a later version, before it may begin. Verdict: it fails by name and
    begins nothing: it cannot know what was kept for it.
    """

    async def scene() -> None:
        ours, theirs = pair()
        ours.send(b'{"op": "Kept", "names": []}')
        ours.send(encode(Begin())[0])

        async def nothing(beginning: Beginning) -> None:
            """Nothing takes long."""

        monkeypatch.setattr("nodeagent.control.main.prepare", nothing)
        with pytest.raises(MessageError, match="Kept: files is missing"):
            await run(config(tmp_path), theirs, Pulses().claim())
        ours.close()

    play(scene)


class Piece(Noted):
    """A concern with what the composition asks of one or the other beside that."""

    def observe(self, observer: object) -> None:
        """Certificates: nobody is told."""

    def adopt(self, inherited: object) -> None:
        """Certificates: nothing is inherited."""

    def behind(self, generation: int) -> list[str]:
        return []

    def warnings(self) -> list[str]:
        return []

    def uncaptured(self) -> list[str]:
        return []

    def addresses(self) -> tuple[str, ...]:
        return ()

    def faults(self, uid: object) -> list[str]:
        return []

    def collect(self, store: object) -> None:
        """Nothing is counted."""

    async def read(self) -> None:
        self.told.append("source read")

    def begin(self, concerns: Iterable[Concern] = (), enforcing: object = None) -> None:
        if self.name != "reader":
            self.told.append("node's addresses known")
            return
        names = [concern.name for concern in concerns if isinstance(concern, Piece)]
        self.told.append(f"brought to it: {' '.join(names)}")

    def entries(self) -> list[object]:
        return []


class Stage:
    def __init__(self, runtime: Path) -> None:
        self.told: list[str] = []
        self.socket = runtime / "admin.sock"
        self.end, theirs = pair()
        self.beginning = Beginning(config(runtime), asyncio.get_running_loop(), theirs)
        self.beginning.link.send = self._sent  # type: ignore[method-assign]
        self.beginning.link._stilled.set()
        pieces: dict[str, Any] = {
            name: Piece(name, self.told)
            for name in (
                *("reader", "network", "certificates", "left_alone", "enrolment", "key_sets", "kernel"),
                *("pod_sockets", "leftovers"),
            )
        }
        paths = SimpleNamespace(explain=None, paths=None, collect=None)
        plane: Any = SimpleNamespace(original_map_fd=0, announced_map_fd=0, heartbeat_fd=0)
        mesh: Any = SimpleNamespace(node_pods=())
        known: dict[str, Any] = {"warnings": list, "pod_faults": lambda _: [], "cluster": (), "gates": ()}
        footing: Any = SimpleNamespace(concerns=(Piece("cluster", self.told),), **known)
        self.made = Concerns(footing=footing, plane=plane, mesh=mesh, kernel_paths=paths, **pieces)  # type: ignore[arg-type]
        self.stops = AsyncExitStack()

    def _sent(self, message: ToSupervisor) -> None:
        self.told.append(f"{type(message).__name__}, {'told' if self.socket.exists() else 'untold'}")


def test_everything_starts_in_the_order_in_which_it_is_needed_and_stops_in_the_reverse(tmp_path: Path) -> None:
    """Verdict: workers are there before pods are captured, everything is told before the heartbeat
    begins; when control stops, other nodes hear of it before the heartbeat ends, workers go on until
    that has happened, and the ports tell until the very end.
    """

    async def scene() -> None:
        stage = Stage(tmp_path)
        await start(stage.beginning, stage.made, Pulses().claim(), stage.stops)
        assert stage.told == [
            "node's addresses known",
            "Fork, untold",
            "certificates started",
            "cluster started",
            "brought to it: network key_sets left_alone enrolment kernel certificates pod_sockets leftovers cluster",
            "enrolment started",
            "leftovers started",
            "pod_sockets started",
            "key_sets started",
            "kernel started",
            "left_alone started",
            "network started",
            "reader started",
            "BeginHeartbeat, told",
        ]
        stage.told.clear()
        await stage.stops.aclose()
        assert stage.told == [
            "reader stopped",
            "network stopped",
            "left_alone stopped",
            "kernel stopped",
            "key_sets stopped",
            "pod_sockets stopped",
            "leftovers stopped",
            "enrolment stopped",
            "cluster stopped",
            "certificates stopped",
            "Still, told",
        ]
        assert not stage.socket.exists(), "the ports close last"
        assert not stage.beginning.parts._tasks, "nothing runs on beside what stops"
        stage.end.close()

    play(scene)


def test_a_start_that_fails_stops_nothing(tmp_path: Path) -> None:
    """Input: the admin port is taken. Verdict: workers of an earlier control serve on, and the
    heartbeat goes on, for a successor.
    """

    async def scene() -> None:
        stage = Stage(tmp_path / "not there")
        with pytest.raises(Exception, match="not there"):
            await start(stage.beginning, stage.made, Pulses().claim(), stage.stops)
        assert not [words for words in stage.told if "stopped" in words or "Still" in words]
        stage.beginning.parts.stop()
        stage.end.close()

    play(scene)


@pytest.mark.parametrize("which", ["hastened", "forsaken"])
def test_what_drains_hurries_when_the_daemon_that_took_over_ends_or_is_gone(
    caplog: pytest.LogCaptureFixture, which: str
) -> None:
    async def scene() -> None:
        events = {"hastened": asyncio.Event(), "forsaken": asyncio.Event()}
        beginning: Any = SimpleNamespace(link=SimpleNamespace(hastened=events["hastened"].wait))
        side = SimpleNamespace(forsaken=events["forsaken"].wait)
        made: Any = SimpleNamespace(footing=SimpleNamespace(cluster=(side,)))
        waits = asyncio.ensure_future(hurried(beginning, made))
        await asyncio.sleep(0)
        assert not waits.done()
        events[which].set()
        await waits
        assert ("no agent has this node any more" in caplog.text) == (which == "forsaken")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "nobody waits on"

    play(scene)
