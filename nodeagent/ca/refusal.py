"""Why a caller does not get a certificate."""

from __future__ import annotations

from typing import Literal

from nodeagent.errors import IdentityError

Status = Literal["UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE"]


class Refusal(IdentityError):
    """Goes to the caller as a gRPC status with these words; names no secret."""

    def __init__(self, status: Status, words: str) -> None:
        super().__init__(words)
        self.status: Status = status
