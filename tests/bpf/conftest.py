"""One wire with two pods for all, one captured cgroup with the programs on it per test module,
fresh enrolments per test.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.config import Redirect
from nodeagent.mesh.protection import Protection
from nodeagent.redirect import layout, pins, syscall
from nodeagent.redirect.original import OriginalDestinations
from nodeagent.redirect.plane import DataPlane
from nodeagent.redirect.pod import EnrolledPod, Listeners
from tests.bpf.world import Pod, Stage, pair

_numbers = itertools.count()


class Node:
    """A captured cgroup (``stage``), the data plane on it, and how to enroll the test's pods."""

    def __init__(self, stage: Stage, **settings: Any) -> None:
        self.stage = stage
        self.pin_directory = Path(f"/sys/fs/bpf/nodeagent-test-{os.getpid()}-{next(_numbers)}")
        self.settings = {
            "heartbeatTimeoutSeconds": 60,
            "kernelPathTimeoutSeconds": 90,
            "bypass": "asked",
            **settings,
        }  # a test beats once, and the machine may be busy
        try:
            self.plane = self.load()
        except BaseException:
            pins.cleanup(self.pin_directory)
            stage.leave()
            raise

    def redirect(self, **settings: Any) -> Redirect:
        own = {"cgroup": self.stage.cgroup, "pinDirectory": self.pin_directory}
        return Redirect(**{**own, **self.settings, **settings})

    def load(self, slots: int = 1, agent_cgroup: Path | None = None, **settings: Any) -> DataPlane:
        place = agent_cgroup or self.stage.cgroup / "agent"
        plane = asyncio.run(DataPlane.load(self.redirect(**settings), slots=slots, agent_cgroup=place))
        plane.beat()
        return plane

    def enroll(self, pod: Pod, uid: str = "pod", **options: Any) -> Listeners:
        """*protected*: its connections are refused where no proxy looks at them, but for the exceptions of *ports*."""
        protected, ports = options.pop("protected", False), options.pop("ports", ())
        described = {"addresses": pod.addresses, "protection": Protection(protected, protected, ports), **options}
        return self.plane.enroll(EnrolledPod(uid, self.plane.pod_netns(pod.path), **described))

    def fall_silent(self) -> None:
        """Leave the last beat as old as it is when the daemon has hung for longer than its timeout."""
        age = int(self.settings["heartbeatTimeoutSeconds"] * 1e9) + 1
        beaten = struct.pack("=Q", time.clock_gettime_ns(time.CLOCK_MONOTONIC) - age)
        syscall.map_update(self.plane.heartbeat_fd, struct.pack("=I", layout.PULSE_DAEMON), beaten)

    @property
    def destinations(self) -> OriginalDestinations:
        return OriginalDestinations(self.plane.original_map_fd)

    def counted(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: value for name, value in self.plane.statistics().counters.items() if value}

    def remove(self) -> None:
        self.plane.close()
        pins.cleanup(self.pin_directory)
        self.stage.leave()


@pytest.fixture(scope="session")
def wire() -> Iterator[tuple[Pod, Pod]]:
    a, b = pair()
    yield a, b
    os.close(a.fd)
    os.close(b.fd)


@pytest.fixture
def a(wire: tuple[Pod, Pod]) -> Pod:
    return wire[0]


@pytest.fixture
def b(wire: tuple[Pod, Pod]) -> Pod:
    return wire[1]


@pytest.fixture(scope="module")
def _shared() -> Iterator[Node]:
    node = Node(Stage.make())
    yield node
    node.remove()


@contextmanager
def in_use(node: Node) -> Iterator[Node]:
    """Use a *node* that several tests share: its daemon lives, and what the test did in it is undone."""
    node.plane.beat()
    yield node
    node.stage.stop()
    for uid in list(node.plane._enrolled):
        node.plane.release(uid)


@pytest.fixture
def node(_shared: Node) -> Iterator[Node]:
    """A node with default settings, whose daemon lives; pods are released after the test."""
    with in_use(_shared) as node:
        yield node


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    """Make nodes with other settings (agent.yaml's redirect section)."""
    made: list[Node] = []

    def make(**settings: Any) -> Node:
        made.append(Node(Stage.make(), **settings))
        return made[-1]

    yield make
    for node in made:
        node.remove()


@pytest.fixture
def counted(node: Node) -> Callable[[], dict[str, int]]:
    """What the counters have grown by since the test began."""
    return growth(node)


def growth(node: Node) -> Callable[[], dict[str, int]]:
    """Return what tells by how much the counters of *node* have grown since now."""
    before = node.plane.statistics().counters
    return lambda: {
        name: value - before[name] for name, value in node.plane.statistics().counters.items() if value != before[name]
    }
