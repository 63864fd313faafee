"""Files that sinks are configured by, read again when they change: passwords, tokens, certificates."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from nodeagent.errors import NodeagentError
from nodeagent.logs.sinks.settings import SinkAuth, SinkTls

MAX_SECRET: Final = 64 << 10
"""Bytes of a secret's file."""
_Made = TypeVar("_Made")
_Stamp = tuple[tuple[int, int, int], ...]


class SinkError(NodeagentError):
    """A sink cannot be asked, or what it answers is no answer; says why and what to do, never a secret."""


class MadeOfFiles(Generic[_Made]):
    """What is made of files, made again when one of them is another or has changed."""

    def __init__(self, paths: list[Path], make: Callable[[], _Made]) -> None:
        self._paths = paths
        self._make = make
        self._made: tuple[_Stamp, _Made] | None = None

    def get(self) -> _Made:
        """Return it. Raises SinkError when a file cannot be read or used."""
        try:
            # A file that a Secret's volume renews is another inode.
            stamp = tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in map(os.stat, self._paths))
            if self._made is None or self._made[0] != stamp:
                self._made = (stamp, self._make())
            return self._made[1]
        except OSError as error:
            raise SinkError(
                f"{error.filename or self._paths[0]}: {error.strerror or error}; it must exist, and the collector's "
                "user must be able to read it"
            ) from None


def secret(path: Path) -> str:
    """Return what *path* holds, without white space at its ends. Raises SinkError and OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_SECRET + 1)
    text = content.decode("utf-8", "replace").strip()
    if len(content) > MAX_SECRET or not text or not text.isprintable() or "\ufffd" in text:
        raise SinkError(f"{path}: one line of at most {MAX_SECRET} bytes is expected, of printable characters")
    return text


def header_secret(path: Path) -> str:
    """Return what *path* holds, as a header may have it. Raises SinkError and OSError."""
    value = secret(path)
    if not value.isascii():
        raise SinkError(f"{path}: a character that no header may have; ASCII is expected")
    return value


class Authorization:
    """The value of the header of that name."""

    def __init__(self, auth: SinkAuth) -> None:
        self._auth = auth
        paths = [auth.basic.password_file if auth.basic else None, auth.api_key_file, auth.bearer_file]
        given = [each for each in paths if each]
        self._value = MadeOfFiles(given, self._read) if given else None

    def value(self) -> str:
        """Return it; empty where nothing is to be said. Raises SinkError."""
        return self._value.get() if self._value else ""

    def _read(self) -> str:
        auth = self._auth
        if auth.basic:
            pair = f"{auth.basic.user}:{secret(auth.basic.password_file)}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        path = auth.api_key_file or auth.bearer_file
        assert path
        value = header_secret(path)
        return f"{'ApiKey' if auth.api_key_file else 'Bearer'} {value}"


class ClientTls:
    """The TLS that a sink is spoken to by."""

    def __init__(self, tls: SinkTls, alpn: str = "") -> None:
        self._tls = tls
        self._alpn = alpn
        paths = [each for each in (tls.ca_file, tls.certificate_file, tls.key_file) if each]
        self._context = MadeOfFiles(paths, self._make)

    @property
    def server_name(self) -> str:
        """What the certificate must say; empty: the host."""
        return self._tls.server_name

    def context(self) -> ssl.SSLContext:
        """Return it, of the files as they are now. Raises SinkError."""
        return self._context.get()

    def _make(self) -> ssl.SSLContext:
        tls = self._tls
        try:
            context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._alpn:
                context.set_alpn_protocols([self._alpn])
            if tls.certificate_file and tls.key_file:
                # Without a password the library would ask for one at the terminal.
                context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
        except ssl.SSLError as error:
            files = ", ".join(str(each) for each in (tls.ca_file, tls.certificate_file, tls.key_file) if each)
            raise SinkError(
                f"{files}: not usable ({error.reason or error}); PEM is expected, the key unencrypted and of the "
                "certificate"
            ) from None
        return context


def readable(error: BaseException) -> str:
    """Return what went wrong with a connection, in words, with what is likely behind it."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}; see tls.caFile and tls.serverName"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}; does it speak TLS at this port, and want a certificate?"
        case TimeoutError():
            return "no answer in time; it is busy, or the network does not lead there"
        case ConnectionRefusedError():
            return "refused: nothing listens there"
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case _:
            return str(error) or type(error).__name__
