"""What nobody carries out here: it is told by name, and keeps no policy that was taken away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ConfigError
from nodeagent.mesh.policies import refused_row
from nodeagent.resources import not_taken
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.last_good import LastGood
from nodeagent.resources.manifests import Manifests


def document(version: str, kind: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": "shop"}, "spec": spec}


VIRTUAL_SERVICE = document("networking.istio.io/v1", "VirtualService", hosts=["web"])
OPEN = document("security.istio.io/v1", "AuthorizationPolicy", action="ALLOW", rules=[{}])
OPEN["metadata"]["name"] = "open"


@pytest.mark.parametrize(
    "beside",
    [
        VIRTUAL_SERVICE,
        document("v1", "Namespace"),
        document("apps/v1", "Deployment"),
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": ["a.yaml"]},
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_policy_that_is_removed_goes_whatever_of_another_api_stands_beside_it(
    tmp_path: Path, beside: dict[str, Any], restarted: bool
) -> None:
    kept = LastGood(tmp_path / "kept")
    folder = tmp_path / "policies"
    folder.mkdir()
    file = folder / "shop.yaml"
    renamed = OPEN | {"metadata": {"name": "renamed", "namespace": "shop"}}
    manifests = Manifests((folder,), kept)
    for documents, names in (([beside, OPEN], {"open"}), ([beside, renamed], {"renamed"}), ([beside], set())):
        file.write_text("\n---\n".join(json.dumps(each) for each in documents))
        if restarted:
            manifests = Manifests((folder,), kept)
        manifests.everything()
        assert {key[2] for key in manifests.held(file)} == names
        (told,) = manifests.refused()
        assert told.ignored
        assert not told.stays
        assert "ignored: document 1: " in str(refused_row(told)["state"])


@pytest.mark.parametrize(
    "doubtful",
    [
        document("security.istio.io/v1", "AuthorisationPolicy"),
        document("security.istio.oi/v1", "AuthorizationPolicy"),
        document("nodeagent.io/v1alpha1", "RateLimits"),
        {"kind": "VirtualService", "metadata": {"name": "x"}},
        {"apiVersion": "v1", "metadata": {"name": "x"}},
        {"apiVersion": "security.istio.io", "kind": "AuthorisationPolicy"},
        {"apiVersion": "v1", "kind": "List"},
        {"apiVersion": "v1", "kind": "List", "items": None},
        {"apiVersion": "v1", "kind": "List", "item": [OPEN]},
        {"apiVersion": "v1", "kind": "List", "items": OPEN},
        {"apiVersion": "v1", "kind": "AuthorizationPolicyList", "items": [OPEN]},
    ],
)
def test_what_may_be_a_policy_with_a_mistyped_name_keeps_what_was_there(
    tmp_path: Path, doubtful: dict[str, Any]
) -> None:
    manifests = Manifests((tmp_path,), LastGood(None))
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps(OPEN))
    manifests.everything()
    file.write_text(json.dumps(doubtful))
    manifests.everything()
    assert [key[2] for key in manifests.held(file)] == ["open"]
    assert not manifests.refused()[0].ignored


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (document("networking.istio.io/v1alpha3", "EnvoyFilter"), "rate limits"),
        (document("networking.istio.io/v1", "Sidecar"), "REGISTRY_ONLY"),
        (document("extensions.istio.io/v1alpha1", "WasmPlugin"), "does not run"),
        (VIRTUAL_SERVICE, "no effect"),
        (document("networking.istio.io/v1", "VirtualService", gateways=["front", "mesh"]), "no effect"),
        (document("networking.istio.io/v1", "VirtualService", gateways=["front"]), ""),
        *(
            (
                document(
                    "gateway.networking.k8s.io/v1alpha2", route, parentRefs=[{"kind": "Gateway"}, {"kind": parent}]
                ),
                lost,
            )
            for route in ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
            for parent, lost in (("Service", "no effect"), ("ServiceEntry", "no effect"), ("Gateway", ""))
        ),
        (document("extensions.istio.io/v1alpha1", "TrafficExtension"), "does not run"),
        (document("gateway.networking.k8s.io/v1", "BackendTLSPolicy"), "is not spoken"),
        (document("networking.istio.io/v1", "WorkloadEntry"), "no endpoint"),
        (document("gateway.networking.k8s.io/v1", "HTTPRoute", parentRefs=[{"kind": ["Service"]}]), ""),
        (document("gateway.networking.k8s.io/v1", "HTTPRoute", parentRefs=[{"name": "front"}, 7]), ""),
        (document("gateway.networking.k8s.io/v1", "HTTPRoute", parentRefs=5), ""),
        (document("example.com/v1", "Sidecar"), ""),
        ({"apiVersion": "networking.istio.io/v1", "kind": ["Sidecar"]}, ""),
    ],
)
def test_what_a_mesh_loses(given: dict[str, Any], words: str) -> None:
    told = not_taken.lost(given)
    assert words in told
    assert bool(told) == bool(words)


def test_an_object_of_the_source_that_nobody_carries_out_is_told(tmp_path: Path) -> None:
    place = tmp_path / "objects" / "Sidecar.shop.x.json"
    place.parent.mkdir()
    place.write_text(json.dumps(document("networking.istio.io/v1", "Sidecar")))

    async def run() -> None:
        source = DirectorySource(tmp_path)
        try:
            assert await source.changes() == []
            (told,) = source.refused()
            assert (told.kind, told.name, told.file, told.ignored) == ("Sidecar", "x", str(place), True)
        finally:
            source.close()

    asyncio.run(run())


def test_every_kind_is_in_the_documents() -> None:
    words = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    assert [each.kind for each in not_taken.KINDS if each.kind not in words] == []


def test_what_looks_as_if_it_were_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "..data").mkdir()
    for name in ("x.YAML", "notes.txt", ".hidden.YML"):
        (tmp_path / name).touch()
    manifests = Manifests((tmp_path,), LastGood(None))
    manifests.everything()
    told = {Path(each.file).name: each for each in manifests.refused()}
    assert told.keys() == {"shop", "x.YAML"}
    assert all(each.ignored and each.error.startswith("not read: ") for each in told.values())
    assert all(name in caplog.text for name in told)


def test_a_file_in_the_place_of_a_folder_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "deny.yaml").touch()
    with pytest.raises(ConfigError, match=r"resources\[0\]: .*deny.yaml: is no folder; a folder is expected"):
        Manifests((tmp_path / "deny.yaml",), LastGood(None)).open()
