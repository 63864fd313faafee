"""Whether pods reach each other as policies say: pods are made in a namespace of their own, which is
removed afterwards, also when something fails.

=========== ============================================================== =====================
who asks    whom                                                           what must come
=========== ============================================================== =====================
client      a server on its node, one on another node, both by a Service   an answer
client      a server whose mTLS is STRICT, on another node if there is one an answer
client      a server that an AuthorizationPolicy denies to all             403
outsider    a server of the mesh                                           an answer
outsider    the server whose mTLS is STRICT                                no answer
=========== ============================================================== =====================

The outsider is a pod that is not in the mesh. Each asks again until what must come has come, for a
policy takes a moment to be in force everywhere; what it heard last is told when that never is.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.errors import ControlError
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.rollout import placement
from nodeagent.rollout.check import ClusterFinding
from nodeagent.rollout.lending import pull_secrets
from nodeagent.rollout.manifests import ObjectName
from nodeagent.rollout.node_choice import chosen
from nodeagent.rollout.on_nodes import agent_container
from nodeagent.rollout.progress import LOOK_SECONDS, Say, waited
from nodeagent.rollout.resources import ClusterObjects
from nodeagent.rollout.workloads import unready

PREFIX: Final = "nodeagent-check-"
PORT: Final = 8080
READY_SECONDS: Final = 120.0
ASK_SECONDS: Final = 60
"""How long a client asks for what must come."""
SECURITY: Final = "security.istio.io"
SERVER: Final = """
import http.server, socket
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers(); self.wfile.write(b"ok\\n")
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
Server(("", 8080), Answer).serve_forever()
"""
CLIENT: Final = """
import json, sys, time, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def ask(url):
    try:
        with opener.open(url, timeout=5) as answer: return str(answer.status)
    except urllib.error.HTTPError as error: return str(error.code)
    except Exception as error: return f"none: {getattr(error, 'reason', error)}"
end = time.monotonic() + float(sys.argv[1])
for number, (url, wanted) in enumerate(json.loads(sys.argv[2])):
    while True:
        heard = ask(url)
        good = heard.startswith("none") if wanted == "none" else heard == wanted
        if good or time.monotonic() > end: break
        time.sleep(0.5)
    print(json.dumps({"number": number, "good": good, "heard": heard}), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who asks whom, and what must come: an HTTP status, or ``none``."""

    who: str
    whom: str
    what: str
    """In words: a finding's name."""
    wanted: str


@dataclass(frozen=True, slots=True)
class AnsweringPod:
    """A pod that answers."""

    name: str
    app: str
    node: str


def servers(nodes: Sequence[str]) -> list[AnsweringPod]:
    """Return the servers for *nodes*, of which the first is the clients'."""
    near = nodes[0]
    far = nodes[-1]
    found = [AnsweringPod("near", "open", near), AnsweringPod("strict", "strict", far)]
    found.append(AnsweringPod("denied", "denied", near))
    return [*found, AnsweringPod("far", "open", far)] if far != near else found


def attempts(nodes: Sequence[str], kinds: Sequence[str]) -> Iterator[Attempt]:
    """Yield what is tried on *nodes*, where the cluster knows the policies *kinds*."""
    yield Attempt("client", "near", "same node", "200")
    if len(nodes) > 1:
        yield Attempt("client", "far", "other node", "200")
    yield Attempt("client", "service", "Service", "200")
    yield Attempt("outsider", "near", "from outside of the mesh", "200")
    if "PeerAuthentication" in kinds:
        yield Attempt("client", "strict", "STRICT, with mTLS", "200")
        yield Attempt("outsider", "strict", "STRICT, from outside of the mesh", "none")
    if "AuthorizationPolicy" in kinds:
        yield Attempt("client", "denied", "denied by an AuthorizationPolicy", "403")


class Connectivity:
    """One test in the cluster of *objects*."""

    def __init__(self, objects: ClusterObjects, say: Say) -> None:
        self._objects = objects
        self._say = say
        self._namespace = f"{PREFIX}{secrets.token_hex(3)}"
        self._pull_secrets: list[KubeObject] = []
        """Of its pods: those that could be copied."""

    async def run(self) -> list[ClusterFinding]:
        """Return a finding for each attempt. Raises ControlError, ApiError when it cannot be made;
        what was made is removed in any case.
        """
        name = await placement.agents(self._objects)
        agents = await self._objects.get(name)
        if agents is None:
            raise ControlError(f"{name} is not there: nodeagent install comes first")
        spec = agents["spec"]["template"]["spec"]
        nodes = await self._nodes(spec)
        kinds = [kind for kind in ("PeerAuthentication", "AuthorizationPolicy") if await self._version(kind)]
        container = agent_container(spec)
        try:
            await self._make_namespace()
            await self._copy_pull_secrets(name.namespace, spec)
            await self._make(nodes, kinds, container)
            return await self._try(list(attempts(nodes, kinds)), nodes[0], container)
        finally:
            await self._remove()

    async def _nodes(self, spec: KubeObject) -> list[str]:
        """Return up to two nodes that can run pods, and agents with *spec*. Raises ControlError where there is none."""
        found = [
            node["metadata"]["name"]
            for node in chosen(spec, await self._objects.list("v1", "Node"))
            if not (node.get("spec") or {}).get("unschedulable") and _is_ready(node)
        ]
        if not found:
            raise ControlError("no node that has an agent is Ready and takes pods")
        return found[:2]

    async def _version(self, kind: str) -> str:
        """Return the newest version of Istio's *kind* that the cluster has; empty: none."""
        for version in ("v1", "v1beta1"):
            if await self._objects.find(f"{SECURITY}/{version}", kind) is not None:
                return f"{SECURITY}/{version}"
        return ""

    async def _make_namespace(self) -> None:
        labels = {
            "nodeagent.io/dataplane": "enabled",
            "app.kubernetes.io/part-of": "nodeagent",
            "pod-security.kubernetes.io/enforce": "restricted",
        }
        await self._apply("v1", "Namespace", self._namespace, {}, labels=labels, namespaced=False)

    async def _copy_pull_secrets(self, namespace: str, spec: KubeObject) -> None:
        """Have the Secrets by which the image of the agents in *namespace*, whose pods are as *spec* says, is pulled:
        those that are there. A node may have the image, so one that may not be read is only told.
        """
        account = ObjectName("v1", "ServiceAccount", namespace, spec.get("serviceAccountName") or "default")
        try:
            for name in pull_secrets(spec, await self._objects.get(account)):
                found = await self._objects.get(ObjectName("v1", "Secret", namespace, name))
                if found is not None:
                    await self._apply("v1", "Secret", name, {"type": found["type"], "data": found.get("data") or {}})
                    self._pull_secrets.append({"name": name})
        except ApiError as error:
            self._say(f"  what the agents' image is pulled by cannot be copied: {error}")

    async def _make(self, nodes: Sequence[str], kinds: Sequence[str], container: KubeObject) -> None:
        """Make everything else but the clients, and wait until the servers are ready."""
        for account in ("client", "server", "outsider"):
            await self._apply("v1", "ServiceAccount", account, {})
        for kind in kinds:
            for name, spec in POLICIES[kind].items():
                await self._apply(await self._version(kind), kind, name, {"spec": spec})
        ports = [{"name": "http", "port": 80, "targetPort": PORT}]
        await self._apply("v1", "Service", "service", {"spec": {"selector": {"app": "open"}, "ports": ports}})
        for server in servers(nodes):
            pod = self._pod(container, server.node, "server", ["python3", "-c", SERVER])
            pod["containers"][0] |= {
                "ports": [{"name": "http", "containerPort": PORT}],
                "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
            }
            await self._apply("v1", "Pod", server.name, {"spec": pod}, labels={"app": server.app})
        await waited(partial(self._unready, servers(nodes)), self._say, READY_SECONDS, "servers of the test")

    async def _unready(self, made: Sequence[AnsweringPod]) -> str:
        reasons = []
        for server in made:
            pod = await self._objects.get(ObjectName("v1", "Pod", self._namespace, server.name))
            if why := unready(pod) if pod is not None else "it is gone":
                reasons.append(f"{server.name}: {why}")
        return "; ".join(reasons)

    async def _try(self, tried: Sequence[Attempt], node: str, container: KubeObject) -> list[ClusterFinding]:
        heard: list[ClusterFinding] = []
        for who in ("client", "outsider"):
            own = [attempt for attempt in tried if attempt.who == who]
            asked = json.dumps([(await self._url(attempt.whom), attempt.wanted) for attempt in own])
            spec = self._pod(container, node, who, ["python3", "-c", CLIENT, str(ASK_SECONDS), asked])
            spec |= {"restartPolicy": "Never"}
            labels = {"app": who, **({"nodeagent.io/dataplane": "disabled"} if who == "outsider" else {})}
            await self._apply("v1", "Pod", who, {"spec": spec}, labels=labels)
        for who in ("client", "outsider"):
            own = [attempt for attempt in tried if attempt.who == who]
            heard += findings(own, await self._answers(who))
        return heard

    async def _answers(self, who: str) -> str:
        """Return what the pod *who* printed, when it has ended. Raises ControlError."""
        name = ObjectName("v1", "Pod", self._namespace, who)
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_SECONDS + READY_SECONDS):
                while True:
                    pod = await self._objects.get(name)
                    if pod is None or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                        break
                    await asyncio.sleep(LOOK_SECONDS)
        return await self._objects.log(name)

    async def _url(self, whom: str) -> str:
        """Return the URL of the pod, or of the Service, *whom*."""
        kind = "Service" if whom == "service" else "Pod"
        found = await self._objects.get(ObjectName("v1", kind, self._namespace, whom))
        if found is None:
            raise ControlError(f"{kind} {self._namespace}/{whom} was removed meanwhile")
        address = found["spec"]["clusterIP"] if kind == "Service" else found["status"]["podIP"]
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{80 if kind == 'Service' else PORT}/"

    def _pod(self, container: KubeObject, node: str, account: str, command: Sequence[str]) -> KubeObject:
        one = {
            "name": "test",
            "image": container["image"],
            "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
            "command": list(command),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        return {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [one],
            "imagePullSecrets": self._pull_secrets,
        }

    async def _apply(
        self,
        api_version: str,
        kind: str,
        name: str,
        rest: KubeObject,
        *,
        labels: dict[str, str] | None = None,
        namespaced: bool = True,
    ) -> None:
        metadata: KubeObject = {"name": name, "labels": labels or {}}
        if namespaced:
            metadata["namespace"] = self._namespace
        await self._objects.apply({"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest})

    async def _remove(self) -> None:
        """Remove the namespace, and those that an earlier test could not remove."""
        for item in await self._objects.list("v1", "Namespace", labels=placement.PART_OF):
            name = item["metadata"]["name"]
            if name.startswith(PREFIX):
                with suppress(ApiError):
                    await self._objects.delete(ObjectName("v1", "Namespace", "", name))


POLICIES: Final[dict[str, dict[str, KubeObject]]] = {
    "PeerAuthentication": {
        "default": {"mtls": {"mode": "PERMISSIVE"}},
        "strict": {"selector": {"matchLabels": {"app": "strict"}}, "mtls": {"mode": "STRICT"}},
    },
    "AuthorizationPolicy": {
        "all": {"action": "ALLOW", "rules": [{}]},
        "denied": {
            "selector": {"matchLabels": {"app": "denied"}}, "action": "DENY", "rules": [{"to": [{"operation": {}}]}],
        },
    },
}  # fmt: skip
"""By kind: specs by the policies' names. The first ones are for a mesh that is STRICT, or allows little, as a whole."""


def findings(tried: Sequence[Attempt], words: str) -> list[ClusterFinding]:
    """Return what came of *tried*, by the lines that the client printed."""
    answers: dict[int, KubeObject] = {}
    for line in words.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            answers[int(found["number"])] = found
    result = []
    for number, attempt in enumerate(tried):
        answer = answers.get(number)
        heard = (
            str(answer["heard"]) if answer is not None else f"the test's pod did not get there: {words.strip()[-200:]}"
        )
        good = answer is not None and bool(answer["good"])
        wanted = "no answer" if attempt.wanted == "none" else attempt.wanted
        detail = heard if good else f"{heard}, and not {wanted}"
        result.append(ClusterFinding(attempt.who, attempt.what, "ok" if good else "missing", detail))
    return result


def _is_ready(node: KubeObject) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
