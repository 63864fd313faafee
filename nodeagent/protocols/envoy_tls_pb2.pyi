from nodeagent.protocols import envoy_core_pb2 as _envoy_core_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Secret(_message.Message):
    __slots__ = ("name", "tls_certificate", "validation_context")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TLS_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    tls_certificate: TlsCertificate
    validation_context: CertificateValidationContext
    def __init__(self, name: _Optional[str] = ..., tls_certificate: _Optional[_Union[TlsCertificate, _Mapping]] = ..., validation_context: _Optional[_Union[CertificateValidationContext, _Mapping]] = ...) -> None: ...

class TlsCertificate(_message.Message):
    __slots__ = ("certificate_chain", "private_key")
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    certificate_chain: _envoy_core_pb2.DataSource
    private_key: _envoy_core_pb2.DataSource
    def __init__(self, certificate_chain: _Optional[_Union[_envoy_core_pb2.DataSource, _Mapping]] = ..., private_key: _Optional[_Union[_envoy_core_pb2.DataSource, _Mapping]] = ...) -> None: ...

class CertificateValidationContext(_message.Message):
    __slots__ = ("trusted_ca",)
    TRUSTED_CA_FIELD_NUMBER: _ClassVar[int]
    trusted_ca: _envoy_core_pb2.DataSource
    def __init__(self, trusted_ca: _Optional[_Union[_envoy_core_pb2.DataSource, _Mapping]] = ...) -> None: ...
