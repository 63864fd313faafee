"""agent.yaml's ``extensionProviders``: the shape of Istio's meshConfig, refused by name when wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import config
from nodeagent.errors import ConfigError

AUTHZ: dict[str, Any] = {"service": "foo/ext-authz.foo.svc.cluster.local", "port": 9000}


def loaded(tmp_path: Path, *providers: dict[str, Any]) -> tuple[config.ExtensionProvider, ...]:
    path = tmp_path / "agent.yaml"
    document = {
        "node": "node1",
        "source": "/s",
        "redirect": {"cgroup": "/c"},
        "identity": {"caDirectory": "/i"},
        "extensionProviders": list(providers),
    }
    path.write_text(yaml.safe_dump(document))
    return config.load(path).extension_providers


def test_istios_shape_is_taken(tmp_path: Path) -> None:
    body = {"maxRequestBytes": 4096, "allowPartialMessage": True, "packAsBytes": True}
    full = {
        **AUTHZ,
        "timeout": "500ms",
        "failOpen": True,
        "statusOnError": "503",
        "clearRouteCache": True,
        "includeRequestBodyInCheck": body,
    }
    first, second, third = loaded(
        tmp_path,
        {"name": "full", "envoyExtAuthzGrpc": full},
        {"name": "short", "envoyExtAuthzGrpc": {"service": "ext-authz", "port": 9000}},
        {"name": "limits", "rateLimitGrpc": {"service": "10.0.0.1", "port": 8081, "timeout": 0.5}},
    )
    authz = first.envoy_ext_authz_grpc
    assert authz is not None and (authz.service, authz.port, authz.timeout, authz.fail_open, authz.status_on_error) == (
        AUTHZ["service"],
        9000,
        0.5,
        True,
        503,
    )
    asked = authz.include_request_body_in_check
    assert asked is not None and (asked.max_request_bytes, asked.allow_partial_message, asked.pack_as_bytes) == (
        4096,
        True,
        True,
    )
    authz = second.envoy_ext_authz_grpc
    assert authz is not None and (authz.timeout, authz.fail_open, authz.status_on_error) == (600, False, 403)
    assert third.rate_limit_grpc is not None and third.rate_limit_grpc.timeout == 0.5
    assert config.ExtensionProvider.model_validate(first.model_dump(mode="json", by_alias=True)) == first, (
        "as workers get it"
    )


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        ([{"name": "a"}], "exactly one of envoyExtAuthzGrpc and rateLimitGrpc"),
        ([{"name": "a", "envoyExtAuthzGrpc": AUTHZ, "rateLimitGrpc": AUTHZ}], "exactly one of"),
        ([{"name": "a", "envoyExtAuthzGrpc": AUTHZ}] * 2, "'a' is given 2 times"),
        ([{"name": "", "envoyExtAuthzGrpc": AUTHZ}], "extensionProviders.0.name"),
        ([{"name": "a", "envoyExtAuthzHttp": AUTHZ}], "extensionProviders.0.envoyExtAuthzHttp"),
        ([{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "port": 0}}], "extensionProviders.0.envoyExtAuthzGrpc.port"),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "service": "a/b/c"}}],
            "extensionProviders.0.envoyExtAuthzGrpc.service",
        ),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "timeout": "soon"}}],
            "extensionProviders.0.envoyExtAuthzGrpc.timeout",
        ),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "timeout": 0}}],
            "extensionProviders.0.envoyExtAuthzGrpc.timeout",
        ),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "statusOnError": 99}}],
            "extensionProviders.0.envoyExtAuthzGrpc.statusOnError",
        ),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "includeRequestBodyInCheck": {}}}],
            "includeRequestBodyInCheck.maxRequestBytes",
        ),
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "includeRequestBodyInCheck": {"maxRequestBytes": 0}}}],
            "maxRequestBytes",
        ),
        # Istio has these for HTTP providers only.
        (
            [{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "includeAdditionalHeadersInCheck": {"x": "y"}}}],
            "includeAdditionalHeadersInCheck",
        ),
        ([{"name": "a", "envoyExtAuthzGrpc": {**AUTHZ, "pathPrefix": "/check"}}], "pathPrefix"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, providers: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml: extensionProviders") as caught:
        loaded(tmp_path, *providers)
    assert words in str(caught.value)
