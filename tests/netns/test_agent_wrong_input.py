"""What others write wrong: it is refused by name, what was good stays, what never was good closes,
and no process ends of it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from nodeagent.lab.agent import merge
from nodeagent.lab.layout import write_json
from tests.netns.test_agent_policy import Policies, policy, status
from tests.netns.world import (
    QUICK,
    access_log,
    account,
    admin,
    client,
    client_in,
    cluster,
    cluster_ip,
    control,
    curl,
    get,
    server,
    workers,
)
from tests.waiting import eventually

TEXT = (
    account("client", "server")
    + client("client", "node1", account="client")
    + server("local", "node1", account="server", labels="role: server")
)
WRONG = {
    "bool": "a: !!bool maybe",
    "int": 'a: !!int ""',
    "base60": "a: 1" + ":00" * 180 + ".5",
    "timestamp": "a: !!timestamp x",
    "surrogate": 'a: "\\ud800"',
    "python": "a: !!python/object/apply:os.system [x]",
    "deep": "[" * 100_000,
    "bomb": "a: &a [" + "x, " * 90_000 + "]\nb: [" + "*a, " * 1000 + "]",
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    with cluster("t-wrong", TEXT, nodes=1, agent=merge(QUICK, {"resources": [str(folder)]})) as lab:
        yield Policies(lab, folder)


@pytest.fixture(autouse=True)
def clean(policies: Policies) -> Iterator[None]:
    yield
    for file in policies.folder.glob("*.yaml"):
        file.unlink()
    eventually(lambda: not policies.rows(), "no policies")
    eventually(lambda: status(policies.lab, "client", url(policies)) == 200, "everything is open again")


def url(policies: Policies) -> str:
    return f"http://{cluster_ip(policies.lab, 'local')}/about"


def row(policies: Policies, name: str) -> dict[str, object]:
    return next((each for each in policies.rows() if each["policy"] == f"default/{name}"), {})


def eventually_status(policies: Policies, code: int) -> None:
    eventually(lambda: status(policies.lab, "client", url(policies)) == code, f"status {code}")


DENY = "{selector: {matchLabels: {role: server}}, action: DENY, rules: [{}]}"
TYPO = "{selector: {matchLabels: {role: server}}, action: DNEY, rules: [{}]}"


def test_no_document_ends_control_and_policies_stay(policies: Policies) -> None:
    lab = policies.lab
    pids = (control(lab, "node1"), workers(lab, "node1"))
    policies.put("good", policy("good", DENY))
    eventually_status(policies, 403)
    for name, text in WRONG.items():
        policies.put(name, text)
    eventually(lambda: len(policies.rows()) == 1 + len(WRONG), "each is told")
    assert {each["state"].split(":")[0] for each in policies.rows() if not each["policy"]} == {"refused"}
    assert status(lab, "client", url(policies)) == 403
    policies.put("good", policy("good", TYPO))
    eventually(
        lambda: str(row(policies, "good").get("state")).startswith(
            "last good one in force; refused: document 1: spec.action: 'DNEY'"
        ),
        "it is told",
    )
    assert status(lab, "client", url(policies)) == 403
    assert (control(lab, "node1"), workers(lab, "node1")) == pids
    code, words = get(lab, "node1", 15021, "/ready")
    assert (code, words.splitlines()[0]) == (200, "ready")
    assert "warning: AuthorizationPolicy default/good: " in words


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "RequestAuthentication", "RateLimit"])
def test_what_never_was_right_closes_what_it_selects(policies: Policies, kind: str) -> None:
    lab, log = policies.lab, access_log(policies.lab)
    policies.put("first", policy("first", "{selector: {matchLabels: {role: server}}, wrong: 5}", kind=kind))
    eventually_status(policies, 403)
    found = row(policies, "first")
    assert (found["kind"], found["pods"]) == (kind, 1)
    assert str(found["state"]).startswith("refused: spec.wrong: unknown field")
    assert str(found["state"]).endswith("; closes 1 pods of this node")
    log.find(code="403", details=f"policy_refused[kind[{kind}]-ns[default]-policy[first]]")
    said = admin(lab, "node1", "/explain?source=default/client&destination=default/local:80&method=GET&path=/about")
    assert said["verdict"] == "refused"
    assert f"{kind} default/first" in said["steps"][-1]["words"]
    assert "the document is wrong and closes what it selects" in said["steps"][-1]["words"]
    policies.drop("first")
    eventually_status(policies, 200)


def test_a_wrong_peer_authentication_is_strict(policies: Policies) -> None:
    lab = policies.lab
    policies.put("first", policy("first", "{mtls: {mode: STRIKT}}", kind="PeerAuthentication"))
    plain = f"http://{lab.address('local')}:8080/about"
    eventually(
        lambda: curl(lab, "node1", "-o", "/dev/null", plain).returncode != 0 or status(lab, "node1", plain) == 403,
        "plaintext is refused",
    )
    assert status(lab, "client", url(policies)) == 200


@pytest.mark.parametrize("how", ["control", "daemon"])
def test_a_restart_while_it_is_wrong_keeps_the_last_good_one(policies: Policies, how: str) -> None:
    lab = policies.lab
    policies.put("good", policy("good", DENY))
    eventually_status(policies, 403)
    policies.put("good", "kind: [")
    eventually(lambda: len(policies.rows()) == 2, "it is refused")
    restart(policies, how)
    assert status(lab, "client", url(policies)) == 403
    eventually(lambda: row(policies, "good")["state"] == "in force", "workers have said what they do")


@pytest.mark.parametrize("how", ["control", "daemon"])
def test_a_restart_while_a_pod_cannot_be_read_opens_nothing(policies: Policies, how: str) -> None:
    """Input: the document of a pod under DENY is wrong, and who knew it ends. Verdict: nobody gets
    in, until it is right again and then by policy.
    """
    lab, plain = policies.lab, f"http://{policies.lab.address('local')}:8080/about"
    policies.put("good", policy("good", DENY))
    eventually_status(policies, 403)
    file = lab.layout.object_file("Pod", "default", "local")
    good = json.loads(file.read_text())
    write_json(file, good | {"metadata": good["metadata"] | {"labels": good["metadata"]["labels"] | {"odd": 5}}})
    with client_in(lab, "node1", "load", lab.address("local"), 8080, "--fresh", "--pause", 0.02) as stranger:
        restart(policies, how)
        assert all(
            curl(lab, source, "-o", "/dev/null", "-w", "%{http_code}", plain).stdout != "200"
            for source in ("client", "node1")
        )
        write_json(file, good)
        eventually(lambda: status(lab, "node1", plain) == 403, "it is captured again")
        assert stranger.finish().pop("ok", 0) == 0


def restart(policies: Policies, how: str) -> None:
    """Kill control, or stop and start the daemon, of node1; return when it is ready."""
    lab = policies.lab
    before = control(lab, "node1")
    if how == "control":
        os.kill(before, signal.SIGKILL)
    else:
        lab.agent("node1").stop()
        lab.agent("node1").start()

    def back() -> bool:
        try:
            return control(lab, "node1") != before and get(lab, "node1", 15021, "/ready")[0] == 200
        except (IndexError, OSError, AssertionError):
            return False

    eventually(back, "another control is ready")


def test_in_force_is_what_every_worker_acknowledged(policies: Policies) -> None:
    lab = policies.lab
    policies.put("first", policy("first", "{selector: {matchLabels: {role: none}}, action: DENY, rules: [{}]}"))
    eventually(lambda: row(policies, "first"), "it is known")
    (pid,) = workers(lab, "node1")
    os.kill(pid, signal.SIGSTOP)
    try:
        policies.put("good", policy("good", DENY))
        found = eventually(lambda: row(policies, "good"), "it is known")
        assert found["state"] == f"pending: worker 0 (pid {pid})"
        assert found["pending"] == [f"worker 0 (pid {pid})"]
        assert "pending" not in str(row(policies, "first")["state"])
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: row(policies, "good").get("state") == "in force", "the worker has it")
    eventually_status(policies, 403)
