"""Which sink a configuration means. A kind's libraries are imported where it is configured only."""

from __future__ import annotations

from nodeagent.logs.sinks.settings import SinkSettings
from nodeagent.logs.sinks.sink import LogSink


def make_sink(settings: SinkSettings) -> LogSink:
    """Return the sink that *settings* describe; nothing is connected or opened yet."""
    if settings.elasticsearch:
        from nodeagent.logs.sinks.elasticsearch import ElasticsearchSink

        return ElasticsearchSink(settings.name, settings.elasticsearch, settings.timeout_seconds)
    from nodeagent.logs.sinks.files import FileSink, StdoutSink

    if settings.file:
        return FileSink(settings.name, settings.file)
    return StdoutSink(settings.name)
