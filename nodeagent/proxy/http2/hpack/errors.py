"""What can be wrong with a header block."""

from __future__ import annotations


class CompressionError(ValueError):
    """The block cannot be read, so the tables of both sides differ from here on: the connection ends
    with COMPRESSION_ERROR (RFC 9113 section 4.3). Says what is wrong.
    """


class ListTooLarge(ValueError):
    """The block was read, and the table is right, but its fields are more than the limits allow: the
    request is answered with 431 (RFC 9113 section 10.5.1), the connection goes on.
    """
