"""The SPIFFE Workload API: an application gets the certificate and the tokens of its own pod, and nobody else's."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.places.annotation import CGROUP
from tests.netns.identity import MOUNTED, PREFIX, PROGRAM, SOCKET, asking, in_host, run, watching, workload
from tests.netns.world import QUICK, account, admin, client, cluster, control
from tests.waiting import eventually

METHODS = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")
ELSEWHERE = "/var/lib/identity/api"
TEXT = "".join(
    (
        account("web", "shop", "sidecar"),
        asking("web", "node1", account="web"),
        asking("shop", "node2", driver="csi.spiffe.io", account="shop"),
        asking("sidecar", "node1", account="sidecar", annotations="sidecar.istio.io/status: '{}'"),
        client("annotated", "node1", account="shop", annotations="nodeagent.io/workload-api: enabled"),
        client("placed", "node1", account="web", annotations=f"nodeagent.io/workload-api: {ELSEWHERE}"),
        client("linked", "node1", account="web", annotations="nodeagent.io/workload-api: /var/run/linked"),
        client("stranger", "node1", container="volumeMounts: [{name: run, mountPath: /run/nodeagent}]")
        + "  volumes: [{name: run, hostPath: {path: /run/nodeagent}}]\n",  # it has got hold of other pods' sockets
    )
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Certificates live for so short that each is renewed while a test runs."""
    with cluster("t-workload", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 20}})) as lab:
        yield lab


def refused(lab: Lab, source: str, path: str) -> bool:
    """Say whether the process is refused with nothing told, by the package and by each method."""
    done = run(lab, source, "svid", path=path)
    assert "PERMISSION_DENIED" in done.stderr, done
    statuses = {
        workload(lab, source, "call", f"/SpiffeWorkloadAPI/{method}", "workload.spiffe.io=true", path=path)["status"]
        for method in METHODS
    }
    statuses.add(
        workload(lab, source, "call", "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", path=path)[
            "status"
        ]
    )
    return done.stdout == "" and statuses == {"PERMISSION_DENIED"}


@pytest.mark.parametrize(
    ("pod", "account", "path"),
    [
        ("web", "web", SOCKET),
        ("shop", "shop", SOCKET),
        ("sidecar", "sidecar", SOCKET),
        ("annotated", "shop", "/run/nodeagent/socket"),
        ("placed", "web", f"{ELSEWHERE}/socket"),
    ],
)
def test_a_pod_gets_its_own_certificate_by_volume_and_by_annotation(
    lab: Lab, pod: str, account: str, path: str
) -> None:
    eventually(lambda: lab.exec(pod, ["test", "-S", path]).returncode == 0, "the socket is there")
    got = workload(lab, pod, "svid", path=path)
    assert got["id"] == f"{PREFIX}/{account}"
    assert got["names"] == [f"{PREFIX}/{account}"], "the chain leads to the bundle"
    assert got["same_key"]


def test_a_renewed_certificate_is_pushed(lab: Lab) -> None:
    with watching(lab, "web", 3) as watched:
        updates = [watched.first, watched.hear(), watched.hear()]
    assert len({update["serial"] for update in updates}) == 3
    assert {update["id"] for update in updates} == {f"{PREFIX}/web"}
    listed = admin(lab, "node1", "/certs")
    assert isinstance(listed, list) and f"{PREFIX}/web" in {row["identity"] for row in listed}


def test_tokens_are_for_an_audience_and_hold_in_the_whole_trust_domain(lab: Lab) -> None:
    got = workload(lab, "web", "jwt", "shop", "bank")
    assert got["id"] == f"{PREFIX}/web"
    assert got["audience"] == ["bank", "shop"]
    assert workload(lab, "shop", "validate", "shop", input=got["token"]) == {
        "online": f"{PREFIX}/web",
        "offline": f"{PREFIX}/web",
    }
    wrong = workload(lab, "shop", "validate", "library", input=got["token"])
    assert all(answer.startswith("refused") for answer in wrong.values())


def test_a_token_that_was_touched_is_refused(lab: Lab) -> None:
    token = workload(lab, "web", "jwt", "shop")["token"]
    head, claims, signature = token.split(".")
    other = json.loads(base64.urlsafe_b64decode(claims + "=="))
    other["sub"] = f"{PREFIX}/shop"
    forged = base64.urlsafe_b64encode(json.dumps(other).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for text in (
        f"{head}.{forged}.{signature}",
        f"{none}.{claims}.",
        f"{none}.{claims}.{signature}",
        f"{head}.{claims}.{'A' * 86}",
        "x",
        "a.b.c",
    ):
        answers = workload(lab, "shop", "validate", "shop", input=text)
        assert all(answer.startswith("refused") for answer in answers.values()), answers


def test_an_audience_is_needed(lab: Lab) -> None:
    got = workload(lab, "web", "call", "/SpiffeWorkloadAPI/FetchJWTSVID", "workload.spiffe.io=true")
    assert got["status"] == "INVALID_ARGUMENT"
    assert "audience" in got["details"]


@pytest.mark.parametrize(
    "metadata", [(), ("workload.spiffe.io=false",), ("workload.spiffe.io=true", "workload.spiffe.io=true")]
)
def test_without_its_metadata_no_method_answers(lab: Lab, metadata: tuple[str, ...]) -> None:
    assert {
        workload(lab, "web", "call", f"/SpiffeWorkloadAPI/{method}", *metadata)["status"] for method in METHODS
    } == {"INVALID_ARGUMENT"}


def test_another_pods_process_is_refused(lab: Lab) -> None:
    assert refused(lab, "stranger", in_host(lab, "web"))
    eventually(
        lambda: "a caller at the socket of pod default/web is refused" in lab.agent("node1").log.read_text(),
        "it is told",
    )


def test_the_host_is_refused(lab: Lab) -> None:
    assert refused(lab, "node1", in_host(lab, "web"))


def test_neither_the_network_nor_the_cgroup_of_another_pod_is_enough(lab: Lab) -> None:
    """In its network namespace with a cgroup of one's own, and in its cgroup with a network namespace of one's own."""
    argv = [*PROGRAM, "svid", in_host(lab, "web")]
    for cgroup, netns in (("stranger", "web"), ("web", "stranger")):
        join = f'echo $$ > {lab.pod(cgroup)["metadata"]["annotations"][CGROUP]}/c/cgroup.procs && exec "$@"'
        done = lab.exec("node1", ["sh", "-c", join, "sh", "nsenter", f"--net={lab.netns(netns)}", *argv])
        assert "PERMISSION_DENIED" in done.stderr, done


def test_the_folder_is_read_only_in_the_pod(lab: Lab) -> None:
    for pod, folder in (("web", MOUNTED), ("annotated", "/run/nodeagent"), ("placed", ELSEWHERE)):
        eventually(
            lambda pod=pod, folder=folder: lab.exec(pod, ["test", "-S", f"{folder}/socket"]).returncode == 0,
            "it is there",
        )
        for command in (["touch", f"{folder}/x"], ["rm", f"{folder}/socket"]):
            assert "Read-only file system" in lab.exec(pod, command).stderr


def test_no_symbolic_link_of_a_pod_is_followed(lab: Lab) -> None:
    told = "the socket of pod default/linked: /var/run/linked: run is no folder, and a symbolic link is not followed"
    eventually(lambda: lab.agent("node1").log.read_text().count(told) == 1, "it is told, and once")
    assert lab.exec("linked", ["test", "-e", "/run/linked"]).returncode == 1


def test_what_a_pod_sends_harms_nobody(lab: Lab) -> None:
    before = len(lab.agent("node1").log.read_text())
    assert workload(lab, "annotated", "abuse", path="/run/nodeagent/socket") == {"done": True}
    assert workload(lab, "web", "svid")["id"] == f"{PREFIX}/web"
    assert (
        eventually(lambda: workload(lab, "annotated", "svid", path="/run/nodeagent/socket"), "it is served again")["id"]
        == f"{PREFIX}/shop"
    )
    assert "Traceback" not in lab.agent("node1").log.read_text()[before:]


def test_it_serves_on_in_the_same_folder_when_control_dies_and_when_the_agent_restarts(lab: Lab) -> None:
    os.kill(control(lab, "node1"), signal.SIGKILL)
    eventually(lambda: run(lab, "web", "svid").returncode == 0, "control's successor serves")
    agent = lab.agent("node1")
    agent.stop()
    assert run(lab, "web", "svid").returncode != 0
    agent.start()
    for pod, path in (("web", SOCKET), ("placed", f"{ELSEWHERE}/socket")):
        eventually(lambda pod=pod, path=path: run(lab, pod, "svid", path=path).returncode == 0, "the next agent serves")


def test_no_key_is_in_a_log_and_the_signing_keys_are_roots_alone(lab: Lab) -> None:
    assert "PRIVATE KEY" not in "".join(lab.agent(node).log.read_text() for node in lab.nodes)
    assert (lab.layout.state / "ca" / "jwt-keys.json").stat().st_mode & 0o777 == 0o600


def test_the_folder_goes_with_its_pod(lab: Lab) -> None:
    path = in_host(lab, "stranger").removesuffix("/socket")
    lab.apply(text=asking("brief", "node1", account="web"))
    lab.wait_ready()
    eventually(lambda: run(lab, "brief", "svid").returncode == 0, "it is served")
    folder = in_host(lab, "brief").removesuffix("/socket")
    assert subprocess.run(["test", "-d", path], check=False).returncode == 1, "who does not ask has none"
    lab.delete_pod("brief")
    eventually(lambda: not os.path.exists(folder), "its folder is gone")
