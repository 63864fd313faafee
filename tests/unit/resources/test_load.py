"""Wrong YAML is one error that names file, document, field, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.errors import ResourceError
from nodeagent.resources.load import load_documents, parse
from nodeagent.resources.model import DeploymentResource, PodResource, ServiceResource

POD = """
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec:
  containers:
  - name: c
    command: [sleep, "1"]
    ports: [{containerPort: 80, name: http}]
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, command: ["true"]}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80, name: http}]}
"""
WHERE = "f.yaml: document 1 (Pod default/a): "
C = WHERE + "spec.containers[0]."


def test_a_pod_keeps_what_was_given_and_nothing_else() -> None:
    (document,) = parse(POD, "f.yaml")
    assert isinstance(document.resource, PodResource)
    assert document.key == ("Pod", "default", "a")
    assert document.resource.dump() == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "labels": {"app": "a"}},
        "spec": {
            "containers": [{"name": "c", "command": ["sleep", "1"], "ports": [{"containerPort": 80, "name": "http"}]}]
        },
    }


def test_what_kubectl_writes_is_taken() -> None:
    text = DEPLOYMENT.replace("{name: d}", "{name: d, creationTimestamp: null}").replace(
        "spec:\n  sel", "status: {}\nspec:\n  strategy: {}\n  sel"
    )
    text = text.replace("name: c,", "name: c, image: nginx, imagePullPolicy: IfNotPresent, resources: {},")
    documents = parse(f"---\n{text}\n---\n---\n{SERVICE}", "f.yaml")
    assert [type(document.resource) for document in documents] == [DeploymentResource, ServiceResource]
    assert [document.number for document in documents] == [1, 2]


def test_a_list_is_its_items() -> None:
    items = "".join(f"- {{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n" for name in "ab")
    text = f"apiVersion: v1\nkind: List\nitems:\n{items}"
    assert [document.resource.metadata.name for document in parse(text, "f")] == ["a", "b"]


def test_a_date_is_text() -> None:
    (document,) = parse("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {day: 2026-01-01}\n", "f")
    assert document.resource.dump()["data"] == {"day": "2026-01-01"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "kind: Pod",
            "kind: Pud",
            'f.yaml: document 1: kind: "Pud": allowed: Namespace, ServiceAccount, ConfigMap, Pod, Deployment, Service',
        ),
        ("apiVersion: v1", "apiVersion: v2", WHERE + "apiVersion: \"v2\": allowed: 'v1'"),
        ("name: c", "name: c\n    foo: 1", C + "foo: 1: unknown field: allowed: args, command, env,"),
        ("80", "eighty", C + 'ports[0].containerPort: "eighty": allowed: integer'),
        ("80", "65536", C + "ports[0].containerPort: 65536: allowed: less than or equal to 65535"),
        ('"1"', "1", C + "command[1]: 1: allowed: string"),
        ("name: a,", "name: A,", 'f.yaml: document 1 (Pod default/A): metadata.name: "A": allowed: text that matches '),
        ("app: a", "app: a b", WHERE + 'metadata.labels.app: "a b": allowed: text that matches '),
        (
            "  containers:",
            "  restartPolicy: Maybe\n  containers:",
            WHERE + "spec.restartPolicy: \"Maybe\": allowed: 'Always', 'OnFailure' or 'Never'",
        ),
        ('    command: [sleep, "1"]\n', "", C + "command: missing: allowed: "),
        ("name: c", "name: c\n    name: d", "f.yaml: not YAML: line 8: the key 'name' stands twice"),
        (
            "name: c",
            "name: c\n    readinessProbe: {httpGet: {port: true}}",
            C + "readinessProbe.httpGet.port: true: allowed: integer or string",
        ),
        (
            "name: c",
            "name: c\n    readinessProbe: {httpGet: {port: web}}",
            C + 'readinessProbe.httpGet.port: "web": allowed: a number, or',
        ),
        (
            "name: c",
            "name: c\n    readinessProbe: {periodSeconds: 1}",
            C + 'readinessProbe: {"periodSeconds": 1}: allowed: exactly one of',
        ),
        (
            "name: c",
            "name: c\n    volumeMounts: [{name: x, mountPath: /x}]",
            C + 'volumeMounts[0].name: "x": allowed: one of the pod\'s volumes',
        ),
        (
            "name: c",
            "name: c\n    volumeMounts: [{name: x, mountPath: x}]",
            C + 'volumeMounts[0].mountPath: "x": allowed: an absolute path',
        ),
        ("name: c", "name: c\n    env: [{name: a, value: 1}]", C + "env[0].value: 1: allowed: string"),
        (
            "name: c",
            "name: c\n    env: [{name: a, valueFrom: {fieldRef: {fieldPath: x}}}]",
            C + "env[0].valueFrom.fieldRef: ",
        ),
        (
            "spec:",
            "spec:\n  volumes: [{name: v}]",
            WHERE + 'spec.volumes[0]: {"name": "v"}: allowed: exactly one of emptyDir, hostPath, configMap',
        ),
        ("a, labels", "a, 1.5: 2, labels", "f.yaml: not YAML: line 4: the key 1.5 is not text"),
        ("\nspec:", "\n- x\nspec:", "f.yaml: not YAML: "),
    ],
)
def test_a_fault_is_named(old: str, new: str, message: str) -> None:
    assert old in POD
    with pytest.raises(ResourceError) as caught:
        parse(POD.replace(old, new), "f.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            DEPLOYMENT.replace("matchLabels: {app: d}", "matchLabels: {app: x}"),
            'spec.selector.matchLabels: {"app": "x"}: allowed: some of template.',
        ),
        (
            DEPLOYMENT.replace("selector:", "replicas: -1\n  selector:"),
            "spec.replicas: -1: allowed: greater than or equal to 0",
        ),
        (SERVICE.replace("spec: {", "spec: {type: NodePort, "), "spec.type: \"NodePort\": allowed: 'ClusterIP'"),
        (
            SERVICE.replace("}]", "}, {port: 81}]"),
            'spec.ports[1].name: "": allowed: a name, as there are several ports',
        ),
        (
            SERVICE.replace("}]", "}, {port: 80, name: b}]"),
            'spec.ports[1].port: [80, "TCP"]: allowed: a value that differs from ports[0].port',
        ),
        (
            SERVICE.replace("spec: {", "spec: {clusterIP: here, "),
            'spec.clusterIP: "here": allowed: an IPv4 or IPv6 address',
        ),
    ],
)
def test_a_fault_in_other_kinds(text: str, message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        parse(text, "f.yaml")
    assert message in str(caught.value)


def test_the_same_object_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yml"):
        (tmp_path / name).write_text(POD)
    (tmp_path / "notes.txt").write_text("not read")
    with pytest.raises(
        ResourceError,
        match=r"two\.yml: document 1 \(Pod default/a\): metadata\.name: .* a name that differs from .*one\.yaml: "
        r"document 1",
    ):
        load_documents([tmp_path])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"missing\.yaml: cannot be read: No such file"):
        load_documents([tmp_path / "missing.yaml"])
    with pytest.raises(ResourceError, match=r"holds no file that ends in \.yaml"):
        load_documents([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResourceError, match=r"binary\.yaml: cannot be read"):
        load_documents([tmp_path])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ipFamilies: [IPv4, IPv4]", r"spec\.ipFamilies\[1\]"),
        ("ipFamilies: [IPv4, IPv6, IPv4]", r"spec\.ipFamilies\[2\]"),
        ('clusterIP: "fd00:10:96::50", ipFamilies: [IPv4]', r"spec\.ipFamilies\[0\]: .*IPv6, the family of"),
        ("cluster_ip: 10.96.0.9", r"spec\.cluster_ip: .*unknown field"),
    ],
)
def test_a_service_that_kubernetes_would_not_take(spec: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        parse(SERVICE.replace("spec: {", f"spec: {{{spec}, "), "f.yaml")


def test_a_key_is_written_as_kubernetes_writes_it() -> None:
    with pytest.raises(ResourceError, match=r"match_labels: .*unknown field: allowed: matchExpressions|matchLabels"):
        parse(DEPLOYMENT.replace("matchLabels", "match_labels"), "f.yaml")


def test_a_container_without_a_command_is_told_what_runs_here() -> None:
    with pytest.raises(
        ResourceError, match=r"containers\[0\]\.command: missing: .*programs of this machine, no images"
    ):
        parse(POD.replace('    command: [sleep, "1"]\n', "    image: nginx\n"), "f.yaml")


def test_no_program_file_or_variable_has_a_nul() -> None:
    with pytest.raises(ResourceError, match=r"spec\.containers\[0\]\.command\[1\]: a text without NUL"):
        parse(POD.replace('"1"', '"1\\0"'), "f.yaml")
