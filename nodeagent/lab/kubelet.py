"""The process that is a node: it makes the pods it is told to, keeps their containers running,
probes them, and answers DNS and ClusterIPs.

It lives in the node's network namespace and the host's other ones, has one thread (it forks), and
never decides which pods there are: ``nodeagent.lab.cluster`` does, and orders a ``sync`` on the
kubelet's socket. When it dies its pods die; started again it makes them again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nodeagent import links
from nodeagent.errors import LabError
from nodeagent.lab import cgroup, dns, network_policies, services
from nodeagent.lab.environment import ConfigMaps
from nodeagent.lab.layout import Layout, Node, Object, read_objects
from nodeagent.lab.log_keeper import LogKeeper
from nodeagent.lab.pods import Host, RunningPod
from nodeagent.lab.watch import Objects

_log = logging.getLogger(__name__)

_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/neigh/default/gc_thresh3": "8192",
    "ipv6/neigh/default/gc_thresh3": "8192",
}


class Kubelet:
    """One node."""

    def __init__(self, layout: Layout, node: Node, keeper: LogKeeper) -> None:
        self._keeper = keeper
        self._layout = layout
        self._node = node
        pods = layout.cgroup(cgroup.hierarchy()) / node.name / "kubepods"
        self._host = Host(layout, node, pods, self._config_maps, keeper)
        self._pods: dict[str, RunningPod] = {}
        self._lock = asyncio.Lock()
        self._rules = ""
        self._names: Mapping[str, tuple[str, ...]] = {}
        self._objects = Objects(layout.objects, self._on_objects)

    async def run(self) -> None:
        """Serve until killed; raises LabError or OSError if the node cannot be set up."""
        for name, value in _SYSCTLS.items():
            with suppress(FileNotFoundError):  # some belong to the first network namespace only
                Path("/proc/sys/net", name).write_text(value)
        self._keeper.attach(_end_without_keeper)
        servers = await dns.serve([str(address) for address in self._node.addresses], self._lookup)
        self._on_objects()
        self._layout.socket(self._node.name).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self._layout.socket(self._node.name))
        os.chmod(self._layout.socket(self._node.name), 0o600)
        async with server:
            await asyncio.gather(server.serve_forever(), *(each.serve_forever() for each in servers))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer orders, a JSON object a line: ``{"grace": seconds | null}`` -> ``{"error": text |
        null}``; ``{"end": true}`` ends the node.
        """
        with suppress(ConnectionError):
            while line := await reader.readline():
                order = json.loads(line)
                fault = None
                if order.get("end"):
                    # here, as their parent must take their exit statuses
                    cgroup.kill(self._host.pods_cgroup, parent=True)
                    os._exit(0)
                try:
                    await self._sync(order["grace"])
                except (LabError, OSError) as error:
                    fault = str(error)
                    _log.error("sync: %s", fault)
                writer.write(json.dumps({"error": fault}).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _sync(self, grace_seconds: float | None) -> None:
        """Make the node's pods those in its folder of desired pods; raises LabError, and then none
        of the new ones is left.
        """
        async with self._lock:
            self._objects.refresh()
            desired = {
                manifest["metadata"]["uid"]: manifest
                for manifest in read_objects(self._layout.desired(self._node.name))
            }
            gone = [pod for uid, pod in self._pods.items() if uid not in desired]
            await asyncio.gather(*(pod.stop(grace_seconds) for pod in gone))
            for pod in gone:
                del self._pods[pod.uid]
            for uid, pod in self._pods.items():
                pod.update(desired[uid])
            await self._make(
                [RunningPod(self._host, manifest) for uid, manifest in desired.items() if uid not in self._pods]
            )
            self._objects.refresh()
            self._on_objects()

    async def _make(self, pods: list[RunningPod]) -> None:
        made: list[RunningPod] = []
        where = "node"
        try:
            for pod in pods:
                where = pod.describe()
                made.append(pod)
                pod.settle_sandbox(await pod.start_sandbox())
            where = "node"
            async with links.opened() as node:
                for pod in pods:
                    await pod.link_to_node(node)
            for pod in pods:
                where = pod.describe()
                await pod.connect()
                pod.publish()
                pod.start_containers()
                pod.publish()
                await asyncio.sleep(0)  # DNS and probes go on meanwhile
        except (LabError, OSError) as error:
            await asyncio.gather(*(pod.stop(0) for pod in made))
            raise LabError(f"{where}: {error}") from None
        self._pods |= {pod.uid: pod for pod in pods}

    def _lookup(self, name: str) -> Sequence[str] | None:
        return self._names.get(name)

    def _config_maps(self, namespace: str) -> ConfigMaps:
        def lookup(name: str) -> Mapping[str, str] | None:
            found = self._objects.get("ConfigMap", namespace, name)
            return None if found is None else found.get("data", {})

        return lookup

    def _on_objects(self) -> None:
        """Services, pods or NetworkPolicies changed: renew the names and the rules; raises LabError
        if the kernel takes no such rules.
        """
        known_services = self._objects.of_kind("Service")
        pods: list[Object] = list(self._objects.of_kind("Pod"))
        self._names = services.names(known_services, pods)
        cluster = network_policies.Cluster.of(pods, self._objects.of_kind("Namespace"))
        rules = services.ruleset(known_services, pods) + network_policies.ruleset(
            self._objects.of_kind("NetworkPolicy"), cluster, self._node.name
        )
        if rules == self._rules:
            return
        done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False)
        if done.returncode:
            raise LabError(
                f"the kernel refused the rules for ClusterIPs and NetworkPolicies: nft: {done.stderr.strip()}"
            )
        self._rules = rules


def _end_without_keeper() -> None:
    """Whoever writes to a pipe that nobody reads is killed: the node's pods go together, and it can be made again."""
    _log.error("the node's log keeper has died: the node ends with it")
    os._exit(1)


def main() -> None:
    """``python -m nodeagent.lab.kubelet ROOT LAB NODE_INDEX``, in the node's network namespace."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    root, name, index = sys.argv[1:]

    keeper = LogKeeper()

    async def serve() -> None:
        await Kubelet(Layout(name, Path(root)), Node(int(index)), keeper).run()

    try:
        asyncio.run(serve())
    except (LabError, OSError) as error:
        _log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
