"""The lab without agents: pods, addresses, names, Services, volumes, probes, restarts. What is
asserted is what a program in a pod sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.layout import Node
from tests.waiting import eventually

CLUSTER = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting, namespace: shop}
data: {hello.txt: "hello\\n", key: from-map}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - name: web
        image: ignored/image:1
        command: [python3, -c]
        args:
        - |
          import http.server, socket
          class Handler(http.server.BaseHTTPRequestHandler):
              def do_GET(self):
                  body = f"{socket.gethostname()} {self.client_address[0]}".encode()
                  self.send_response(200)
                  self.send_header("content-length", str(len(body)))
                  self.end_headers()
                  self.wfile.write(body)
              def log_message(self, *args):
                  pass
          class Server(http.server.ThreadingHTTPServer):
              address_family = socket.AF_INET6
              def server_bind(self):
                  self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                  super().server_bind()
          Server(("::", 8080), Handler).serve_forever()
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  nodeName: node1
  hostname: somehost
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: greeting, configMap: {name: greeting}}
  - {name: host, hostPath: {path: /usr/share, type: Directory}}
  containers:
  - name: main
    command: [sleep, infinity]
    env:
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: greeting, key: key}}}
    - {name: URL, value: "http://$(POD_IP)/"}
    volumeMounts:
    - {name: scratch, mountPath: /scratch/below}
    - {name: greeting, mountPath: /etc/deep/greeting, readOnly: true}
    - {name: greeting, mountPath: /etc/one-file, subPath: key}
    - {name: host, mountPath: /share}
  - name: second
    command: [sh, -c, "echo first; sleep infinity"]
    volumeMounts: [{name: scratch, mountPath: /data}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(text=CLUSTER, name="t-lab") as made:
        yield made


def sh(lab: Lab, script: str, target: str = "client", **options: Any) -> str:
    done = lab.exec(target, ["sh", "-c", script], "shop", **options)
    assert done.returncode == 0, done
    return done.stdout.strip()


def test_a_pod_has_namespaces_of_its_own(lab: Lab) -> None:
    assert sh(lab, "hostname") == "somehost"
    assert sh(lab, "cat /proc/1/comm") == "sleep"
    assert sh(lab, "ls -d /proc/[0-9]* | wc -l").isdigit()
    for kind in ("net", "pid", "mnt", "uts", "ipc"):
        own = sh(lab, f"readlink /proc/self/ns/{kind}")
        assert own != Path(f"/proc/self/ns/{kind}").readlink().name
        assert own != sh(lab, f"readlink /proc/self/ns/{kind}", "deploy/web")


def test_a_pod_runs_in_its_cgroup(lab: Lab) -> None:
    pod = lab.pod("client", "shop")
    group = pod["metadata"]["annotations"]["lab.nodeagent.io/cgroup"]
    assert group.endswith(f"/nodeagent-lab-t-lab/node1/kubepods/pod{pod['metadata']['uid']}")
    assert sh(lab, "grep ^0:: /proc/self/cgroup").endswith(f"/pod{pod['metadata']['uid']}/main")


def test_the_object_is_what_an_api_server_would_show(lab: Lab) -> None:
    pod = lab.select("deploy/web", "shop")[0]
    assert pod["metadata"]["ownerReferences"] == [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": True}
    ]
    assert pod["spec"]["serviceAccountName"] == "web"
    assert pod["status"]["phase"] == "Running"
    assert len(pod["status"]["podIPs"]) == 2
    assert Path(pod["metadata"]["annotations"]["lab.nodeagent.io/netns"]).exists()
    assert {pod["spec"]["nodeName"] for pod in lab.select("deploy/web", "shop")} == {"node1", "node2"}


def test_environment(lab: Lab) -> None:
    address = lab.address("client", "shop")
    assert sh(lab, "echo $POD_IP $KEY $URL") == f"{address} from-map http://{address}/"
    assert sh(lab, "cat /proc/2/environ /proc/3/environ | tr '\\0' '\\n' | grep URL") == f"URL=http://{address}/"


def test_volumes(lab: Lab) -> None:
    sh(lab, "echo shared > /scratch/below/file")
    assert sh(lab, "cat /data/file", container="second") == "shared"
    assert sh(lab, "cat /etc/deep/greeting/hello.txt /etc/one-file") == "hello\nfrom-map"
    assert lab.exec("client", ["touch", "/etc/deep/greeting/new"], "shop").returncode != 0
    assert sh(lab, "ls /share") == "\n".join(sorted(entry.name for entry in Path("/usr/share").iterdir()))
    assert not Path("/scratch").exists()
    assert not Path("/etc/deep").exists()


def test_what_a_pod_writes_is_its_own(lab: Lab) -> None:
    """It sees the machine's files, and neither the machine nor another pod sees what it does to
    them; its containers share it.
    """
    other, names = (
        lab.select("deploy/web", "shop")[0]["metadata"]["name"],
        ("/", "/etc/", "/tmp/", "/var/tmp/", "/run/", "/root/", "/dev/shm/", "/srv/made/"),
    )
    files = [f"{folder}t-lab-probe" for folder in names]
    for file in files:
        sh(lab, f"mkdir -p $(dirname {file}) && echo mine > {file}")
    assert sh(lab, f"cat {' '.join(files)}", container="second") == "\n".join(["mine"] * len(files))
    seen = [
        file for file in files if Path(file).exists() or lab.exec(other, ["test", "-e", file], "shop").returncode == 0
    ]
    assert seen == []
    sh(lab, "rm /etc/hostname; echo changed >> /etc/passwd")
    assert Path("/etc/hostname").exists()
    assert "changed" not in Path("/etc/passwd").read_text()
    assert sh(lab, "ls /run/nodeagent 2>&1; true").endswith("No such file or directory"), (
        "what lives in /run is the machine's"
    )


def test_logs(lab: Lab) -> None:
    eventually(lambda: lab.log("client", "shop", "second") == "first\n")


@pytest.mark.parametrize("version", [4, 6])
def test_every_pod_reaches_every_pod_and_is_seen_as_itself(lab: Lab, version: Any) -> None:
    own = lab.address("client", "shop", version=version)
    for pod in lab.select("deploy/web", "shop"):
        name = pod["metadata"]["name"]
        url = f"http://{bracketed(lab.address(name, 'shop', version=version))}:8080/"
        assert sh(lab, f"curl -sS -m 3 '{url}'").removeprefix(f"{name} ").removeprefix("::ffff:") == own
        node = pod["spec"]["nodeName"]
        gateway = str(Node(int(node.removeprefix("node"))).gateways[version == 6])
        assert sh(lab, f"curl -sS -m 3 '{url}'", node).removeprefix(f"{name} ").removeprefix("::ffff:") == gateway


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("host", ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "each:8080"])
def test_names(lab: Lab, host: str) -> None:
    assert sh(lab, f"curl -sS -m 3 http://{host}/").startswith("web-")


def test_names_of_a_headless_service_are_its_pods(lab: Lab) -> None:
    expected = sorted(each["ip"] for pod in lab.select("deploy/web", "shop") for each in pod["status"]["podIPs"])
    assert sorted(set(sh(lab, "getent ahosts each | cut -d' ' -f1").split())) == expected


def test_unknown_names_do_not_exist(lab: Lab) -> None:
    for name in ("nope", "web.default", "example.com"):
        assert lab.exec("client", ["getent", "hosts", name], "shop").returncode == 2


@pytest.mark.parametrize("version", [4, 6])
def test_a_cluster_ip_is_balanced_from_pods_and_nodes(lab: Lab, version: int) -> None:
    (service,) = (each for each in lab.objects("Service") if each["metadata"]["name"] == "web")
    url = f"http://{bracketed(service['spec']['clusterIPs'][version == 6])}/"
    everyone = {pod["metadata"]["name"] for pod in lab.select("deploy/web", "shop")}
    for target in ("client", "node1", "node2"):
        answers = sh(lab, f"for i in $(seq 60); do curl -sS -m 3 '{url}'; echo; done", target).split("\n")
        assert {answer.split()[0] for answer in answers} == everyone


def test_a_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    answers = sh(lab, "for i in $(seq 30); do curl -sS -m 3 http://web/; echo; done", "deploy/web").split("\n")
    assert lab.pod("deploy/web", "shop")["metadata"]["name"] in {answer.split()[0] for answer in answers}


@pytest.mark.parametrize("url", ["http://nobody/", "http://web:81/", "http://10.96.200.1/", "http://[fd00:10:96::ff]/"])
def test_a_service_without_endpoints_or_port_refuses(lab: Lab, url: str) -> None:
    done = lab.exec("client", ["curl", "-sS", "-m", "5", url], "shop")
    assert done.returncode == 7, done


def test_outside_the_cluster_a_pod_is_its_node(lab: Lab) -> None:
    server = "import socket; s = socket.create_server(('172.18.0.1', 7000)); print(s.accept()[1][0])"
    with lab.popen("underlay", ["python3", "-c", server], text=True, stdout=-1) as outside:
        eventually(
            lambda: lab.exec("client", ["bash", "-c", "exec 3<>/dev/tcp/172.18.0.1/7000"], "shop").returncode == 0
        )
        assert outside.communicate(timeout=60)[0].strip() == lab.address("node1")


def test_status_is_json(lab: Lab) -> None:
    status = json.loads(json.dumps(lab.status()))
    assert [node["kubelet"] for node in status["nodes"]] == [True, True]
    assert all(pod["ready"] for pod in status["pods"])


def test_up_again_changes_nothing(lab: Lab) -> None:
    before = {path: path.stat().st_mtime_ns for path in lab.layout.objects.iterdir()}
    Lab.up(text=CLUSTER, name="t-lab")
    assert {path: path.stat().st_mtime_ns for path in lab.layout.objects.iterdir()} == before


def test_readiness_takes_a_pod_out_of_its_service_and_back(lab: Lab, tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    mark.touch()
    lab.apply(
        text=f"""
apiVersion: v1
kind: Pod
metadata: {{name: moody, labels: {{app: moody}}}}
spec:
  volumes: [{{name: marks, hostPath: {{path: {tmp_path}}}}}]
  containers:
  - name: c
    command: [sleep, infinity]
    volumeMounts: [{{name: marks, mountPath: /marks}}]
    readinessProbe: {{exec: {{command: [cat, /marks/ready]}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: moody}}
spec: {{clusterIP: None, selector: {{app: moody}}, ports: [{{port: 80}}]}}
"""
    )
    assert sh(lab, "getent hosts moody.default")
    mark.unlink()
    eventually(lambda: lab.exec("client", ["getent", "hosts", "moody.default"], "shop").returncode == 2)
    mark.touch()
    eventually(lambda: lab.exec("client", ["getent", "hosts", "moody.default"], "shop").returncode == 0)
    lab.delete_pod("moody", grace_seconds=0)


def test_a_changed_config_map_reaches_running_pods(lab: Lab) -> None:
    lab.apply(
        text="{apiVersion: v1, kind: ConfigMap, metadata: {name: greeting, namespace: shop}, data: {hello.txt: "
        '"changed", key: from-map}}'
    )
    assert sh(lab, "cat /etc/deep/greeting/hello.txt") == "changed"


def pod_text(name: str, script: str, extra: str = "", container: str = "") -> str:
    containers = [{"name": "c", "command": ["sh", "-c", script], **json.loads(container or "{}")}]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": containers, **json.loads(extra or "{}")},
        }
    )


def container_status(lab: Lab, name: str) -> dict[str, Any]:
    status: dict[str, Any] = lab.pod(name)["status"]["containerStatuses"][0]
    return status


@pytest.mark.parametrize(
    ("policy", "code", "phase"), [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")]
)
def test_a_pod_that_ends(lab: Lab, policy: str, code: int, phase: str) -> None:
    lab.apply(text=pod_text("ends", f"exit {code}", json.dumps({"restartPolicy": policy})), wait_seconds=0)
    eventually(lambda: lab.pod("ends")["status"]["phase"] == phase)
    assert container_status(lab, "ends")["state"] == {"terminated": {"exitCode": code}}
    lab.delete_pod("ends")


def test_a_container_that_ends_is_started_again(lab: Lab) -> None:
    lab.apply(text=pod_text("again", "echo run; sleep 0.05; exit 1"), wait_seconds=0)
    eventually(lambda: container_status(lab, "again")["restartCount"] >= 2)
    eventually(lambda: lab.log("again").startswith("run\nrun\nrun\n"))
    lab.delete_pod("again", grace_seconds=0)


def test_liveness_restarts_a_container(lab: Lab) -> None:
    probe = json.dumps(
        {
            "livenessProbe": {
                "tcpSocket": {"port": 1},
                "periodSeconds": 1,
                "failureThreshold": 1,
                "initialDelaySeconds": 1,
            }
        }
    )
    lab.apply(text=pod_text("dies", "exec sleep infinity", container=probe))
    eventually(lambda: container_status(lab, "dies")["restartCount"] >= 1)
    assert "liveness probe failed" in container_status(lab, "dies")["lastState"]["terminated"]["message"]
    lab.delete_pod("dies", grace_seconds=0)


def test_deleting_a_pod_is_gentle_and_complete(lab: Lab, tmp_path: Path) -> None:
    mark = tmp_path / "terminated"
    volumes = json.dumps({"volumes": [{"name": "marks", "hostPath": {"path": str(tmp_path)}}]})
    mounts = json.dumps({"volumeMounts": [{"name": "marks", "mountPath": "/marks"}]})
    lab.apply(
        text=pod_text(
            "gentle",
            "trap 'touch /marks/terminated; exit 0' TERM; touch /marks/ready; while :; do sleep 0.05; done",
            volumes,
            mounts,
        )
    )
    eventually((tmp_path / "ready").exists, "the shell has set its trap")
    pod = lab.pod("gentle")
    lab.delete_pod("gentle")
    assert mark.exists()
    annotations = pod["metadata"]["annotations"]
    assert not Path(annotations["lab.nodeagent.io/netns"]).exists()
    assert not Path(annotations["lab.nodeagent.io/cgroup"]).exists()
    assert "default/gentle" not in lab.pods
    assert pod["metadata"]["uid"][:8] not in sh(lab, "ip -o link", pod["spec"]["nodeName"])


def test_an_address_is_used_again(lab: Lab) -> None:
    lab.apply(text=pod_text("one", "exec sleep infinity"))
    first = lab.pod("one")
    lab.delete_pod("one", grace_seconds=0)
    lab.apply(text=pod_text("two", "exec sleep infinity"))
    second = lab.pod("two")
    assert first["status"]["podIP"] == second["status"]["podIP"]
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    lab.delete_pod("two", grace_seconds=0)


def test_the_kubelet_comes_back_with_its_pods(lab: Lab) -> None:
    from nodeagent.lab import cgroup

    addresses = {name: pod["status"]["podIPs"] for name, pod in lab.pods.items()}
    cgroup.kill(lab.layout.cgroup(cgroup.hierarchy()) / "node1" / "kubelet")
    Lab.up(text=CLUSTER, name="t-lab").wait_ready()
    assert {name: pod["status"]["podIPs"] for name, pod in lab.pods.items()} == addresses
    assert sh(lab, "curl -sS -m 3 http://web/").startswith("web-")
