"""Who a bearer token proves to be calling. A validator says nothing about tokens of other kinds;
nobody ever repeats the token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from nodeagent.ca.grants import Caller
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.settings import Account
from nodeagent.errors import IdentityError, ResourceError
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.resources import yaml_text
from nodeagent.sections import ConfigSection

MAX_TOKEN: Final = 16 << 10
MAX_FILE_BYTES: Final = 1 << 20
log = logging.getLogger("nodeagent.ca")
T = TypeVar("T")


class Validator(Protocol):
    """One kind of token."""

    async def validate(self, token: str) -> Caller | None:
        """Return who *token* proves; None: it is of another kind. Raises Refusal when it proves nothing."""


def bearer(header: str) -> str:
    """Return the token in an ``authorization`` header (RFC 6750, section 2.1). Raises Refusal."""
    scheme, _, token = header.partition(" ")
    if not header:
        raise Refusal("UNAUTHENTICATED", "no authorization header: Bearer TOKEN is expected")
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
        raise Refusal("UNAUTHENTICATED", f"authorization: Bearer TOKEN of at most {MAX_TOKEN} characters is expected")
    return token


async def validate(validators: Iterable[Validator], token: str) -> Caller:
    """Return who *token* proves to the first validator that knows its kind. Raises Refusal."""
    for validator in validators:
        caller = await validator.validate(token)
        if caller is not None:
            return caller
    raise Refusal("UNAUTHENTICATED", "the token is not known")


class WatchedFile(Generic[T]):
    """A file's meaning, read anew when the file changes; what was good last stays in force when the
    new content is wrong.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T], *, private: bool) -> None:
        """Read it. Raises IdentityError."""
        self._path = path
        self._parse = parse
        self._private = private
        self._stamp = self._stat()
        self._value = self._load()

    def get(self) -> T:
        """Return what the file says now."""
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._stamp = stamp
                self._value = self._load()
        except IdentityError as error:
            log.error("%s: what was read last stays in force", error)
        return self._value

    def _stat(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise IdentityError(f"{self._path}: {error.strerror}") from None
        if self._private and status.st_mode & 0o077:
            raise IdentityError(
                f"{self._path}: others than its owner may read or write it: chmod 600 it, and replace the tokens "
                "if they may have been copied"
            )
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _load(self) -> T:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise IdentityError(f"{self._path}: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise IdentityError(f"{self._path}: at most {MAX_FILE_BYTES} bytes are allowed")
        try:
            return self._parse(content)
        except IdentityError as error:
            raise IdentityError(f"{self._path}: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever it is, what was read last stays in force
            # Not its words: they may hold a token.
            raise IdentityError(f"{self._path}: cannot be read: {type(error).__name__}") from None


class _Row(ConfigSection):
    token: str
    account: Account
    node: str = ""


_ROWS: Final = TypeAdapter(list[_Row])


class StaticTokens:
    """Tokens from a file, for labs and tests. Compared by their hash, so that time tells nothing of them."""

    def __init__(self, path: Path, trust_domain: str) -> None:
        """Raises IdentityError."""
        self._trust_domain = trust_domain
        self._callers = WatchedFile(path, self._parse, private=True)

    async def validate(self, token: str) -> Caller | None:
        return self._callers.get().get(sha256(token.encode()).digest())

    def _parse(self, content: bytes) -> Mapping[bytes, Caller]:
        try:
            rows = _ROWS.validate_python(yaml_text.one(content.decode()))
        except (ResourceError, UnicodeDecodeError):
            raise IdentityError("not YAML") from None  # not the parser's words: they may hold a token
        except ValidationError as error:
            # Not the value: it may be a token.
            first = error.errors(include_url=False, include_input=False)[0]
            raise IdentityError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
        callers = {}
        for row in rows:
            namespace, _, name = row.account.partition("/")
            if len(row.token) < 16:
                raise IdentityError(f"the token of {row.account}: at least 16 characters are expected")
            callers[sha256(row.token.encode()).digest()] = Caller(
                spiffe_id(self._trust_domain, namespace, name), row.node
            )
        return callers
