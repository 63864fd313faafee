"""What goes wrong while a lab is made, and that nothing of it stays: namespaces, cgroups, processes, files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.cli.main import main
from nodeagent.errors import LabError, ResourceError
from nodeagent.lab import Lab, cgroup
from nodeagent.lab.layout import ADDRESSES, NETNS_DIRECTORY, Layout
from tests.netns.world import complained
from tests.waiting import eventually

NAME = "t-faults"
SLEEP = "containers: [{name: c, command: [sleep, infinity]}]"


def pod(name: str, spec: str = SLEEP, metadata: str = "") -> str:
    return f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{metadata}}}\nspec: {{{spec}}}\n"


def many(replicas: int) -> str:
    template = f"{{metadata: {{labels: {{app: many}}}}, spec: {{{SLEEP}}}}}"
    head = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: many}\n"
    return f"{head}spec: {{replicas: {replicas}, selector: {{matchLabels: {{app: many}}}}, template: {template}}}\n"


def left_behind() -> list[str]:
    layout = Layout(NAME)
    group = layout.cgroup(cgroup.hierarchy())
    found = [str(path) for path in (layout.state, group, layout.root / f".{NAME}.lock") if path.exists()]
    found += [str(path) for path in NETNS_DIRECTORY.glob(f"{NAME}.*")] + [
        str(path) for path in Path("/sys/fs/bpf").glob(f"nodeagent-lab-{NAME}-*")
    ]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            _, parent, *_, flags = (process / "stat").read_text().rpartition(")")[2].split()[:7]
            if int(flags) & 4 and int(parent) != os.getpid():
                continue  # PF_EXITING: dead, and for the first process of the machine to reap
            if (
                f"nodeagent-lab-{NAME}/" in (process / "cgroup").read_text()
                or f"{NAME}\0".encode() in (process / "cmdline").read_bytes()
            ):
                found.append((process / "stat").read_text()[:60])
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    assert left_behind() == []
    yield
    found = left_behind()
    Lab.remove(NAME)
    assert found == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            pod("a", "containers: [{name: c, command: [no-such-program]}]"),
            'spec.containers[0].command[0]: "no-such-program": allowed: a program of this machine',
        ),
        (pod("a") + pod("a"), "<text>: document 2 (Pod default/a): metadata.name: "),
        (pod("a", SLEEP + ", frobnicate: 1"), "spec.frobnicate: 1: unknown field: allowed: "),
        ("kind: Frob\n", 'kind: "Frob": allowed: Namespace, '),
        (
            pod("a", metadata=f", annotations: {{{ADDRESSES}: 10.0.0.1}}"),
            "allowed: addresses of one host of its node's ranges, such as 10.244.1.7",
        ),
    ],
)
def test_wrong_yaml_is_refused_before_anything_is_made(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.lab.construction.build", lambda *_: pytest.fail("it began"))
    with pytest.raises(ResourceError) as caught:
        Lab.up(text=text, name=NAME)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            SLEEP + ", volumes: [{name: v, hostPath: {path: /no/such, type: Directory}}]",
            "Pod default/a: volume v: hostPath /no/such is not there or is no Directory",
        ),
        (
            "containers: [{name: c, command: [sleep, infinity], workingDir: /no/such}]",
            "Pod default/a: sleep: [Errno 2] No such file or directory: '/no/such'",
        ),
        (
            (
                "containers: [{name: c, command: [/v/program], volumeMounts: [{name: v, mountPath: /v}]}], volumes: "
                "[{name: v, emptyDir: {}}]"
            ),
            "Pod default/a: /v/program: [Errno 2] No such file or directory",
        ),
    ],
)
def test_a_pod_that_cannot_be_made_undoes_the_lab(spec: str, message: str) -> None:
    with pytest.raises(LabError) as caught:
        Lab.up(text=pod("b") + pod("a", spec), name=NAME)
    assert message in str(caught.value)


def test_a_pod_that_never_becomes_ready_is_an_error_with_the_end_of_its_log() -> None:
    container = (
        "{name: c, command: [sh, -c, 'echo what went wrong; exit 1'], readinessProbe: {exec: {command: "
        "['true']}, initialDelaySeconds: 1}}"
    )
    complained(
        r"(?s)Pod default/a is not ready: container c: .*the end of its log:\n.*what went wrong",
        text=pod("a", f"containers: [{container}]"),
        name=NAME,
    )


CRASHES = {
    "at once": (
        "containers: [{name: c, command: [sh, -c, 'echo why; exit 3']}]",
        r"(?s)container c: ended with exit status 3, started again \d+ times.*why",
    ),
    "and not again": (
        "restartPolicy: Never, containers: [{name: c, command: [sh, -c, 'echo why; exit 3']}]",
        "(?s)container c: ended with exit status 3.*why",
    ),
    "beside others": (f"{SLEEP[:-1]}, {{name: d, command: ['false']}}]", "container d: ended with exit status 1"),
    "after a while": (
        "containers: [{name: c, command: [sh, -c, 'sleep 0.3; exit 4']}]",
        "container c: ended with exit status 4",
    ),
}


@pytest.mark.parametrize(("spec", "message"), CRASHES.values(), ids=CRASHES)
def test_a_pod_that_ends_at_once_is_not_up(spec: str, message: str) -> None:
    complained(message, text=pod("well") + pod("a", spec), name=NAME)


PROBES = {
    "exec": (
        "exec: {command: [sh, -c, 'echo no database; exit 2']}",
        "readiness probe failed: exec: exit status 2: no database",
    ),
    "httpGet": ("httpGet: {port: 9}", "readiness probe failed: .*Connect"),
}


@pytest.mark.parametrize(("probe", "message"), PROBES.values(), ids=PROBES)
def test_a_probe_that_fails_says_why(probe: str, message: str) -> None:
    container = f"{{name: c, command: [sleep, infinity], readinessProbe: {{{probe}, periodSeconds: 60}}}}"
    complained(
        f"Pod default/a is not ready: container c: {message}",
        text=pod("a", f"containers: [{container}]"),
        name=NAME,
    )


def test_an_agent_that_does_not_start_is_an_error_with_the_end_of_its_log() -> None:
    with pytest.raises(
        LabError, match=r"(?s)node1: the agent ended before it was ready; the end of its log:\n.*nosuchfield"
    ):
        Lab.up(name=NAME, nodes=1, mode="nodeagent", agent={"nosuchfield": 1})


def test_a_failed_apply_changes_nothing() -> None:
    with Lab.up(text=pod("a"), name=NAME) as lab:
        before = {path.name: path.read_bytes() for path in lab.layout.objects.iterdir()}
        wrong = pod("b", SLEEP + ", volumes: [{name: v, hostPath: {path: /no/such}}]")
        config_map = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}\n"
        with pytest.raises(LabError, match="volume v: hostPath /no/such"):
            lab.apply(text=config_map + pod("c") + wrong)
        assert {path.name: path.read_bytes() for path in lab.layout.objects.iterdir()} == before
        assert sorted(path.name for path in NETNS_DIRECTORY.glob(f"{NAME}.default.*")) == [f"{NAME}.default.a"]
        with pytest.raises(ResourceError, match="addresses that no other pod has"):
            lab.apply(text=pod("b", metadata=f", annotations: {{{ADDRESSES}: {lab.address('a')}}}"))


def test_another_shape_is_refused_and_the_lab_stays() -> None:
    with Lab.up(text=pod("a"), name=NAME, nodes=1) as lab:
        with pytest.raises(LabError, match=r"is up with other settings \(1 nodes, mode direct"):
            Lab.up(name=NAME, nodes=2)
        assert lab.exec("a", ["true"]).returncode == 0


@pytest.mark.parametrize("delay_ms", [50, 200, 350, 500, 700, 1000])
def test_a_killed_up_can_be_taken_down_and_made_again(delay_ms: int) -> None:
    script = f"import sys; from nodeagent.lab import Lab; Lab.up(text=sys.stdin.read(), name={NAME!r})"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True) as up:
        assert up.stdin
        up.stdin.write(many(20))
        up.stdin.close()
        eventually(lambda: Layout(NAME).state.exists() or up.poll() is not None)
        time.sleep(delay_ms / 1000)  # wherever it is then
        up.send_signal(signal.SIGKILL)
    if delay_ms % 100 == 0:
        with Lab.up(text=many(4), name=NAME) as lab:
            assert len(lab.pods) in (4, 20)
    else:
        assert Lab.remove(NAME)


def test_labs_stand_side_by_side() -> None:
    with Lab.up(text=pod("a"), name=NAME), Lab.up(text=pod("a"), name=f"{NAME}-b") as second:
        Lab.remove(NAME)
        assert second.exec("a", ["hostname"]).stdout == "a\n"
        assert second.address("a") == "10.244.1.2"


def test_down_takes_along_what_was_started_in_it() -> None:
    with Lab.up(text=pod("a"), name=NAME) as lab:
        started = [lab.popen(target, ["sleep", "1000"]) for target in ("a", "node1", "underlay")]
        assert all(process.poll() is None for process in started)
    for process in started:
        assert process.wait(60) != 0


def test_a_killed_popen_takes_its_program_along() -> None:
    with Lab.up(text=pod("a"), name=NAME) as lab:
        group = Path(lab.pod("a")["metadata"]["annotations"]["lab.nodeagent.io/cgroup"])
        before = cgroup.processes(group)
        with lab.popen("a", ["sh", "-c", "echo runs; exec sleep 1000"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "runs\n"
            process.kill()
        eventually(lambda: cgroup.processes(group) == before)


def test_a_hundred_pods() -> None:
    with Lab.up(text=many(100), name=NAME) as lab:
        assert len(lab.pods) == 100
        assert lab.exec(max(lab.pods), ["hostname"]).returncode == 0


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(pod("a"))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["lab", *arguments])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    assert run("up", "--name", NAME, "-f", str(file), "--nodes", "1")[0] == 0
    code, output = run("status", "--name", NAME, "-o", "json")
    assert (code, '"name": "a"' in output) == (0, True)
    assert run("exec", "--name", NAME, "a", "--", "sh", "-c", "exit 7")[0] == 7
    assert run("exec", "--name", NAME, "b", "true") == (
        1,
        "nodeagent: there is no pod b in namespace default; there are: default/a\n",
    )
    file.write_text(pod("a", SLEEP + ", x: 1"))
    code, output = run("apply", "--name", NAME, "-f", str(file))
    assert code == 1
    assert output.startswith(f"nodeagent: {file}: document 1 (Pod default/a): spec.x: 1: unknown field: allowed: ")
    assert output.count("\n") == 1
    assert run("down", "--name", NAME) == (0, f"lab {NAME} is removed\n")
    assert run("down", "--name", NAME) == (0, f"there was no lab {NAME}\n")
    assert run("status", "--name", NAME)[0] == 1


def test_a_lab_that_is_kept_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    crashing = "containers: [{name: c, command: [sh, -c, 'echo why; exit 3']}]"
    file.write_text(pod("well") + pod("a", crashing) + pod("b", crashing))
    options = ["--name", NAME, "-f", str(file), "--nodes", "1", "--wait", "10"]
    gone = lab_command("up", *options)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "Pod default/a is not ready (nor is default/b): container c: ended with exit status 3" in gone.stderr
    assert "--keep leaves everything there" in gone.stderr
    assert left_behind() == []
    kept = lab_command("up", *options, "--keep")
    assert kept.returncode == 1
    assert f"nodeagent lab logs --name {NAME} POD" in kept.stderr
    rows = {row["name"]: row for row in json.loads(lab_command("status", "--name", NAME, "-o", "json").stdout)["pods"]}
    assert (rows["well"]["ready"], rows["well"]["why"]) == (True, "")
    assert rows["a"]["why"].startswith("container c: ended with exit status 3, started again ")
    assert lab_command("logs", "--name", NAME, "a").stdout.startswith("why\n")
    assert [row["name"] for row in json.loads(lab_command("list", "-o", "json").stdout)] == [NAME]
    assert lab_command("delete", "--name", NAME, "pod/nobody", "pod/a").stderr.startswith(
        "nodeagent: Pod default/nobody: there is none that can be deleted"
    )
    assert lab_command("delete", "--name", NAME, "pod/a").stdout == "Pod default/a is deleted\n"
    assert [row["name"] for row in json.loads(lab_command("status", "--name", NAME, "-o", "json").stdout)["pods"]] == [
        "b",
        "well",
    ]
    file.write_text(pod("well"))
    assert lab_command("delete", "--name", NAME, "-f", str(file)).returncode == 0
    assert lab_command("down", "--name", NAME).returncode == 0


def lab_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", "lab", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_logs_are_followed_until_the_lab_is_gone() -> None:
    script = "echo one; while ! test -e /tmp/go; do sleep 0.05; done; echo two; sleep 1000"
    with Lab.up(text=pod("a", f"containers: [{{name: c, command: [sh, -c, '{script}']}}]"), name=NAME) as lab:
        argv = [sys.executable, "-m", "nodeagent", "lab", "logs", "-f", "--name", NAME, "a"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout
            assert follower.stdout.readline() == "one\n"
            lab.exec("a", ["touch", "/tmp/go"])
            assert follower.stdout.readline() == "two\n"
            lab.down()
            assert follower.wait(60) == 0


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="takes root"):
        Lab.up(name=NAME)
