"""The OTLP sink against grpcio's server, which is independent of grpclib's client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpclib.const import Status

from nodeagent.identity.ca import CertificateAuthority
from nodeagent.logs.sinks.otlp import OtlpSink, refusal
from nodeagent.logs.sinks.settings import OtlpSettings
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Taken, Untaken
from nodeagent.protocols.otlp_logs_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from tests.fakes.serving import Method, serve
from tests.unit.logs.made_records import records
from tests.waiting import DEADLINE

EXPORT = Method(
    "opentelemetry.proto.collector.logs.v1.LogsService", "Export", ExportLogsServiceRequest, ExportLogsServiceResponse
)


class Collector:
    def __init__(self) -> None:
        self.requests: list[ExportLogsServiceRequest] = []
        self.metadata: dict[str, str | bytes] = {}
        self.answer = ExportLogsServiceResponse()
        self.status: tuple[grpc.StatusCode, str] | None = None

    def export(self, request: ExportLogsServiceRequest, context: grpc.ServicerContext) -> ExportLogsServiceResponse:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.status:
            context.abort(*self.status)
        return self.answer


@pytest.fixture
def collector() -> Iterator[tuple[Collector, int]]:
    found = Collector()
    server, port = serve(EXPORT, found.export)
    yield found, port
    server.stop(0).wait()


def sent(port: int, *batches: Any, **more: Any) -> list[Outcome]:
    async def test() -> list[Outcome]:
        settings = OtlpSettings.model_validate({"address": f"127.0.0.1:{port}", "plaintext": True, **more})
        sink = OtlpSink("otlp", settings, 5)
        outcomes = [await sink.send(sink.encode(each)) for each in batches]
        await sink.close()
        return outcomes

    return asyncio.run(asyncio.wait_for(test(), DEADLINE))


def test_records_have_resource_time_text_and_trace(collector: tuple[Collector, int], tmp_path: Path) -> None:
    found, port = collector
    (tmp_path / "key").write_text("hunter2\n")
    trace = "0af7651916cd43dd8448eb211c80319c"
    batch = [records(["a", {"msg": "b", "trace_id": trace, "span_id": "b7ad6b7169203331"}])]
    assert sent(port, batch, headers={"x-api-key": str(tmp_path / "key")}) == [Taken()]
    [logs] = found.requests[0].resource_logs
    resource = {each.key: each.value.string_value for each in logs.resource.attributes}
    assert resource == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-1",
        "k8s.pod.uid": "uid-web-1",
        "k8s.container.name": "app",
        "k8s.node.name": "node1",
        "k8s.pod.label.app": "web",
    }
    first, second = logs.scope_logs[0].log_records
    assert (first.body.string_value, first.time_unix_nano) == ("a", 1795946400 * 10**9)
    assert {each.key: each.value.string_value for each in second.attributes} == {
        "log.iostream": "stdout",
        "log.record.uid": "f00d-64",
    }
    assert (second.trace_id.hex(), second.span_id.hex()) == (trace, "b7ad6b7169203331")
    assert found.metadata["x-api-key"] == "hunter2"


def test_a_token_that_no_header_may_have_is_named_and_not_shown(
    collector: tuple[Collector, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, port = collector
    (tmp_path / "key").write_text("s3crét-TOKEN")
    [outcome] = sent(port, [records(["a"])], headers={"authorization": str(tmp_path / "key")})
    assert isinstance(outcome, Untaken) and "ASCII is expected" in outcome.why
    assert "TOKEN" not in outcome.why and "TOKEN" not in caplog.text


def test_the_name_that_a_certificate_must_have_may_be_another(tmp_path: Path) -> None:
    authority = CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local")
    certificate = authority.issue_server(("collector.test",), 3600)
    (tmp_path / "roots").write_bytes(authority.roots_pem)
    credentials = grpc.ssl_server_credentials([(certificate.key_pem, certificate.chain_pem)])
    server, port = serve(EXPORT, Collector().export, credentials=credentials)
    tls = {"caFile": str(tmp_path / "roots")}
    [wrong] = sent(port, [records(["a"])], plaintext=False, tls=tls)
    assert isinstance(wrong, Untaken) and "certificate is not trusted" in wrong.why
    assert sent(port, [records(["a"])], plaintext=False, tls={**tls, "serverName": "collector.test"}) == [Taken()]
    server.stop(0).wait()


def test_what_a_collector_refuses_without_naming_it_is_counted(collector: tuple[Collector, int]) -> None:
    found, port = collector
    found.answer = ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=7, error_message="too long")
    )
    assert sent(port, [records(["a", "b"])]) == [Taken(unnamed=2, why="too long")]


def test_errors_of_a_real_server(collector: tuple[Collector, int]) -> None:
    found, port = collector
    found.status = (grpc.StatusCode.UNAVAILABLE, "starting")
    assert sent(port, [records(["a"])]) == [Untaken("UNAVAILABLE: starting")]
    found.status = (grpc.StatusCode.INVALID_ARGUMENT, "no")
    assert sent(port, [records(["a"])]) == [Indivisible("INVALID_ARGUMENT: no")]
    [outcome] = sent(port, [records(["x" * 5_000_000])])
    assert isinstance(outcome, Indivisible) and outcome.too_large


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_a_meaning(status: Status) -> None:
    lasting = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "INTERNAL"}
    assert isinstance(refusal(status, "m"), Indivisible if status.name in lasting else Untaken)


def test_nobody_and_nonsense_are_tried_again() -> None:
    async def serve_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(serve_nonsense, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = OtlpSettings.model_validate({"address": f"127.0.0.1:{port}", "plaintext": True})
        sink = OtlpSink("otlp", settings, 5)
        assert isinstance(await sink.send(sink.encode([records(["a"])])), Untaken)
        server.close()
        await server.wait_closed()
        outcome = await sink.send(sink.encode([records(["a"])]))
        assert isinstance(outcome, Untaken) and str(port) in outcome.why
        await sink.close()

    asyncio.run(asyncio.wait_for(test(), DEADLINE))


@pytest.mark.parametrize(
    ("trace", "span"),
    [("trace_id", "span_id"), ("traceId", "spanId"), ("TraceId", "SpanId"), ("traceID", "spanID"),
     ("trace.id", "span.id"), ("traceparent", "")],
)  # fmt: skip
def test_trace_and_span_by_the_names_that_libraries_have(trace: str, span: str) -> None:
    numbers = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    members = {trace: numbers[0], span: numbers[1]} if span else {trace: f"00-{'-'.join(numbers)}-01"}
    sink = OtlpSink("x", OtlpSettings(address="x:1", plaintext=True), 5)
    body = sink.encode([records([members])]).body
    assert isinstance(body, bytes)
    (found,) = ExportLogsServiceRequest.FromString(body).resource_logs[0].scope_logs[0].log_records
    assert (found.trace_id.hex(), found.span_id.hex()) == numbers
