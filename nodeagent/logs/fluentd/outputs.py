"""A ``<match>`` (or a ``<store>`` of a copy) as a sink of ``logs.sinks``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent.errors import ConfigError, shown
from nodeagent.logs.fluentd.parameters import BUFFER, ELASTICSEARCH, FILE, FORWARD, LOKI, OUTPUT, SECURITY, SERVER
from nodeagent.logs.fluentd.reading import Entry, SectionReader
from nodeagent.logs.fluentd.values import listed

SECRETS: Final = "/etc/nodeagent/logs"
"""Where files with secrets are expected that a configuration has in clear."""
CLUSTER_SECRETS: Final = "/var/run/secrets/logs"
"""Where daemonset/components/logs has them, in the Secret nodeagent-logs."""
_PLACES: Final = {"%Y": "{year}", "%m": "{month}", "%d": "{day}", "${tag}": "{tag}", "${hostname}": "{node}"}
_UNKNOWN: Final = re.compile(r"\$\{[^}]*\}|%[A-Za-z]|(?<!\{)<<?[a-z]+>")
_DATE: Final = "%Y.%m.%d"
_UNTOLD: Final = "unknown"
"""In an index, for what has no name here."""
_RUN: Final = re.compile(r"%[A-Za-z](?:[-._/]?%[A-Za-z])*")
"""Parts of a date."""
_RETAGS: Final = {
    "detect_exceptions": "nodeagent.io/log-multiline on a pod joins the lines of an exception",
    "concat": "nodeagent.io/log-multiline on a pod joins lines",
    **dict.fromkeys(
        ("rewrite_tag_filter", "rewrite", "retag", "route", "label_router", "record_reformer", "parser"),
        "records go where their pod's route says (logs.routes), whatever is in them; rules drop and redact",
    ),
}
"""Outputs that give events another tag, and what does the like here."""


class Unlike(ConfigError):
    """An output that no sink is like."""


def sink(reader: SectionReader, name: str, namespace: str, tag: str = "") -> tuple[Entry, Entry]:
    """Return the entry of ``logs.sinks`` named *name* for the output of *reader*, a sidecar in *namespace*
    (empty: not known), and what its buffer says for ``logs.buffer``. *tag*: of its events, empty where it has a
    file's path in it. Raises Unlike.
    """
    make = _KINDS.get(reader.type)
    if reader.type in _RETAGS:
        raise Unlike(
            f"@type {reader.type}: is not taken, so that what comes to it is not delivered: {_RETAGS[reader.type]}"
        )
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
    for each in reader.sections("format"):
        if each.type != "json":
            each.note("<format>: is not taken: a record is a JSON object")
        else:
            each.finish()
    reader.finish(OUTPUT)
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
        total = each.size("total_limit_size") or each.size("queue_limit_size")
        if total:
            found["bytes"] = total
        overflow = each.text("overflow_action")
        if overflow == "drop_oldest_chunk":
            found["full"] = "dropOldest"
        elif overflow not in (None, "block", "throw_exception"):
            each.differs("overflow_action", "is not taken: logs.buffer.full is block or dropOldest")
        each.finish(BUFFER)
    return found


def _elasticsearch(reader: SectionReader, name: str) -> tuple[str, Entry]:
    found: Entry = {"urls": _urls(reader), "index": _index(reader)}
    _login(reader, name, found)
    _tls(reader, found)
    reader.by(ELASTICSEARCH)
    return "elasticsearch", found


def _urls(reader: SectionReader) -> list[str]:
    scheme = reader.text("scheme") or "http"
    port = reader.text("port") or "9200"
    path = (reader.text("path") or "").strip("/")
    hosts = reader.get("hosts", listed) or [reader.text("host") or ""]
    urls = []
    for host in hosts:
        if not host:
            reader.note("host: is not known: put the server into urls", lost=True)
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
        separator = reader.text("logstash_prefix_separator")
        reader.needless("index_name")
        text = f"{prefix}{'-' if separator is None else separator}{date}"
    else:
        text = reader.text("index_name") or "fluentd"
        reader.needless("logstash_prefix", "logstash_dateformat", "logstash_prefix_separator")
    text = _RUN.sub(lambda run: _dated(run[0], reader), text)
    for old, new in _PLACES.items():
        text = text.replace(old, new)
    text = re.sub(r"\$\{record\['?kubernetes'?\]\['?(namespace|pod|container)_name'?\]\}", r"{\1}", text)
    for left in dict.fromkeys(_UNKNOWN.findall(text)):
        reader.note(
            f"index_name: {shown(left)} is not known here, and {_UNTOLD} stands there; there are {', '.join(_PLACES)}, "
            "and {namespace}, {container} and {label:NAME}"
        )
        text = text.replace(left, _UNTOLD)
    return text.lower()


def _dated(run: str, reader: SectionReader) -> str:
    """Return *run*, parts of a date, as a template has them; one that is not known makes an index for each day."""
    if run == _DATE:
        return "{date}"
    unknown = [each for each in re.findall("%[A-Za-z]", run) if each not in _PLACES]
    if unknown:
        reader.note(
            f"index_name: {shown(run)}: {', '.join(unknown)} is not known here, where days, months and years are: "
            "there is an index for each day ({date})"
        )
        return "{date}"
    return run


def _put_into(file: str) -> str:
    return (
        f"put it into {file}, for nobody but user 1337 to read: agent.yaml holds no secret (on a cluster: into the "
        f"Secret nodeagent-logs, and name {file.replace(SECRETS, CLUSTER_SECRETS)})"
    )


def _login(reader: SectionReader, name: str, found: Entry) -> None:
    user = reader.text("user") or reader.text("username")
    if not user and (reader.given("user") or reader.given("username")):
        user = _UNTOLD
        reader.note("user: is not known: put it into auth.basic.user", lost=True)
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
    ours |= {"ca_cert_path": "caFile"}
    tls = {}
    for name, here in ours.items():
        if path := reader.text(name):
            tls[here] = path
            reader.note(f"{name}: {shown(path)}: put the file there on the node: it stood in Fluentd's container")
    if tls:
        found["tls"] = tls


def _forward(reader: SectionReader, name: str) -> tuple[str, Entry]:
    addresses = []
    for server in reader.sections("server"):
        addresses.append(_authority(server.text("host") or "host.invalid", server.text("port") or "24224"))
        server.finish(SERVER)
    for discovery in reader.sections("service_discovery"):
        discovery.note("<service_discovery>: is not taken: put its servers into addresses", lost=True)
    if not addresses:
        raise Unlike(f"@type {reader.type}: no <server> stands in it: addresses of a forward sink are needed")
    reader.note(
        "records come with the tag kube.NAMESPACE.POD.CONTAINER, not with the source's: let the receiver's <match> and "
        "<filter> take kube.**"
    )
    found: Entry = {"addresses": addresses}
    security = reader.one("security")
    if security.section.values.get("shared_key") is not None:
        security.needless("shared_key")
        file = f"{SECRETS}/{name}-shared-key"
        security.note(f"shared_key: {_put_into(file)}")
        found["sharedKeyFile"] = file
    security.finish(SECURITY)
    _tls(reader, found)
    if reader.text("transport") == "tls" or reader.type == "secure_forward":
        found.setdefault("tls", {})
    reader.by(FORWARD)
    return "forward", found


def _loki(reader: SectionReader, name: str) -> tuple[str, Entry]:
    found: Entry = {"urls": [reader.text("url") or "http://loki.invalid:3100"]}
    if tenant := reader.text("tenant"):
        found["tenant"] = tenant
    _login(reader, name, found)
    _tls(reader, found)
    reader.by(LOKI)
    return "loki", found


def _file(reader: SectionReader, name: str) -> tuple[str, Entry]:
    path = reader.text("path") or f"/var/log/{name}"
    reader.note(
        f"path: {shown(path)}: is of the node here, not of Fluentd's container; one JSON object a line; on a cluster "
        "it has to be mounted: what is below /var/lib/nodeagent/logs/sinks is"
    )
    reader.by(FILE)
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
