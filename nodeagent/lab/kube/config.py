"""What a cluster's components are told: their flags and files. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from nodeagent.lab.kube.images import APPS, PAUSE
from nodeagent.lab.kube.layout import DNS, PODS, SERVICES, WIRE, KubeLayout, KubeNode

Cni = Literal["ptp", "bridge"]
"""How pods hang on their node: each by a routed link of its own (probes come from the gateway's
address), or all on one bridge.
"""
ETCD: Final = "http://127.0.0.1:2379"
CONTAINERD: Final = Path("/run/containerd/containerd.sock")
"""As in any node; every node has a /run of its own."""
STATIC_PODS: Final = Path("/run/kubernetes/manifests")
"""Pods whose manifests are put there run without the API server; made by who puts the first one."""
NODE_FOLDERS: Final = {
    "kubelet": Path("/var/lib/kubelet"),
    "containerd": Path("/var/lib/containerd"),
    "cni": Path("/var/lib/cni"),
    "net.d": Path("/etc/cni/net.d"),
    "log": Path("/var/log"),
}
"""Folders of a node's folder, and where the node sees them: on the disk, and where every node has them."""
TUNABLES: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet sets for the whole machine. Nodes see files that say it is so, and it sets nothing
(kubelet's setupKernelTunables writes only what differs).
"""


_CORE: Final = """.:53 {
  errors
  ready
  cache 5
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    ttl 5
  }
}
"""
"""CoreDNS's configuration: the cluster's names, and no others."""


def _both(first: object, second: object) -> str:
    return f"{first},{second}"


def _flags(values: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def etcd(layout: KubeLayout) -> list[str]:
    """Return etcd's command; it keeps nothing that has to survive a crash."""
    flags = {
        "data-dir": layout.folder / "etcd",
        "listen-client-urls": ETCD,
        "advertise-client-urls": ETCD,
        "listen-peer-urls": "http://127.0.0.1:2380",
    }
    return ["etcd", "--unsafe-no-fsync", *_flags(flags)]


def api_server(layout: KubeLayout) -> list[str]:
    """Return the API server's flags."""
    pki = layout.pki
    return _flags(
        {
            "etcd-servers": ETCD,
            "bind-address": WIRE[0][1],
            "advertise-address": WIRE[0][1],
            "secure-port": 6443,
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "client-ca-file": pki / "ca.crt",
            "token-auth-file": pki / "tokens.csv",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            # It calls webhooks at their pods: no proxy of ClusterIPs runs beside it.
            "enable-aggregator-routing": "true",
            "kubelet-preferred-address-types": "InternalIP",
            "kubelet-client-certificate": pki / "kubelet-client.crt",
            "kubelet-client-key": pki / "kubelet-client.key",
            "service-cluster-ip-range": _both(*SERVICES),
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": pki / "accounts.key",
            "service-account-signing-key-file": pki / "accounts.key",
        }
    )


def controller_manager(layout: KubeLayout) -> list[str]:
    """Return the controllers' flags; nodes have their ranges of addresses from the CNI's configuration."""
    return _flags(
        {
            "kubeconfig": layout.admin,
            "service-account-private-key-file": layout.pki / "accounts.key",
            "root-ca-file": layout.pki / "ca.crt",
            "leader-elect": "false",
            "use-service-account-credentials": "false",
        }
    )


def scheduler(layout: KubeLayout) -> list[str]:
    """Return the scheduler's flags."""
    return _flags({"kubeconfig": layout.admin, "leader-elect": "false"})


def kubelet(layout: KubeLayout, node: KubeNode) -> list[str]:
    """Return the flags of *node*'s kubelet."""
    folder = layout.node(node.name)
    return _flags(
        {
            "config": folder / "kubelet.json",
            "kubeconfig": folder / "kubelet.conf",
            "hostname-override": node.name,
            "node-ip": _both(*node.addresses),
        }
    )


def kubelet_file(layout: KubeLayout, max_pods: int) -> str:
    """Return a kubelet's configuration: it asks the API server who calls it and what they may."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "staticPodPath": str(STATIC_PODS),
            "clusterDomain": "cluster.local",
            "clusterDNS": [str(DNS)],
            "maxPods": max_pods,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            # The images of a lab come from nowhere, so none may be removed to make room.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "registerWithTaints": [],
            "serializeImagePulls": False,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
        },
        indent=1,
    )


def proxy_file(layout: KubeLayout, node: KubeNode) -> str:
    """Return kube-proxy's configuration."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": node.name,
            "clusterCIDR": _both(*PODS),
            "clientConnection": {"kubeconfig": str(layout.admin)},
            "conntrack": {"maxPerCore": 0, "min": 0},  # the first network namespace's alone
        },
        indent=1,
    )


def containerd_file(root: Path, state: Path, socket: Path) -> str:
    """Return containerd's configuration; *root* is what lasts, *state* what does not."""
    return f"""version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{NODE_FOLDERS["net.d"]}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def network_file(cni: Cni, node: KubeNode) -> str:
    """Return the CNI's configuration for *node*: both families, addresses from its own ranges."""
    plugins: dict[Cni, dict[str, object]] = {
        "ptp": {"type": "ptp", "ipMasq": False},
        "bridge": {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False},
    }
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": str(network)}] for network in node.pods],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    plugin = plugins[cni] | {"ipam": addresses}
    return json.dumps({"cniVersion": "0.4.0", "name": "lab", "plugins": [plugin, {"type": "portmap"}]}, indent=1)


def dns_objects(binary: Path) -> Sequence[Mapping[str, object]]:
    """Return CoreDNS's objects; it runs the *binary* of this machine's Kubernetes."""
    system = {"namespace": "kube-system"}
    labels = {"k8s-app": "kube-dns"}
    named = {"name": "coredns"}
    reads = {
        "verbs": ["list", "watch"],
        "apiGroups": ["", "discovery.k8s.io"],
        "resources": ["endpoints", "services", "pods", "namespaces", "endpointslices"],
    }
    rbac = "rbac.authorization.k8s.io"
    ports = [{"name": f"dns-{each.lower()}", "port": 53, "protocol": each} for each in ("UDP", "TCP")]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named | system},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": named, "rules": [reads]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole"} | named,
            "subjects": [{"kind": "ServiceAccount"} | named | system],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named | system, "data": {"Corefile": _CORE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named | system,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _dns_pod(binary)},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns"} | system,
            "spec": {"selector": labels, "clusterIP": str(DNS), "ports": ports},
        },
    ]


def _dns_pod(binary: Path) -> Mapping[str, object]:
    container = {
        "name": "coredns",
        "image": APPS,
        "imagePullPolicy": "Never",
        "command": ["/kube", "coredns", "-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "binary", "mountPath": "/kube", "readOnly": True},
            {"name": "config", "mountPath": "/etc/coredns"},
        ],
    }
    return {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"operator": "Exists"}],
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [
            {"name": "binary", "hostPath": {"path": str(binary), "type": "File"}},
            {"name": "config", "configMap": {"name": "coredns"}},
        ],
    }
