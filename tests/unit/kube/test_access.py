"""Who asks the API server, and where it is: a pod's account, or a kubeconfig."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.errors import ConfigError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.kube.access import from_kubeconfig, in_cluster


def test_in_the_cluster_the_pods_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").write_bytes(CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local").roots_pem)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = in_cluster(tmp_path)
    assert (access.server, access.headers()) == ("https://[fd00::1]:443", {"Authorization": "Bearer secret"})
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        in_cluster(tmp_path / "nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match="no pod of a cluster"):
        in_cluster(tmp_path)


def kubeconfig(folder: Path, **user: Any) -> Path:
    authority = CertificateAuthority.open_or_create(folder / "ca", "cluster.local")
    cluster = {
        "server": "https://127.0.0.1:6443/",
        "certificate-authority-data": base64.b64encode(authority.roots_pem).decode(),
    }
    document = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}], "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_kubeconfig_gives_a_token_a_token_file_or_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file\n")
    assert from_kubeconfig(kubeconfig(tmp_path, token="abc")).headers() == {"Authorization": "Bearer abc"}
    assert from_kubeconfig(kubeconfig(tmp_path, tokenFile="t")).headers() == {"Authorization": "Bearer from-file"}
    certificate = CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local").issue_server(("admin",), 3600)
    chain, key = (base64.b64encode(pem).decode() for pem in (certificate.chain_pem, certificate.key_pem))
    access = from_kubeconfig(kubeconfig(tmp_path, **{"client-certificate-data": chain, "client-key-data": key}))
    assert (access.server, access.headers()) == ("https://127.0.0.1:6443", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a usable kubeconfig"),
        ("[]", "not a usable kubeconfig"),
        ("{}", "current-context is missing"),
        ("current-context: c\ncontexts: []", "context 'c' is missing"),
        ("current-context: c\ncontexts: [{name: c, context: {cluster: k}}]", "clusters is missing"),
    ],
)
def test_a_wrong_kubeconfig_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_kubeconfig(path)
    assert str(path) in str(caught.value)


def test_no_program_is_run_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exec: not supported"):
        from_kubeconfig(kubeconfig(tmp_path, exec={"command": "touch"}))
    with pytest.raises(ConfigError, match="not a usable kubeconfig"):
        from_kubeconfig(kubeconfig(tmp_path, **{"client-certificate-data": "!", "client-key-data": "!"}))


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"as": "admin"}, {}),
        ({"as-uid": "1"}, {}),
        ({"as-groups": ["x"]}, {}),
        ({"as-user-extra": {"a": ["b"]}}, {}),
        ({}, {"proxy-url": "http://proxy"}),
    ],
)
def test_who_else_is_meant_or_how_it_is_reached_is_not_passed_by(
    tmp_path: Path, user: dict[str, object], cluster: dict[str, object]
) -> None:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://k", **cluster}}],
        "users": [{"name": "u", "user": {"token": "t", **user}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"{next(iter(user | cluster))}: not supported"):
        from_kubeconfig(path)
