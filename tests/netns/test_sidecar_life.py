"""A sidecar's life in its pod: readiness, certificates that change, probes, PERMISSIVE, SIGTERM;
what is missing is said.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.classic import SOURCE, Sidecar, command, environment, pod, sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import QUICK, about, account, client, client_in, cluster, cluster_ip, curl, memory
from tests.waiting import eventually

LAB = "t-classic-life"
TEXT = "".join(
    (
        account("caller", "called", "less"),
        pod(LAB, "caller", "node1", account="caller"),
        pod(LAB, "called", "node1", account="called"),
        client("less", "node2", account="less"),
        client("plain", "node2", annotations='nodeagent.io/enroll: "false"'),
    )
)
PROBES = {
    "/app-health/c/readyz": {"httpGet": {"path": "/about", "port": 8080}},
    "/app-health/c/livez": {"httpGet": {"path": "/status/500", "port": 8080}},
    "/app-health/c/startupz": {"tcpSocket": {"port": 9000}},
    "/app-health/slow/readyz": {"httpGet": {"path": "/never", "port": 8080}, "timeoutSeconds": 1},
    "/app-health/odd/readyz": {"grpc": {"port": 8080}},
    "/app-health/gone/readyz": {"tcpSocket": {"port": 9999}},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Certificates live for 20 s, and are renewed after 10."""
    with cluster(LAB, TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 20}})) as lab:
        yield lab


@pytest.fixture
def caller(lab: Lab, tmp_path: Path) -> Iterator[Sidecar]:
    with sidecar(lab, "caller", tmp_path) as running:
        yield running


@pytest.fixture
def called(lab: Lab, tmp_path: Path) -> Iterator[Sidecar]:
    with sidecar(lab, "called", tmp_path, variables={"NODEAGENT_APP_PROBES": json.dumps(PROBES)}) as running:
        yield running


def test_it_has_no_privilege_and_is_small(called: Sidecar) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{called.pid()}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"1337"}
    assert not int(status["CapEff"], 16) | int(status["CapPrm"], 16)
    assert memory([called.pid()]) < 60 << 20
    maps = Path(f"/proc/{called.pid()}/maps").read_text()
    assert "bcc" not in maps
    assert "LLVM" not in maps


def test_certificates_change_and_no_request_is_lost(lab: Lab, caller: Sidecar, called: Sidecar) -> None:
    first = {each.name: each.certificate()["serial"] for each in (caller, called)}
    with client_in(lab, "caller", "load", cluster_ip(lab, "called"), 80, "--connections", 2, "--pause", 0.01) as load:
        for each in (caller, called):
            eventually(
                lambda each=each: each.certificate()["serial"] not in (None, first[each.name]),
                "it has the next certificate",
                seconds=60,
            )
        eventually(lambda: load.say()["ok"] > 20, "enough to say something", seconds=60)
        result = load.finish()
    assert set(result) == {"ok"}
    counted = called.samples().sum(
        "istio_requests_total", source_principal=f"{PREFIX}/caller", connection_security_policy="mutual_tls"
    )
    assert counted >= result["ok"]
    for each in (caller, called):
        assert "PRIVATE KEY" not in each.log.read_text()


def test_the_agent_is_away_for_a_while(lab: Lab, caller: Sidecar, called: Sidecar) -> None:
    """The last certificate goes on; when the agent is back, there is a new one."""
    agent = lab.agent("node1")
    agent.stop()
    try:
        assert about(lab, "caller", f"http://{cluster_ip(lab, 'called')}")["pod"] == "called"
        before = called.certificate()["serial"]
    finally:
        agent.start()
    eventually(lambda: called.certificate()["serial"] not in (None, before), "it follows the new agent", seconds=60)
    assert about(lab, "caller", f"http://{cluster_ip(lab, 'called')}")["pod"] == "called"


@pytest.mark.parametrize("name", ["caller", "called"])
def test_sigterm_loses_no_request(lab: Lab, tmp_path: Path, name: str) -> None:
    """Who drains goes on serving, on old connections and new ones, and asks to be left."""
    with ExitStack() as stack:
        running = {
            each: stack.enter_context(sidecar(lab, each, tmp_path, "--drain-seconds", "8"))
            for each in ("caller", "called")
        }
        _drained(lab, running[name])


def _drained(lab: Lab, draining: Sidecar) -> None:
    url = cluster_ip(lab, "called")
    with (
        client_in(lab, "caller", "load", url, 80, "--connections", 4, "--kind", "pause") as kept,
        client_in(lab, "caller", "load", url, 80, "--connections", 2, "--fresh") as fresh,
        client_in(lab, "caller", "hold", url, 9000, "--connections", 5) as held,
    ):
        os.kill(draining.pid(), signal.SIGTERM)
        eventually(lambda: not draining.ready(), "it is not ready any more")
        before = [each.say()["ok"] for each in (kept, fresh)]
        eventually(
            lambda: all(each.say()["ok"] > count + 20 for each, count in zip((kept, fresh), before, strict=True)),
            "they go on",
        )
        assert held.say() == {"ok": 5, "bad": []}
        results = [each.finish() for each in (kept, fresh)]
    assert draining.process.wait(60) == 0
    for result in results:
        assert set(result) == {"ok"}, results
        assert result["ok"] > 20
    assert "Traceback" not in draining.log.read_text()


def test_a_job_can_end_it(lab: Lab, caller: Sidecar) -> None:
    assert curl(lab, "caller", "-X", "POST", "http://127.0.0.1:15000/quitquitquit").stdout == "draining\n"
    assert caller.process.wait(60) == 0


def test_the_applications_probes(lab: Lab, called: Sidecar) -> None:
    """As the kubelet asks: from the node, in plaintext."""
    wanted = dict.fromkeys(PROBES, 503) | {"/app-health/c/readyz": 200, "/app-health/c/startupz": 200}
    for host in (lab.address("called"), f"[{lab.address('called', version=6)}]"):
        got = {
            path: int(curl(lab, "node1", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}:15020{path}").stdout)
            for path in PROBES
        }
        assert got == wanted
    assert curl(lab, "node1", f"http://{host}:15020/app-health/slow/readyz").stdout == "no answer within 1 s\n"
    assert (
        curl(lab, "node1", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}:15020/app-health/c/other").stdout
        == "404"
    )


def test_permissive_takes_plaintext(lab: Lab, called: Sidecar) -> None:
    for host in (lab.address("called"), f"[{lab.address('called', version=6)}]"):
        seen = about(
            lab,
            "plain",
            f"http://{host}:8080",
            "-H",
            "x-forwarded-client-cert: By=me;URI=spiffe://cluster.local/ns/default/sa/king",
        )
        assert "x-forwarded-client-cert" not in seen["headers"]
        assert f"URI={PREFIX}/less" in about(lab, "less", f"http://{host}:8080")["headers"]["x-forwarded-client-cert"]


def test_strict_by_its_own_configuration(lab: Lab, tmp_path: Path) -> None:
    (lab.state / "sidecar.yaml").write_text("mtls: {mode: STRICT}\naccessLogFormat: json\n")
    with sidecar(lab, "called", tmp_path, "-c", f"{SOURCE}/sidecar.yaml") as running:
        assert curl(lab, "plain", f"http://{lab.address('called')}:8080/about").returncode == 56
        about(lab, "less", f"http://{lab.address('called')}:8080", "-H", "x-request-id: 4712")
        eventually(
            lambda: any(
                json.loads(line).get("request_id") == "4712" for line in running.access.read_text().splitlines()
            ),
            running.access.read_text(),
        )


def test_without_a_certificate_it_is_not_ready_and_gives_no_identity(lab: Lab, tmp_path: Path, caller: Sidecar) -> None:
    """What needs none goes on: the outside, and plaintext where it is permitted."""
    log = tmp_path / "log"
    with sidecar(lab, "called", tmp_path) as running:
        running.terminate()
        with log.open("ab") as output:
            process = lab.popen(
                "called",
                command(environment(lab, "called"), "--access-log", "", socket="/nowhere/socket"),
                stdout=output,
                stderr=output,
            )
        try:
            status, words = eventually(lambda: _not_ready(running), "it answers")
            assert (status, "/nowhere/socket" in words) == (503, True)
            assert (
                curl(
                    lab,
                    "called",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    f"http://{lab.address('node2')}:15020/metrics",
                ).stdout
                == "200"
            )
            assert about(lab, "plain", f"http://{lab.address('called')}:8080")["pod"] == "called"
            assert (
                curl(
                    lab, "called", "-o", "/dev/null", "-w", "%{http_code}", f"http://{cluster_ip(lab, 'caller')}/about"
                ).stdout
                == "503"
            )
            assert (
                curl(
                    lab, "caller", "-o", "/dev/null", "-w", "%{http_code}", f"http://{cluster_ip(lab, 'called')}/about"
                ).stdout
                == "503"
            )
        finally:
            os.kill(running.pid(), signal.SIGTERM)
            assert process.wait(60) == 0
    assert log.read_text().count("/nowhere/socket") == 1


def _not_ready(running: Sidecar) -> tuple[int, str] | None:
    try:
        return running.get(15021, "/healthz/ready")
    except OSError:
        return None


def test_what_it_cannot_start_with(lab: Lab, caller: Sidecar) -> None:
    """A second one in the same pod; a source that its user may not read."""
    done = lab.exec("caller", command(environment(lab, "caller")))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does another sidecar run in this pod?" in done.stderr
    (lab.state / "hidden" / "inside" / "objects").mkdir(parents=True)
    (lab.state / "hidden").chmod(0o700)
    for source, status in ((f"{SOURCE}/hidden", 2), (f"{SOURCE}/hidden/inside", 1)):
        argv = command(environment(lab, "caller"))
        argv[argv.index("--source") + 1] = source
        done = lab.exec("caller", argv)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert source in done.stderr
