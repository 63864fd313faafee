"""agent.yaml: what an unset variable or a wrong type leaves behind is refused, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeagent import config
from nodeagent.errors import ConfigError
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.sidecar.config import SidecarConfig

GOOD: dict[str, Any] = {
    "node": "a", "source": "/", "redirect": {"cgroup": "/"}, "identity": {"caDirectory": "/ca"},
}  # fmt: skip
ISTIO = {"address": "istiod:15012", "tokenFile": "/token", "rootCertFile": "/root"}


def refusal(tmp_path: Path, **values: Any) -> str:
    path = tmp_path / "agent.yaml"
    path.write_text(json.dumps(GOOD | values))
    with pytest.raises(ConfigError) as raised:
        config.load(path)
    return str(raised.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("path", ["", ".", "relative/x", "~/x", "/nul\0"])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("source", lambda path: {"source": path}),
        ("resources.0", lambda path: {"resources": [path]}),
        ("runtimeDirectory", lambda path: {"runtimeDirectory": path}),
        ("redirect.cgroup", lambda path: {"redirect": {"cgroup": path}}),
        ("redirect.pinDirectory", lambda path: {"redirect": {"cgroup": "/", "pinDirectory": path}}),
        ("identity.caDirectory", lambda path: {"identity": {"caDirectory": path}}),
        ("identity.files.directory", lambda path: {"identity": {"files": {"directory": path}}}),
        ("identity.istioCa.rootCertFile", lambda path: {"identity": {"istioCa": ISTIO | {"rootCertFile": path}}}),
        ("kubernetes.kubeconfig", lambda path: {"kubernetes": {"kubeconfig": path}}),
        ("telemetry.accessLog.path", lambda path: {"telemetry": {"accessLog": {"path": path}}}),
    ],
)
def test_paths_are_absolute(tmp_path: Path, field: str, values: Any, path: str) -> None:
    if field.startswith("telemetry") and not path:
        return  # no log
    assert refusal(tmp_path, **values(path)).startswith(f"{field}: an absolute path")


def test_a_token_in_the_place_of_its_file_is_not_shown(tmp_path: Path) -> None:
    words = refusal(tmp_path, identity={"istioCa": ISTIO | {"tokenFile": "eyJhbGciOi"}})
    assert words.startswith("identity.istioCa.tokenFile: the absolute path")
    assert "eyJhbGciOi" not in words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"telemetry": {"readyPort": False}}, "telemetry.readyPort: a number is expected"),
        ({"telemetry": {"metricsPort": True}}, "telemetry.metricsPort: a number is expected"),
        ({"redirect": {"cgroup": "/", "maps": {"pods": True}}}, "redirect.maps.pods: a number is expected"),
        ({"proxy": {"timeouts": {"request": True}}}, "proxy.timeouts.request: a number is expected"),
        ({"proxy": {"timeouts": {"idle": 1e300}}}, "proxy.timeouts.idle: 2592000.0 or less is expected"),
        ({"node": "../x"}, "node: a node's name is expected (letters, digits, '.', '-', '_')"),
        ({"node": " "}, "node: a node's name is expected"),
        (
            {"identity": {"caDirectory": "/", "trustDomain": "Mesh"}},
            "identity.trustDomain: a trust domain is",
        ),
        ({"telemetry": {"adminPort": 15020}}, "telemetry: adminPort and metricsPort are both 15020: each needs one"),
        ({"telemetry": {"metricsPort": 1, "readyPort": 1}}, "telemetry: metricsPort and readyPort are both 1: "),
        ({"identity": {"istioCa": ISTIO | {"address": "h:99999"}}}, "identity.istioCa.address: HOST:PORT is expected"),
        ({"identity": {"istioCa": ISTIO | {"address": "h:0"}}}, "identity.istioCa.address: HOST:PORT is expected"),
    ],
)
def test_values_that_mean_something_else(tmp_path: Path, values: Any, words: str) -> None:
    assert refusal(tmp_path, **values).startswith(words)


def test_any_free_ports_are_no_ports_that_are_the_same() -> None:
    ports = {"adminPort": 0, "metricsPort": 0, "readyPort": 0}
    assert config.Telemetry.model_validate(ports).ready_port == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pathNormalization": {"normalization": "merge"}}, ("pathNormalization.normalization: ", "MERGE_SLASHES")),
        ({"pathNormalization": "BASE"}, ("pathNormalization: ",)),
        ({"proxy": {"numTrustedProxies": -1}}, ("proxy.numTrustedProxies: ", "0")),
        ({"identity": {"caDirectory": "/ca", "trustDomainAliases": "old"}}, ("identity.trustDomainAliases: ",)),
        ({"identity": {"caDirectory": "/ca", "trustDomainAliases": ["Old/x"]}}, ("identity.trustDomainAliases.0: ",)),
    ],
)
def test_settings_of_the_mesh_are_named_where_they_are_wrong(
    tmp_path: Path, values: dict[str, Any], words: tuple[str, ...]
) -> None:
    said = refusal(tmp_path, **values)
    assert all(each in said for each in words), said


def test_settings_of_the_mesh_reach_what_policies_rest_on(tmp_path: Path) -> None:
    mesh = {"pathNormalization": {"normalization": "MERGE_SLASHES"}, "proxy": {"numTrustedProxies": 2}}
    path = tmp_path / "agent.yaml"
    path.write_text(json.dumps(GOOD))
    assert config.load(path).mesh_settings() == MeshSettings("cluster.local", (), "BASE", 0)
    identity = {"caDirectory": "/ca", "trustDomain": "new", "trustDomainAliases": ["old"]}
    path.write_text(json.dumps(GOOD | mesh | {"identity": identity}))
    expected = MeshSettings("new", ("old",), "MERGE_SLASHES", 2)
    assert config.load(path).mesh_settings() == expected
    assert SidecarConfig.model_validate(mesh | {"trustDomainAliases": ["old"]}).mesh_settings("new") == expected
