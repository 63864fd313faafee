"""``PeerAuthentication`` of security.istio.io, validated field by field as Istio does; unknown fields are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

from nodeagent.errors import ResourceError
from nodeagent.policy.model import MtlsMode, PeerAuthentication
from nodeagent.resources.part import Part, port_problem
from nodeagent.resources.policy_scope import selector


def read(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> PeerAuthentication:
    """Return the PeerAuthentication that *spec* describes. Raises ResourceError naming the field, its
    value and what is allowed.
    """
    spec.only("selector", "mtls", "portLevelMtls")
    mode = _mode(spec, "mtls")
    modes: dict[int, MtlsMode | None] = {}
    if spec.given("portLevelMtls"):
        by_port = spec.sub("portLevelMtls")
        if not by_port.keys:
            raise spec.wrong("portLevelMtls", "at least one port is expected, or no such field")
        if not selector(spec):
            raise spec.wrong("portLevelMtls", "a selector with matchLabels is needed: ports are those of workloads")
        for key in by_port.keys:
            if problem := port_problem(key):
                raise ResourceError(f"{by_port.at(key):.120}: {problem}")
            if int(key) in modes:
                raise ResourceError(f"{by_port.at(key):.120}: port {int(key)} is there twice")
            modes[int(key)] = _mode(by_port, key)
    return PeerAuthentication(namespace, name, mode, tuple((port, modes[port]) for port in sorted(modes)))


def _mode(spec: Part, name: str) -> MtlsMode | None:
    mtls = spec.sub(name)
    mtls.only("mode")
    mode = mtls.choice("mode", ("UNSET", *get_args(MtlsMode)), "UNSET")
    return None if mode == "UNSET" else cast(MtlsMode, mode)
