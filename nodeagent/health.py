"""gRPC's health protocol (grpc.health.v1.Health/Check in plaintext), asked of an application that
may answer anything.
"""

from __future__ import annotations

import asyncio
from typing import Final

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.protocol import H2Protocol
from h2.config import H2Configuration

from nodeagent.mesh.declared import HEALTH_CHECK

CHECK: Final = HEALTH_CHECK
MAX_BYTES: Final = 64 << 10
"""Of all that an application may send: its settings, pings and answer."""


async def ask(host: str, port: int, service: str, source: tuple[str, int] | None = None) -> str:
    """Ask the gRPC server at *host*, *port* for the health of *service* (empty: of the server as a
    whole), from the address *source* (None: any). Return why it is not well, in words; empty: it is
    serving. Raises OSError when no connection can be made.
    """
    channel = _Bounded(host, port, source)
    try:
        method = UnaryUnaryMethod(channel, CHECK, HealthCheckRequest, HealthCheckResponse)
        status = (await method(HealthCheckRequest(service=service))).status
        if status == HealthCheckResponse.SERVING:
            return ""
        return f"grpc: {service or 'the server'} is {HealthCheckResponse.ServingStatus.Name(status)}"
    except GRPCError as error:
        return f"grpc: status {error.status.name}"
    except StreamTerminatedError:
        return (
            f"grpc: more than {MAX_BYTES} bytes of answer"
            if channel.taken > MAX_BYTES
            else "grpc: the connection was closed before the answer"
        )
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - the library asserts, and raises others' errors, on what is not gRPC
        return f"grpc: the answer is not valid ({type(error).__name__})"
    finally:
        channel.close()


class _Bounded(Channel):
    """A channel of one connection that is cut when the other side says too much: the library believes any length."""

    def __init__(self, host: str, port: int, source: tuple[str, int] | None) -> None:
        super().__init__(host, port)
        self._address = (host, port)
        self._source = source
        self._h2_config = H2Configuration(header_encoding="latin-1")  # any byte may stand in a field
        self.taken = 0

    async def _create_connection(self) -> H2Protocol:
        _, protocol = await asyncio.get_running_loop().create_connection(
            self._protocol_factory, *self._address, local_addr=self._source
        )
        return protocol

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        receive = protocol.data_received

        def bounded(data: bytes) -> None:
            self.taken += len(data)
            if self.taken > MAX_BYTES:
                protocol.processor.close("too much")
            else:
                receive(data)

        protocol.data_received = bounded  # type: ignore[method-assign]
        return protocol
