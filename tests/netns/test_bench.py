"""The benchmark's modes: each really does what it is measured for."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from nodeagent.compare import bench, envoy, load
from nodeagent.compare.modes import EnvoyPair, KernelPath, Mode, NodeAgent
from nodeagent.lab.network import inside
from tests.netns.world import eventually, left_behind


@pytest.fixture(scope="module")
def modes() -> Iterator[list[Mode]]:
    with bench.all_modes() as found:
        yield found
    eventually(lambda: not any(left_behind(name) for name in bench.LABS), "nothing is left of the labs")  # a killed process takes a moment to vanish


def plaintext_on_the_way(mode: Mode, workload: load.Workload, pod: str) -> tuple[int, int]:
    """Return how many packets reach *pod* while requests are sent, and how many of them hold a request that can be read."""
    lab = mode.client.lab
    client = lab.address("client", mode.client.namespace)
    tcpdump = ["tcpdump", "-i", "eth0", "-U", "-w", "-", "-Z", "root", f"tcp and src host {client}"]
    with subprocess.Popen(inside(lab.netns(pod, mode.client.namespace), tcpdump), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as capture:
        assert capture.stderr is not None
        assert b"listening" in capture.stderr.readline()
        load.requests(mode.client, mode.address(workload), 1, 1)
        capture.send_signal(signal.SIGINT)
        seen, _ = capture.communicate(timeout=10)
    return seen.count(b"\x08\x00\x45"), seen.count(b"GET / HTTP/1.1")


def test_every_mode_answers_every_request(modes: list[Mode]) -> None:
    for cell in bench.all_cells(modes):
        if "bulk" not in cell.workload and cell.connections == min(cell.mode.connections):
            sample = cell.measure(1)
            assert sample.errors == 0, cell.describe()
            assert sample.latency is not None
            assert 0 < sample.latency[0] <= sample.latency[1] <= sample.latency[2], cell.describe()
            if not isinstance(cell.mode, KernelPath):  # its processes have nothing to do with a request
                assert (sample.cpu_seconds > 0) == (cell.mode.name != "direct"), cell.describe()


def test_streams_go_through(modes: list[Mode]) -> None:
    for cell in bench.all_cells(modes):
        if "bulk" in cell.workload:
            assert (cell.measure(1).bits_per_second or 0) > 1e8, cell.describe()


def test_sidecars_encrypt_and_plain_modes_do_not(modes: list[Mode]) -> None:
    """The comparison would be none if Envoy forwarded in the clear."""
    pair = next(mode for mode in modes if isinstance(mode, EnvoyPair))
    agent = next(mode for mode in modes if isinstance(mode, NodeAgent))
    direct = modes[0]
    for mode, workload, pod in ((pair, "http", "server"), (pair, "cross-node", "remote"), (agent, "cross-node", "remote")):
        packets, readable = plaintext_on_the_way(mode, workload, pod)  # type: ignore[arg-type]
        assert packets > 100
        assert readable == 0, f"{mode.name} {workload}"
    assert plaintext_on_the_way(direct, "http", "server")[1] > 100


def test_a_second_run_at_the_same_time_is_refused(modes: list[Mode]) -> None:
    """It would take the first one's labs away."""
    with pytest.raises(load.BenchError, match="another"), bench.all_modes():
        pass


def test_a_mode_that_did_not_do_its_work_is_told(modes: list[Mode]) -> None:
    agent = next(mode for mode in modes if isinstance(mode, NodeAgent))
    fault = agent.verify({"http": 10**12, "cross-node": 10**12})
    assert len(fault) == 2
    assert "lines for 2000000000000 requests" in fault[0]
    assert "mutual TLS" in fault[1]


def test_without_envoy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(load.BenchError, match=r"nodeagent\[compare\]"):
        envoy.binary()
