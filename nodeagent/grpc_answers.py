"""An answer over gRPC that is no longer than its reader allows: grpclib believes whatever length the
other side says, and reads that much.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import Message
from grpclib.client import Stream

from nodeagent.errors import NodeagentError

_Answer = TypeVar("_Answer", bound=Message)


class AnswerError(NodeagentError):
    """An answer is longer than is read, or compressed."""


async def next_answer(stream: Stream[Message, _Answer], answer: type[_Answer], most: int) -> _Answer | None:
    """Return *stream*'s next message, of at most *most* bytes; None where it has ended, and its
    trailers say why. Raises AnswerError, and what grpclib and protobuf raise.
    """
    with stream._wrapper:
        head = await stream._stream.recv_data(5)
        if not head:
            return None
        compressed, length = struct.unpack(">?I", head)
        if compressed or length > most:
            raise AnswerError("the answer is compressed" if compressed else f"the answer is longer than {most} bytes")
        return answer.FromString(await stream._stream.recv_data(length))
