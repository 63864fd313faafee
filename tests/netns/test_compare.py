"""The comparison's modes: each really does what it is measured for."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from nodeagent.compare import labs, load
from nodeagent.compare.labs import MODES, LabNeeds
from nodeagent.compare.load import CompareError, Workload
from nodeagent.compare.meshes import KernelPathMode, Sidecars
from nodeagent.compare.modes import Mode
from nodeagent.compare.run import Cell, ComparisonPlan, all_cells
from nodeagent.lab.processes import inside
from tests.netns.world import left_behind
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)  # the first test brings every mode's lab up
WORKLOADS: tuple[Workload, ...] = (
    *("http", "http-authz", "tcp", "tcp-churn", "chain5", "cross-node", "cross-node-churn", "bulk"),
)
LABS = [setup.lab for setup in labs.SETUPS if not setup.variant]


@pytest.fixture(scope="module")
def modes() -> Iterator[dict[str, Mode]]:
    missing: list[labs.Missing] = []
    with labs.alone(LABS):
        found = {mode.name: mode for mode in labs.bring_up(MODES, LabNeeds(WORKLOADS), missing, lambda what: None)}
        assert missing == []
        assert list(found) == list(MODES)
        yield found
    # a killed process takes a moment to vanish
    eventually(lambda: not any(left_behind(name) for name in LABS), "nothing is left of the labs")


def plaintext_on_the_way(mode: Mode, workload: Workload) -> tuple[int, int]:
    """Return how many packets reach the server while requests are sent, and how many of them hold a
    request that can be read. There are as many packets as requests at least, or very many.
    """
    target, client = mode.targets[workload], mode.client(workload)
    source = mode.lab.address(target.client, target.namespace)
    tcpdump = ["tcpdump", "-i", "eth0", "-U", "--immediate-mode", "-w", "-", "-Z", "root", f"tcp and src host {source}"]
    with subprocess.Popen(
        inside(mode.lab.netns(target.service, target.namespace), tcpdump),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as capture:
        assert capture.stderr is not None
        assert b"listening" in capture.stderr.readline()
        answered = load.closed(client, mode.url(workload), 1, 1).requests
        capture.send_signal(signal.SIGINT)
        seen, _ = capture.communicate(timeout=60)
    packets = seen.count(b"\x08\x00\x45")
    assert packets >= min(answered, 100), f"{mode.name}: {packets} packets, and {answered} requests were answered"
    return packets, seen.count(b"GET / HTTP/1.1")


@pytest.mark.parametrize("name", MODES)
def test_every_request_is_answered(modes: dict[str, Mode], name: str) -> None:
    mode = modes[name]
    plan = ComparisonPlan(MODES, WORKLOADS, rounds=1, seconds=1)
    cells = {cell.workload: cell for cell in reversed(all_cells(plan, [mode]))}  # with the fewest connections
    assert set(cells) == set(mode.workloads)
    for cell in cells.values():
        sample = cell.measure(1)
        assert sample.errors == 0, cell.describe()
        if cell.workload == "bulk":
            assert (sample.bits_per_second or 0) > 1e7, cell.describe()
        else:
            assert 0 < sample.at(50) <= sample.at(90) <= sample.at(99) <= sample.at(100), cell.describe()
        assert sample.all_cpu_seconds > 0
        if not isinstance(mode, KernelPathMode):  # what is in the kernel has no processes
            assert (sample.cpu_seconds > 0) == (name != "direct"), cell.describe()
        assert (mode.memory(cell.workload) > 1 << 20) == (name != "direct")


@pytest.mark.parametrize("name", ["direct", "nodeagent", "nodeagent-kernel", "sidecar", "envoy"])
def test_an_open_loop_keeps_its_rate(modes: dict[str, Mode], name: str) -> None:
    sample = Cell(modes[name], "http", 4, 50).measure(2)
    assert (sample.requests, sample.errors) == (100, 0)
    assert 0 < sample.at(50) <= sample.at(99)


def test_sidecars_encrypt_and_plain_modes_do_not(modes: dict[str, Mode]) -> None:
    """The comparison would be none if sidecars forwarded in the clear."""
    for name, workload in (
        ("envoy", "http"),
        ("envoy", "cross-node"),
        ("sidecar", "http"),
        ("sidecar", "cross-node"),
        ("nodeagent", "cross-node"),
    ):
        _, readable = plaintext_on_the_way(modes[name], workload)  # type: ignore[arg-type]
        assert readable == 0, f"{name} {workload}"
    packets, readable = plaintext_on_the_way(modes["direct"], "http")
    assert 0 < readable <= packets


def test_what_a_mode_did_is_checked(modes: dict[str, Mode]) -> None:
    for mode in modes.values():
        checked, failed = mode.verify(dict.fromkeys(mode.workloads, 1))
        assert failed == [], mode.name
        assert checked or mode.name in ("direct", "haproxy")


def test_what_a_mode_did_not_do_is_told(modes: dict[str, Mode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.compare.modes._LOG_SECONDS", 0.1)
    for name in ("nodeagent", "sidecar"):
        _, failed = modes[name].verify({"http": 10**12, "cross-node": 10**12})
        assert "lines for 2,000,000,000,000 requests" in failed[0]
        assert "mutual TLS" in failed[1]
    assert "were counted in the kernel" in modes["nodeagent-kernel"].verify({"http": 10**12})[1][0]
    plain = modes["envoy"]
    assert isinstance(plain, Sidecars)
    plain.targets = {**plain.targets, "http-authz": plain.targets["http"]}  # no policy there
    assert "DELETE was answered" in plain.verify({"http-authz": 0})[1][0]


def test_a_second_run_at_the_same_time_is_refused(modes: dict[str, Mode]) -> None:
    """It would take the first one's labs away."""
    with pytest.raises(CompareError, match="another"), labs.alone(LABS):
        pass
