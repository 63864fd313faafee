"""Which containers are sidecars, and of what kind, by their names and images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

Kind = Literal["mesh", "logs", "secrets", "config"]
NAMES: Final[dict[Kind, frozenset[str]]] = {
    "mesh": frozenset(
        {
            "istio-proxy",
            "linkerd-proxy",
            "envoy",
            "envoy-proxy",
            "envoy-sidecar",
            "consul-dataplane",
            "consul-connect-envoy-sidecar",
            "kuma-sidecar",
            "osm-envoy",
            "nodeagent-proxy",
        }
    ),
    "logs": frozenset(
        {
            "fluent-bit",
            "fluentbit",
            "fluentd",
            "filebeat",
            "vector",
            "promtail",
            "logstash",
            "log-shipper",
            "log-collector",
            "splunk-forwarder",
        }
    ),
    "secrets": frozenset({"vault-agent", "secrets-sync", "conjur-authenticator", "secretless-broker"}),
    "config": frozenset(
        {"config-sync", "config-reloader", "configmap-reload", "consul-template", "git-sync", "k8s-sidecar"}
    ),
}
IMAGES: Final[dict[Kind, frozenset[str]]] = {
    "mesh": frozenset({"proxyv2", "envoy", "consul-dataplane", "kuma-dp"}),
    "logs": frozenset({"fluent-bit", "fluentd", "filebeat", "vector", "promtail", "logstash"}),
    "secrets": frozenset({"secrets-provider-for-k8s"}),
    "config": frozenset({"config-sync", "configmap-reload", "consul-template", "git-sync", "k8s-sidecar"}),
}
"""The last part of an image's name. Not vault: that is also the server."""


def kind(name: str, image: str) -> Kind | None:
    """Return what kind of sidecar a container of this name and image would be; None for an application."""
    base = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    return next((found for found, names in NAMES.items() if name in names), None) or next(
        (found for found, bases in IMAGES.items() if base in bases), None
    )


def sidecars(containers: Collection[tuple[str, str]], native: Collection[tuple[str, str]]) -> dict[str, Kind]:
    """Return the sidecars of a pod by name, from (name, image) of its containers and its native
    sidecars.

    A proxy or shipper with no application beside it (an ingress gateway, a shipper of the node's)
    is no sidecar.
    """
    found = {name: what for name, image in containers if (what := kind(name, image))}
    if len(found) == len(containers):
        return {}
    return found | {name: what for name, image in native if (what := kind(name, image))}
