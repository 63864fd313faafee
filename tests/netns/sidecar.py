"""A classic sidecar in a lab pod: the injector's Envoy as user 1337 with Istio's iptables rules,
certificates by SDS, STRICT, RBAC by principal.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeagent.compare import envoy
from nodeagent.inject import Injected, InjectionSettings, PodNamespace, inject
from nodeagent.istio import ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, USER
from nodeagent.lab import Lab
from nodeagent.lab.environment import expand
from nodeagent.lab.layout import PODS, SERVICES
from nodeagent.lab.processes import inside
from tests.netns.classic import unprivileged
from tests.netns.identity import PREFIX, with_volume
from tests.netns.world import server
from tests.waiting import eventually

Json = dict[str, Any]
MOUNT = "volumeMounts: [{name: api, mountPath: /run/nodeagent/sds}]"
PROBES: Json = {
    "readinessProbe": {"httpGet": {"port": 8080, "path": "/about?probed=1"}},
    "livenessProbe": {"tcpSocket": {"port": 9000}},
    "startupProbe": {"tcpSocket": {"port": 9999}},
}
"""Of the application: nothing listens on 9999."""
PROBE = "readinessProbe: {exec: {command: [sh, -c, 'grep -q :1F90 /proc/net/tcp6']}, periodSeconds: 1}"
RULES = f"""*nat
:INBOUND -
:SIDECAR -
-A PREROUTING -p tcp -j INBOUND
-A INBOUND -p tcp -m multiport --dports 15008,15090,15021,15020 -j RETURN
-A INBOUND -p tcp -j REDIRECT --to-ports {INBOUND_PORT}
-A OUTPUT -p tcp -j SIDECAR
-A SIDECAR -s 127.0.0.6/32 -o lo -j RETURN
-A SIDECAR ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner {USER} -j REDIRECT --to-ports {INBOUND_PORT}
-A SIDECAR -o lo -m owner ! --uid-owner {USER} -j RETURN
-A SIDECAR -m owner --uid-owner {USER} -j RETURN
-A SIDECAR ! -d 127.0.0.1/32 -o lo -p tcp -m owner --gid-owner {USER} -j REDIRECT --to-ports {INBOUND_PORT}
-A SIDECAR -o lo -m owner ! --gid-owner {USER} -j RETURN
-A SIDECAR -m owner --gid-owner {USER} -j RETURN
-A SIDECAR -d 127.0.0.1/32 -j RETURN
-A SIDECAR -p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}
COMMIT
"""


def pod(name: str, node: str, *, account: str) -> str:
    """Return the YAML of a pod that brings a sidecar, and of its Service; :func:`start` starts the sidecar."""
    text = server(name, node, account=account, annotations="sidecar.istio.io/status: '{}'")
    first, _, service = text.partition("\n\n---")
    return with_volume(first.replace(PROBE, f"{PROBE}, {MOUNT}")) + f"\n---{service}"


def start(
    lab: Lab,
    name: str,
    log: Path,
    *,
    admits: Sequence[str] = (),
    probes: Json = PROBES,
    values: Json | None = None,
    delta: bool = False,
) -> subprocess.Popen[bytes]:
    """Start the sidecar of the pod *name*, whose application has *probes*. It dies with the pod.

    It admits clients of the accounts *admits*, and plaintext never, unless *values* of the
    injector's template say otherwise.
    """
    argv = unprivileged(_command(lab, name, probes, _strict(admits) | (values or {})))
    argv = [word.replace('"api_type":"GRPC"', '"api_type":"DELTA_GRPC"') if delta else word for word in argv]
    with log.open("ab") as output:
        process = lab.popen(name, argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def live() -> bool:
        assert process.poll() is None and b"LIVE" in admin(lab, name, "/ready"), log.read_text(errors="replace")[-2000:]
        return True

    eventually(live)
    _capture(lab.netns(name))
    return process


def _capture(netns: Path) -> None:
    """Lead the pod's traffic to the sidecar, for both families; ::6 is no loopback address by
    itself as 127.0.0.6 is.
    """
    subprocess.run(
        inside(netns, ["ip", "-6", "address", "add", "::6/128", "dev", "lo"]), check=True, capture_output=True
    )
    for command, rules in (
        ("iptables-restore", RULES),
        ("ip6tables-restore", RULES.replace("127.0.0.6/32", "::6/128").replace("127.0.0.1/32", "::1/128")),
    ):
        subprocess.run(
            inside(netns, [command, "--noflush", "-w"]), input=rules.encode(), check=True, capture_output=True
        )


def admin(lab: Lab, name: str, path: str) -> bytes:
    """Return what the sidecar's administration says; empty: it does not answer."""
    argv = ["curl", "-sS", "--max-time", "60", f"http://127.0.0.1:{ADMIN_PORT}{path}"]
    return subprocess.run(inside(lab.netns(name), argv), capture_output=True, check=False).stdout


def certificate(lab: Lab, name: str) -> tuple[str, str]:
    """Return name and serial number of the certificate that the sidecar shows; empty while it has none."""
    found = json.loads(admin(lab, name, "/certs") or "{}").get("certificates", [])
    chains = [one for each in found for one in each.get("cert_chain", [])]
    uris = {
        alternative["uri"]
        for one in chains
        for alternative in one["subject_alt_names"]
        if alternative.get("uri", "").startswith(PREFIX)
    }
    serials = sorted(
        {
            one["serial_number"]
            for one in chains
            if any(alternative.get("uri") in uris for alternative in one["subject_alt_names"])
        }
    )
    return (uris.pop(), serials[-1]) if len(uris) == 1 and len(serials) == 1 else ("", "")


def _strict(admits: Sequence[str]) -> Json:
    principals = [f"{PREFIX}/{account}".removeprefix("spiffe://") for account in admits]
    rules = [{"from": [{"source": {"principals": principals}}]}] if admits else []
    return {"mtls": "STRICT", "tcpPorts": [9000, 9001], "authorizationPolicies": [policy("peers", rules=rules)]}


def policy(name: str, **spec: Any) -> Json:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _command(lab: Lab, name: str, probes: Json, values: Json) -> list[str]:
    """Return what the injector would have the pod's proxy run."""
    pod = {"metadata": {"name": name}, "spec": {"containers": [{"name": "c"} | probes]}}
    values = {"meshRanges": [str(network) for network in (*PODS, *SERVICES)], "concurrency": 1} | values
    found = inject(pod, PodNamespace("default", {"istio-injection": "enabled"}), InjectionSettings(values=values))
    assert isinstance(found, Injected)
    environment = {"POD_IP": lab.address(name), "POD_NAME": name, "POD_NAMESPACE": "default"}
    _, *words = [expand(word, environment) for word in found.pod["spec"]["containers"][-1]["command"]]
    return [str(envoy.binary()), *words]
