"""What people use: agent.yaml and its errors, the command line against live agents, promtool, a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.lab import Lab
from nodeagent.redirect import pins, syscall
from nodeagent.redirect.hooks import program_id
from tests.netns.world import about, client_in, cluster_ip, curl, prometheus, scrape, workers
from tests.waiting import eventually

NODEAGENT = [sys.executable, "-m", "nodeagent"]
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NODEAGENT, *arguments], capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
    )


# -- agent.yaml --

GOOD: dict[str, Any] = {
    "node": "node1",
    "source": "/nowhere",
    "redirect": {"cgroup": "/nowhere"},
    "identity": {"caDirectory": "/nowhere"},
}
BAD = {
    # The value of a key that is not known may be a secret: what is allowed is told instead.
    "unknown field": ({"colour": "red"}, "colour", "There are node, cluster"),
    "unknown field below": (
        {"proxy": {"limits": {"headerByte": 5}}},
        "proxy.limits.headerByte",
        "is headerBytes meant",
    ),
    "out of range": (
        {"redirect": {"cgroup": "/x", "heartbeatTimeoutSeconds": 0}},
        "redirect.heartbeatTimeoutSeconds",
        "0",
    ),
    "wrong type": ({"telemetry": {"metricsPort": "many"}}, "telemetry.metricsPort", "many"),
    "wrong word": ({"mtls": {"mode": "LAX"}}, "mtls.mode", "LAX"),
    "wrong workers": ({"proxy": {"workers": "two"}}, "proxy.workers", "two"),
    "no workers": ({"proxy": {"workers": 0}}, "proxy.workers", "0"),
    "too long a poll": ({"proxy": {"busyPollMicroseconds": 5000}}, "proxy.busyPollMicroseconds", "5000"),
    "wrong domain": (
        {"identity": {"caDirectory": "/x", "trustDomain": "No Domain"}},
        "identity.trustDomain",
        "No Domain",
    ),
    "missing": ({"redirect": {}}, "redirect.cgroup", ""),
}


@pytest.mark.parametrize(("change", "field", "value"), BAD.values(), ids=BAD)
def test_a_wrong_agent_yaml_is_one_line(tmp_path: Path, change: dict[str, Any], field: str, value: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    done = run("run", "-c", str(path))
    assert (done.returncode, done.stdout) == (1, ""), done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert str(path) in done.stderr
    assert field in done.stderr, done.stderr
    assert value in done.stderr, done.stderr


@pytest.mark.parametrize("text", ["- a list", "a: [", "", "\x00"])
def test_what_is_not_a_mapping_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    done = run("run", "-c", str(path))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert str(path) in done.stderr


def test_a_missing_agent_yaml_is_one_line(tmp_path: Path) -> None:
    done = run("run", "-c", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "none.yaml" in done.stderr


@pytest.mark.parametrize("section", ["source", "cgroup"])
def test_a_place_that_does_not_exist_is_told(tmp_path: Path, section: str) -> None:
    settings = {
        **GOOD,
        "source": str(tmp_path),
        "identity": {"caDirectory": str(tmp_path / "ca")},
        "runtimeDirectory": str(tmp_path / "run"),
    }
    settings["redirect"] = {"cgroup": "/sys/fs/cgroup/nothing-here", "pinDirectory": "/sys/fs/bpf/t-nothing-here"}
    if section == "source":
        settings["source"] = str(tmp_path / "nothing-here")
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(settings))
    done = run("run", "-c", str(path))
    assert done.returncode == 1, done
    assert "nothing-here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("/sys/fs/bpf/t-nothing-here").exists()


def test_a_second_daemon_is_refused_before_it_touches_anything(mesh: Lab, tmp_path: Path) -> None:
    """With one of the two folders in common: programs and folders of the first stay, and it is named.
    With both in common it would take the node over (test_agent_upgrade.py).
    """
    agent = mesh.agent("node1")
    eventually(lambda: "http_egress" in pinned(agent.pins), "the loader has ended")
    programs = pinned(agent.pins)
    other = pins.BPFFS / "t-another-daemon"
    for change, setting in (
        ({"redirect": {**agent.config()["redirect"], "pinDirectory": str(other)}}, "runtimeDirectory"),
        ({"runtimeDirectory": str(tmp_path / "run")}, "redirect.pinDirectory"),
    ):
        path = tmp_path / "agent.yaml"
        path.write_text(yaml.safe_dump({**agent.config(), **change}))
        done = run("run", "-c", str(path))
        assert (done.returncode, done.stdout) == (1, ""), done
        assert f"nodeagent: {setting} " in done.stderr
        assert f"is in use by the daemon with pid {agent.pid}: end that one first" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert pinned(agent.pins) == programs
    assert not (tmp_path / "run").exists() and not other.exists()


def pinned(directory: Path) -> dict[str, int]:
    """Return the kernel's numbers of the pinned programs: a program that is replaced has another one."""
    found = {}
    for path in (directory / "progs").iterdir():
        descriptor = syscall.get(path)
        found[path.name] = program_id(descriptor)
        os.close(descriptor)
    return found


# -- the command line --


def on(lab: Lab, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run(*arguments, "--admin", str(lab.agent(node).admin_socket))
    assert done.returncode == 0, done
    return done


def test_get(mesh: Lab) -> None:
    pods = {row["pod"]: row for row in json.loads(on(mesh, "node1", "get", "pods", "-o", "json").stdout)}
    assert set(pods) == {"client", "local", "plain"}
    assert pods["plain"]["state"] == "left alone"
    assert (pods["local"]["state"], pods["local"]["mode"], pods["local"]["faults"]) == ("enrolled", "PERMISSIVE", [])
    assert pods["local"]["identity"] == "spiffe://cluster.local/ns/default/sa/server"
    assert pods["local"]["addresses"] == [mesh.address("local"), mesh.address("local", version=6)]
    certs = json.loads(on(mesh, "node1", "get", "certs", "-o", "json").stdout)
    assert {"spiffe://cluster.local/ns/default/sa/server", "spiffe://cluster.local/ns/default/sa/client"} <= {
        row["identity"] for row in certs
    }
    endpoints = yaml.safe_load(on(mesh, "node1", "get", "endpoints", "-o", "yaml").stdout)
    (row,) = [row for row in endpoints if row["service"] == "both.default.svc.cluster.local" and row["port"] == 80]
    assert f"{mesh.address('remote')}:8080" in row["endpoints"]
    for what in ("pods", "certs", "endpoints", "routes"):
        table = on(mesh, "node1", "get", what).stdout
        assert re.search("local|server", table), table


def test_several_agents_are_a_question(mesh: Lab) -> None:
    """Neither reloads another lab's agents nor answers for it: what is meant must be said."""
    before = workers(mesh, "node1") + workers(mesh, "node2")
    for command in (["get", "pods"], ["reload"], ["flows"], ["explain", "default/client", "default/local:80"]):
        done = run(*command)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "t-mesh/node1, t-mesh/node2" in done.stderr
        assert "--name LAB, --node NODE, --admin ADDRESS, or --all" in done.stderr
    assert workers(mesh, "node1") + workers(mesh, "node2") == before
    rows = json.loads(run("get", "pods", "--name", "t-mesh", "-o", "json").stdout)
    assert {row["node"] for row in rows} == {"t-mesh/node1", "t-mesh/node2"}
    assert {
        row["node"]
        for row in json.loads(run("get", "pods", "--name", "t-mesh", "--node", "node2", "-o", "json").stdout)
    } == {"t-mesh/node2"}
    assert {"t-mesh/node1", "t-mesh/node2"} <= {
        row["node"] for row in json.loads(run("get", "pods", "--all", "-o", "json").stdout)
    }


def test_flows(mesh: Lab) -> None:
    with client_in(mesh, "client", "hold", cluster_ip(mesh, "remote"), 9000) as _:
        for node, direction, path in (("node1", "outbound", "proxy-mtls"), ("node2", "inbound", "proxy-mtls")):
            row = eventually(lambda node=node: carried(mesh, node), "bytes are shown")
            assert (row["direction"], row["path"], row["verdict"]) == (direction, path, "allow")
            assert row["source_identity"].endswith("/sa/client")
            assert row["destination_identity"].endswith("/sa/server")
    assert "default/client" in on(mesh, "node1", "flows").stdout


def carried(lab: Lab, node: str) -> Any:
    """Return the one open TCP connection of the pod ``client``, once it has carried something."""
    rows = [
        row
        for row in json.loads(on(lab, node, "flows", "-o", "json").stdout)
        if row["protocol"] == "tcp" and not row["closed"]
    ]
    found = [row for row in rows if row["source"] == "default/client"]
    assert len(found) == 1, found
    (row,) = found
    return row if row["received"] else None


def test_flows_are_followed(mesh: Lab) -> None:
    argv = [*NODEAGENT, "flows", "-f", "-o", "json", "--admin", str(mesh.agent("node1").admin_socket)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as follower:
        try:
            about(mesh, "client", f"http://{cluster_ip(mesh, 'remote')}", "-H", "connection: close")
            assert follower.stdout is not None
            while True:
                row = json.loads(follower.stdout.readline())
                if row["closed"] and row["service"].startswith("remote.") and row["protocol"] == "http":
                    break
        finally:
            follower.kill()


def test_reload_names_the_new_workers(mesh: Lab) -> None:
    (row,) = json.loads(on(mesh, "node2", "reload", "-o", "json").stdout)
    assert len(row["workers"]) == 1
    assert about(mesh, "client", f"http://{cluster_ip(mesh, 'remote')}")["pod"] == "remote"


def test_the_admin_port_is_the_nodes_own(mesh: Lab) -> None:
    """Metrics and readiness may be asked for from anywhere, the admin API only on the node itself."""
    address = mesh.address("node1")
    assert (
        curl(mesh, "plain", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}:15020/metrics").stdout == "200"
    )
    assert curl(mesh, "plain", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}:15021/ready").stdout == "200"
    assert curl(mesh, "plain", f"http://{address}:15000/pods").returncode == 7
    assert mesh.agent("node1").admin_socket.stat().st_mode & 0o777 == 0o600


def test_a_pod_cannot_reach_the_admin_api_through_its_own_listeners(mesh: Lab) -> None:
    for port in (15000, 15001, 15006):
        done = curl(mesh, "client", "-w", " %{http_code}", f"http://127.0.0.1:{port}/pods")
        assert '"identity"' not in done.stdout
        assert not done.stdout.endswith(" 200")


# -- Prometheus --


def test_promtool(mesh: Lab) -> None:
    for name in ("local", "remote", "nobody"):
        curl(mesh, "client", f"http://{cluster_ip(mesh, name)}/about")
    for node in mesh.nodes:
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=scrape(mesh, node).text, capture_output=True, text=True, check=False
        )
        # The one name that promtool finds wrong is Istio's.
        said = [
            line
            for line in done.stderr.splitlines()
            if line != 'istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds"'
        ]
        assert (done.stdout, said) == ("", []), done
        assert done.returncode in (0, 3)  # 3: well-formed, with remarks on style


def test_a_real_prometheus_scrapes_both_agents(mesh: Lab, tmp_path: Path) -> None:
    about(mesh, "client", f"http://{cluster_ip(mesh, 'remote')}")
    targets = [f"{mesh.address(node)}:15020" for node in mesh.nodes]
    with prometheus(mesh, "node1", tmp_path, targets) as asked:
        query = (
            "sum by (reporter, connection_security_policy) (istio_requests_total{source_workload='client', "
            "destination_workload='remote'})"
        )
        found = eventually(lambda: reporters(asked(query)), "both reporters are scraped", 60)
        assert found["source"] >= 1
        assert found["destination"] >= 1
        assert [sample["value"][1] for sample in asked("up{job='scraped'}")] == ["1", "1"]


def reporters(samples: Iterable[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        found[sample["metric"]["reporter"]] = found.get(sample["metric"]["reporter"], 0) + float(sample["value"][1])
    return found if set(found) == {"source", "destination"} else {}
