"""NetworkPolicies that a cluster's nodes enforce are the same beside the agents as without them: between pods of the
mesh they see the pods' own addresses and the application's own port, and nothing has to be admitted for the agents.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeagent.lab.kube import Kube
from tests.kube.mesh import SECONDS, apply, enrolled, get, namespace, policy, ready
from tests.kube.network_policies import enforced, network_policy
from tests.kube.workloads import Document, client, container, nginx, service
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents
NAMESPACE = "fenced"
CALLERS = ("caller", "other", "plain-caller", "plain-other")
"""All on node-a; those that are plain are outside of the mesh. The policies let the callers in."""
SERVERS = {"near": "node-a", "far": "node-b", "plain-far": "node-b"}
"""Those of the mesh are STRICT."""
PORT, ANOTHER_PORT = 80, 8080
ASK = """
for url; do
  { code=$(curl -s -g -m 4 -o /dev/null -w '%{http_code}' "$url"); echo "$url $code $?"; } &
done; wait
"""
SERVED = "served"
REFUSED = "refused"
"""By the server's agent, which has the connection: STRICT."""
NOTHING = "nothing"
"""What a packet comes to that is dropped: no answer, or an agent's 503."""
NOBODY = network_policy("nobody", NAMESPACE, {"podSelector": {}, "policyTypes": ["Ingress"]})
IN = network_policy(
    "in",
    NAMESPACE,
    {
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "caller"}}}], "ports": [{"port": "http"}]}],
    },
)
OUT = network_policy(
    "out",
    NAMESPACE,
    {
        "podSelector": {"matchLabels": {"role": "caller"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"role": "server"}}}], "ports": [{"port": PORT}]}],
    },
)
Outcomes = Mapping[str, str]
"""Word by source, server, address and port."""


def in_mesh(name: str) -> bool:
    return not name.startswith("plain-")


def pod(name: str, node: str, role: str) -> Document:
    """Return a pod that says whether it is in the mesh; servers serve at two ports."""
    found = client(NAMESPACE, node, name=name, labels={"role": role})
    found["metadata"]["labels"]["nodeagent.io/dataplane"] = "enabled" if in_mesh(name) else "disabled"
    if role == "server":
        another = container("python3", "-m", "http.server", "--bind", "::", str(ANOTHER_PORT))
        found["spec"]["containers"] = [nginx(), {**another, "name": "another"}]
    return found


@pytest.fixture(scope="module")
def fenced(mesh: Kube) -> Iterator[Kube]:
    strict = policy("PeerAuthentication", "default", NAMESPACE, {"mtls": {"mode": "STRICT"}})
    callers = [pod(name, "node-a", name.removeprefix("plain-")) for name in CALLERS]
    servers = [pod(name, node, "server") for name, node in SERVERS.items()]
    selector = {"role": "server", "nodeagent.io/dataplane": "enabled"}
    web = service("web", NAMESPACE, selector=selector)
    apply(mesh, namespace(NAMESPACE), strict, web, *callers, *servers)
    ready(mesh, NAMESPACE)
    enrolled(mesh, "node-a", *(f"{NAMESPACE}/{name}" for name in ("caller", "other", "near")))
    enrolled(mesh, "node-b", f"{NAMESPACE}/far")
    yield mesh
    mesh.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def urls(fenced: Kube) -> Mapping[str, str]:
    """What is asked for, by its name here: each server at both of its addresses and ports, and the Service."""
    found = {}
    for name in SERVERS:
        status = get(fenced, "pod", "-n", NAMESPACE, name)["status"]
        for each in status["podIPs"]:
            family, host = ("IPv6", f"[{each['ip']}]") if ":" in each["ip"] else ("IPv4", each["ip"])
            for port in (PORT, ANOTHER_PORT):
                found[f"{name} {family} {port}"] = f"http://{host}:{port}/"
    address = get(fenced, "service", "-n", NAMESPACE, "web")["spec"]["clusterIP"]
    return {**found, f"service IPv4 {PORT}": f"http://{address}/"}


def outcomes(kube: Kube, urls: Mapping[str, str]) -> Outcomes:
    """Have every caller ask for everything at once."""
    names = {url: name for name, url in urls.items()}

    def of(source: str) -> dict[str, str]:
        asked = ["exec", "-n", NAMESPACE, source, "--", "sh", "-c", ASK, "sh", *names]
        done = subprocess.run(kube.kubectl_command(asked), capture_output=True, text=True, timeout=60, check=True)
        lines = map(str.split, done.stdout.splitlines())
        return {f"{source} -> {names[url]}": word(int(status), int(code)) for url, status, code in lines}

    with ThreadPoolExecutor() as threads:
        found: dict[str, str] = {}
        for each in threads.map(of, CALLERS):
            found |= each
    return found


def word(status: int, code: int) -> str:
    """Return what an answer's *status* and curl's exit *code* come to."""
    if status == 200:
        return SERVED
    if code in (52, 56):
        return REFUSED
    assert status == 503 or code == 28, f"status {status}, curl's exit code {code}"
    return NOTHING


def expected(urls: Mapping[str, str], *, fenced: bool) -> Outcomes:
    """Return what everything comes to with the policies, or without them: STRICT alone, then."""
    found = {}
    for source in CALLERS:
        for name in urls:
            server, _, port = name.split()
            admitted = not fenced or (source.endswith("caller") and port == str(PORT))
            strict = in_mesh(server) and not in_mesh(source)
            passed = REFUSED if strict else SERVED
            found[f"{source} -> {name}"] = passed if admitted else NOTHING
    return found


def become(kube: Kube, urls: Mapping[str, str], wanted: Outcomes) -> None:
    """Wait until everything comes to what is *wanted*, in one look."""

    def same() -> bool:
        found = outcomes(kube, urls)
        other = {what: (found.get(what), word) for what, word in wanted.items() if found.get(what) != word}
        assert not other, other
        return True

    eventually(same, "all outcomes", SECONDS)


def test_what_policies_admit_passes_with_mtls_and_nothing_else(fenced: Kube, urls: Mapping[str, str]) -> None:
    """Input: nobody is let in, but callers at the servers' port by its name; nor do callers get out to anything but
    that, no DNS and no authority. Verdict: they are served there, also by STRICT servers of the other node, to whom
    there is no way but mTLS, so it is from the callers' addresses to that very port; a caller without a certificate
    gets as far as before; others and other ports get no answer, in the mesh and outside of it, in both families,
    over connections that were there before, too. Without the policies all is as it was.
    """
    become(fenced, urls, expected(urls, fenced=False))
    with enforced(fenced, NOBODY, IN, OUT):
        become(fenced, urls, expected(urls, fenced=True))
    become(fenced, urls, expected(urls, fenced=False))
