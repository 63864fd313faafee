"""In which order a pod's containers start and end, and as whom they run: init containers, native
sidecars, hooks, users.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from tests.netns.world import complained
from tests.waiting import eventually

TEXT = """
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  volumes: [{name: told, emptyDir: {}}]
  initContainers:
  - {name: one, command: [sh, -c, "sleep 0.2; echo one >> /told/lines"], volumeMounts: &told [{name: told, mountPath: /told}]}
  - name: native
    restartPolicy: Always
    command: [sh, -c, "sleep 0.2; echo native >> /told/lines; trap 'echo native ends >> /told/lines; exit' TERM; while :; do sleep 0.05; done"]
    startupProbe: {exec: {command: [grep, -q, native, /told/lines]}, periodSeconds: 1}
    volumeMounts: *told
  - {name: two, command: [sh, -c, "echo two >> /told/lines"], volumeMounts: *told}
  containers:
  - name: held
    command: [sh, -c, "echo held >> /told/lines; exec sleep infinity"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "sleep 0.3; echo begun >> /told/lines"]}}
      preStop: {exec: {command: [sh, -c, "echo before stop >> /told/lines"]}}
    volumeMounts: *told
  - {name: app, command: [sh, -c, "echo app >> /told/lines; exec sleep infinity"], volumeMounts: *told}
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  securityContext: {runAsUser: 2000, runAsGroup: 2000}
  volumes: [{name: scratch, emptyDir: {}}]
  initContainers: [{name: root, command: [sh, -c, "id -u"], securityContext: {runAsUser: 0}}]
  containers:
  - {name: plain, command: [sh, -c, "id -u; id -g; id -G; echo out >> /dev/stdout; echo mine > /scratch/file; sleep infinity"],
     volumeMounts: [{name: scratch, mountPath: /scratch}]}
  - {name: other, command: [sh, -c, "id -u; id -g; sleep infinity"], securityContext: {runAsUser: 3000, runAsGroup: 3001}}
---
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  initContainers: [{name: native, restartPolicy: Always, command: [sleep, infinity]}]
  containers: [{name: work, command: [sh, -c, "sleep 0.3"]}]
"""  # noqa: E501


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(text=TEXT, name="t-order", nodes=1) as lab:
        yield lab


def lines(lab: Lab) -> list[str]:
    return lab.exec("ordered", ["cat", "/told/lines"], container="app").stdout.splitlines()


def test_containers_start_in_order(lab: Lab) -> None:
    assert lines(lab) == ["one", "native", "two", "held", "begun", "app"]
    pod = lab.pod("ordered")
    states = {each["name"]: each["state"] for each in pod["status"]["initContainerStatuses"]}
    assert states == {
        "one": {"terminated": {"exitCode": 0}},
        "native": {"running": {}},
        "two": {"terminated": {"exitCode": 0}},
    }
    assert {each["type"]: each["status"] for each in pod["status"]["conditions"]}["Initialized"] == "True"
    assert lab.exec("ordered", ["true"], container="native").returncode == 0


def test_containers_run_as_their_user(lab: Lab) -> None:
    said = {"plain": ["2000", "2000", "2000", "out"], "other": ["3000", "3001"], "root": ["0"]}
    eventually(lambda: {name: lab.log("user", container=name).split() for name in said} == said, "they have said it")


def test_a_native_sidecar_ends_with_its_job(lab: Lab) -> None:
    pod = lab.pod("job")
    assert pod["status"]["phase"] == "Succeeded"
    assert all("terminated" in each["state"] for each in pod["status"]["initContainerStatuses"])


def test_a_native_sidecar_outlives_the_application() -> None:
    with Lab.up(text=TEXT.split("\n---\n", maxsplit=1)[0], name="t-order-end", nodes=1) as lab:
        uid = lab.pod("ordered")["metadata"]["uid"]
        told = lab.layout.volumes("node1", uid) / "told" / "lines"
        kept = told.parent.parent.parent / "kept"
        kept.hardlink_to(told)
        lab.delete_pod("ordered", grace_seconds=60)
        assert kept.read_text().splitlines()[-2:] == ["before stop", "native ends"]


@pytest.mark.parametrize(
    ("containers", "message"),
    [
        (
            (
                "initContainers: [{name: i, command: [sh, -c, 'echo why it failed; exit 3']}], containers: [{name: "
                "c, command: [sleep, infinity]}]"
            ),
            "why it failed",
        ),
        (
            "containers: [{name: c, command: [sleep, infinity], lifecycle: {postStart: {exec: {command: ['false']}}}}]",
            "postStart: exit status 1",
        ),
    ],
)
def test_what_never_starts_is_named(tmp_path: Path, containers: str, message: str) -> None:
    complained(
        message, text=f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{{containers}}}", name="t-order-bad"
    )
