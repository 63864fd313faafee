"""Huffman's code of HPACK (RFC 7541 section 5.2 and appendix B), decoded a byte at a time.

Theory of operation
===================

The code is canonical: counted upwards, shorter codes first and equal ones by their symbol, so that
the lengths alone say everything. Its tree has 256 inner nodes. Where in the tree a byte of the
encoded string ends is the decoder's state; from each state each of the 256 bytes leads to one next
state, and passes one leaf, two or none on its way (the shortest code has 5 bits). Such a step is
walked when a string takes it for the first time, and looked up from then on: all that a peer can
make are 256 states of 256 steps.

A string ends with up to seven bits of padding, the first ones of EOS's code, which is all ones: the
states that may be the last are the root and the first seven on the way of ones. EOS itself must not
occur.
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
_PADDING_BITS: Final = 7


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


class _State:
    """Where a byte ended: at *node* of the tree. By the next byte: the state that follows, None before
    the first time, and what is decoded on the way there.
    """

    def __init__(self, node: int) -> None:
        self.node = node
        self.last = False
        """A string may end here."""
        self.following: list[_State | None] = [None] * 256
        self.decoded = [b""] * 256


_ROOT: Final = _State(0)
_states: Final = {0: _ROOT}
"""By node."""


def _state(node: int) -> _State:
    state = _states.get(node)
    if state is None:
        state = _states[node] = _State(node)
    return state


def _mark_last_states() -> None:
    node = 0
    for _ in range(_PADDING_BITS + 1):
        _state(node).last = True
        node = _TREE[2 * node + 1]


_mark_last_states()


def _step(state: _State, byte: int) -> _State:
    """Walk from *state* by *byte*, for the first time. Raises CompressionError."""
    node = state.node
    symbols = b""
    for place in range(7, -1, -1):
        node = _TREE[2 * node + (byte >> place & 1)]
        if node == ~EOS:
            raise CompressionError("a Huffman code holds EOS")
        if node < 0:
            symbols += _SYMBOLS[~node]
            node = 0
    following = state.following[byte] = _state(node)
    state.decoded[byte] = symbols
    return following


def decode(text: bytes) -> bytes:
    """Return what the Huffman code *text* stands for, at most 1.6 times as long. Raises CompressionError."""
    state = _ROOT
    parts: list[bytes] = []
    for at in range(len(text)):  # mypyc makes an object of each when it iterates over bytes
        byte = text[at]
        following = state.following[byte]
        if following is None:
            following = _step(state, byte)
        parts.append(state.decoded[byte])
        state = following
    if not state.last:
        raise CompressionError("a Huffman code ends with padding that is none")
    return b"".join(parts)
