"""The Kubernetes YAML that every mode runs: the same text, whatever stands between the pods. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

PLAIN: Final = "plain"
"""The namespace without a policy."""
GUARDED: Final = "guarded"
"""The namespace whose server takes only what a policy allows."""
BYPASSED: Final = "bypassed"
"""The namespace whose pods' sockets are joined."""
BYPASS: Final = "nodeagent.io/bypass: enabled"
"""The annotation by which a pod asks for that."""
CHAIN: Final = ("a", "b", "c", "d", "e")
"""The services that one request of ``chain5`` goes through."""
_POLICY: Final = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{matchLabels: {{app: {name}}}}}, action: ALLOW, rules: [{rule}]}}
"""
_LINK: Final = """
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}, annotations: {{{annotations}}}}}
spec:
  nodeName: node1
  serviceAccountName: server
  containers:
  - name: nginx
    command: [nginx, -c, /workload/nginx.conf, -e, /dev/stderr]
    ports: [{{containerPort: 8080, name: http}}]
    volumeMounts: [{{name: workload, mountPath: /workload}}, {{name: scratch, mountPath: /scratch}}]
    readinessProbe: {{httpGet: {{port: http, path: /ready}}, periodSeconds: 1}}
  volumes:
  - {{name: workload, configMap: {{name: chain-{name}}}}}
  - {{name: scratch, emptyDir: {{}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: chain-{name}, namespace: {namespace}}}
data:
  nginx.conf: |
    worker_processes 1;
    daemon off;
    pid /scratch/nginx.pid;
    error_log /dev/stderr;
    events {{ worker_connections 1024; }}
    http {{
      access_log off;
      keepalive_requests 1000000000;
      client_body_temp_path /scratch/body;
      proxy_temp_path /scratch/proxy;
      fastcgi_temp_path /scratch/fastcgi;
      uwsgi_temp_path /scratch/uwsgi;
      scgi_temp_path /scratch/scgi;
      {upstream}
      server {{
        listen 8080;
        listen [::]:8080;
        default_type text/plain;
        location /ready {{ return 200 "ready\\n"; }}
        location / {{ {answer} }}
      }}
    }}
"""


_CALLS: Final = """
  - name: grpcload
    command: [grpcload, serve, ":50051"]
    ports: [{containerPort: 50051, name: grpc}]
    readinessProbe: {grpc: {port: 50051}, periodSeconds: 1}
"""


def workload(namespace: str, *, annotations: str = "", pod_annotations: str = "", calls: bool = False) -> str:
    """Return a client, a server on its node and one on the other; annotations as in a YAML flow
    mapping. *calls*: the server on the client's node speaks gRPC too.
    """
    text = (Path(__file__).parent / "workload.yaml").read_text()
    text = text.replace("NAMESPACE-ANNOTATIONS", annotations).replace("POD-ANNOTATIONS", pod_annotations)
    text = text.replace("  # CALLS\n", _CALLS.lstrip("\n") if calls else "")
    return text.replace("NAMESPACE", namespace)


def chain(namespace: str, *, pod_annotations: str = "") -> str:
    """Return five services in the namespace of :func:`workload`, each of which asks the next one before it answers."""
    links = []
    for name, following in zip(CHAIN, (*CHAIN[1:], ""), strict=True):
        upstream = ""
        answer = 'return 200 "the last of five\\n";'
        if following:
            server = f"server {following}.{namespace}.svc.cluster.local:8080;"
            upstream = f"upstream next {{ {server} keepalive 64; keepalive_requests 1000000000; }}"
            answer = 'proxy_pass http://next; proxy_http_version 1.1; proxy_set_header Connection "";'
        links.append(
            _LINK.format(name=name, namespace=namespace, annotations=pod_annotations, upstream=upstream, answer=answer)
        )
    return "".join(links)


def policies(namespace: str, count: int = 1) -> str:
    """Return AuthorizationPolicies: one that lets the client in by method, path and principal, the
    others for workloads that are not there.
    """
    principal = f"cluster.local/ns/{namespace}/sa/client"
    rule = f"{{from: [{{source: {{principals: [{principal}]}}}}], to: [{{operation: {{methods: [GET], paths: [/]}}}}]}}"
    names = ["server", *(f"other-{number}" for number in range(1, count))]
    return "".join(_POLICY.format(name=name, namespace=namespace, rule=rule) for name in names)


def sleepers(numbers: Sequence[int]) -> str:
    """Return the YAML of pods ``pod-N`` on node1 that do nothing, one for each N of *numbers*."""
    return "".join(_SLEEPER.format(number=number) for number in numbers)


_SLEEPER: Final = """
---
apiVersion: v1
kind: Pod
metadata: {{name: pod-{number}}}
spec: {{nodeName: node1, containers: [{{name: main, command: [sleep, infinity]}}]}}
"""
