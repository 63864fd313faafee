"""A ``<match>`` (or a ``<store>`` of a copy) as a sink of ``logs.sinks``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent.errors import ConfigError, shown
from nodeagent.logs.fluentd.reading import Entry, SectionReader
from nodeagent.logs.fluentd.values import listed

SECRETS: Final = "/etc/nodeagent/logs"
"""Where files with secrets are expected that a configuration has in clear."""
CLUSTER_SECRETS: Final = "/var/run/secrets/logs"
"""Where daemonset/components/logs has them, in the Secret nodeagent-logs."""
_PLACES: Final = {"%Y": "{year}", "%m": "{month}", "%d": "{day}", "${tag}": "{tag}", "${hostname}": "{node}"}
_UNKNOWN: Final = re.compile(r"\$\{[^}]*\}|%[A-Za-z]|(?<!\{)<<?[a-z]+>")
_DATE: Final = "%Y.%m.%d"
_INDEX_DATES: Final = {_DATE: "{date}"}
_BUFFERED: Final = (
    *("flush_interval", "flush_mode", "flush_at_shutdown", "flush_thread_count", "flush_thread_interval"),
    *("flush_thread_burst_interval", "delayed_commit_timeout", "chunk_limit_size", "chunk_limit_records"),
    *("chunk_full_threshold", "queue_limit_length", "queued_chunks_limit_size", "compress", "retry_wait"),
    *("retry_type", "retry_forever", "retry_exponential_backoff_base", "retry_max_interval", "retry_randomize"),
    *("timekey", "timekey_wait", "timekey_use_utc", "timekey_zone", "path", "disable_chunk_backup", "@type"),
)
"""Of ``<buffer>``: here requests are made by size, tried again with growing pauses, and wait on disk."""


class Unlike(ConfigError):
    """An output that no sink is like."""


def sink(reader: SectionReader, name: str, namespace: str, tag: str = "") -> tuple[Entry, Entry]:
    """Return the entry of ``logs.sinks`` named *name* for the output of *reader*, a sidecar in *namespace*
    (empty: not known), and what its buffer says for ``logs.buffer``. *tag*: of its events, empty where it has a
    file's path in it. Raises Unlike.
    """
    make = _KINDS.get(reader.type)
    if make is None:
        raise Unlike(
            f"@type {reader.type}: no sink is like it; there are {', '.join(sorted(_KINDS))}, which become "
            "elasticsearch, loki, forward, file and stdout"
        )
    kind, settings = make(reader, name)
    if "index" in settings:
        settings["index"] = _tagged(settings["index"], tag, reader)
    made: Entry = {"name": name, kind: _of_namespace(settings, namespace, reader)}
    if timeout := reader.get("request_timeout", _seconds):
        made["timeoutSeconds"] = timeout
    buffer = _buffer(reader)
    reader.needless(
        "flush_interval", "buffer_type", "buffer_path", "num_threads", "reconnect_on_error", "reload_on_failure"
    )
    list(reader.sections("inject"))
    list(reader.sections("format"))
    reader.finish()
    return made, buffer


def _tagged(index: str, tag: str, reader: SectionReader) -> str:
    """Return *index* with Fluentd's *tag* in its place: here a tag says which pod and file it is, of any."""
    if "{tag}" in index and not tag:
        reader.note(
            "${tag}: is kube.NAMESPACE.POD.CONTAINER here: an index for each container; {namespace} or {label:NAME} in "
            "index makes fewer"
        )
    return index.replace("{tag}", tag.lower()) if tag else index


def tell_of_tags(reader: SectionReader) -> None:
    """Say that events of another tag than the first come to the output of *reader*, where that makes a difference."""
    texts = [value.text for value in reader.section.values.values()]
    if any("${tag}" in text for text in texts):
        reader.note("${tag}: events of several tags come here: the index is that of the first; a sink each keeps them")


def _of_namespace(settings: Entry, namespace: str, reader: SectionReader) -> Entry:
    """Return *settings* with the names of Services as the node's agent has to write them."""

    def named(address: str) -> str:
        match = re.fullmatch(r"((?:https?://)?)([a-z][a-z0-9-]*)((?::\d+)?(?:/.*)?)", address)
        if match is None or not namespace or match[2] == "localhost":
            return address
        reader.note(f"{match[2]}: a Service of the pod's namespace: the agent writes {match[2]}.{namespace}.svc")
        return f"{match[1]}{match[2]}.{namespace}.svc{match[3]}"

    return {
        key: [named(each) for each in value] if key in ("urls", "addresses") else value
        for key, value in settings.items()
    }


def _buffer(reader: SectionReader) -> Entry:
    found: Entry = {}
    for each in reader.sections("buffer"):
        each.needless(*_BUFFERED)
        total = each.size("total_limit_size") or each.size("queue_limit_size")
        if total:
            found["bytes"] = total
        overflow = each.text("overflow_action")
        if overflow == "drop_oldest_chunk":
            found["full"] = "dropOldest"
        for gives_up in ("retry_timeout", "retry_max_times"):
            each.differs(
                gives_up, "is not taken: what a sink does not take is tried until it does, or until the buffer is full"
            )
        list(each.sections("secondary"))
        each.finish()
    for each in reader.sections("secondary"):
        each.note("<secondary>: is not taken: what a sink refuses goes to its dead-letter file")
    return found


def _elasticsearch(reader: SectionReader, name: str) -> tuple[str, Entry]:
    found: Entry = {"urls": _urls(reader), "index": _index(reader)}
    _login(reader, name, found)
    _tls(reader, found)
    reader.needless(
        *("type_name", "reload_connections", "reload_after", "resurrect_after", "bulk_message_request_threshold"),
        *(
            "include_timestamp",
            "compression_level",
            "suppress_type_name",
            "log_es_400_reason",
            "default_elasticsearch_version",
        ),
        *("verify_es_version_at_startup", "max_retry_get_es_version", "max_retry_putting_template", "time_key_format"),
        *("sniffer_class_name", "http_backend", "prefer_oj_serializer", "logstash_prefix_separator", "utc_index"),
        *("slow_flush_log_threshold", "ssl_version", "default_opensearch_version", "write_operation", "id_key"),
    )
    if reader.truth("include_tag_key"):
        reader.note("include_tag_key: is not taken: records say namespace, pod, container and file instead")
    reader.needless("tag_key", "time_key")
    return "elasticsearch", found


def _urls(reader: SectionReader) -> list[str]:
    scheme = reader.text("scheme") or "http"
    port = reader.text("port") or "9200"
    path = (reader.text("path") or "").strip("/")
    hosts = reader.get("hosts", listed) or [reader.text("host") or ""]
    urls = []
    for host in hosts:
        if not host:
            reader.note("host: is not known: put the server into urls")
            host = "elasticsearch.invalid"
        if "@" in host:
            reader.note("hosts: a user and password in a URL are not taken: name a file under auth.basic")
            before, _, host = host.rpartition("@")
            host = f"{before.partition('://')[0]}://{host}" if "://" in before else host
        if "://" in host:
            urls.append(host)
        else:
            authority = _authority(host, port)
            urls.append(f"{scheme}://{authority}" + (f"/{path}" if path else ""))
    return urls


def _authority(host: str, port: str) -> str:
    """Return *host* with *port*, unless it has one; an IPv6 address has brackets."""
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host}]:{port}"
    return host if ":" in host.rpartition("]")[2] else f"{host}:{port}"


def _index(reader: SectionReader) -> str:
    """Return the index as a template; with logstash_format, a day is a part of its name."""
    if reader.truth("logstash_format"):
        prefix = reader.text("logstash_prefix") or "logstash"
        date = reader.text("logstash_dateformat") or _DATE
        reader.needless("index_name")
        text = f"{prefix}-{_INDEX_DATES.get(date, date)}"
    else:
        text = reader.text("index_name") or "fluentd"
    for old, new in _PLACES.items():
        text = text.replace(old, new)
    text = re.sub(r"\$\{record\['?kubernetes'?\]\['?(namespace|pod|container)_name'?\]\}", r"{\1}", text)
    for left in dict.fromkeys(_UNKNOWN.findall(text)):
        reader.note(f"index_name: {shown(left)} is not known here; there are {', '.join(_PLACES)}")
        text = text.replace(left, "x")
    return text.lower()


def _put_into(file: str) -> str:
    return (
        f"put it into {file}, for nobody but user 1337 to read: agent.yaml holds no secret (on a cluster: into the "
        f"Secret nodeagent-logs, and name {file.replace(SECRETS, CLUSTER_SECRETS)})"
    )


def _login(reader: SectionReader, name: str, found: Entry) -> None:
    user = reader.text("user") or reader.text("username")
    if not user and (reader.given("user") or reader.given("username")):
        user = "unknown"
        reader.note("user: is not known: put it into auth.basic.user")
    if not user and reader.given("password"):
        reader.note("password: is not taken: no user stands beside it; auth.basic has both")
    if user:
        file = f"{SECRETS}/{name}-password"
        reader.needless("password")
        reader.note(f"password: {_put_into(file)}")
        found["auth"] = {"basic": {"user": user, "passwordFile": file}}


def _tls(reader: SectionReader, found: Entry) -> None:
    ours = {"ca_file": "caFile", "client_cert": "certificateFile", "client_key": "keyFile", "cert": "certificateFile"}
    ours |= {"key": "keyFile", "ca_cert": "caFile", "tls_ca_cert_path": "caFile", "tls_cert_path": "caFile"}
    ours |= {"tls_client_cert_path": "certificateFile", "tls_client_private_key_path": "keyFile"}
    tls = {}
    for name, here in ours.items():
        if path := reader.text(name):
            tls[here] = path
            reader.note(f"{name}: {shown(path)}: put the file there on the node: it stood in Fluentd's container")
    for name in ("ssl_verify", "tls_verify_hostname"):
        if not reader.truth(name, default=True):
            reader.note(
                f"{name} false: is not taken: a server's certificate is always checked: name its CA as tls.caFile"
            )
    if tls:
        found["tls"] = tls


def _forward(reader: SectionReader, name: str) -> tuple[str, Entry]:
    addresses = []
    for server in reader.sections("server"):
        addresses.append(_authority(server.text("host") or "host.invalid", server.text("port") or "24224"))
        server.needless("name", "weight", "standby")
        for each in ("username", "password", "shared_key"):
            server.differs(each, "is not taken: all servers have one user, passwordFile and sharedKeyFile here")
        server.finish()
    reader.note(
        "records come with the tag kube.NAMESPACE.POD.CONTAINER, not with the source's: let the receiver's <match> and "
        "<filter> take kube.**"
    )
    found: Entry = {"addresses": addresses}
    security = reader.one("security")
    security.needless("self_hostname", "allow_anonymous_source", "user_auth")
    if security.section.values.get("shared_key") is not None:
        security.needless("shared_key")
        file = f"{SECRETS}/{name}-shared-key"
        security.note(f"shared_key: {_put_into(file)}")
        found["sharedKeyFile"] = file
    security.finish()
    _tls(reader, found)
    if reader.text("transport") == "tls":
        found.setdefault("tls", {})
    reader.needless(
        *(
            "require_ack_response",
            "ack_response_timeout",
            "send_timeout",
            "recover_wait",
            "hard_timeout",
            "expire_dns_cache",
        ),
        *("heartbeat_type", "heartbeat_interval", "phi_failure_detector", "phi_threshold", "keepalive"),
        *(
            "keepalive_timeout",
            "dns_round_robin",
            "ignore_network_errors_at_startup",
            "tls_version",
            "tls_allow_self_signed_cert",
        ),
        *("verify_connection_at_startup", "connect_timeout", "time_as_integer", "compress", "tls_insecure_mode"),
    )
    list(reader.sections("service_discovery"))
    return "forward", found


def _loki(reader: SectionReader, name: str) -> tuple[str, Entry]:
    found: Entry = {"urls": [reader.text("url") or "http://loki.invalid:3100"]}
    if tenant := reader.text("tenant"):
        found["tenant"] = tenant
    _login(reader, name, found)
    _tls(reader, found)
    for each in ("extra_labels", "remove_keys", "line_format", "extract_kubernetes_labels"):
        reader.differs(each, "is not taken: labels are namespace, container and node; see labels of a loki sink")
    for label in reader.sections("label"):
        label.note("<label>: is not taken: labels are namespace, container and node; see labels of a loki sink")
    return "loki", found


def _file(reader: SectionReader, name: str) -> tuple[str, Entry]:
    path = reader.text("path") or f"/var/log/{name}"
    reader.note(f"path: {shown(path)}: is of the node here, not of Fluentd's container; one JSON object a line")
    reader.needless(
        "append", "compress", "recompress", "symlink_path", "add_path_suffix", "path_suffix", "time_slice_format"
    )
    text = re.sub(r"[.-]?(?:\$\{[^}]*\}|%[A-Za-z])+", "", path).removesuffix(".*")
    text = re.sub(r"//+", "/", text)
    text = f"{text}{name}" if text.endswith("/") else text
    return "file", {"path": text if text.endswith((".log", ".json")) else f"{text}.log"}


def _stdout(reader: SectionReader, name: str) -> tuple[str, Entry]:
    return "stdout", {}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(s|m|h|)", text)
    if match is None or not float(match[1]):
        raise ConfigError(f"{shown(text)}: a time such as 30s is expected")
    return float(match[1]) * {"m": 60, "h": 3600}.get(match[2], 1)


_KINDS: Final[Mapping[str, Callable[[SectionReader, str], tuple[str, Entry]]]] = {
    "elasticsearch": _elasticsearch,
    "elasticsearch_dynamic": _elasticsearch,
    "opensearch": _elasticsearch,
    "forward": _forward,
    "secure_forward": _forward,
    "loki": _loki,
    "file": _file,
    "stdout": _stdout,
}
