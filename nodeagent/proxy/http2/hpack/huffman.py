"""Huffman's code of HPACK (RFC 7541 section 5.2 and appendix B), decoded a byte at a time.

Theory of operation
===================

The code is canonical: counted upwards, shorter codes first and equal ones by their symbol, so that
the lengths alone say everything. Its tree has 256 inner nodes. Where in the tree a byte of the
encoded string ends is the decoder's state; from each state each of the 256 bytes leads to one next
state, and passes one leaf, two or none on its way (the shortest code has 5 bits). That is a row of
256 steps a state, made when the first string comes by there: usual strings touch few of them, all
that a peer can make are 256 rows, and no peer's bytes cost more than the look-up.

A string ends with up to seven bits of padding, the first ones of EOS's code, which is all ones: the
states that may be the last are the root and the first seven on the way of ones. EOS itself must not
occur, nor what is longer than it needs to be.
"""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.http2.hpack.errors import CompressionError

# fmt: off
LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
)
# fmt: on
"""How many bits the code of each symbol has; the last symbol is EOS."""
EOS: Final = 256
_NO_STATE: Final = -1
_PADDING_BITS: Final = 7

_Row = tuple[list[int], list[bytes]]
"""By byte: the next state, and what was decoded on the way there."""


def _tree() -> list[int]:
    """Return the tree: at twice a node's number its child by 0, then its child by 1; nodes from the
    root, which is 0; symbols below zero, ``~symbol``.
    """
    tree = [0, 0]
    code = 0
    bits = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(LENGTHS)):
        code <<= length - bits
        bits = length
        _plant(tree, code, length, symbol)
        code += 1
    return tree


def _plant(tree: list[int], code: int, length: int, symbol: int) -> None:
    node = 0
    for place in range(length - 1, 0, -1):
        edge = 2 * node + (code >> place & 1)
        if tree[edge] == 0:
            tree[edge] = len(tree) // 2
            tree += [0, 0]
        node = tree[edge]
    tree[2 * node + (code & 1)] = ~symbol


_TREE: Final = _tree()
_SYMBOLS: Final = [bytes((symbol,)) for symbol in range(256)]
_rows: Final[list[_Row | None]] = [None] * (len(_TREE) // 2)


def _last_states() -> frozenset[int]:
    states = [0]
    for _ in range(_PADDING_BITS):
        states.append(_TREE[2 * states[-1] + 1])
    return frozenset(states)


_LAST: Final = _last_states()


def _row(state: int) -> _Row:
    """Return the row of *state*, made now and kept."""
    following: list[int] = []
    decoded: list[bytes] = []
    for byte in range(256):
        end, symbols = _step(state, byte)
        following.append(end)
        decoded.append(symbols)
    row = _rows[state] = (following, decoded)
    return row


def _step(node: int, byte: int) -> tuple[int, bytes]:
    symbols = b""
    for place in range(7, -1, -1):
        node = _TREE[2 * node + (byte >> place & 1)]
        if node == ~EOS:
            return _NO_STATE, b""
        if node < 0:
            symbols += _SYMBOLS[~node]
            node = 0
    return node, symbols


def decode(text: bytes) -> bytes:
    """Return what the Huffman code *text* stands for, at most 1.6 times as long. Raises CompressionError."""
    state = 0
    parts: list[bytes] = []
    for byte in text:
        row = _rows[state]
        if row is None:
            row = _row(state)
        state = row[0][byte]
        if state < 0:
            raise CompressionError("a Huffman code holds EOS")
        parts.append(row[1][byte])
    if state not in _LAST:
        raise CompressionError("a Huffman code ends with padding that is none")
    return b"".join(parts)
