"""How many processors may be used, told by files as kernels and container runtimes make them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent import processors

V2 = "30 23 0:26 {shows} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {shows} {point} rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"


class Node:
    """A /proc/self and mounted cgroups."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.tree = folder / "cgroup"
        self.proc.mkdir()
        self._mounts = [OTHER]
        self._own: list[str] = ["3:cpuset:/elsewhere"]

    def mount(self, line: str, own: str, shows: str = "/") -> None:
        self._mounts.append(line.format(shows=shows, point=self.tree))
        self._own.append(own)
        (self.proc / "mountinfo").write_text("".join(f"{each}\n" for each in self._mounts))
        (self.proc / "cgroup").write_text("".join(f"{each}\n" for each in self._own))

    def limit(self, cgroup: str, **files: str) -> None:
        folder = self.tree / cgroup
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def usable(self) -> int:
        return processors.usable(self.proc, 8)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_without_cgroups_it_is_what_the_scheduler_allows(node: Node) -> None:
    assert node.usable() == 8
    assert processors.usable(node.proc) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("", 8),
        ("nonsense here\n", 8),
    ],
)
def test_a_limit_of_v2_is_rounded_down_and_never_to_nothing(node: Node, said: str, count: int) -> None:
    node.mount(V2, "0::/kubepods/pod1/agent")
    node.limit("kubepods/pod1/agent", cpu__max=said)
    assert node.usable() == count


def test_the_least_limit_of_all_above_counts(node: Node) -> None:
    node.mount(V2, "0::/kubepods/pod1/agent")
    node.limit("kubepods/pod1/agent", cpu__max="600000 100000\n")
    node.limit("kubepods/pod1", cpu__max="max 100000\n")
    node.limit("kubepods", cpu__max="300000 100000\n")
    assert node.usable() == 3


def test_a_quota_of_v1_counts_in_a_hybrid(node: Node) -> None:
    """The kubelet sets limits by v1 there; cgroup2 is mounted beside, without a controller."""
    node.mount(V1, "4:cpu,cpuacct:/kubepods/agent")
    node.limit("kubepods/agent", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    node.limit("kubepods", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert node.usable() == 4


def test_what_a_mount_shows_may_be_a_part_of_the_tree(node: Node) -> None:
    """A container without a cgroup namespace, whose runtime mounted its own cgroup alone."""
    node.mount(V2, "0::/kubepods/pod1/agent", shows="/kubepods/pod1/agent")
    node.limit("", cpu__max="200000 100000\n")
    assert node.usable() == 2


def test_in_a_namespace_of_its_own_it_is_found_by_its_process(node: Node) -> None:
    """The node's whole tree in a container with a cgroup namespace: its cgroup there is /."""
    node.mount(V2, "0::/", shows="/../../..")
    node.limit("kubepods/pod1/agent", cpu__max="200000 100000\n", cgroup__procs=f"1\n{os.getpid()}\n")
    node.limit("kubepods/pod2", cpu__max="100000 100000\n", cgroup__procs="7\n")
    assert node.usable() == 2


def test_a_cgroup_that_is_not_seen_limits_nothing(node: Node) -> None:
    node.mount(V2, "0::/../other")
    node.limit("kubepods", cpu__max="100000 100000\n", cgroup__procs="7\n")
    assert node.usable() == 8
