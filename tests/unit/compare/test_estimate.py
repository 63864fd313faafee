"""What sidecars of a cluster take, from what kubectl writes."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nodeagent.cli.main import main
from nodeagent.compare.estimate import AgentCost, Estimate, EstimateError, estimate, parse, read, tables, usage
from nodeagent.compare.estimate.amount import Amount
from nodeagent.compare.estimate.known import kind, sidecars
from nodeagent.resources.quantity import quantity

MI = 1 << 20
AGENT = AgentCost(
    base_bytes=50 * MI,
    pod_bytes=MI,
    requested_cores=Fraction(1, 2),
    idle_cores=Fraction(1, 100),
    cpu_share=Fraction(1, 4),
)


def container(name: str, cpu: Any = None, memory: Any = None, **more: Any) -> dict[str, Any]:
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value is not None}
    return {
        "name": name,
        "image": f"registry/{name}:1",
        **({"resources": {"requests": requests}} if requests else {}),
        **more,
    }


def pod(
    name: str, *containers: dict[str, Any], namespace: str = "shop", node: str | None = "n1", **spec: Any
) -> dict[str, Any]:
    spec = {"containers": [container("app", "1"), *containers], **({"nodeName": node} if node else {}), **spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
        "status": {"phase": "Running"},
    }


def proxy(**more: Any) -> dict[str, Any]:
    return container("istio-proxy", "100m", "128Mi", **more)


def of(
    *objects: dict[str, Any], top: str | None = None, agent: AgentCost = AGENT, nodes: int | None = None
) -> Estimate:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return estimate(parse([("pods.json", text)]), usage(top) if top else None, agent, nodes)


# Quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        (2, 2),
        (0.25, Fraction(1, 4)),
        ("+3", 3),
        ("-1", -1),
        ("128Mi", 128 << 20),
        ("1Gi", 1 << 30),
        ("1.5Gi", 3 << 29),
        ("1Ei", 1 << 60),
        ("1Ki", 1024),
        ("1G", 10**9),
        ("1k", 1000),
        ("1E", 10**18),
        ("250u", Fraction(1, 4000)),
        ("7n", Fraction(7, 10**9)),
        ("1e3", 1000),
        ("1E3", 1000),
        ("12e-1", Fraction(6, 5)),
        ("134217728", 128 << 20),
        ("128974848000m", 128974848),
    ],
)
def test_quantities_are_exact(text: Any, value: Fraction) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "1 Gi",
        "1gi",
        "1MI",
        "1e",
        "1K",
        "0x10",
        "1_000",
        "\u0661",
        "1Gi1",
        "--1",
        None,
        True,
        [],
        "1e999",
        "9" * 40,
        "1.e",
        "NaN",
        "inf",
    ],
)
def test_what_is_no_quantity(text: Any) -> None:
    with pytest.raises(ValueError, match="a quantity as 100m"):
        quantity(text)


@given(st.integers(0, 10**15), st.sampled_from(["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_a_suffix_multiplies(number: int, suffix: str) -> None:
    assert quantity(f"{number}{suffix}") == number * quantity(f"1{suffix}")


# Sidecars


@pytest.mark.parametrize(
    ("name", "image", "what"),
    [
        ("istio-proxy", "docker.io/istio/proxyv2:1.24", "mesh"),
        ("linkerd-proxy", "cr.l5d.io/linkerd/proxy", "mesh"),
        ("side", "envoyproxy/envoy:v1.30", "mesh"),
        ("side", "localhost:5000/istio/proxyv2@sha256:00", "mesh"),
        ("vault-agent", "hashicorp/vault:1.17", "secrets"),
        ("server", "hashicorp/vault:1.17", None),
        ("log", "fluent/fluentd:v1.14", "logs"),
        ("config-sync", "config-sync:latest", "config"),
        ("app", "shop/envoy-tools:1", None),
        ("", "", None),
    ],
)
def test_sidecars_are_known_by_name_or_image(name: str, image: str, what: str | None) -> None:
    assert kind(name, image) == what


def test_a_proxy_on_its_own_is_no_sidecar() -> None:
    assert sidecars([("istio-proxy", "proxyv2")], []) == {}, "an ingress gateway"
    assert sidecars([("fluent-bit", "fluent-bit")], []) == {}, "a node's shipper"
    assert sidecars([("app", "app"), ("istio-proxy", "proxyv2")], []) == {"istio-proxy": "mesh"}
    assert sidecars([("app", "app")], [("istio-proxy", "proxyv2")]) == {"istio-proxy": "mesh"}, "a native sidecar"


# Sums


def test_the_seed_s_claim() -> None:
    """100 pods with Envoys that request 100m and 128Mi: 10 cores and 12.5 GiB."""
    found = of(*(pod(f"web-{number}", proxy(), node=f"n{number % 4}") for number in range(100)))
    assert found.total.requested == Amount(Fraction(10), Fraction(12.5 * (1 << 30)))
    assert (found.pods, found.nodes, found.total.pods, found.total.sidecars) == (100, 4, 100, 100)
    assert found.requested is not None
    assert found.requested.agents == Amount(Fraction(2), Fraction((4 * 50 + 100) * MI))
    assert found.requested.saved == Amount(Fraction(8), Fraction(12_800 * MI - 300 * MI))
    assert found.used is None
    assert found.uninjected == 0


def test_namespaces_and_kinds() -> None:
    found = of(
        pod("a", proxy(), container("fluentd", "50m", "200Mi")),
        pod("b", proxy(), namespace="pay", node="n2"),
        pod("c", container("vault-agent", "250m", "64Mi"), namespace="pay", node="n2"),
        pod("gateway", namespace="istio-system", node="n3", containers=[proxy()]),
        pod(
            "native",
            namespace="pay",
            initContainers=[
                proxy(restartPolicy="Always"),
                container("vault-agent-init", "1", "1Gi"),
                container("istio-init", "1"),
            ],
        ),
    )
    assert list(found.namespaces) == ["pay", "shop"]
    assert found.namespaces["shop"].requested == Amount(Fraction(15, 100), Fraction(328 * MI))
    assert found.namespaces["pay"].requested == Amount(Fraction(45, 100), Fraction(320 * MI))
    assert {what: (each.pods, each.sidecars) for what, each in found.kinds.items()} == {
        "logs": (1, 1),
        "mesh": (3, 3),
        "secrets": (1, 1),
    }
    assert found.nodes == 3, "an agent runs on every node, also where there is only a gateway"
    assert found.requested is not None
    assert found.requested.sidecars == Amount(Fraction(3, 10), Fraction(3 * 128 * MI)), "only what the agent replaces"
    assert any("1 sidecars for logs are listed, but not counted as saved" in note for note in found.notes)
    everything = of(
        pod("a", proxy(), container("fluentd", "50m", "200Mi")), agent=AgentCost(replaces=frozenset({"mesh", "logs"}))
    )
    assert everything.requested is not None
    assert everything.requested.sidecars.memory == 328 * MI


def test_a_limit_is_the_request_where_there_is_no_other() -> None:
    limited = proxy()
    limited["resources"] = {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "10m"}}
    found = of(pod("a", limited), pod("b", container("istio-proxy")))
    assert found.total.requested == Amount(Fraction(1, 100), Fraction(1 << 30))
    assert found.total.unset == 1
    assert any("1 of 2 sidecars request nothing" in note for note in found.notes)


def test_pods_that_have_ended_take_nothing() -> None:
    ended = pod("job", proxy())
    ended["status"]["phase"] = "Succeeded"
    assert of(pod("a", proxy()), ended).total.sidecars == 1


def test_use_comes_from_kubectl_top() -> None:
    top = """NAMESPACE   POD   NAME          CPU(cores)   MEMORY(bytes)
shop        a     app           900m         900Mi
shop        a     istio-proxy   40m          60Mi
pay         a     istio-proxy   20m          50Mi
gone        x     istio-proxy   9m           9Mi
"""
    found = of(pod("a", proxy()), pod("a", proxy(), namespace="pay", node="n2"), top=top)
    assert found.total.used == Amount(Fraction(6, 100), Fraction(110 * MI))
    assert found.used is not None
    assert found.used.agents == Amount(2 * Fraction(1, 100) + Fraction(6, 100) / 4, Fraction(102 * MI))
    partly = of(pod("a", proxy()), pod("b", proxy()), top=top)
    assert partly.total.measured == 1
    assert partly.used is None, "half of the use is not what the agent is set against"
    assert any("the use of 1 of 2 sidecars is not known" in note for note in partly.notes)


def test_top_of_one_namespace_names_none() -> None:
    top = "POD NAME CPU(cores) MEMORY(bytes)\na istio-proxy 40m 60Mi\nb istio-proxy 20m 50Mi\n"
    found = of(pod("a", proxy()), pod("b", proxy()), pod("b", proxy(), namespace="pay"), top=top)
    assert found.total.used.memory == 60 * MI, "which of the two pods named b is not known"


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("", "line 1"),
        (
            "NAME CPU(cores) MEMORY(bytes)\na 1m 1Mi\n",
            "line 1: allowed: the header of kubectl top pods -A --containers",
        ),
        ("POD NAME CPU(cores) MEMORY(bytes)\na istio-proxy 1m\n", "line 2: 3 columns"),
        ("POD NAME CPU(cores) MEMORY(bytes)\na istio-proxy <unknown> 1Mi\n", "line 2: allowed: a quantity"),
    ],
)
def test_what_kubectl_top_does_not_write(top: str, said: str) -> None:
    with pytest.raises(EstimateError) as caught:
        usage(top, "top.txt")
    assert str(caught.value).startswith("top.txt: ")
    assert said in str(caught.value)


def test_pods_without_a_proxy() -> None:
    """Each rule of Istio's injector by which a pod gets none."""

    def marked(name: str, **metadata: Any) -> dict[str, Any]:
        found = pod(name)
        found["metadata"] |= metadata
        return found

    inject = "sidecar.istio.io/inject"
    found = of(
        pod("plain"),
        marked("out", labels={inject: "false"}),
        marked("annotated out", annotations={inject: False}),
        marked("label beats annotation", labels={inject: "true"}, annotations={inject: "false"}),
        marked("own request", annotations={"sidecar.istio.io/proxyCPU": "2"}),
        marked("own limit", annotations={"sidecar.istio.io/proxyMemoryLimit": "256Mi"}),
        pod("host", hostNetwork=True),
        pod("dns", namespace="kube-system"),
        pod("gateway", containers=[proxy()]),
        pod("has one", proxy()),
    )
    assert found.uninjected == 4
    assert found.injecting.sidecars == Amount(
        Fraction(1, 10) + Fraction(1, 10) + 2, Fraction(128 * MI + 128 * MI + 256 * MI)
    )
    assert found.injecting.agents == Amount(Fraction(0), Fraction(4 * MI))


# Manifests


def workload(what: str, uid: str = "", owner: str = "", **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container("app"), proxy()]}}
    metadata = (
        {"name": what.lower(), "namespace": "shop"}
        | ({"uid": uid} if uid else {})
        | ({"ownerReferences": [{"uid": owner}]} if owner else {})
    )
    return {"apiVersion": "apps/v1", "kind": what, "metadata": metadata, "spec": {"template": template, **spec}}


def test_workloads_count_as_their_replicas() -> None:
    found = of(
        workload("Deployment", replicas=3),
        workload("StatefulSet"),
        workload("ReplicaSet", replicas=0),
        workload("Job", parallelism=2),
        workload("CronJob"),
        {**workload("DaemonSet"), "status": {"desiredNumberScheduled": 7}},
    )
    assert found.pods == found.total.sidecars == 3 + 1 + 2 + 7
    assert found.nodes is None
    assert found.requested is None
    assert any("CronJob shop/cronjob is not counted" in note for note in found.notes)
    assert any("nodeName" in note for note in found.notes)
    told = of(workload("Deployment", replicas=3), nodes=2)
    assert told.requested is not None
    assert told.requested.agents.memory == 103 * MI
    assert of(workload("DaemonSet")).pods == 1


def test_what_owns_others_in_the_listing_is_not_counted_twice() -> None:
    owned = pod("web-1", proxy())
    owned["metadata"] |= {"uid": "p", "ownerReferences": [{"uid": "r"}]}
    found = of(workload("Deployment", "d", replicas=1), workload("ReplicaSet", "r", "d", replicas=1), owned)
    assert found.pods == 1
    assert of(pod("a", proxy()), pod("a", proxy())).pods == 1, "the same pod from two files"


# Reading


def test_files_of_every_form(tmp_path: Path) -> None:
    """A List, a PodList whose items have no kind, documents, flow YAML, standard input's name."""
    both = [pod("a", proxy()), pod("b", proxy())]
    bare = [{key: value for key, value in each.items() if key != "kind"} for each in both]
    forms = {
        "list.yaml": yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": both}),
        "podlist.json": json.dumps({"kind": "PodList", "items": bare}),
        "documents.yaml": yaml.safe_dump_all(both),
        "lines.json": "\n---\n".join(map(json.dumps, both)),
        "flow.yaml": "# a comment\n" + json.dumps({"kind": "List", "items": both}),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert len(read([str(tmp_path / name)]).pods) == 2, name
    assert len(read([str(tmp_path / name) for name in forms]).pods) == 2


def test_a_large_cluster_is_read() -> None:
    """More values than a policy may have."""
    items = [
        pod(f"web-{number}", proxy(), labels_of_no_use={f"k{index}": "v" for index in range(50)})
        for number in range(2000)
    ]
    text = json.dumps({"kind": "List", "items": items})
    assert estimate(parse([("pods.json", text)])).total.sidecars == 2000
    assert len(parse([("pods.yaml", "# YAML\n" + text)]).pods) == 2000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no pods: allowed: the output of kubectl get pods -A -o yaml"),
        ("kind: Service\nmetadata: {name: a}\n", "no pods"),
        ("kind: List\nitems: []\n", "no pods"),
        ("a: [", "not YAML: line 2"),
        ("{", "not JSON"),
        ('{"kind": "List", "items": [' + "[" * 200_000, "not JSON"),
        ("[1, 2]", "document 1: allowed: Kubernetes objects"),
        ("hello", "document 1: allowed: Kubernetes objects"),
        ("kind: List\nitems: [1]\n", "document 1: items[0]: allowed: a Kubernetes object"),
        (
            "kind: Pod\nmetadata: {name: a}\nspec: {containers: 5}\n",
            "(Pod default/a): containers: 5: allowed: a list of mappings",
        ),
        ("kind: Pod\nmetadata: 5\n", "metadata: 5: allowed: a mapping"),
        (
            (
                "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}, {name: envoy, resources: "
                "{requests: {cpu: lots}}}]}\n"
            ),
            "(Pod default/a): container envoy: resources.requests.cpu: 'lots': allowed: a quantity as 100m",
        ),
        (
            (
                "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}, {name: envoy, resources: "
                "{requests: {cpu: -1}}}]}\n"
            ),
            "allowed: nothing below zero",
        ),
        (
            "kind: Pod\nmetadata: {name: a, annotations: {sidecar.istio.io/proxyCPU: many}}\n",
            'metadata.annotations[sidecar.istio.io/proxyCPU]: "many"',
        ),
        (
            "kind: Deployment\nmetadata: {name: a}\nspec: {replicas: -1}\n",
            "(Deployment default/a): replicas: -1: allowed: a whole number",
        ),
    ],
)
def test_what_holds_no_pods_is_named(text: str, said: str) -> None:
    with pytest.raises(EstimateError) as caught:
        parse([("pods.yaml", text)])
    assert str(caught.value).startswith("pods.yaml")
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EstimateError, match="cannot be read: No such file"):
        read([str(tmp_path / "none.yaml")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EstimateError, match="cannot be read: it is no UTF-8"):
        read([str(tmp_path / "binary")])


# Output


def test_tables_and_json() -> None:
    top = "NAMESPACE POD NAME CPU(cores) MEMORY(bytes)\nshop a istio-proxy 40m 60Mi\n"
    found = of(pod("a", proxy()), pod("b", namespace="evil\x1b[31m"), top=top)
    shown = io.StringIO()
    for each in tables(found):
        Console(file=shown, width=160, color_system=None).print(each)
    for text in (
        "shop",
        "mesh",
        "128.0 MiB",
        "60.0 MiB",
        "0.1",
        "not injected yet: 1",
        "51.0 MiB",
        "77.0 MiB",
        "Pods: 2; nodes: 1.",
    ):
        assert text in shown.getvalue()
    assert "\x1b" not in shown.getvalue()
    told = json.loads(json.dumps(found.json()))
    assert told["requested"]["saved"] == {"cores": -0.4, "bytes": 77 * MI}
    assert told["namespaces"]["shop"]["used"] == {"cores": 0.04, "bytes": 60 * MI}
    assert told["uninjected"]["pods"] == 1
    assert told["agent"]["base_bytes"] == 50 * MI


@pytest.mark.parametrize(
    "argv", [["--top", "."], ["--nodes", "3"], ["--estimate", "-", "--quick"], ["--estimate", "-", "--no-switches"]]
)
def test_options_that_would_do_nothing_are_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "top").touch()
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(str(tmp_path / "top") if word == "." else word for word in argv)])
    assert ended.value.code == 2
    assert "--estimate" in capsys.readouterr().err


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2000)), max_size=12))
@settings(deadline=None)
def test_the_total_is_the_sum_of_its_parts(chosen: list[tuple[int, bool, int]]) -> None:
    objects = [
        pod(
            f"p{number}",
            *([container("istio-proxy", f"{milli}m", f"{milli}Mi")] if meshed else []),
            namespace=f"n{space}",
        )
        for number, (space, meshed, milli) in enumerate(chosen)
    ]
    found = of(pod("one", proxy()), *objects)
    for parts in (found.namespaces, found.kinds):
        assert sum((each.requested for each in parts.values()), Amount()) == found.total.requested
        assert sum(each.sidecars for each in parts.values()) == found.total.sidecars
    assert found.pods == found.total.pods + found.uninjected


def test_an_agent_costs_what_the_projects_own_run_measured() -> None:
    """Idle, by pods, and for a request beside an Envoy pair; a person decides by these."""
    told = json.loads((Path(__file__).parents[3] / "docs/results/bench.json").read_text())
    cost = AgentCost()
    for row in told["scale"]:
        if row["mode"] == "nodeagent":
            assert float(cost.requests(1, row["pods"]).memory) == pytest.approx(row["memory_bytes"], rel=0.05)
            assert float(cost.idle_cores) >= row["idle_cpu_percent"] / 100
    cpu = {
        run["mode"]: run["cpu_us_per_request"]
        for run in told["runs"]
        if (run["workload"], run["connections"], run["load"], run["variant"]) == ("http", 32, "closed", "")
    }
    assert float(cost.cpu_share) == pytest.approx(cpu["nodeagent"] / cpu["envoy"], rel=0.1)
