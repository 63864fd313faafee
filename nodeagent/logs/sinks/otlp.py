"""An OpenTelemetry collector, by OTLP over gRPC (``LogsService/Export``).

Which answers are worth another try is OTLP's own list; being let in is waited for as well. A collector
may take a request in part and say how many records it refuses, but not which: these are counted.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from typing import Final, cast
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, Stream, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol

from nodeagent.grpc_answers import AnswerError, next_answer
from nodeagent.logs.records import LogOrigin, LogRecords
from nodeagent.logs.sinks.names import ServerNames
from nodeagent.logs.sinks.secrets import ClientTls, MadeOfFiles, SinkError, header_secret, readable
from nodeagent.logs.sinks.settings import OtlpSettings
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Payload, Taken, Untaken
from nodeagent.logs.sinks.times import nanoseconds, within
from nodeagent.protocols.otlp_logs_pb2 import (
    AnyValue,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
    KeyValue,
    LogRecord,
    Resource,
    ResourceLogs,
    ScopeLogs,
)

PATH: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
MAX_ANSWER: Final = 64 << 10
"""Bytes of an answer."""
FOR_EVER: Final = frozenset(
    {Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.ALREADY_EXISTS, Status.FAILED_PRECONDITION, Status.INTERNAL}
)
"""With these a request is refused for what is in it; all others are tried again."""
_LATEST: Final = (1 << 64) - 1
"""Nanoseconds since 1970 in 64 bits: in the year 2554."""
_TRACE: Final = re.compile(
    rb'"[tT]race[_.]?[iI][dD]"\s*:\s*"([0-9a-fA-F]{32})"|"traceparent"\s*:\s*"[0-9a-f]{2}-([0-9a-f]{32})-'
)
_SPAN: Final = re.compile(
    rb'"[sS]pan[_.]?[iI][dD]"\s*:\s*"([0-9a-fA-F]{16})"|"traceparent"\s*:\s*"[0-9a-f]{2}-[0-9a-f]{32}-([0-9a-f]{16})-'
)
"""As OpenTelemetry's, Jaeger's, .NET's and Elastic's libraries write them, and W3C's header."""


class OtlpSink:
    """A collector."""

    ordered: Final = False

    def __init__(self, name: str, settings: OtlpSettings, timeout: float) -> None:
        self.name: Final = name
        self._settings = settings
        self._timeout = timeout
        self._tls = None if settings.plaintext else ClientTls(settings.tls, alpn="h2")
        paths = list(settings.headers.values())
        self._metadata = MadeOfFiles(
            paths, lambda: [(key, header_secret(path)) for key, path in settings.headers.items()]
        )
        self._names = ServerNames()
        self._channel: tuple[ssl.SSLContext | None, Channel] | None = None

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as one request, a resource for each of its origins."""
        logs = [
            ResourceLogs(resource=_resource(each.origin), scope_logs=[ScopeLogs(log_records=_records(each))])
            for each in batch
        ]
        return Payload(batch, ExportLogsServiceRequest(resource_logs=logs).SerializeToString())

    async def send(self, payload: Payload) -> Outcome:
        """Call Export."""
        assert isinstance(payload.body, bytes)
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._export(payload.body)
        except GRPCError as error:
            return refusal(error.status, error.message or "")
        except (OSError, UnicodeError, SinkError, AnswerError) as error:
            await self.close()
            return Untaken(f"{self._settings.address}: {readable(error)}")
        except (StreamTerminatedError, ProtocolError, DecodeError) as error:
            await self.close()
            return Untaken(f"{self._settings.address}: the answer is not valid gRPC ({type(error).__name__})")
        rejected = max(0, answer.partial_success.rejected_log_records)
        return Taken(
            unnamed=min(rejected, sum(map(len, payload.batch))), why=answer.partial_success.error_message[:500]
        )

    async def close(self) -> None:
        """Close the connection."""
        if self._channel:
            self._channel[1].close()
            self._channel = None

    async def _export(self, body: bytes) -> ExportLogsServiceResponse:
        # grpclib's types want a message; the codec below takes bytes.
        method = UnaryUnaryMethod(self._connection(), PATH, Message, ExportLogsServiceResponse)
        metadata = self._metadata.get() if self._settings.headers else None
        stream: Stream[Message, ExportLogsServiceResponse]
        async with method.open(metadata=metadata) as stream:
            await stream.send_message(cast(Message, body), end=True)
            await stream.recv_initial_metadata()
            answer = await next_answer(stream, ExportLogsServiceResponse, MAX_ANSWER)
            await stream.recv_trailing_metadata()
        if answer is None:
            raise SinkError("the answer is empty")
        return answer

    def _connection(self) -> Channel:
        context = self._tls.context() if self._tls else None
        if self._channel and self._channel[0] is not context:
            # Certificates have changed.
            self._channel[1].close()
            self._channel = None
        if self._channel is None:
            parts = urlsplit(f"//{self._settings.address}")
            channel = _Channel(parts.hostname or "", parts.port or 0, context, self._tls, self._names)
            self._channel = (context, channel)
        return self._channel[1]


class _Channel(Channel):
    """A connection whose server's name is looked up as all sinks' are."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, tls: ClientTls | None, names: ServerNames
    ) -> None:
        super().__init__(host, port, ssl=context, codec=_Encoded())
        self._names = names
        # What the certificate must say; without it that is the host.
        self._server_name = (tls.server_name or host) if tls else None

    async def _create_connection(self) -> H2Protocol:
        _, protocol = await self._names.connect(
            self._host or "",
            lambda address: self._loop.create_connection(
                self._protocol_factory, address, self._port, ssl=self._ssl, server_hostname=self._server_name
            ),
        )
        return protocol


class _Encoded(CodecBase):
    """Requests are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message: object, message_type: object) -> bytes:
        del message_type
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: type[Message]) -> Message:
        return message_type.FromString(data)


def refusal(status: Status, message: str) -> Outcome:
    """Return what an error of that *status* means for the request."""
    said = f"{status.name}: {message[:500]}"
    if status is Status.RESOURCE_EXHAUSTED and "larger than max" in message:
        return Indivisible(said, too_large=True)
    if status in FOR_EVER:
        return Indivisible(said)
    if status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
        return Untaken(f"it does not let the agent in; see the sink's headers and tls: {said}")
    return Untaken(said)


def _resource(origin: LogOrigin) -> Resource:
    """Return *origin* under the names of OpenTelemetry's semantic conventions."""
    attributes = {
        "k8s.namespace.name": origin.namespace,
        "k8s.pod.name": origin.pod,
        "k8s.pod.uid": origin.uid,
        "k8s.container.name": origin.container,
        "k8s.node.name": origin.node,
        "log.file.path": origin.path,
        **{f"k8s.pod.label.{key}": value for key, value in origin.labels.items()},
    }
    return Resource(attributes=[_attribute(key, value) for key, value in attributes.items() if value])


def _records(records: LogRecords) -> list[LogRecord]:
    streams = {each: [_attribute("log.iostream", each.decode())] if each else [] for each in set(records.streams)}
    file = records.file.decode("ascii", "replace")
    result: list[LogRecord] = []
    columns = zip(records.offsets, records.times, records.streams, records.texts, records.objects, strict=True)
    for offset, time, stream, text, written in columns:
        trace = _TRACE.search(written)
        span = _SPAN.search(written)
        result.append(
            LogRecord(
                time_unix_nano=within(nanoseconds(time), _LATEST),
                body=AnyValue(string_value=text.decode()),
                attributes=[*streams[stream], _attribute("log.record.uid", f"{file}-{offset:x}")],
                trace_id=_number(trace),
                span_id=_number(span),
            )
        )
    return result


def _number(found: re.Match[bytes] | None) -> bytes:
    return bytes.fromhex((found[1] or found[2]).decode()) if found else b""


def _attribute(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
