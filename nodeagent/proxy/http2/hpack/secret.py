"""Values that no compression context may keep."""

from __future__ import annotations


class NeverIndexed(bytes):
    """A field's value whose sender wrote it as a never-indexed literal: guessing it by the size of
    what is compressed beside it must not become possible further down (RFC 7541 section 7.1.3), so
    an intermediary writes it in the same form (section 6.2.3). Otherwise bytes like any.

    A class of plain Python: mypyc compiles no subclass of bytes.
    """

    __slots__ = ()
