"""What the configuration says of a sink (``logs.sinks`` of agent.yaml), validated whole. A secret is
never in it, but in a file that it names, which is read again whenever it changes.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from nodeagent.sections import (
    AbsolutePath,
    ConfigSection,
    SecretFile,
    SecretSection,
    Size,
    UnshownError,
    may_hold_secret,
)

MAX_URLS: Final = 16
PLACES: Final = frozenset({"namespace", "pod", "container", "node", "tag"})
"""What a template may name, besides ``label:KEY``."""
DATES: Final = frozenset({"date", "year", "month", "day"})
"""What that of an index may name besides."""
_OF_GRPC: Final = frozenset({"te", "content-type", "user-agent"})
"""Headers that are not for applications (gRPC over HTTP/2, "Custom-Metadata"; grpclib says its own)."""
LOKI_PUSH: Final = "/loki/api/v1/push"
PLACE: Final = re.compile(r"\{([^{}]*)\}")
"""In a template."""
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def http_url(value: str) -> str:
    """Return *value* if it is a URL of a server over HTTP without user, query and fragment. Raises ValueError."""
    unshown = UnshownError("a URL may hold no user or password, and no ?: name a file under auth")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError as error:
        raise unshown if may_hold_secret(value) else ValueError(f"{value!r:.80}: {error}") from None
    if may_hold_secret(value):
        raise unshown
    if url.scheme not in ("http", "https") or not url.hostname or url.fragment or port == 0:
        raise ValueError(f"{value!r:.80}: http://HOST[:PORT][/PATH] or https://… is expected, without ? and #")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"{value!r:.80}: a URL has printable ASCII only; other characters are percent-encoded")
    return value


def host_and_port(value: str) -> str:
    """Return *value* if it is ``HOST:PORT``. Raises ValueError."""
    if may_hold_secret(value):
        raise UnshownError("HOST:PORT is expected, without a user, password or query: name a file for each secret")
    try:
        url = urlsplit(f"//{value}")
        wrong = not url.hostname or not url.port or url.netloc != value or url.username is not None
    except ValueError:
        wrong = True
    if wrong or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"{value!r:.80}: HOST:PORT is expected, [::1]:PORT for an IPv6 address")
    return value


def template(value: str) -> str:
    """Return *value* if every ``{…}`` in it is one of PLACES or ``label:KEY``. Raises ValueError."""
    return _template(value, PLACES)


def dated_template(value: str) -> str:
    """Return *value* if every ``{…}`` in it is one of PLACES, DATES or ``label:KEY``. Raises ValueError."""
    return _template(value, PLACES | DATES)


def _template(value: str, places: frozenset[str]) -> str:
    if set("{}") & set(PLACE.sub("", value)):
        raise ValueError(f"{value!r:.80}: a place is written {{namespace}}, and no other brace is allowed")
    for each in PLACE.findall(value):
        if each not in places and not re.fullmatch(r"label:[\w./-]+", each):
            known = ", ".join(sorted(places))
            raise ValueError(f"{value!r:.80}: {{{each}}} is not known; there are {known} and label:KEY")
    return value


HttpUrl = Annotated[str, AfterValidator(http_url)]
Authority = Annotated[str, AfterValidator(host_and_port)]
Template = Annotated[str, AfterValidator(template)]
DatedTemplate = Annotated[str, AfterValidator(dated_template)]


def _user(value: str) -> str:
    """Return *value* if it can be a user. Raises UnshownError: people write the password behind it."""
    if not re.fullmatch(r"[^:\x00-\x1f]+", value):
        raise UnshownError("a user without : is expected; the password is in passwordFile")
    return value


class BasicAuth(SecretSection):
    """A user, and the file with the password."""

    user: Annotated[str, AfterValidator(_user)]
    password_file: SecretFile


class SinkAuth(SecretSection):
    """How the agent says who it is, at most one way; the collector's user must be able to read the files."""

    basic: BasicAuth | None = None
    api_key_file: SecretFile | None = None
    """Elasticsearch's: what follows ``ApiKey`` in the header."""
    bearer_file: SecretFile | None = None
    """A token, such as the agent's own service account's."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(1 for each in (self.basic, self.api_key_file, self.bearer_file) if each is not None) > 1:
            raise ValueError("one of basic, apiKeyFile and bearerFile is allowed")
        return self


class SinkTls(SecretSection):
    """For https and TLS; the server's name is always checked."""

    ca_file: AbsolutePath | None = None
    """Whose certificates are trusted; None: those of the system."""
    certificate_file: AbsolutePath | None = None
    key_file: SecretFile | None = None
    server_name: str = ""
    """What the server's certificate must say, where it is not the URL's host."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificateFile and keyFile belong together")
        return self


class IndexTemplate(ConfigSection):
    """An index template (``_index_template``) that is put before the first records, where there is none of its name."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,127}$")
    body: dict[str, object] = Field(min_length=1)
    """As ``PUT _index_template/NAME`` takes it; without ``index_patterns``, those of ``index`` are meant."""


class ElasticsearchSettings(ConfigSection):
    """Elasticsearch or OpenSearch, by ``_bulk``."""

    urls: tuple[HttpUrl, ...] = Field(min_length=1, max_length=MAX_URLS)
    """Of one cluster's nodes; the next one is taken where one does not answer."""
    index: DatedTemplate = "logs-{namespace}-{date}"
    """Of an index, or a data stream's name; lower-cased, and what no index name may have becomes ``-``."""
    days_back: int = Field(7, ge=0, le=3660)
    """Whose date ``index`` takes of a record at most; an older one is of the day on which it is sent."""
    days_ahead: int = Field(1, ge=0, le=3660)
    """The same for what comes from the future."""
    template: IndexTemplate | None = None
    auth: SinkAuth = SinkAuth()
    tls: SinkTls = SinkTls()
    gzip: bool = True

    @field_validator("index")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        plain = re.sub(r"\{[^}]*\}", "x", value)
        if not plain or plain[0] in "-_+." or re.search(r'[\\/*?"<>|\s,#:]', plain) or plain != plain.lower():
            raise ValueError(
                f'{value!r:.80}: an index name is lower-case, has no space or any of \\/*?"<>|,#: '
                "and does not begin with - _ + or ."
            )
        return value


class LokiSettings(ConfigSection):
    """Grafana Loki, by its push API."""

    urls: tuple[HttpUrl, ...] = Field(min_length=1, max_length=MAX_URLS)
    """Without ``/loki/api/v1/push``."""
    labels: dict[str, Template] = Field({"namespace": "{namespace}", "container": "{container}", "node": "{node}"})
    """Few, and with few values each: every combination is a stream of its own."""
    metadata: dict[str, Template] = Field({"pod": "{pod}"})
    """Structured metadata: is found too, and makes no stream; empty for a Loki before 3.0."""
    tenant: str = Field("", pattern=r"^[A-Za-z0-9!\-_.*'()]{0,150}$")
    """``X-Scope-OrgID``; empty: none is said."""
    auth: SinkAuth = SinkAuth()
    tls: SinkTls = SinkTls()
    gzip: bool = True

    @field_validator("urls")
    @classmethod
    def _without_path(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each.rstrip("/").endswith(LOKI_PUSH):
                raise ValueError(f"{each!r:.80}: the URL without {LOKI_PUSH} is expected, which is added")
        return value

    @field_validator("labels", "metadata")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > 15:
            raise ValueError(f"{len(value)} labels; Loki takes 15")
        for each in value:
            if not _LABEL_NAME.fullmatch(each):
                raise ValueError(f"{each!r:.80}: letters, digits and _ are allowed, not first a digit")
        return value

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.labels:
            raise ValueError("labels: Loki takes no stream without a label")
        return self


class OtlpSettings(ConfigSection):
    """An OpenTelemetry collector, by OTLP over gRPC."""

    address: Authority
    plaintext: bool = False
    """Without TLS."""
    headers: dict[str, SecretFile] = Field({})
    """Metadata of each call: a name, and the file that holds its value."""
    tls: SinkTls = SinkTls()

    @field_validator("headers", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise UnshownError("a mapping of headers' names to files is expected")
        for each in map(str, value):
            if not re.fullmatch(r"[a-z0-9_.-]+", each) or each.endswith("-bin") or each.startswith("grpc-"):
                # Not shown: people write the whole header there.
                raise UnshownError(
                    "a header's name has lower-case letters, digits and - _ . only, and is not grpc-… or …-bin"
                )
            if each in _OF_GRPC:
                raise ValueError(f"{each!r:.80}: says gRPC itself")
        return value


class ForwardSettings(ConfigSection):
    """Fluentd or Fluent Bit, by the forward protocol, with acknowledgements."""

    addresses: tuple[Authority, ...] = Field(min_length=1, max_length=MAX_URLS)
    tls: SinkTls | None = None
    """None: without TLS."""
    shared_key_file: SecretFile | None = None
    """What both sides know; absent: the server asks for none."""
    user: str = ""
    password_file: SecretFile | None = None
    gzip: bool = True

    @model_validator(mode="after")
    def _together(self) -> Self:
        if bool(self.user) != (self.password_file is not None):
            raise ValueError("user and passwordFile belong together")
        if self.user and self.shared_key_file is None:
            raise ValueError("a user is said to a server with sharedKeyFile only")
        return self


class FileSinkSettings(ConfigSection):
    """A file of the node: one JSON object a line."""

    path: AbsolutePath
    bytes: Size = Field(64 << 20, ge=1 << 16)
    """At which it is renamed to PATH.1, PATH.1 to PATH.2 and so on."""
    keep: int = Field(4, ge=0, le=1000)
    """How many renamed ones stay."""


class StdoutSinkSettings(ConfigSection):
    """The agent's own standard output."""


class SinkSettings(ConfigSection):
    """One sink: its name, what all have, and one of the kinds."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    request_bytes: Size = Field(1 << 20, ge=1 << 16, le=64 << 20)
    """About how many a request has, before it is compressed."""
    in_flight: int = Field(2, ge=1, le=16)
    """Requests under way at once, where the sink does not want records in order."""
    timeout_seconds: float = Field(60, gt=0, le=3600)
    """For a request and its answer."""
    elasticsearch: ElasticsearchSettings | None = None
    loki: LokiSettings | None = None
    otlp: OtlpSettings | None = None
    forward: ForwardSettings | None = None
    file: FileSinkSettings | None = None
    stdout: StdoutSinkSettings | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = ("elasticsearch", "loki", "otlp", "forward", "file", "stdout")
        given = [each for each in kinds if getattr(self, each) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"sink {self.name}: one of {', '.join(kinds)} is expected, {said} is given")
        return self


class BufferSettings(ConfigSection):
    """What waits on disk while a sink does not keep pace."""

    bytes: Size = Field(1 << 30, ge=0)
    """For each sink; 0: nothing is kept on disk, and files are read no further."""
    full: Literal["block", "dropOldest"] = "block"
    """What then happens: files are read no further, or the oldest records go, and are counted."""
