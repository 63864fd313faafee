"""agent.yaml's ``extensionProviders``: the shape of Istio's meshConfig, refused by name when wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import config
from nodeagent.errors import ConfigError
from nodeagent.extension_providers import ExtensionProvider

AUTHZ: dict[str, Any] = {"service": "foo/ext-authz.foo.svc.cluster.local", "port": 9000}


def loaded(tmp_path: Path, *providers: dict[str, Any]) -> tuple[ExtensionProvider, ...]:
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
    assert ExtensionProvider.model_validate(first.model_dump(mode="json", by_alias=True)) == first, "as workers get it"


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        ([{"name": "a"}], "exactly one of envoyExtAuthzGrpc, envoyExtAuthzHttp and rateLimitGrpc"),
        ([{"name": "a", "envoyExtAuthzGrpc": AUTHZ, "envoyExtAuthzHttp": AUTHZ}], "exactly one of"),
        ([{"name": "a", "envoyExtAuthzGrpc": AUTHZ, "rateLimitGrpc": AUTHZ}], "exactly one of"),
        ([{"name": "a", "envoyExtAuthzGrpc": AUTHZ}] * 2, "'a' is given 2 times"),
        ([{"name": "", "envoyExtAuthzGrpc": AUTHZ}], "extensionProviders.0.name"),
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


HTTP: dict[str, Any] = {"service": "oauth2-proxy.auth.svc.cluster.local", "port": 4180}


def test_istios_http_provider_is_taken(tmp_path: Path) -> None:
    """As in the documentation of oauth2-proxy, Authelia and authentik."""
    full = {
        **HTTP,
        "timeout": "1.5s",
        "pathPrefix": "/api/authz/ext-authz/",
        "failOpen": True,
        "statusOnError": "503",
        "clearRouteCache": True,
        "includeHeadersInCheck": ["x-old"],
        "includeRequestHeadersInCheck": ["accept", "cookie", "proxy-authorization", "x-auth-*", "*-id"],
        "includeAdditionalHeadersInCheck": {
            "X-Forwarded-Method": "%REQ(:METHOD)%",
            "X-Forwarded-Proto": "%REQ(:SCHEME)%",
            "X-Forwarded-Host": "%REQ(:AUTHORITY)%",
            "X-Forwarded-For": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "X-Auth-Request-Redirect": "https://%REQ(:AUTHORITY)%%REQ(:PATH)%",
        },
        "includeRequestBodyInCheck": {"maxRequestBytes": 4096, "allowPartialMessage": True, "packAsBytes": True},
        "headersToUpstreamOnAllow": ["authorization", "remote-*"],
        "headersToDownstreamOnAllow": ["set-cookie"],
        "headersToDownstreamOnDeny": ["content-type", "set-cookie"],
    }
    first, second = loaded(
        tmp_path, {"name": "full", "envoyExtAuthzHttp": full}, {"name": "short", "envoyExtAuthzHttp": HTTP}
    )
    authz = first.envoy_ext_authz_http
    assert authz is not None and (authz.service, authz.port, authz.timeout, authz.status_on_error) == (
        HTTP["service"],
        4180,
        1.5,
        503,
    )
    assert ExtensionProvider.model_validate(first.model_dump(mode="json", by_alias=True)) == first, "as workers get it"
    short = second.envoy_ext_authz_http
    assert short is not None and (short.timeout, short.fail_open, short.status_on_error) == (600, False, 403)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("port", 0, "1 or more is expected"),
        ("service", "http://authz", "service"),
        ("timeout", "-1s", "timeout"),
        ("statusOnError", 600, "599 or less is expected"),
        ("pathPrefix", "check", "a path is expected that begins with /"),
        ("pathPrefix", "/a b", "a path is expected that begins with /"),
        ("pathPrefix", "/a\r\nx: y", "a path is expected that begins with /"),
        ("includeRequestHeadersInCheck", ["*"], "but not * alone"),
        ("includeRequestHeadersInCheck", "cookie", "a list is expected"),
        ("includeHeadersInCheck", ["a*b"], "maybe with one * at its beginning or end"),
        ("headersToUpstreamOnAllow", ["*a*"], "maybe with one * at its beginning or end"),
        ("headersToDownstreamOnAllow", [""], "a header's name is expected"),
        ("headersToDownstreamOnDeny", ["a b"], "a header's name is expected"),
        ("includeAdditionalHeadersInCheck", {"Host": "x"}, "'Host': a header's name is expected, but none of"),
        ("includeAdditionalHeadersInCheck", {":path": "x"}, "':path': a header's name is expected, but none of"),
        ("includeAdditionalHeadersInCheck", {"Content-Length": "5"}, "but none of connection, content-length"),
        ("includeAdditionalHeadersInCheck", {"x-a": "%NOPE%"}, "x-a: Envoy's substitutions that are known here"),
        ("includeAdditionalHeadersInCheck", {"x-a": "1\r\nx-b: 2"}, "x-a: printable ASCII is expected"),
        ("includeAdditionalHeadersInCheck", {"x-a": 5}, "a text is expected"),
        ("includeRequestBodyInCheck", {"maxRequestBytes": 0}, "maxRequestBytes"),
        ("headersToUpstream", ["a"], "is headersToUpstreamOnAllow meant?"),
    ],
)
def test_what_is_wrong_of_an_http_provider_is_named(tmp_path: Path, setting: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml: extensionProviders\.0\.envoyExtAuthzHttp\.") as caught:
        loaded(tmp_path, {"name": "a", "envoyExtAuthzHttp": {**HTTP, setting: value}})
    assert setting in str(caught.value)
    assert words in str(caught.value)
