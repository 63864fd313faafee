"""Every metric of the daemon, declared once: name, kind, labels, help.

The ``istio_*`` families carry Istio's names, labels and buckets exactly, so that existing
dashboards and alerts work; the ``nodeagent_*`` families are the daemon's own state. Nothing else in
the program writes a metric's name or a label's name.

Source: Istio "Standard Metrics"; histogram buckets are Envoy's defaults, which Istio leaves alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
"""Label values, in the order in which the metric declares its labels."""
Reporter = Literal["source", "destination"]

REPORTERS: Final[tuple[Reporter, ...]] = ("source", "destination")
UNKNOWN: Final = "unknown"
"""What Istio says where a value is missing."""
SERIES_LIMIT: Final = 5_000
"""Bound on HTTP and on TCP series each: what applications make up (status codes) must not fill the daemon's memory."""
SERIES_PER_POD: Final = 500
"""Of those that a worker keeps, for the traffic that one pod of the node opens or takes: what a pod
makes up costs others none of theirs.
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: counters end in ``_total``."""

    name: str
    kind: Kind
    labels: Labels
    help: str


_SIDE = (
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "canonical_service",
    "canonical_revision",
    "cluster",
)
PEER_LABELS: Final[Labels] = (
    *(f"source_{name}" for name in _SIDE),
    *(f"destination_{name}" for name in _SIDE),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "connection_security_policy",
)
"""What is constant for a pair of workloads and a Service; see ``nodeagent.telemetry.labels``."""
HTTP_LABELS: Final[Labels] = (
    *PEER_LABELS,
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
)
TCP_LABELS: Final[Labels] = (*PEER_LABELS, "request_protocol", "response_flags")
MESSAGE_LABELS: Final[Labels] = TCP_LABELS
"""A call's messages are counted while it goes on, when nobody knows its status."""
SECURITY_POLICY: Final = PEER_LABELS.index("connection_security_policy")

BUCKETS: Final[tuple[float, ...]] = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
    *(30000, 60000, 300000, 600000, 1800000, 3600000),
)
"""Upper bounds, inclusive, of every istio_* histogram, whatever its unit."""

_HTTP = ("reporter", *HTTP_LABELS)
_TCP = ("reporter", *TCP_LABELS)

REQUESTS = Metric("istio_requests_total", "counter", _HTTP, "HTTP requests handled.")
REQUEST_DURATION = Metric("istio_request_duration_milliseconds", "histogram", _HTTP, "Duration of HTTP requests.")
REQUEST_BYTES = Metric("istio_request_bytes", "histogram", _HTTP, "Sizes of HTTP requests.")
RESPONSE_BYTES = Metric("istio_response_bytes", "histogram", _HTTP, "Sizes of HTTP responses.")
TCP_OPENED = Metric("istio_tcp_connections_opened_total", "counter", _TCP, "TCP connections opened.")
TCP_CLOSED = Metric("istio_tcp_connections_closed_total", "counter", _TCP, "TCP connections closed.")
TCP_SENT = Metric("istio_tcp_sent_bytes_total", "counter", _TCP, "Bytes sent in responses of TCP connections.")
TCP_RECEIVED = Metric(
    "istio_tcp_received_bytes_total", "counter", _TCP, "Bytes received in requests of TCP connections."
)
REQUEST_MESSAGES = Metric("istio_request_messages_total", "counter", _TCP, "Messages that clients sent in gRPC calls.")
RESPONSE_MESSAGES = Metric(
    "istio_response_messages_total", "counter", _TCP, "Messages that servers sent in gRPC calls."
)
ISTIO_BUILD = Metric(
    "istio_build", "gauge", ("component", "tag"), "Build of the component that reports Istio's metrics; always 1."
)

BUILD_INFO = Metric("nodeagent_build_info", "gauge", ("version", "python", "node"), "Version of the daemon; always 1.")
CONFIG_FAULTS = Metric(
    "nodeagent_config_faults", "gauge", (), "What of agent.yaml is wrong or not in force; `nodeagent ready` says what."
)
ENROLLED_PODS = Metric("nodeagent_enrolled_pods", "gauge", (), "Pods of this node whose traffic is captured.")
FAULTY_PODS = Metric(
    "nodeagent_faulty_pods", "gauge", (), "Enrolled pods whose capture differs from what it should be."
)
NODE_PODS = Metric(
    "nodeagent_node_pods",
    "gauge",
    ("state",),
    "Pods of this node by what was decided: captured, awaited (unusable: they run, but not as the agent can use), "
    "left alone or undecided.",
)
HEARTBEAT_AGE = Metric(
    "nodeagent_heartbeat_age_seconds",
    "gauge",
    (),
    "How long ago the daemon beat last; the kernel takes it for dead after redirect.heartbeatTimeoutSeconds.",
)
MEMORY = Metric(
    "nodeagent_memory_bytes",
    "gauge",
    ("process",),
    "Memory of the supervisor, control and the workers together; pages that they share are divided among them (PSS).",
)
REPAIRS = Metric("nodeagent_repairs_total", "counter", ("fault",), "Faults of capture found by the check and repaired.")
CONTAINER_STARTS = Metric(
    "nodeagent_container_starts_total",
    "counter",
    ("outcome",),
    "Containers about which the runtime asked: of pods that were captured or left alone already (known), for which it "
    "waited (awaited), that started unknown, as none waits for ever (unknown), or that are in the mesh and were not "
    "captured in time: the kubelet tries these again (refused).",
)
MAP_ENTRIES = Metric("nodeagent_map_entries", "gauge", ("map",), "Entries in use in a BPF map.")
MAP_CAPACITY = Metric("nodeagent_map_capacity", "gauge", ("map",), "Entries that a BPF map can hold.")
KERNEL_EVENTS = Metric("nodeagent_kernel_events_total", "counter", ("event",), "Decisions of the BPF programs.")
LOOP_LAG = Metric(
    "nodeagent_event_loop_lag_seconds",
    "gauge",
    ("worker",),
    "Longest delay of a worker's event loop since its last report.",
)
BUSY_POLL = Metric(
    "nodeagent_busy_poll_ratio",
    "gauge",
    ("worker",),
    "Part of its time that a worker spent looking for its next event, since its last report.",
)
OPEN_CONNECTIONS = Metric(
    "nodeagent_open_connections", "gauge", ("worker",), "Connections that a worker holds for pods."
)
CONNECTIONS = Metric(
    "nodeagent_connections_total", "counter", ("direction", "path"), "Captured connections by the path that they took."
)
REFUSED = Metric(
    "nodeagent_refused_connections_total",
    "counter",
    ("reason",),
    "Connections and requests that the proxy refused or failed.",
)
POLICY_EVENTS = Metric(
    "nodeagent_policy_events_total",
    "counter",
    ("workload", "policy", "event"),
    "What policies decided: deny, audit, dry_run_allow, dry_run_deny, jwt_refused, external_denied, "
    "rate_limited, closed.",
)
POLICY_TROUBLES = Metric(
    "nodeagent_policy_troubles",
    "gauge",
    (),
    "Policies that are refused, or ask somebody who cannot answer, each told in words by readiness and `get policies`.",
)
KERNEL_HTTP_UNKNOWN = Metric(
    "nodeagent_kernel_http_unknown_total",
    "counter",
    ("destination_workload", "destination_workload_namespace", "reason"),
    "HTTP requests of kernel-path flows, at least, that the kernel could not follow: they are in no istio_* series.",
)
KERNEL_LEFT_OUT = Metric(
    "nodeagent_kernel_path_left_out",
    "gauge",
    (),
    "Ports and ClusterIPs that should be on the kernel path and take the proxy because a BPF map is full.",
)
CERTIFICATE_EXPIRY = Metric(
    "nodeagent_certificate_expiry_timestamp_seconds",
    "gauge",
    ("identity",),
    "When a workload's certificate ends, Unix time.",
)
WORKER_RESTARTS = Metric(
    "nodeagent_worker_restarts_total", "counter", ("worker",), "Workers that died and were replaced."
)
SNAPSHOT_ENTRIES = Metric(
    "nodeagent_snapshot_entries", "gauge", ("kind",), "Entries of the snapshot that workers decide by."
)
LOG_DROPPED = Metric(
    "nodeagent_access_log_dropped_total", "counter", (), "Access log lines lost: the disk was too slow, full or gone."
)
DRAIN_CUT = Metric(
    "nodeagent_drain_cut_connections_total",
    "counter",
    (),
    "Connections that were still open when a worker's time to drain was over.",
)
REJECTED = Metric(
    "nodeagent_telemetry_rejected_total",
    "counter",
    ("cause",),
    "Reports of workers that were malformed or over the bound on series.",
)
CA_REQUESTS = Metric(
    "nodeagent_ca_requests_total",
    "counter",
    ("code",),
    "Requests for certificates by the gRPC code of the answer: OK is issued, INTERNAL failed, each other refused.",
)
CA_LOOKS = Metric(
    "nodeagent_ca_looks_total",
    "counter",
    ("result",),
    "Looks of the authority at where its keys are kept and what is trusted: right, or failed.",
)
WEBHOOK_REVIEWS = Metric(
    "nodeagent_webhook_reviews_total",
    "counter",
    ("result", "reason"),
    "Admission reviews: injected, skipped, denied, or refused as no valid review.",
)
WEBHOOK_REGISTRATIONS = Metric(
    "nodeagent_webhook_registrations_total", "counter", ("result",),
    "Looks at the MutatingWebhookConfiguration that found its caBundle right, repaired it, or failed.",
)  # fmt: skip

_LOG_POD = ("namespace", "pod")
_LOG_SINK = ("sink", *_LOG_POD)
LOG_LINES = Metric("nodeagent_log_lines_read_total", "counter", _LOG_POD, "Lines read from files of logs.")
LOG_BYTES = Metric("nodeagent_log_bytes_read_total", "counter", _LOG_POD, "Bytes read from files of logs.")
LOG_BYTES_LOST = Metric(
    "nodeagent_log_bytes_lost_total",
    "counter",
    _LOG_POD,
    "Bytes of removed or damaged files of logs that could not be read any more.",
)
LOG_LINES_CUT = Metric(
    "nodeagent_log_lines_cut_total",
    "counter",
    _LOG_POD,
    "Pieces cut from lines that are longer than logs.limits allow.",
)
LOG_RECORDS = Metric("nodeagent_log_records_total", "counter", _LOG_POD, "Records made of lines, for all their sinks.")
LOG_PARSE_FAILURES = Metric(
    "nodeagent_log_parse_failures_total",
    "counter",
    _LOG_POD,
    "Lines kept as text, as their parser cannot read them.",
)
LOG_FILTERED = Metric(
    "nodeagent_log_records_filtered_total",
    "counter",
    (*_LOG_POD, "reason"),
    "Records that went to no sink: by a rule, over a pod's rate, or empty.",
)
LOG_OFFERED = Metric(
    "nodeagent_log_records_offered_total",
    "counter",
    _LOG_SINK,
    "Records that a sink is to have: delivered, dropped, dead-lettered, or waiting.",
)
LOG_DELIVERED = Metric("nodeagent_log_records_delivered_total", "counter", _LOG_SINK, "Records that a sink has taken.")
LOG_RETRIED = Metric(
    "nodeagent_log_records_retried_total", "counter", _LOG_SINK, "How often a record was sent to a sink again."
)
LOG_RECORDS_DROPPED = Metric(
    "nodeagent_log_records_dropped_total",
    "counter",
    (*_LOG_SINK, "reason"),
    "Records that a sink never got, by reason.",
)
LOG_DEAD_LETTERED = Metric(
    "nodeagent_log_records_dead_lettered_total",
    "counter",
    _LOG_SINK,
    "Records that a sink refused for good; they are in the dead-letter file of logs.stateDirectory.",
)
LOG_RETURNED = Metric(
    "nodeagent_log_records_returned_total",
    "counter",
    _LOG_SINK,
    "Records that a collector had not settled when it ended: the next one offers them again.",
)
LOG_WAITING = Metric(
    "nodeagent_log_records_waiting",
    "gauge",
    ("sink",),
    "Records waiting for a sink: in memory, under way, on disk.",
)
LOG_BUFFERED = Metric(
    "nodeagent_log_buffered_bytes", "gauge", ("sink",), "Bytes on disk that wait for a sink (logs.buffer)."
)
LOG_LAG_BYTES = Metric(
    "nodeagent_log_lag_bytes", "gauge", _LOG_POD, "Bytes of a pod's log files that are not read yet."
)
LOG_LAG_SECONDS = Metric(
    "nodeagent_log_lag_seconds", "gauge", _LOG_POD, "For how long something in a pod's log files has been unread."
)
LOG_FILES = Metric("nodeagent_log_files", "gauge", (), "Files of logs that are open.")
LOG_TROUBLES = Metric(
    "nodeagent_log_troubles",
    "gauge",
    (),
    "What keeps logs from sinks or from the disk at the moment, each told in words by readiness and `get logs`.",
)
LOG_SINK_FAILING = Metric(
    "nodeagent_log_sink_failing",
    "gauge",
    ("sink",),
    "1: a sink takes nothing, or nothing of a pod, or its buffer or dead-letter file cannot be written or read; or it "
    "is none any more and has records on disk.",
)
LOG_RESTARTS = Metric(
    "nodeagent_log_collector_restarts_total",
    "counter",
    (),
    "Collectors of logs that died and were replaced.",
)
LOG_FAMILIES: Final = (
    *(LOG_LINES, LOG_BYTES, LOG_BYTES_LOST, LOG_LINES_CUT, LOG_RECORDS, LOG_PARSE_FAILURES, LOG_FILTERED),
    *(LOG_OFFERED, LOG_DELIVERED, LOG_RETRIED, LOG_RECORDS_DROPPED, LOG_DEAD_LETTERED, LOG_RETURNED),
)
"""Counters of the logs' collector: who is of a pod that is gone ends with it."""

HTTP_FAMILIES: Final = (REQUEST_DURATION, REQUEST_BYTES, RESPONSE_BYTES)
"""Histograms in the order in which a HttpCell keeps them; REQUESTS is the duration's count."""
TCP_FAMILIES: Final = (TCP_OPENED, TCP_CLOSED, TCP_SENT, TCP_RECEIVED)
"""Counters in the order in which a TcpCell keeps them."""
MESSAGE_FAMILIES: Final = (REQUEST_MESSAGES, RESPONSE_MESSAGES)
"""Counters in the order in which a MessageCell keeps them."""
PLAIN: Final = {
    metric.name: metric
    for metric in (
        *(
            ISTIO_BUILD,
            BUILD_INFO,
            CONFIG_FAULTS,
            ENROLLED_PODS,
            FAULTY_PODS,
            NODE_PODS,
            HEARTBEAT_AGE,
            MEMORY,
            REPAIRS,
            CONTAINER_STARTS,
            MAP_ENTRIES,
            MAP_CAPACITY,
            KERNEL_EVENTS,
            LOOP_LAG,
            BUSY_POLL,
            OPEN_CONNECTIONS,
        ),
        *(CONNECTIONS, REFUSED, POLICY_EVENTS, POLICY_TROUBLES, KERNEL_HTTP_UNKNOWN, KERNEL_LEFT_OUT),
        *(CERTIFICATE_EXPIRY, WORKER_RESTARTS, SNAPSHOT_ENTRIES, LOG_DROPPED, DRAIN_CUT, REJECTED),
        *(CA_REQUESTS, CA_LOOKS, WEBHOOK_REVIEWS, WEBHOOK_REGISTRATIONS),
        *LOG_FAMILIES,
        *(LOG_WAITING, LOG_BUFFERED, LOG_LAG_BYTES, LOG_LAG_SECONDS, LOG_FILES, LOG_RESTARTS),
        *(LOG_TROUBLES, LOG_SINK_FAILING),
    )
}
"""Families with one number a series, by name."""


def reported(reporter: str, labels: Labels) -> Labels:
    """Return the full label values of a series that *reporter* tells of; *labels* are those of
    HTTP_LABELS, TCP_LABELS or MESSAGE_LABELS.

    A client's proxy does not know what the server's will accept: Istio has it say ``unknown`` for
    the security policy, and dashboards count on it.
    """
    if reporter == "source":
        labels = (*labels[:SECURITY_POLICY], UNKNOWN, *labels[SECURITY_POLICY + 1 :])
    return (reporter, *labels)
