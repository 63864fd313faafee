"""A summary such as a full comparison writes. The numbers are made up by formulas: test data, measured nowhere."""

from __future__ import annotations

from typing import Any

COST = {
    "direct": 1.0,
    "haproxy": 1.9,
    "envoy-hop": 2.4,
    "envoy": 5.2,
    "sidecar": 4.6,
    "nodeagent": 1.8,
    "nodeagent-kernel": 1.02,
    "nodeagent-bypass": 0.6,
}
"""Times the direct one's latency."""
STREAMS = ("bulk", "bulk-cross-node", "h2-bulk")
WORKLOADS = (
    *("http", "http-authz", "tcp", "tcp-churn", "bulk", "chain5", "cross-node", "cross-node-churn"),
    "bulk-cross-node",
    *("h2", "h2-many", "h2-cross-node", "h2-bulk", "grpc", "grpc-stream"),
)


def percentiles(cost: float, rate: float) -> list[list[float]]:
    tail = 1.1 + rate / 20_000 * cost
    return [[round(100 * (1 - 10 ** (-step / 8)), 5), round(90 * cost * tail ** (step / 5), 1)] for step in range(41)]


def run(mode: str, workload: str, connections: int, rate: float | None = None) -> dict[str, Any]:
    cost = COST[mode] * (1.4 if "cross" in workload else 1) * (5 if workload == "chain5" else 1)
    requests = rate or round(11_000 / cost * min(connections, 8) ** 0.5, 1)
    bits = round(30e9 / cost) if workload in STREAMS else None
    main = bits or requests
    latencies = (
        {}
        if bits
        else {
            "p50": 90 * cost * connections**0.6,
            "p90": 130 * cost * connections**0.6,
            "p99": 210 * cost * connections**0.7,
        }
    )
    return {
        "mode": mode,
        "variant": "",
        "workload": workload,
        "load": "open" if rate else "closed",
        "rate": rate,
        "connections": connections,
        "pods": 2,
        "requests_per_second": None if bits else requests,
        "bits_per_second": bits,
        "latency_us": latencies,
        "percentiles": percentiles(cost, rate) if rate else [],
        "cpu_us_per_request": None if bits else round(12 * cost, 2),
        "all_cpu_us_per_request": None if bits else round(12 * cost + 25, 2),
        "memory_bytes": round(20e6 * cost),
        "errors": 0,
        "lowest": main * 0.94,
        "highest": main * 1.05,
        "rounds": [main * 0.94, main, main * 1.05],
        "latency_rounds_us": {name: [value * 0.9, value, value * 1.2] for name, value in latencies.items()},
    }


def ratio(value: float, must: float, better: str, **more: Any) -> dict[str, Any]:
    reached = value >= must if better == "more" else value <= must
    return {
        "value": value,
        "lowest": value * 0.93,
        "highest": value * 1.08,
        "must": must,
        "aim": None,
        "better": better,
        "unit": "×",
        "reached": "must" if reached else "missed",
        "steady": True,
        "before": value * 1.04,
        **more,
    }


def summary() -> dict[str, Any]:
    runs = [
        run(mode, workload, connections)
        for workload in WORKLOADS
        for mode in COST
        for connections in ((1,) if workload in STREAMS else (1, 32))
    ]
    runs += [
        run(mode, workload, 32, rate)
        for workload in ("http", "cross-node")
        for mode in COST
        for rate in (500.0, 1000.0, 2000.0)
    ]
    runs.append({**run("nodeagent", "http", 32), "variant": "2 workers"})
    per_pod = {"envoy": (23e6, 0.2), "sidecar": (31e6, 0.15)}
    scale = [
        {
            "mode": mode,
            "pods": pods,
            "memory_bytes": size * pods + 30e6,
            "idle_cpu_percent": cpu * pods,
            "ready_seconds": 1 + pods / 50,
        }
        for mode, (size, cpu) in per_pod.items()
        for pods in (1, 10, 50, 100)
    ] + [
        {
            "mode": "nodeagent",
            "pods": pods,
            "memory_bytes": 45e6 + 6e4 * pods,
            "idle_cpu_percent": 0.1 + pods / 1000,
            "ready_seconds": 1.2,
        }
        for pods in (1, 10, 50, 100)
    ]
    return {
        "environment": {
            "date": "2000-01-01T00:00:00+00:00",
            "kernel": "0.0.0-test-data",
            "cpu": "Test data: no processor",
            "cores": 2,
            "memory_bytes": 8e9,
            "python": "3.11",
            "nodeagent": "0.0",
            "compiled": True,
            "envoy": "0.0",
            "haproxy": "0.0",
            "nginx": "0.0",
            "rounds": 3,
            "seconds": 2,
            "modes": list(COST),
        },
        "runs": runs,
        "ratios": {
            "same node, 32 connections, requests/s": ratio(2.89, 2.3, "more", aim=3.0),
            "same node, 1 connection, p50": ratio(0.35, 0.5, "less", aim=0.42, reached="aim"),
            "between nodes, mTLS, 32 connections, p99": ratio(1.2, 1.0, "less", steady=False),
            "chain of five, agent / direct, p50": ratio(1.8, 1.8, "less", before=1.4),
            "memory, 100 pods, agent / envoy": ratio(0.022, 0.02, "less", before=None),
        },
        "scale": scale,
        "claims": [
            {
                "claim": "latency a hop",
                "seed": "1-2 ms",
                "measured": {"envoy": "0.38 ms", "nodeagent": "0.07 ms", "nodeagent-kernel": "0.00 ms"},
            },
            {
                "claim": "five services",
                "seed": "5 ms → 15 ms",
                "measured": {"direct": "0.45 ms", "envoy": "2.3 ms", "nodeagent": "0.81 ms"},
            },
            {
                "claim": "100 pods",
                "seed": "10 cores, 12.5 GB",
                "measured": {"envoy": "0.2 cores, 2.3 GB", "nodeagent": "0.002 cores, 51 MB"},
            },
        ],
        "work": {
            "direct": {
                "does": ["answers the request"],
                "does_not": ["mTLS", "policy", "metrics", "access log"],
                "checked": [],
                "failed": [],
            },
            "envoy": {
                "does": [
                    "mutual TLS 1.3 between the two sidecars",
                    "policy of method, path and principal",
                    "metrics",
                    "an access log line a request",
                ],
                "does_not": [],
                "checked": [
                    "41,233 log lines for 41,233 requests",
                    "every connection at the server's Envoy by mutual TLS",
                ],
                "failed": [],
            },
            "nodeagent (2 workers)": {"does": ["as nodeagent"], "does_not": [], "checked": [], "failed": []},
            "nodeagent": {
                "does": ["policy of method, path and principal", "metrics", "an access log line a request"],
                "does_not": ["TLS between pods of one node: the kernel tells them apart"],
                "checked": ["119,161 log lines for 119,161 requests"],
                "failed": ["cross-node: 10 of 20 requests by mutual TLS"],
            },
        },
        "switches": [
            {
                "switch": switch,
                "setting": setting,
                "mode": mode,
                "workload": "http",
                "figure": "requests/s",
                "value": value,
                "unit": "/s",
                "against_default": change,
            }
            for switch, setting, mode, value, change in (
                ("buffer size", "32 KiB", "envoy", 2010.0, 0.98),
                ("buffer size", "32 KiB", "nodeagent", 6100.0, 1.01),
                ("connection pooling", "off", "envoy", 900.0, 0.45),
                ("connection pooling", "off", "nodeagent", 2800.0, 0.46),
                ("native sidecar", "on", "envoy", 2052.0, 1.0),
            )
        ],
        "micro": {"jwt_microseconds": 41.5},
        "missing": [{"what": "switch: tracing", "why": "joins with traces"}],
        "notes": ["Test data: measured nowhere."],
    }
