"""Which sink a configuration means. A kind's libraries are imported where it is configured only."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeagent.logs.sinks.settings import SinkSettings
from nodeagent.logs.sinks.sink import LogSink


def make_sink(settings: SinkSettings, clock: Callable[[], float] = time.time) -> LogSink:
    """Return the sink that *settings* describe; nothing is connected or opened yet. *clock* tells seconds since
    1970.
    """
    timeout = settings.timeout_seconds
    if settings.elasticsearch:
        from nodeagent.logs.sinks.elasticsearch import ElasticsearchSink

        return ElasticsearchSink(settings.name, settings.elasticsearch, timeout, clock)
    if settings.loki:
        from nodeagent.logs.sinks.loki import LokiSink

        return LokiSink(settings.name, settings.loki, timeout)
    if settings.otlp:
        from nodeagent.logs.sinks.otlp import OtlpSink

        return OtlpSink(settings.name, settings.otlp, timeout)
    if settings.forward:
        from nodeagent.logs.sinks.forward import ForwardSink

        return ForwardSink(settings.name, settings.forward, timeout)
    from nodeagent.logs.sinks.files import FileSink, StdoutSink

    if settings.file:
        return FileSink(settings.name, settings.file, timeout)
    return StdoutSink(settings.name, timeout)
