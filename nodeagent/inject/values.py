"""The values that templates are filled with: typed, checked, with defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nodeagent import __version__
from nodeagent.errors import InjectionError
from nodeagent.inject.model import Document
from nodeagent.istio import ROOT_NAMESPACE
from nodeagent.resources.fields import AbsolutePath, PortNumber, Section
from nodeagent.resources.load import explain

_T = TypeVar("_T")


def _split(value: object) -> object:
    """Return a list given as text (``a,b``, as ``--set`` gives it) or as JSON as a tuple; anything
    else as it is, for pydantic to refuse.
    """
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: object) -> object:
    """As :func:`_split`, for ports: one alone may be given as a number, and numbers may be texts."""
    items = _split((value,) if isinstance(value, int) else value)
    return tuple(map(_number, items)) if isinstance(items, tuple) else items


def _number(item: object) -> object:
    return int(item) if isinstance(item, str) and item.isascii() and item.isdigit() else item


def _network(text: str) -> str:
    try:
        if "/" not in text:
            raise ValueError
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("an address range as 10.0.0.0/8 or fd00::/8") from None


WITHOUT_TEMPLATE: Final = frozenset(
    {"meshRanges", "plaintextRanges", "ipFamilies", "rootNamespace", "source", "csiDriver", "rewriteAppHTTPProbe"}
)
"""Names of the values that no template need refer to: they say what the cluster is, which a sidecar may know
otherwise, or are the injector's own.
"""


def _once(items: tuple[_T, ...]) -> tuple[_T, ...]:
    """Envoy takes no range, port or family twice."""
    return tuple(dict.fromkeys(items))


def _as_text(value: object) -> object:
    """Return a number, or a list of numbers and texts, as the text of an annotation; anything else as it is."""
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, int | str) and not isinstance(item, bool) for item in items):
        return ",".join(map(str, items))
    return value


Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_split), AfterValidator(_once)
]
Text = Annotated[str, BeforeValidator(_as_text)]
"""``--set`` and YAML make numbers of what looks like one."""
Image = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\s]+$")]


def _own_resources() -> Document:
    return {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}


class Values(Section):
    """Values that the code knows; a template's file may have more, which are only filled in."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True, strict=True)

    image: Image = f"nodeagent:{__version__}"
    """The proxy's."""
    init_image: Image = f"nodeagent:{__version__}"
    """The image of the init container that sets up capture."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    trust_domain: Annotated[Text, Field(pattern=r"^[a-z0-9._-]{1,255}$")] = "cluster.local"
    root_namespace: Text = ROOT_NAMESPACE
    """The namespace whose policies are for the whole mesh."""
    mesh_ranges: Networks = ()
    """Where peers that speak mTLS are: the pods' and Services' ranges. Everything else is passed through as it is."""
    plaintext_ranges: Networks = ()
    """Parts of ``mesh_ranges`` that speak no mTLS, such as the API server's Service."""
    tcp_ports: Annotated[tuple[PortNumber, ...], BeforeValidator(_numbers), AfterValidator(_once)] = ()
    """Ports, of peers and of the pod, that are never HTTP. On others the client's first line is
    waited for, and one that closes before it ends is cut off.
    """
    mtls: Literal["STRICT", "PERMISSIVE"] = "PERMISSIVE"
    """STRICT: plaintext is refused."""
    access_log: Annotated[
        str, Field(pattern=r"^(-|/[^\s]*)?$"), AfterValidator(lambda path: "-" if path == "/dev/stdout" else path)
    ] = "-"
    """Where the access log goes: a path, ``-`` for standard output; empty: there is none."""
    buffer_bytes: Annotated[int, Field(ge=1024, le=1 << 24)] = 1 << 20
    """How much Envoy keeps of a connection whose other side is slow
    (per_connection_buffer_limit_bytes; its own default).
    """
    pooling: bool = True
    """False: Envoy makes a connection for each request."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 2
    """Worker threads."""
    authorization_policies: tuple[dict[str, object], ...] = ()
    """AuthorizationPolicy resources; those that select the pod are enforced by its sidecar."""
    ip_families: Annotated[
        tuple[Literal["IPv4", "IPv6"], ...], BeforeValidator(_split), Field(min_length=1), AfterValidator(_once)
    ] = ("IPv4", "IPv6")
    source: AbsolutePath = "/var/lib/nodeagent/source"
    """The node's folder with the mesh's resources (template nodeagent)."""
    csi_driver: str = "csi.nodeagent.io"
    """The CSI driver whose volume holds the socket that certificates come from."""
    resources: Document = Field(default_factory=_own_resources)
    """The proxy's requests and limits, as Kubernetes writes them; these are Istio's."""
    rewrite_app_http_probe: Annotated[bool, Field(alias="rewriteAppHTTPProbe")] = True
    include_inbound_ports: Text = "*"
    exclude_inbound_ports: Text = ""
    include_outbound_ports: Text = ""
    exclude_outbound_ports: Text = ""
    include_outbound_ip_ranges: Annotated[Text, Field(alias="includeOutboundIPRanges")] = "*"
    exclude_outbound_ip_ranges: Annotated[Text, Field(alias="excludeOutboundIPRanges")] = ""


def read(defaults: Mapping[str, object], given: Mapping[str, object]) -> Values:
    """Return the values *given*, else the template's *defaults*, else ours. Raises InjectionError
    for an unknown name or a wrong value.
    """
    known = {field.alias or name for name, field in Values.model_fields.items()} | set(defaults)
    for name in given:
        if name not in known:
            raise InjectionError(f"values.{name:.80}: unknown: allowed: {', '.join(sorted(known))}")
    try:
        return Values.model_validate_json(json.dumps({**defaults, **given}))
    except ValidationError as error:
        raise InjectionError(f"values.{explain(error, Values)}") from None
    except (TypeError, ValueError, RecursionError):
        raise InjectionError("values: allowed: what JSON can hold") from None


def images(own: str) -> Mapping[str, object]:
    """Return which values are nodeagent's *own* image by default; empty: those are ours."""
    return {"image": own, "initImage": own} if own else {}


def as_variables(values: Values) -> Document:
    """Return *values* as a template refers to them: names in camelCase, values as JSON holds them."""
    return values.model_dump(mode="json", by_alias=True)
