"""``nodeagent inject`` on files as people have them: kinds, comments, several documents, and every way to go wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nodeagent.cli.main import main
from nodeagent.inject import STATUS
from nodeagent.resources import yaml_text
from tests.unit.inject.pods import PODS, names

Json = dict[str, Any]
MESH = ("--set", "meshRanges=10.0.0.0/8")
DEPLOYMENT = """\
# The shop's front end.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: "web"  # quoted
  namespace: shop
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
        # the application
        - name: app
          image: 'registry.example/web:1'
          env:
            - {name: MODE, value: "on"}   # text, not truth
            - name: EMPTY
              value:
          ports: [{name: http, containerPort: 8080}]
          readinessProbe:
            httpGet:
              path: /ready  # deep
              port: http

      securityContext:
        fsGroup: 0x3E8
      terminationGracePeriodSeconds: ~
# the end
"""
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name:   web}   # odd   spaces\nspec: {ports: [{port: 80}]}\n"
TEMPLATE = "metadata: {labels: {app: a}}, spec: {containers: [{name: app, image: i}]}"
KINDS = {
    "Pod": "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: app, image: i}]}}",
    "StatefulSet": f"{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: a}}, spec: {{serviceName: a, selector: {{}}, template: {{{TEMPLATE}}}}}}}",  # noqa: E501
    "DaemonSet": f"{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: a}}, spec: {{selector: {{}}, template: {{{TEMPLATE}}}}}}}",  # noqa: E501
    "ReplicaSet": f"{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: a}}, spec: {{selector: {{}}, template: {{{TEMPLATE}}}}}}}",  # noqa: E501
    "Job": f"{{apiVersion: batch/v1, kind: Job, metadata: {{name: a}}, spec: {{template: {{{TEMPLATE}}}}}}}",
    "CronJob": (
        f"{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: a}}, spec: {{schedule: '* * * * *', jobTemplate: {{spec: {{template: {{{TEMPLATE}}}}}}}}}}}"  # noqa: E501
    ),
}
WHERE = {"Pod": (), "CronJob": ("spec", "jobTemplate", "spec", "template")}


class Run:
    """The command in *directory*: what it wrote, said, and its status."""

    def __init__(self, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capfd = directory, capfd

    def __call__(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["inject", *arguments])
        out, err = self._capfd.readouterr()
        assert ended.value.code == status, err
        return out, err

    def file(self, text: str, name: str = "in.yaml") -> str:
        (self.directory / name).write_text(text)
        return str(self.directory / name)

    def refusal(self, *arguments: str) -> str:
        """Return the one line that is said, without the program's name; nothing is written."""
        out, err = self(*arguments, status=1)
        assert out == ""
        assert err.count("\n") == 1
        return err.removeprefix("nodeagent: ").rstrip()


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capfd)


def pod_of(document: Json) -> Json:
    found = document
    for key in WHERE.get(document["kind"], ("spec", "template")):
        found = found[key]
    return found


@pytest.mark.parametrize("template", ["envoy", "nodeagent"])
@pytest.mark.parametrize("more", [(), ("--native",), ("--hold",)], ids=str)
def test_everything_else_stays_as_it_is_written(run: Run, template: str, more: Sequence[str]) -> None:
    out, err = run("-f", run.file(DEPLOYMENT), "--template", template, *MESH, *more)
    changed = ["              path: /ready  # deep", "              port: http"]
    assert [line for line in DEPLOYMENT.splitlines() if line not in out.splitlines()] == changed
    assert "path: /app-health/app/readyz  # deep" in out
    assert err == f"injected: {run.directory}/in.yaml: document 1 (Deployment shop/web)\n"
    kubernetes_validate.validate(yaml.safe_load(out), "1.30", strict=True)


@pytest.mark.parametrize("template", ["envoy", "nodeagent"])
@pytest.mark.parametrize("more", [(), ("--native",), ("--hold",)], ids=str)
def test_uninject_restores_every_byte(run: Run, template: str, more: Sequence[str]) -> None:
    whole = f"{SERVICE}--- # next\n{DEPLOYMENT}---\n# nothing\n---\n{SERVICE}"
    out, _ = run("-f", run.file(whole), "--template", template, *MESH, *more)
    assert out != whole
    again, err = run("-f", run.file(out), "--template", template, *MESH, *more)
    assert again == out
    assert "skipped" in err
    back, _ = run("--uninject", "-f", run.file(out))
    assert back == whole


@pytest.mark.parametrize("given", PODS.values(), ids=PODS)
@pytest.mark.parametrize("style", [{}, {"indent": 4}, {"default_flow_style": True}, {"default_style": '"'}], ids=str)
def test_every_pod_as_other_programs_write_it(run: Run, given: Json, style: Json) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod"} | given
    text = yaml.safe_dump(whole, sort_keys=False, width=10_000, **style)
    out, _ = run("-f", run.file(text), *MESH)
    assert STATUS in yaml_text.load(out)[0]["metadata"]["annotations"]
    assert yaml_text.load(run("--uninject", "-f", run.file(out))[0]) == [whole]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(run: Run, kind: str) -> None:
    out, err = run("-f", run.file(KINDS[kind]), *MESH)
    document = yaml.safe_load(out)
    assert names(pod_of(document)["spec"]["containers"]) == ["app", "istio-proxy"]
    assert STATUS in pod_of(document)["metadata"]["annotations"]
    kubernetes_validate.validate(document, "1.30", strict=True)
    assert ("keeps it from completing" in err) == (kind in ("Job", "CronJob"))
    assert yaml.safe_load(run("--uninject", "-f", run.file(out))[0]) == yaml.safe_load(KINDS[kind])


def test_lists_in_lists_as_kubectl_writes_them(run: Run) -> None:
    items = [yaml.safe_load(text) for text in (*KINDS.values(), SERVICE)]
    nested = {"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "List", "items": items}]}
    given = json.dumps(nested, indent=4) + "\n"
    out, err = run("-f", run.file(given, "in.json"), *MESH)
    found = json.loads(out)["items"][0]["items"]
    assert all(STATUS in pod_of(each)["metadata"]["annotations"] for each in found[:-1])
    assert found[-1] == items[-1]
    assert err.count("injected: ") == len(KINDS)
    assert run("--uninject", "-f", run.file(out, "in.json"))[0] == given


def test_lists_of_one_kind_as_the_api_server_writes_them(run: Run) -> None:
    text = f"apiVersion: v1\nkind: PodList\nitems:\n- {{metadata: {{name: a}}, {TEMPLATE.partition(', ')[2]}}}\n"
    (item,) = yaml.safe_load(run("-f", run.file(text), *MESH)[0])["items"]
    assert [each["name"] for each in item["spec"]["containers"]][-1] == "istio-proxy"
    assert "kind" not in item


def test_folders_and_several_files_make_one_stream(run: Run) -> None:
    run.file(SERVICE, "a.yaml")
    run.file(DEPLOYMENT.rstrip(), "b.yml")
    run.file("not read", "notes.txt")
    other = run.directory / "other.yaml"
    (run.directory / "deeper").mkdir()
    out, _ = run("-f", str(run.directory), "-f", run.file(SERVICE, "c.yaml"), *MESH, "-o", str(other))
    assert out == ""
    assert [each["kind"] for each in yaml.safe_load_all(other.read_text())] == [
        "Service",
        "Deployment",
        "Service",
        "Service",
    ]


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(DEPLOYMENT))
    assert "istio-proxy" in run("-f", "-", *MESH)[0]


def test_what_is_shared_by_an_anchor_is_changed_where_it_must_be(run: Run) -> None:
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - name: app
    image: i
    readinessProbe: &probe
      httpGet: {path: /, port: 80}
    livenessProbe: *probe
"""
    app = yaml.safe_load(run("-f", run.file(text), *MESH)[0])["spec"]["containers"][0]
    assert app["readinessProbe"]["httpGet"]["path"] == "/app-health/app/readyz"
    assert app["livenessProbe"]["httpGet"]["path"] == "/app-health/app/livez"


@pytest.mark.parametrize(
    ("labels", "injected"),
    [
        (("istio-injection=enabled",), True),
        (("istio-injection=disabled",), False),
        (("team=shop",), False),
        (("istio.io/rev=default",), True),
    ],
)
def test_the_namespaces_labels_decide(run: Run, labels: Sequence[str], injected: bool) -> None:
    out, err = run(
        "-f", run.file(DEPLOYMENT), *MESH, *(word for label in labels for word in ("--namespace-label", label))
    )
    assert ("istio-proxy" in out) == injected
    assert (out == DEPLOYMENT) != injected
    assert err.startswith("injected: " if injected else "skipped: ")


def test_a_revision_by_hand_is_that_of_the_namespace(run: Run) -> None:
    out, _ = run("-f", run.file(DEPLOYMENT), *MESH, "--revision", "canary")
    assert yaml.safe_load(out)["spec"]["template"]["metadata"]["annotations"]["istio.io/rev"] == "canary"


def test_values_and_policies_from_files(run: Run) -> None:
    values = run.file("meshRanges: [10.0.0.0/8]\nmtls: STRICT\n", "values.yaml")
    policy = (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: "
        "shop}\nspec: {}\n"
    )
    out, _ = run("-f", run.file(DEPLOYMENT), "--values", values, "--policies", run.file(policy, "policy.yaml"))
    assert '"action":"ALLOW","policies":{}' in out


def test_a_policy_for_a_label_that_the_controller_gives_is_refused(run: Run) -> None:
    policy = (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: shop}\n"
        "spec: {selector: {matchLabels: {pod-template-hash: a}}}\n"
    )
    words = ("-f", run.file(DEPLOYMENT), *MESH, "--policies", run.file(policy, "policy.yaml"))
    assert "spec.selector.matchLabels[pod-template-hash]: allowed: labels that the pod has at injection" in run.refusal(
        *words
    )


def test_another_groups_job_passes_through(run: Run) -> None:
    other = "apiVersion: batch.example/v1\nkind: Job\nmetadata: {name: a}\nspec: {tasks: []}\n"
    out, _ = run("-f", run.file(f"{other}---\n{DEPLOYMENT}"), *MESH)
    assert out.startswith(other)


# -- bad input --


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "in.yaml: not YAML: line 2"),
        ("\tkey: 1", "in.yaml: not YAML: line 1"),
        ("a: 1\na: 2\n", "in.yaml: not YAML: line 2: the key 'a' stands twice"),
        ("- 1\n", "in.yaml: document 1: kind: [1]: allowed: a Kubernetes object"),
        (f"{SERVICE}---\nname: x\n", "in.yaml: document 2: kind: null: allowed: a Kubernetes object"),
        (SERVICE, "in.yaml: nothing in it has pods: allowed: Pod, Deployment"),
        ("", "in.yaml: nothing in it has pods"),
        ("apiVersion: v1\nkind: List\nitems: none\n", 'in.yaml: document 1: items: "none": allowed: a list'),
        ("apiVersion: v1\nkind: List\nitems: [{kind: 3}]\n", "in.yaml: document 1 items[0]: kind: 3: allowed"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}\n",
            "document 1 (Deployment a): spec.template: null: allowed: a mapping",
        ),
        (
            DEPLOYMENT.replace("name: app\n", "name: istio-proxy\n"),
            (
                'in.yaml: document 1 (Deployment shop/web): spec.template.spec.containers[0].name: "istio-proxy": '
                "allowed: another name"
            ),
        ),
        (
            f"{DEPLOYMENT}---\n{DEPLOYMENT.replace('port: http', 'port: web').replace('shop', 'other')}",
            (
                "document 2 (Deployment other/web): spec.template.spec.containers[0].readinessProbe.httpGet.port: "
                '"web": allowed: a number, or the name'
            ),
        ),
        (
            DEPLOYMENT.replace("containerPort: 8080", "containerPort: 15006"),
            "spec.template.spec.containers[0].ports[0].containerPort: 15006: allowed",
        ),
        (
            f"{DEPLOYMENT}---\n{DEPLOYMENT}",
            "document 2 (Deployment shop/web): name: web: allowed: another name than that of",
        ),
        ("[" * 3000, "nested deeper than"),
        (
            DEPLOYMENT.replace("  # deep", "\t# deep"),
            "in.yaml: document 1: cannot be changed in its text: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run: Run, text: str, message: str) -> None:
    target = run.directory / "out"
    target.write_text("before")
    said = run.refusal("-f", run.file(text), *MESH, "-o", str(target))
    assert message in said
    assert said.startswith(str(run.directory))
    assert target.read_text() == "before"
    assert sorted(path.name for path in run.directory.iterdir()) == ["in.yaml", "out"]


def test_what_is_wrong_with_the_rest_is_said_too(run: Run) -> None:
    file = run.file(DEPLOYMENT)
    assert "values.meshRanges: missing" in run.refusal("-f", file)
    assert "none.yaml: cannot be read: No such file" in run.refusal("-f", str(run.directory / "none.yaml"))
    assert "No such file" in run.refusal("-f", file, "--values", str(run.directory / "none"))
    assert "cannot be written" in run.refusal("-f", file, *MESH, "-o", str(run.directory / "no" / "folder"))
    assert "policy.yaml: not YAML" in run.refusal("-f", file, *MESH, "--policies", run.file("[", "policy.yaml"))
    assert "NAME=VALUE" in run("-f", file, "--set", "x", status=2)[1]


def test_a_sidecar_of_istio_is_not_taken_away(run: Run) -> None:
    other = KINDS["Pod"].replace("{name: a}", "{name: a, annotations: {sidecar.istio.io/status: '{}'}}")
    assert "something else injected this pod" in run.refusal("--uninject", "-f", run.file(other))
