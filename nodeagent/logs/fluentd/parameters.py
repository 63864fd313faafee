"""What becomes of the parameters of Fluentd's plugins that no code reads: one table a plugin. Whatever stands
in none of them, and is read by nobody, is named (:meth:`~nodeagent.logs.fluentd.reading.SectionReader.finish`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_TRUE: Final = ("true", "yes", "")
_FALSE: Final = ("false", "no")
_UTC: Final = "days and times without a zone are UTC's here"
_OF_PARSER: Final = "is not taken: the time is what the parser finds (timeKey of logs.parsers), or the line's own"
_BY_PLACE: Final = (
    "is not taken: a document's id comes from the line's place, and each record is a document of its own: nothing "
    "is updated or deleted"
)
_VERIFIED: Final = "is not taken: a server's certificate is always checked: name its CA as tls.caFile"
_ONE_FILE: Final = "is not taken: the file has one name, and is renamed to PATH.1 at bytes of the file sink"


@dataclass(frozen=True, slots=True)
class Parameters:
    """A plugin's, or a section's."""

    needless: tuple[str, ...] = ()
    """Of what is read, what a record has, and where it goes, nothing depends on them here."""
    same: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """With one of these values they ask for what is done here anyway; else why it is not."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """Why it is not as they ask for."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """The same of sections."""


TAIL: Final = Parameters(
    needless=(
        *("pos_file", "pos_file_compaction_interval", "refresh_interval", "skip_refresh_on_startup", "rotate_wait"),
        *("follow_inodes", "enable_watch_timer", "enable_stat_watcher", "open_on_every_update", "read_lines_limit"),
        *("multiline_flush_interval", "ignore_repeated_permission_error", "path_timezone"),
    ),
    same={
        "emit_unmatched_lines": (_TRUE, "is not taken: a line that its parser cannot read is delivered, as text"),
        "glob_policy": (("backward_compatible",), "is not taken: a path has * and ? alone; ** stands for any folders"),
    },
    differs={
        "limit_recently_modified": "is not taken: what is there is read, however old it is",
        "max_line_size": "is not taken: a longer line is cut at logs.limits.lineBytes, and not dropped",
        "read_bytes_limit_per_second": "is not taken: logs.limits.bytesPerSecondPerPod bounds a pod",
        "encoding": "is not taken: text is UTF-8 here; what is not is replaced",
        "from_encoding": "is not taken: text is UTF-8 here; what is not is replaced",
        "path_key": "is not taken: each record of a file has its path among its metadata",
    },
    sections={"group": "is not taken: logs.limits.bytesPerSecondPerPod bounds a pod"},
)
PARSE: Final = Parameters(
    needless=("json_parser", "stream_buffer_size", "timeout", "merge_cri_fields"),
    same={
        "time_type": (("string", "float", "unixtime"), "is not taken: timeFormat of a parser says one form of a time"),
        "utc": (_TRUE, _UTC),
        "localtime": (_FALSE, f"is not taken: {_UTC}: let what is written say its zone"),
        "timezone": (("UTC", "Z", "+00:00", "+0000"), f"is not taken: {_UTC}: let what is written say its zone"),
        "keep_time_key": (_TRUE, "is not taken: the member that says when stays in the record"),
        "null_empty_string": (_FALSE, "is not taken: an empty text stays one"),
        "estimate_current_event": (_TRUE, "is not taken: a line without a time has that of the line"),
    },
    differs={
        "types": "is not taken: members have the type that the line gives them; of an expression, text",
        "null_value_pattern": "is not taken",
        "time_format_fallbacks": "is not taken: a parser has one timeFormat",
    },
)
OUTPUT: Final = Parameters(
    needless=(
        *("flush_interval", "flush_at_shutdown", "buffer_type", "buffer_path", "num_threads"),
        *("slow_flush_log_threshold",),
    ),
    sections={
        "inject": "is not taken: records say where they come from (kubernetes.host, namespace_name, pod_name, "
        "container_name) and when (@timestamp)",
        "secondary": "is not taken: what a sink refuses goes to its dead-letter file, and what it does not take waits",
    },
)
"""Of all outputs."""
BUFFER: Final = Parameters(
    needless=(
        *("flush_interval", "flush_mode", "flush_at_shutdown", "flush_thread_count", "flush_thread_interval"),
        *("flush_thread_burst_interval", "delayed_commit_timeout", "chunk_limit_size", "chunk_limit_records"),
        *("chunk_full_threshold", "queue_limit_length", "queued_chunks_limit_size", "compress", "retry_wait"),
        *("retry_type", "retry_forever", "retry_exponential_backoff_base", "retry_max_interval", "retry_randomize"),
        *("timekey", "timekey_wait", "path", "path_suffix", "disable_chunk_backup", "retry_secondary_threshold"),
    ),
    same={"timekey_use_utc": (_TRUE, _UTC), "timekey_zone": (("UTC", "Z", "+00:00", "+0000"), _UTC)},
    differs=dict.fromkeys(
        ("retry_timeout", "retry_max_times"),
        "is not taken: what a sink does not take is tried until it does, or until the buffer is full",
    ),
    sections=OUTPUT.sections,
)
"""Here requests are made by size, tried again with growing pauses, and wait on disk."""
ELASTICSEARCH: Final = Parameters(
    needless=(
        *("reload_connections", "reload_on_failure", "reload_after", "resurrect_after", "reconnect_on_error"),
        *("bulk_message_request_threshold", "compression_level", "include_timestamp", "time_precision", "tag_key"),
        *("type_name", "suppress_type_name", "log_es_400_reason", "validate_client_version", "with_transporter_log"),
        *("default_elasticsearch_version", "default_opensearch_version", "verify_es_version_at_startup"),
        *("verify_os_version_at_startup", "max_retry_get_es_version", "max_retry_get_os_version"),
        *("max_retry_putting_template", "fail_on_putting_template_retry_exceed"),
        *("fail_on_detecting_es_version_retry_exceed", "fail_on_detecting_os_version_retry_exceed"),
        *("sniffer_class_name", "selector_class_name", "http_backend", "http_backend_excon_nonblock", "content_type"),
        *("prefer_oj_serializer", "include_index_in_url", "exception_backup", "ssl_version", "ssl_min_version"),
        *("ssl_max_version",),
    ),
    same={
        "utc_index": (_TRUE, "is not taken: the day of an index is UTC's here"),
        "write_operation": (("index", "create"), _BY_PLACE),
        "include_tag_key": (_FALSE, "is not taken: records say namespace, pod, container and file instead"),
        "ssl_verify": (_TRUE, f"false: {_VERIFIED}"),
    },
    differs={
        "id_key": _BY_PLACE,
        "time_key": _OF_PARSER,
        "time_key_format": _OF_PARSER,
        "time_key_exclude_timestamp": _OF_PARSER,
    },
)
FORWARD: Final = Parameters(
    needless=(
        *("require_ack_response", "ack_response_timeout", "send_timeout", "connect_timeout", "recover_wait"),
        *("hard_timeout", "expire_dns_cache", "heartbeat_type", "heartbeat_interval", "phi_failure_detector"),
        *("phi_threshold", "keepalive", "keepalive_timeout", "dns_round_robin", "verify_connection_at_startup"),
        *("ignore_network_errors_at_startup", "tls_version", "tls_ciphers", "compress"),
    ),
    same={
        "time_as_integer": (_FALSE, "is not taken: a time has fractions of a second (EventTime)"),
        "tls_insecure_mode": (_FALSE, _VERIFIED),
        "tls_allow_self_signed_cert": (_FALSE, _VERIFIED),
        "tls_verify_hostname": (_TRUE, f"false: {_VERIFIED}"),
    },
)
SERVER: Final = Parameters(
    needless=("name",),
    same={
        "standby": (_FALSE, "is not taken: all addresses are tried alike; leave it out of addresses to keep it free"),
        "weight": (("60",), "is not taken: all addresses are tried alike"),
    },
    differs=dict.fromkeys(
        ("username", "password", "shared_key"),
        "is not taken: all servers have one user, passwordFile and sharedKeyFile here",
    ),
)
SECURITY: Final = Parameters(needless=("self_hostname", "allow_anonymous_source", "user_auth"))
_LABELS: Final = "is not taken: labels are namespace, container and node; see labels of a loki sink"
LOKI: Final = Parameters(
    needless=("include_thread_label", "compress"),
    same={"insecure_tls": (_FALSE, _VERIFIED)},
    differs=dict.fromkeys(("extra_labels", "remove_keys", "line_format", "extract_kubernetes_labels"), _LABELS),
    sections={"label": _LABELS},
)
FILE: Final = Parameters(
    needless=("recompress",),
    differs=dict.fromkeys(
        ("append", "add_path_suffix", "path_suffix", "time_slice_format", "compress", "symlink_path"), _ONE_FILE
    ),
)
RECORD_TRANSFORMER: Final = Parameters(
    needless=("enable_ruby", "auto_typecast"),
    same={
        "renew_record": (_FALSE, "is not taken: a record keeps the members that the application wrote"),
    },
    differs={
        "remove_keys": "is not taken: a rule's redact hides what is in a member",
        "keep_keys": "is not taken: a record keeps the members that the application wrote",
        "renew_time_key": _OF_PARSER,
    },
)
PARSER_FILTER: Final = Parameters(
    needless=("reserve_time", "remove_key_name_field", "emit_invalid_record_to_error", "replace_invalid_sequence"),
)
KUBERNETES_METADATA: Final = Parameters(
    needless=(
        *("kubernetes_url", "apiVersion", "bearer_token_file", "ca_file", "verify_ssl", "client_cert", "client_key"),
        *("secret_dir", "ssl_partial_chain", "cache_size", "cache_ttl", "watch", "watch_retry_interval"),
        *("watch_retry_exponential_backoff_base", "watch_retry_max_times", "stats_interval", "open_timeout"),
        *("read_timeout", "tag_to_kubernetes_name_regexp", "use_journal", "allow_orphans", "lookup_from_k8s_field"),
    ),
    differs={
        "skip_labels": "is not taken: logs.metadata.labels says which a record has",
        "annotation_match": "is not taken: logs.metadata.annotations names them",
        "de_dot": "is not taken: logs.metadata.labels: flat has _ for dots",
    },
)
NONE: Final = Parameters()
