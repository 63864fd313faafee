"""What an earlier control left: used while its pods are there, removed when it is nobody's."""

from __future__ import annotations

import os
import socket

import pytest

from nodeagent.control.leftovers import Leftovers, PodSocketMaker
from nodeagent.control.supervisor_link import Inheritance
from nodeagent.vocabulary import PodUid
from tests.unit.control.scene import Supervisor, snapshot


class Stage:
    def __init__(self) -> None:
        self.inherited = Inheritance()
        self.supervisor = Supervisor()
        self.pruned = 0
        self.leftovers = Leftovers(self.inherited, self.supervisor, self._prune)

    def _prune(self) -> None:
        self.pruned += 1


def test_listeners_and_networks_that_nobody_took_over_are_closed() -> None:
    """They would keep the network of a pod that is gone alive."""
    stage = Stage()
    listener = socket.socket()
    network = os.open("/dev/null", os.O_RDONLY)
    stage.inherited.listeners[PodUid("a")] = {("inbound", 4, 0): listener}
    stage.inherited.networks[PodUid("a")] = network
    stage.leftovers.changed(snapshot())
    assert listener.fileno() >= 0, "until all pods are captured it may be in use"
    stage.leftovers.grown(snapshot())
    assert listener.fileno() == -1
    assert stage.supervisor.dropped == ["a"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(network)


def test_what_protects_pods_is_removed_once_every_pod_is_known(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    unread = snapshot(unread=("pods.yaml: not YAML",))
    stage.leftovers.grown(unread)
    stage.leftovers.grown(unread)
    assert stage.pruned == 0
    assert caplog.text.count("it may be for one that cannot be read (pods.yaml: not YAML)") == 1
    stage.leftovers.grown(snapshot())
    stage.leftovers.grown(snapshot())
    assert stage.pruned == 1


def test_sockets_inside_pods_are_made_by_what_is_there() -> None:
    """Input: an earlier control's workers ask while this one loads. Verdict: from the network that
    it kept; then from the data plane; a pod that nobody knows has none.
    """
    inherited = Inheritance()
    maker = PodSocketMaker(inherited)
    with pytest.raises(KeyError):
        maker.make("a", 4, 1)
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    inherited.networks[PodUid("a")] = network
    made = maker.make("a", 4, 2) if os.geteuid() == 0 else [socket.socket(), socket.socket()]
    assert len(made) == 2
    asked: list[tuple[str, int, int]] = []

    def captured(uid: str, family: int, count: int) -> list[socket.socket]:
        asked.append((uid, family, count))
        return []

    maker.captured_by(captured)
    del inherited.networks[PodUid("a")]
    assert maker.make("a", 6, 3) == []
    assert asked == [("a", 6, 3)]
    for each in made:
        each.close()
    os.close(network)
