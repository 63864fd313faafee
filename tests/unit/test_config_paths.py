"""Every path that agent.yaml may name is tried by ``nodeagent check``, and each that cannot be used is named."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from nodeagent.cli.check import check
from nodeagent.config import AgentConfig
from nodeagent.config_paths import USES, named_paths, wrong_paths
from nodeagent.logs.settings import LogSettings
from nodeagent.redirect import preflight

ISTIO = {"address": "istiod:15012", "tokenFile": "/nope/token", "rootCertFile": "/nope/root"}
NEEDED = {
    "source": {"source": "/nope"},
    "resources.1": {"resources": ["/", "/nope"]},
    "runtimeDirectory": {"runtimeDirectory": "/dev/null/run"},
    "redirect.cgroup": {"redirect": {"cgroup": "/nope"}},
    "redirect.pinDirectory": {"redirect": {"pinDirectory": "/dev/null/pins"}},
    "identity.caDirectory": {"identity": {"caDirectory": "/dev/null/ca"}},
    "identity.istioCa.tokenFile": {"identity": {"istioCa": ISTIO}},
    "identity.istioCa.rootCertFile": {"identity": {"istioCa": ISTIO}},
    "identity.files.directory": {"identity": {"files": {"directory": "/nope"}}},
    "telemetry.accessLog.path": {"telemetry": {"accessLog": {"path": "/nope/log"}}},
    "kubernetes.kubeconfig": {"source": None, "kubernetes": {"kubeconfig": "/nope/k"}},
    "kubernetes.runtime": {"source": None, "kubernetes": {"runtime": "/dev/null"}},
}
WARNED = {
    "kubernetes.nri": {"source": None, "kubernetes": {"nri": "/nope/nri.sock"}},
    "kubernetes.kubelet": {"source": None, "kubernetes": {"kubelet": "/nope"}},
    "kubernetes.stateDirectory": {"source": None, "kubernetes": {"stateDirectory": "/dev/null/x"}},
    "logs.podLogs": {"logs": {"podLogs": "/nope", "sinks": [{"name": "a", "stdout": {}}]}},
    "logs.node.files.0.path": {
        "logs": {"node": {"files": [{"path": "/nope"}]}, "sinks": [{"name": "a", "stdout": {}}]}
    },
    "logs.sinks.0.loki.auth.basic.passwordFile": {
        "logs": {
            "sinks": [
                {"name": "a", "loki": {"urls": ["http://a"], "auth": {"basic": {"user": "u", "passwordFile": "/nope"}}}}
            ]
        }
    },
    "logs.sinks.0.otlp.headers.token": {
        "logs": {"sinks": [{"name": "a", "otlp": {"address": "a:1", "headers": {"token": "/nope"}}}]}
    },
}  # fmt: skip


def _config(folder: Path, given: dict[str, Any]) -> AgentConfig:
    """Return a configuration of which nothing but *given* is wrong."""
    (folder / "cgroup").mkdir(exist_ok=True)
    (folder / "cgroup" / "cgroup.procs").touch()
    good = {
        "node": "a",
        "source": str(folder),
        "redirect": {"cgroup": str(folder / "cgroup")},
        "identity": {"caDirectory": str(folder / "ca")},
    }
    merged = good | given
    if "redirect" in given:
        merged["redirect"] = {"cgroup": str(folder / "cgroup")} | given["redirect"]
    return AgentConfig.model_validate({key: value for key, value in merged.items() if value is not None})


def _sections(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield *of* and every section that its fields' types name, once each."""
    found: dict[type[BaseModel], None] = {}
    left = [of]
    while left:
        each = left.pop()
        if each not in found:
            found[each] = None
            left += [
                named
                for field in each.model_fields.values()
                for named in _named(field.annotation)
                if isinstance(named, type) and issubclass(named, BaseModel)
            ]
    yield from found


def _named(annotation: object) -> Iterator[object]:
    yield annotation
    for each in get_args(annotation):
        yield from _named(each)


def test_every_setting_that_is_a_path_has_a_use() -> None:
    sections = {*_sections(AgentConfig), *_sections(LogSettings)}
    fields = {f"{each.__name__}.{name}": field for each in sections for name, field in each.model_fields.items()}
    paths = {setting for setting, field in fields.items() if Path in _named(field.annotation)}
    assert paths, "the types are walked"
    assert paths <= USES.keys()
    assert USES.keys() <= fields.keys()


@pytest.mark.parametrize("key", NEEDED)
def test_what_no_daemon_starts_without_is_missing(key: str, tmp_path: Path) -> None:
    wrong = {each.named.key: each for each in wrong_paths(_config(tmp_path, NEEDED[key]))}
    assert wrong[key].needed
    assert wrong[key].words.startswith("/")
    assert "; " in wrong[key].words


@pytest.mark.parametrize("key", WARNED)
def test_what_it_starts_without_is_a_warning(key: str, tmp_path: Path) -> None:
    (wrong,) = wrong_paths(_config(tmp_path, WARNED[key]))
    assert (wrong.named.key, wrong.needed) == (key, False)


def test_what_is_right_is_named_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is 108 bytes at most
    ca = ISTIO | {"tokenFile": str(tmp_path / "token"), "rootCertFile": str(tmp_path / "roots")}
    for name in ("token", "roots"):
        (tmp_path / name).write_text("x")
    (tmp_path / "none").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        config = _config(
            tmp_path,
            {
                "source": None,
                "kubernetes": {"runtime": str(tmp_path / "s"), "kubelet": str(tmp_path)},
                "runtimeDirectory": str(tmp_path / "run" / "deep"),
                "identity": {"istioCa": ca},
                "telemetry": {"accessLog": {"path": str(tmp_path / "access.log")}},
            },
        )
        assert len(list(named_paths(config))) == 7
        assert not list(wrong_paths(config))
    assert not (tmp_path / "access.log").exists(), "looking makes nothing"
    empty = _config(tmp_path, {"identity": {"istioCa": ISTIO | {"tokenFile": f"{tmp_path}/none"}}})
    assert [each.why for each in wrong_paths(empty) if each.named.key.endswith("tokenFile")] == ["is empty"]


def test_what_a_cluster_mounts_later_is_a_warning_before_an_installation(tmp_path: Path) -> None:
    """The authority's ConfigMap is made by what is to be installed; a kubelet starts no agent before it is, and mounts
    one that may be missing as a folder with nothing but marks of its own.
    """
    (tmp_path / "istio" / "..2026_11_30").mkdir(parents=True)
    (tmp_path / "istio" / "..data").symlink_to("..2026_11_30")
    (tmp_path / "token").write_text("x")
    ca = ISTIO | {"tokenFile": f"{tmp_path}/token", "rootCertFile": f"{tmp_path}/istio/root-cert.pem"}
    on_cluster = _config(tmp_path, {"source": None, "kubernetes": {}, "identity": {"istioCa": ca}})
    assert [each.needed for each in wrong_paths(on_cluster)] == [False]
    assert [each.needed for each in wrong_paths(_config(tmp_path, {"identity": {"istioCa": ca}}))] == [True]


def _checked(folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> Result:
    config = _config(folder, given)
    monkeypatch.setattr("nodeagent.config.load", lambda path: config)
    monkeypatch.setattr(preflight, "run", lambda *_: iter(()))
    monkeypatch.setattr("nodeagent.cli.check._runtime", lambda config: iter(()))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return CliRunner().invoke(check, ["-o", "json", "-c", "agent.yaml"], standalone_mode=False)


@pytest.mark.parametrize(("given", "status"), [({}, 0), (NEEDED["source"], 1), (WARNED["logs.podLogs"], 0)])
def test_check_ends_by_what_keeps_a_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], status: int
) -> None:
    done = _checked(tmp_path, monkeypatch, given)
    assert done.return_value == status
    rows = {row["feature"]: row["state"] for row in json.loads(done.output)}
    expected = {(): "paths in agent.yaml", ("source",): "source", ("logs",): "logs.podLogs"}[tuple(given)]
    assert rows[expected] == {"source": "missing", "logs.podLogs": "absent"}.get(expected, "ok")
