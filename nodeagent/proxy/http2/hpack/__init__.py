"""HPACK, HTTP/2's compression of header fields (RFC 7541), by numbers into two tables.

The static table (``static.py``) is the RFC's; a dynamic one (``table.py``) grows from what one side
of a connection sent, and the other side follows: both must read every block, in order, or lose the
connection. ``decoder.py`` reads blocks, ``encoder.py`` writes them; ``integers.py`` and
``huffman.py`` are the primitives of section 5.

Pure: bytes in, fields out. What a peer sends is hostile: no integer, string, list or table grows
beyond a bound, and each byte of a block costs a bounded time. Which fields a message may have is
nobody's business here: an upper-case name decodes as well as any.
"""
