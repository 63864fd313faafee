"""``kind: RateLimit``: what is taken, and which words name what is not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from nodeagent.errors import ResourceError
from nodeagent.policy.model import GlobalLimit, LocalLimit, RateLimit, TokenBucket
from nodeagent.resources.part import Part
from nodeagent.resources.rate_limit import read


def parsed(text: str) -> RateLimit:
    return read(Part("spec", yaml.safe_load(text)), "shop", "calm", {})


def test_every_field_is_taken() -> None:
    text = """
        selector: {matchLabels: {app: web}}
        local:
        - match:
            methods: [GET, POST]
            paths: [/a, /b*, "*.png", "*"]
            headers: {X-Tier: "free*"}
          by: [principal, {header: X-User}, pod, path, principal]
          tokenBucket: {maxTokens: 10, tokensPerFill: 5, fillInterval: 100ms}
        - tokenBucket: {maxTokens: 1, fillInterval: 1m30s}
        global:
          provider: limits
          domain: shop
          descriptors:
          - entries: [{key: who, value: "{principal}"}, {key: where, value: "{header:X-Zone}"}]
          - entries: [{key: what, value: web}]
          failureMode: deny
          timeout: 50ms
    """
    assert parsed(text) == RateLimit(
        "shop",
        "calm",
        (
            LocalLimit(
                TokenBucket(10, 5, 0.1),
                methods=("GET", "POST"),
                paths=("/a", "/b*", "*.png", "*"),
                headers=(("x-tier", "free*"),),
                by=("principal", "header:x-user", "pod", "path"),
            ),
            LocalLimit(TokenBucket(1, 1, 90.0)),
        ),
        GlobalLimit(
            "limits", "shop", ((("who", "{principal}"), ("where", "{header:x-zone}")), (("what", "web"),)), "deny", 0.05
        ),
    )


def test_defaults() -> None:
    service = parsed("global: {provider: limits, domain: shop, descriptors: [{entries: [{key: a, value: b}]}]}").service
    assert service is not None and (service.failure_mode, service.timeout_seconds) == ("allow", 0.0)


BUCKET: dict[str, Any] = {"maxTokens": 1, "fillInterval": "1s"}
GLOBAL: dict[str, Any] = {"provider": "p", "domain": "d", "descriptors": [{"entries": [{"key": "a", "value": "b"}]}]}


def local(**more: Any) -> dict[str, Any]:
    return {"local": [{"tokenBucket": BUCKET, **more}]}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "spec.local: at least one limit is expected in local or global"),
        ({"local": []}, "spec.local: at least one limit"),
        ({**local(), "targetRef": {}}, "spec.targetRef: unknown field"),
        (local(bucket={}), "spec.local[0].bucket: unknown field: allowed: match, by, tokenBucket"),
        ({"local": [{}]}, "spec.local[0].tokenBucket.fillInterval: a duration is expected"),
        (
            {"local": [{"tokenBucket": {"fillInterval": "1s"}}]},
            "spec.local[0].tokenBucket.maxTokens: a whole number from 1",
        ),
        (local(tokenBucket={**BUCKET, "maxTokens": 0}), "maxTokens: 0: a whole number from 1"),
        (local(tokenBucket={**BUCKET, "maxTokens": True}), "maxTokens: True: a whole number"),
        (local(tokenBucket={**BUCKET, "tokensPerFill": 1.5}), "tokensPerFill: 1.5: a whole number"),
        (local(tokenBucket={**BUCKET, "fillInterval": "10ms"}), "fillInterval: '10ms': a duration from 0.05s"),
        (local(tokenBucket={**BUCKET, "fillInterval": "soon"}), "fillInterval: 'soon': a duration from"),
        (local(match={"hosts": ["a"]}), "spec.local[0].match.hosts: unknown field: allowed: methods, paths, headers"),
        (local(match={"methods": ["G ET"]}), "spec.local[0].match.methods[0]: 'G ET': an HTTP method"),
        (local(match={"paths": ["/a*b"]}), "spec.local[0].match.paths[0]: '/a*b': '*' is allowed once"),
        (local(match={"paths": ["*a*"]}), "'*a*': '*' is allowed once"),
        (local(match={"paths": ["a"]}), "'a': a path that begins with '/' or '*'"),
        (local(match={"paths": [""]}), "a text that is not empty"),
        (local(match={"headers": {"a b": "x"}}), "spec.local[0].match.headers['a b']: 'x': a header's name"),
        (local(match={"headers": {"a": ""}}), "spec.local[0].match.headers['a']: '': a text that is not empty"),
        (
            local(match={"headers": {"a": "x", "A": "y"}}),
            "spec.local[0].match.headers['A']: 'y': a header that is not named twice",
        ),
        (local(by=["user"]), "spec.local[0].by[0]: 'user': allowed: principal, pod, path, {header: NAME}"),
        (local(by=[{"header": 1}]), "spec.local[0].by[0]: {'header': 1}: allowed"),
        (local(by=["pod", {"header": "a", "b": 1}]), "spec.local[0].by[1]"),
        ({"local": local()["local"] * 65}, "spec.local: 65 items: at most 64"),
        ({"global": {**GLOBAL, "provider": ""}}, "spec.global.provider: '': a text is expected"),
        ({"global": {**GLOBAL, "domain": None}}, "spec.global.domain: a text is expected"),
        ({"global": {**GLOBAL, "descriptors": []}}, "spec.global.descriptors: []: at least one descriptor"),
        (
            {"global": {**GLOBAL, "descriptors": [{"entries": []}]}},
            "spec.global.descriptors[0].entries: []: at least one entry",
        ),
        (
            {"global": {**GLOBAL, "descriptors": [{"entries": [{"key": "a", "value": "{user}"}]}]}},
            "spec.global.descriptors[0].entries[0].value: '{user}': allowed: a text, {principal}",
        ),
        ({"global": {**GLOBAL, "failureMode": "open"}}, "spec.global.failureMode: 'open': allowed: allow, deny"),
        ({"global": {**GLOBAL, "timeout": "2h"}}, "spec.global.timeout: '2h': a duration from"),
        ({"local": "x"}, "spec.local: 'x': a list is expected"),
    ],
)
def test_what_is_wrong_is_named(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ResourceError) as caught:
        read(Part("spec", spec), "shop", "calm", {})
    assert words in str(caught.value)
